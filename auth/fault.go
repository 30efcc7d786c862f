package auth

import (
	"fmt"
	"strings"
	"time"
)

// Fault is what a login failed on; it decides the remedy.
type Fault string

const (
	// FaultStep: a step did not do what it should: a selector that is gone, a
	// cookie that was never set, a time-out. The steps or the site changed.
	FaultStep Fault = "step"
	// FaultRefused: the site said that it does not accept the user name or the
	// password. Trying again brings nothing but a locked account.
	FaultRefused Fault = "refused"
	// FaultSetup: this machine lacks what the login needs, such as a browser.
	// Trying again does not bring it.
	FaultSetup Fault = "setup"
	// FaultPerson: a person is needed: a captcha is shown, or what a person
	// has to bring has ended. Asking again and again only makes it worse.
	FaultPerson Fault = "person"
	// FaultBrowser: the browser did not start, or ended in the middle, or was
	// hung. Another try may do.
	FaultBrowser Fault = "browser"
	// FaultExit: no connection through the exit. The error that Via.Dial
	// returned is in the chain.
	FaultExit Fault = "exit"
)

// LoginError is a login that failed, with what is known of the place.
type LoginError struct {
	Fault Fault
	// Step is the number of the step, from 1; 0 is before the first, or that
	// there are none.
	Step int
	// Action is the step in words, such as "click"; Selector is what it was
	// looking for on the page.
	Action   string
	Selector string
	// Reason is one sentence: what was expected and, where it helps, what to
	// do about it.
	Reason string
	// Wait is how long the site asks us to leave it alone; it may be zero.
	Wait time.Duration
	// Artifacts is the directory with what the page looked like, or empty.
	Artifacts string
	// Err is the cause; it may be nil.
	Err error
}

// Error names the step, the selector, the reason and the artifacts.
func (e *LoginError) Error() string {
	var b strings.Builder
	b.WriteString("login failed")
	if e.Step > 0 {
		fmt.Fprintf(&b, " at step %d", e.Step)
	}
	if e.Action != "" {
		fmt.Fprintf(&b, " (%s)", strings.TrimSpace(e.Action+" "+e.Selector))
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Artifacts != "" {
		fmt.Fprintf(&b, " (see %s)", e.Artifacts)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *LoginError) Unwrap() error { return e.Err }

// AuthFault tells those who hold only an error what the login failed on.
func (e *LoginError) AuthFault() Fault { return e.Fault }

// HoldError says that a Keeper did not even try to log in, and until when it
// will not: after a failure it waits, longer each time; after too many logins
// in an hour, or after the site has refused them, it stops.
type HoldError struct {
	// Credential is the Keeper's name.
	Credential string
	// Until is when the next login may be tried; zero means that this Keeper
	// will not try again.
	Until time.Time
	// Err is why: the failure of the last login, or ErrTooManyLogins.
	Err error

	keeper *Keeper
	taken  uint64 // how often it had taken up what others had kept
}

// Over tells whether the Keeper has taken up since what somebody else has kept,
// such as a person who logged in by hand: then it is worth asking it again, and
// not before Until where it has not. It looks into the store of its Keeper, at
// most every five seconds however many ask.
func (e *HoldError) Over() bool { return e.keeper != nil && e.keeper.takenSince(e.taken) }

// Error says until when and why.
func (e *HoldError) Error() string {
	if e.Until.IsZero() {
		return fmt.Sprintf("credential %s: no further login is tried, so that the account is not locked; correct the user name or password and start again, or log in by hand: %v", e.Credential, e.Err)
	}
	return fmt.Sprintf("credential %s: next login not before %s: %v", e.Credential, e.Until.Format(time.RFC3339), e.Err)
}

// Unwrap returns why.
func (e *HoldError) Unwrap() error { return e.Err }
