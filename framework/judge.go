package framework

import (
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/ndjson"
	"github.com/holdline/scrape/internal/sse"
	"github.com/holdline/scrape/internal/transport"
	"github.com/holdline/scrape/proxies"
)

// outcomeOf finds the layer in which err arose.
func outcomeOf(err error) *Outcome {
	o := &Outcome{Layer: LayerStream, Err: err}
	var (
		dial  *proxies.DialError
		layer interface{ Layer() string } // the pool's other errors: no slot, no exit
		login *auth.LoginError
		hold  *auth.HoldError
		http  *HTTPError
		op    *net.OpError
		dns   *net.DNSError
		limit *LimitError
		lost  *auth.LostError
	)
	switch {
	case errors.As(err, &hold): // its chain repeats an old failure: first
		o.Layer = LayerCredential
	case errors.As(err, &limit):
		o.Layer = LayerLimit
	case errors.As(err, &http):
		o.Layer, o.Status, o.Header, o.Body = LayerTarget, http.Status, http.Header, http.Body
	case errors.As(err, &dial):
		// Found also inside a failed login: the exit is at fault, not the steps.
		o.Layer, o.Status, o.Header, o.Body = proxyLayer(dial.Layer()), dial.Status, dial.Header, dial.Body
	case errors.As(err, &login):
		o.Layer = LayerCredential
	case errors.As(err, &lost):
		o.Layer, o.Status = LayerCredential, lost.Status
	case errors.As(err, &layer):
		o.Layer = proxyLayer(layer.Layer())
	case errors.As(err, &op) && op.Op == "dial", errors.As(err, &dns):
		o.Layer = LayerConnect
	}
	return o
}

func proxyLayer(name string) Layer {
	switch name {
	case proxies.LayerAuth:
		return LayerProxyAuth
	case proxies.LayerCapacity:
		return LayerProxyCapacity
	case proxies.LayerTarget:
		return LayerConnect
	case proxies.LayerIdentity:
		return LayerIdentity
	default:
		return LayerExit
	}
}

// Judge is the engine's own answer to an outcome: remedies go by layer. A
// [Classifier] that knows its site better may call it for the rest.
func Judge(o *Outcome) Verdict {
	v := Verdict{Remedy: Reconnect, Wait: retryAfter(o)}
	switch o.Layer {
	case LayerProxyAuth:
		// Another exit with the same password would be refused as well, and
		// many attempts lock an account: the pool stops that provider. It has
		// an exit of another one for us, or we wait.
		v.Cause, v.Remedy = CauseProxyAuth, Rotate
	case LayerProxyCapacity:
		v.Cause = CauseProxyCapacity
	case LayerExit:
		v.Cause, v.Remedy = CauseExit, Rotate
	case LayerIdentity:
		// The credential was bound to an address that is gone.
		v.Cause, v.Remedy = CauseIdentity, Rotate
	case LayerLimit:
		v.Cause = CauseLimit
	case LayerCredential:
		v.Cause = CauseLogin
		var hold *auth.HoldError
		var login *auth.LoginError
		switch {
		case errors.As(o.Err, new(*auth.LostError)):
			v.Cause, v.Remedy = CauseExpired, Reauthenticate
		case errors.As(o.Err, &hold) && hold.Until.IsZero():
			v.Remedy = Fail
		case errors.As(o.Err, &hold):
			v.Wait = max(v.Wait, time.Until(hold.Until))
		case errors.As(o.Err, &login) && login.Fault == auth.FaultSetup:
			v.Remedy = Fail // no login will ever work on this machine as it is
		}
	case LayerConnect:
		v.Cause = CauseUnreachable
		if o.Failures >= 3 {
			v.Remedy = Rotate // it may be the way and not the site
		}
	case LayerTarget:
		return judgeAnswer(o, v)
	case LayerSilence:
		v.Cause = CauseSilence
		switch {
		case o.CredentialExpired:
			v.Cause, v.Remedy = CauseExpired, Reauthenticate
		case o.Silences == 2:
			v.Remedy = Rotate
		}
		// From the third on the feed is quiet, not dead: only the clock grows.
	default:
		v.Cause = CauseBroken
		if errors.Is(o.Err, io.EOF) {
			v.Cause = CauseEOF
		}
		switch {
		case errors.Is(o.Err, ErrDone):
			v.Remedy = Stop
		case goingAway(o.Err):
			v.Cause = CauseGoAway
		case errors.Is(o.Err, sse.ErrMaxEvent), errors.Is(o.Err, ndjson.ErrMaxValue):
			v.Remedy = Fail // the same event would come again
		case o.CredentialExpired:
			v.Cause, v.Remedy = CauseExpired, Reauthenticate
		}
	}
	return v
}

// judgeAnswer judges an answer of the site that is not the stream.
func judgeAnswer(o *Outcome, v Verdict) Verdict {
	switch {
	case o.Status == http.StatusUnauthorized:
		v.Cause, v.Remedy = CauseExpired, Reauthenticate
	case o.Status == http.StatusForbidden:
		v.Cause, v.Remedy = CauseForbidden, Rotate
	case o.Status == http.StatusProxyAuthRequired: // a plain-text proxy answers in the site's place
		v.Cause = CauseProxyAuth
	case o.Status == http.StatusTooManyRequests:
		v.Cause = CauseRateLimited
	case o.Status >= 500:
		v.Cause = CauseServerError
	case o.Status == http.StatusGone && o.Refused > 0, doubtful(o.Status) && o.Refused >= maxRefusals:
		v.Cause, v.Remedy = CauseCursor, Forget
	case o.Status == http.StatusOK:
		// A page in the stream's place is most often a login page.
		v.Cause, v.Remedy = CauseBadAnswer, Reauthenticate
	default:
		v.Cause = CauseBadAnswer
	}
	if e := (*HTTPError)(nil); errors.As(o.Err, &e) && e.Verdict.Remedy != Auto {
		v.Wait = max(v.Wait, e.Verdict.Wait)
		switch {
		case e.Verdict.Remedy != Forget:
			v.Remedy = e.Verdict.Remedy
		case o.Refused > 0:
			v.Cause, v.Remedy = CauseCursor, Forget
		}
	}
	return v
}

// goingAway tells whether the site had announced the end of the connection.
func goingAway(err error) bool {
	_, h2 := errors.AsType[*transport.GoAwayError](err)
	return h2 || errors.Is(err, ErrGoAway)
}

// maxRetryAfter bounds what a site can make us wait.
const maxRetryAfter = time.Hour

func retryAfter(o *Outcome) time.Duration {
	var told interface{ RetryAfter() time.Duration } // the pool knows better than a header
	if errors.As(o.Err, &told) {
		return min(max(told.RetryAfter(), 0), maxRetryAfter)
	}
	return auth.RetryAfter(o.Header)
}
