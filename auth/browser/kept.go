package browser

import (
	"context"
	"time"

	"github.com/holdline/scrape/auth"
)

// keep leaves the space of a good login to the streams of its identity. It
// reports false when they have no need of it, and the caller closes it.
func (s *Source) keep(ctx context.Context, v *visit, via auth.Via, c *auth.Credential) bool {
	if !s.config.KeepOpen {
		return false
	}
	// What the page sends from now on is its own affair.
	err := v.within(ctx, s.config.StepTimeout, func(context.Context) error { return v.headers.Detach() })
	if err != nil {
		s.config.Log.Warn("the page of the login cannot be kept", "error", v.sayable(err))
		return false
	}
	left, ok := v.stayOpen(s.config.Runtime, v.page)
	if !ok {
		return false
	}
	left.credential, left.key = c, via.Exit+"\x00"+via.ID
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.kept[left.key]; old != nil {
		s.forget(old)
	}
	if s.kept == nil {
		s.kept = map[string]*stay{}
	}
	s.kept[left.key] = left
	left.timer = time.AfterFunc(waitForStreams, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forget(left)
	})
	return true
}

// forget has no more identities use the space. s.mu is held.
func (s *Source) forget(left *stay) {
	if s.kept[left.key] == left {
		delete(s.kept, left.key)
	}
	left.timer.Stop()
	if left.users == 0 {
		left.end()
	}
}

// claim returns the space of the login that brought the credential, or nil
// where that is gone. Each claim is given back.
func (s *Source) claim(via auth.Via, c *auth.Credential) *stay {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.kept[via.Exit+"\x00"+via.ID]
	if left == nil || !c.Has(left.credential) || !left.alive() {
		return nil
	}
	left.timer.Stop()
	left.users++
	left.forwarder.through(via.DialContext)
	return left
}

// giveBack ends a claim. The last one ends the space.
func (s *Source) giveBack(left *stay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if left.users--; left.users == 0 {
		s.forget(left)
	}
}
