package framework

import (
	"net/http"
	"time"
)

// Layer says where a connection failed. Remedies go by layer.
type Layer string

// The layers, from the nearest to the farthest.
const (
	LayerProxyAuth     Layer = "proxy_auth"     // the proxy refuses our password
	LayerProxyCapacity Layer = "proxy_capacity" // the proxy has no slot for us
	LayerExit          Layer = "exit"           // the proxy or its exit is dead, or the line to it
	LayerIdentity      Layer = "identity"       // the exit leaves from another address: what was bound to the old one is lost
	LayerLimit         Layer = "limit"          // a cap of our own left no place
	LayerCredential    Layer = "credential"     // a login failed
	LayerConnect       Layer = "connect"        // the site's address cannot be reached
	LayerTarget        Layer = "target"         // the site answered, and not with the stream
	LayerStream        Layer = "stream"         // the open stream broke or ended
	LayerSilence       Layer = "silence"        // the open stream stopped without a word
)

// Cause names why a connection ended or could not be made. Causes are the keys
// of "reconnects" in the summary and are stable.
type Cause string

// The causes of a reconnect.
const (
	CauseEOF           Cause = "eof"            // the site closed the stream
	CauseBroken        Cause = "broken"         // the stream was cut or reset
	CauseSilence       Cause = "silence"        // nothing came for longer than the watch allows
	CauseQuiet         Cause = "quiet"          // bytes came but no events for longer than the watch allows
	CauseExpired       Cause = "expired"        // the credential was found dead: 401, or silence after its expiry
	CauseForbidden     Cause = "forbidden"      // 403 or a challenge page
	CauseRateLimited   Cause = "rate_limited"   // 429
	CauseServerError   Cause = "server_error"   // 5xx
	CauseBadAnswer     Cause = "bad_answer"     // another status, or not an event stream
	CauseCursor        Cause = "cursor_refused" // the site does not go on from the cursor
	CauseUnreachable   Cause = "unreachable"    // the site could not be reached
	CauseProxyAuth     Cause = "proxy_auth"     // the proxy refused our password
	CauseProxyCapacity Cause = "proxy_capacity" // the proxy had no slot
	CauseExit          Cause = "exit"           // the exit failed
	CauseIdentity      Cause = "identity_lost"  // the address behind the exit changed under the identity
	CauseLimit         Cause = "limit"          // a cap of our own on open streams
	CauseLogin         Cause = "login_failed"   // no credential could be obtained
	CauseRenewal       Cause = "renewal"        // planned: the credential was about to expire
	CauseLease         Cause = "lease_end"      // planned: the lease was about to end
	CauseGoAway        Cause = "goaway"         // planned: the site announced that it ends the connection
	CausePlanned       Cause = "planned"        // planned: asked for from outside
	CauseRestart       Cause = "restart"        // the program was stopped or died in between
	CauseSkipped       Cause = "skipped"        // not an end: the numbers jumped within a connection
)

// Outcome is how a connection ended, or why it could not be opened: what a
// [Classifier] judges.
type Outcome struct {
	Layer Layer
	// Status, Header and Body (its first 4 KiB) are the site's answer where
	// there was one.
	Status int
	Header http.Header
	Body   []byte
	// Err is the error as it came, never nil.
	Err error
	// Held is how long the connection was open, Events how many events it
	// brought.
	Held   time.Duration
	Events uint64
	// CredentialExpired tells that the credential's own clock had run out.
	CredentialExpired bool
	// Failures counts the connections in a row, this one included, that
	// brought no new event; Silences counts those among the last ones that ended
	// in silence.
	Failures, Silences int
	// Refused counts the connections in a row, this one included, that were
	// asked to go on from a cursor and came to this Layer and Status. It is 0
	// where this one was not, and for a while after the same has come to a
	// connection without a cursor: then it is not the cause.
	Refused int
}

// Remedy is what to do about an outcome.
type Remedy int

// The remedies.
const (
	// Auto leaves the choice to the engine ([Judge]).
	Auto Remedy = iota
	// Reconnect opens a new connection with the same identity.
	Reconnect
	// Reauthenticate gets a new credential through the same exit.
	Reauthenticate
	// Rotate makes a new identity: another exit and another credential.
	Rotate
	// Stop ends the stream for good; it is not an error (204, a finite
	// stream that is done).
	Stop
	// Fail ends the stream with the outcome's error: nothing the engine can
	// do will help, and trying again would do harm.
	Fail
	// Forget opens the next connection without the cursor, which the site
	// refuses for good: it begins where the site has newcomers begin. The
	// cursor is kept until the first new event has been appended, and if what
	// was refused is refused without it, too, it goes on being used. Where
	// Refused is 0 it does nothing: the engine's own remedy counts.
	Forget
)

// String returns the remedy's name as logs and tables show it.
func (r Remedy) String() string {
	return [...]string{"auto", "reconnect", "reauthenticate", "rotate", "stop", "fail", "forget"}[r]
}

// Verdict is the small value that travels back: what failed, in which layer,
// and what to do about it.
type Verdict struct {
	// Remedy is what to do; Auto takes the engine's.
	Remedy Remedy
	// Cause is the key under which the summary counts the reconnect; empty
	// takes the engine's. A classifier may name causes of its own: few, and
	// always the same.
	Cause Cause
	// Reason says in words what a person should know, in front of the error;
	// it must not hold a secret.
	Reason string
	// Wait is how long to wait at least before the next attempt (Retry-After);
	// backoff may lengthen it, never shorten it.
	Wait time.Duration
}
