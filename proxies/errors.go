package proxies

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The layers in which a dial can fail. Remedies go by layer.
const (
	LayerAuth     = "proxy-auth"     // the proxy refuses our user name, password or account: stop this account, tell the user
	LayerCapacity = "proxy-capacity" // the proxy is there and has no room for us: wait
	LayerExit     = "exit"           // the proxy, or its way out, does not work: take another exit
	LayerTarget   = "target"         // the proxy works and the destination was refused, by the proxy's rules or by itself
	LayerIdentity = "identity"       // the address behind the exit is not the one it was: what was bound to it is lost, make a new identity
)

// ErrExhausted is wrapped by the error of Pool.Lease when no exit may be used now. See ExhaustedError.
var ErrExhausted = errors.New("no exit can be used")

// ErrLeaseEnded is the error of dialling with a lease that was released or has outlived its exit.
var ErrLeaseEnded = errors.New("the lease has ended")

// ExhaustedError says why Pool.Lease found no exit. It wraps ErrExhausted.
type ExhaustedError struct {
	Kinds   []Kind // the kinds that were asked for; empty means any
	Target  string // the target of the request
	Resting int    // how many exits of these kinds rest for that target; 0 means that the pool has none of these kinds

	retryAfter time.Duration
}

func (e *ExhaustedError) Error() string {
	kinds := ""
	for _, k := range e.Kinds {
		if kinds != "" {
			kinds += " or "
		}
		kinds += string(k)
	}
	if kinds != "" {
		kinds = " of kind " + kinds
	}
	if e.Resting == 0 {
		return fmt.Sprintf("%v: the pool has none%s: add one, or ask for another kind", ErrExhausted, kinds)
	}
	return fmt.Sprintf("%v: all %d%s rest for target %q, the first for another %v: wait, or add exits", ErrExhausted, e.Resting, kinds, e.Target, e.retryAfter.Round(time.Second))
}

// Unwrap makes errors.Is(err, ErrExhausted) true.
func (e *ExhaustedError) Unwrap() error { return ErrExhausted }

// RetryAfter is how long to wait before an exit can be leased again; 0 when waiting will not help.
func (e *ExhaustedError) RetryAfter() time.Duration { return e.retryAfter }

// Layer is LayerTarget when exits rest because the target refused them, and LayerExit when there are none.
func (e *ExhaustedError) Layer() string {
	if e.Resting > 0 {
		return LayerTarget
	}
	return LayerExit
}

// Holder is how many slots of an exit the leases of one key hold.
type Holder struct {
	Key   string // Request.Key; empty for leases without a key
	Slots int
}

// WaitError is the error of a dial that got no slot in time. Nothing was dialled.
type WaitError struct {
	Exit    Exit
	Account string // the account whose slots were all held; empty when it was those of the exit
	Waited  time.Duration
	Cap     int      // slots there were when the wait ended
	Holders []Holder // who held them, most slots first
	Err     error    // why the wait ended: the context's cause, or nil for Config.WaitTimeout
}

func (e *WaitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "exit %v: ", e.Exit)
	if e.Account != "" {
		fmt.Fprintf(&b, "account %s: ", e.Account)
	}
	fmt.Fprintf(&b, "no free slot of %d after %v", e.Cap, e.Waited.Round(time.Millisecond))
	const shown = 8
	for i, h := range e.Holders[:min(shown, len(e.Holders))] {
		b.WriteString([]string{"; held by ", ", "}[min(i, 1)])
		if h.Key == "" {
			b.WriteString("leases without a key")
		} else {
			fmt.Fprintf(&b, "%q", h.Key)
		}
		fmt.Fprintf(&b, " (%d)", h.Slots)
	}
	if more := len(e.Holders) - shown; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	} else {
		b.WriteString(": add exits, raise the cap if the provider allows it, or run fewer streams")
	}
	return b.String()
}

// Unwrap gives the context's cause, if a context ended the wait.
func (e *WaitError) Unwrap() error { return e.Err }

// Timeout is true when the wait took too long, false when it was cancelled.
func (e *WaitError) Timeout() bool {
	var t interface{ Timeout() bool }
	return e.Err == nil || errors.As(e.Err, &t) && t.Timeout()
}

// Layer is LayerCapacity.
func (e *WaitError) Layer() string { return LayerCapacity }

// holders lists who holds slots, most slots first.
func holders(held map[string]int) []Holder {
	hs := make([]Holder, 0, len(held))
	for k, n := range held {
		hs = append(hs, Holder{k, n})
	}
	slices.SortFunc(hs, func(a, b Holder) int {
		if a.Slots != b.Slots {
			return b.Slots - a.Slots
		}
		return strings.Compare(a.Key, b.Key)
	})
	return hs
}

// DialError is the error of a dial through an exit that failed for a reason other than the caller's context. Neither its
// text nor its fields, but for Exit.URL, show the user name or password of the exit: they are blanked in what the proxy sent.
type DialError struct {
	Exit   Exit
	Addr   string      // the destination, host and port
	Status int         // the HTTP status with which the proxy answered CONNECT, 0 if it did not
	Header http.Header // the headers of that answer
	Body   []byte      // at most the first 4 KiB of its body
	Err    error       // what happened

	layer      string
	remedy     string
	retryAfter time.Duration
}

func (e *DialError) Error() string {
	return fmt.Sprintf("dial %s through exit %v: %v: %s", e.Addr, e.Exit, e.Err, e.remedy)
}

// Unwrap gives Err.
func (e *DialError) Unwrap() error { return e.Err }

// Layer is the layer that failed: LayerAuth, LayerCapacity, LayerExit, LayerTarget or LayerIdentity.
func (e *DialError) Layer() string { return e.layer }

// ProxyFault is true unless the proxy did its work and the destination was refused.
func (e *DialError) ProxyFault() bool { return e.layer != LayerTarget }

// RetryAfter is how long the proxy asks us to wait, at most Config.MaxQuarantine, or how long until the pool tries a refused
// account again; 0 when neither is known.
func (e *DialError) RetryAfter() time.Duration { return e.retryAfter }

// Remedy says in words what can be done.
func (e *DialError) Remedy() string { return e.remedy }
