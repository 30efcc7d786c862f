package auth

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// obtain returns a good credential whose generation is not old.
func (k *Keeper) obtain(ctx context.Context, via Via, old uint64) (*Credential, error) {
	k.restore()
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f, held, err := k.join(ctx, via, old)
		if f == nil {
			return held, err
		}
		select {
		case <-f.done:
			if f.abandoned {
				continue // it was ending already when this caller came
			}
			if f.err != nil {
				if held := k.held(via, old); held != nil {
					return held, nil
				}
			}
			return f.credential, f.err
		case <-ctx.Done():
			if k.leave(f) {
				<-f.done
			}
			return nil, context.Cause(ctx)
		}
	}
}

// join returns what is held, or the flight to wait for.
func (k *Keeper) join(ctx context.Context, via Via, old uint64) (*flight, *Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	s := k.slotFor(k.key(via), now)
	if s.credential != nil && !k.fits(s.credential, via) {
		s.credential = nil // another exit had this name
	}
	good := s.good(old, now)
	if good != nil && !ending(good, now) {
		return nil, good, nil
	}
	if s.flight == nil {
		if err := k.mayLogin(s, now); err != nil {
			if good != nil {
				return nil, good, nil
			}
			return nil, nil, err
		}
		k.attempts = append(k.attempts, now)
		// The login belongs to all who wait for it, not to the first of them.
		flightCtx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), k.config.LoginTimeout,
			fmt.Errorf("the login took longer than %v: %w", k.config.LoginTimeout, context.DeadlineExceeded))
		s.flight = &flight{cancel: cancel, done: make(chan struct{})}
		go k.fly(flightCtx, s, s.flight, via, s.credential)
	}
	s.flight.waiters++
	return s.flight, nil, nil
}

// good is the credential held, unless it is of the generation old, refused or
// at its end. Keeper.mu is held.
func (s *slot) good(old uint64, now time.Time) *Credential {
	if c := s.credential; c != nil && c.Generation != old && !s.rejected && !c.Expired(now) {
		return c
	}
	return nil
}

// held is what a login that failed leaves to use.
func (k *Keeper) held(via Via, old uint64) *Credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	c := k.slotFor(k.key(via), now).good(old, now)
	if c == nil || !k.fits(c, via) {
		return nil
	}
	return c
}

// ending tells whether c is so near to its end that those who begin something
// with it wait for its successor, where there can be one.
func ending(c *Credential, now time.Time) bool {
	return c.Expired(now.Add(min(endingWindow, c.Expires.Sub(c.Obtained)/20)))
}

// leave takes one waiter off f. The last one ends the login, and is told so.
func (k *Keeper) leave(f *flight) (last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return false
	}
	if !f.landed {
		f.abandoned = true
	}
	f.cancel()
	return true
}

// fly runs one login and tells its waiters.
func (k *Keeper) fly(ctx context.Context, s *slot, f *flight, via Via, old *Credential) {
	defer f.cancel()
	log := k.config.Log.With("credential", k.config.Name, "exit", via.Exit)
	began := time.Now()
	credential, err := k.newer(via, old), error(nil)
	kept := credential != nil
	if !kept {
		// Before it begins: it may be what ends the program.
		k.remember()
		log.Debug("login begins")
		credential, err = k.config.Source.Obtain(ctx, via, k.byTheSite(old))
	}
	took := time.Since(began)
	if err == nil {
		err = usable(credential, time.Now())
	}

	k.mu.Lock()
	f.landed = true
	abandoned := f.abandoned
	var say []line
	if err == nil {
		k.generation++
		credential.Generation = k.generation
		if !kept {
			credential.Obtained = began.Add(took)
			if credential.Exit = k.key(via); credential.Exit != "" {
				credential.ExitID = via.ID
			}
		}
		say = k.sayClock(credential.Skew)
		if !credential.ended.IsZero() {
			say = append(say, k.once("what was given has ended by this machine's clock; it is tried all the same, for the site's clock counts", "ended", credential.ended.Format(time.RFC3339))...)
		}
	} else {
		credential = nil
	}
	k.mu.Unlock()

	k.warn(say)
	switch {
	case kept && err == nil:
		log.Info("somebody has logged in meanwhile", "credential", credential)
	case err == nil && (credential.parts != nil || given(k.config.Source)):
		log.Debug("credential taken", "took", took, "credential", credential)
	case err == nil:
		until := "unknown"
		if !credential.Expires.IsZero() {
			until = credential.Expires.Format(time.RFC3339)
		}
		log.Info("logged in", "took", took, "until", until)
		log.Debug("credential obtained", "credential", credential)
	case abandoned:
		log.Debug("login given up, nobody waits for it")
	default:
		log.Warn("login failed", "took", took, "error", err)
	}
	if k.config.OnLogin != nil && !kept && (err == nil || !abandoned) {
		k.config.OnLogin(Login{Exit: via.Exit, Took: took, Credential: credential, Err: err})
	}

	k.keeping.Lock()
	defer k.keeping.Unlock()
	if err == nil && !kept {
		k.keep(credential)
	}
	k.mu.Lock()
	switch {
	case err == nil:
		switch {
		case kept:
			k.forgetAttempt(began)
		case !given(k.config.Source):
			k.stats.Logins++
			k.lastTook = took
		}
		k.refused, k.refusal = 0, hold{}
		*s = slot{credential: credential, used: s.used, kept: kept, flight: f}
	case abandoned:
	default:
		k.stats.Failures++
		k.failed(s, began, err)
	}
	k.mu.Unlock()
	k.rememberHeld()
	k.mu.Lock()
	defer k.mu.Unlock()
	s.flight = nil
	f.credential, f.err = credential, err
	close(f.done)
}

// byTheSite is old with what is known by now of the site's clock.
func (k *Keeper) byTheSite(old *Credential) *Credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old == nil || !k.heard {
		return old
	}
	known := *old
	known.Skew = k.skew
	return &known
}

// usable refuses what a Source should not have returned. An end that has passed
// of what was obtained just now is none: the site's clock is another, and a
// refusal will tell when it is over.
func usable(c *Credential, now time.Time) error {
	if c == nil {
		return errors.New("the source returned no credential and no error")
	}
	if c.Expired(now) {
		c.Skew, c.Expires = c.Expires.Sub(now), time.Time{}
	}
	return nil
}

// failed notes when the next login may be tried. k.mu is held.
func (k *Keeper) failed(s *slot, began time.Time, err error) {
	if errors.As(err, new(*HoldError)) {
		k.forgetAttempt(began) // a keeper below holds back, and says until when
		return
	}
	var faulty interface{ AuthFault() Fault }
	fault := FaultStep
	if errors.As(err, &faulty) {
		fault = faulty.AuthFault()
	}
	now := time.Now()
	switch fault {
	case FaultRefused:
		// A refusal is about the account, whichever exit it came through.
		k.refused++
		k.refusal = hold{err: err, since: now}
		if k.refused < refusalLimit {
			k.refusal.until = now.Add(jitter(refusalWait << (k.refused - 1)))
		}
	case FaultExit:
		// The site saw nothing of it, and whether this exit is tried again is
		// for the pool of exits to say.
		k.forgetAttempt(began)
	default:
		wait := failureWaitLimit
		if s.failures < 16 {
			wait = min(failureWait<<s.failures, failureWaitLimit)
		}
		if fault == FaultPerson {
			wait = failureWaitLimit
		}
		wait = jitter(wait)
		if login := (*LoginError)(nil); errors.As(err, &login) {
			wait = max(wait, min(login.Wait, time.Hour))
		}
		s.failures++
		s.hold = hold{since: now, until: now.Add(wait), err: err}
	}
}

// mayLogin returns a *HoldError when no login may begin now. k.mu is held.
func (k *Keeper) mayLogin(s *slot, now time.Time) error {
	held := func(h hold) error {
		return &HoldError{Credential: k.config.Name, Until: h.until, Err: h.err, keeper: k, taken: k.taken}
	}
	if k.refusal.err != nil && (k.refused >= refusalLimit || now.Before(k.refusal.until)) {
		return held(k.refusal)
	}
	if now.Before(s.hold.until) {
		return held(s.hold)
	}
	k.ageAttempts(now)
	if limit := k.config.AttemptsPerHour; limit > 0 && len(k.attempts) >= limit {
		return held(hold{
			until: k.attempts[len(k.attempts)-limit].Add(time.Hour),
			err:   fmt.Errorf("%w (%d; the limit is there so that the account is not locked)", ErrTooManyLogins, limit),
		})
	}
	return nil
}

// ageAttempts forgets those that are older than an hour. k.mu is held.
func (k *Keeper) ageAttempts(now time.Time) {
	for len(k.attempts) > 0 && now.Sub(k.attempts[0]) >= time.Hour {
		k.attempts = k.attempts[1:]
	}
}

// forgetAttempt takes the attempt that began then out of the count.
func (k *Keeper) forgetAttempt(began time.Time) {
	for i := len(k.attempts) - 1; i >= 0; i-- {
		if !k.attempts[i].After(began) {
			k.attempts = append(k.attempts[:i:i], k.attempts[i+1:]...)
			return
		}
	}
}

// slotFor returns the slot of an exit, making room for it where it is new.
// k.mu is held.
func (k *Keeper) slotFor(key string, now time.Time) *slot {
	s := k.slots[key]
	if s == nil {
		if len(k.slots) >= maxHeld {
			k.forgetOldest()
		}
		s = new(slot)
		k.slots[key] = s
	}
	s.used = now
	return s
}

// forgetOldest drops the exit that was asked for longest ago and is not
// logging in.
func (k *Keeper) forgetOldest() {
	oldest, found := "", false
	for key, s := range k.slots {
		if s.flight == nil && (!found || s.used.Before(k.slots[oldest].used)) {
			oldest, found = key, true
		}
	}
	if found {
		delete(k.slots, oldest)
	}
}

// jitter returns between half of d and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
