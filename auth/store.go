package auth

import (
	"errors"
	"time"
)

// Store keeps the credentials of one Keeper between runs, one for each exit
// that they are bound to, or one in all, and their History. auth/store has one
// that encrypts them.
// Its methods are called by any number of goroutines.
type Store interface {
	// Load returns what is kept and can be used, also beside an error that
	// tells of the rest. The credentials belong to the caller.
	Load() ([]*Credential, error)
	// Save keeps c in place of what was kept for c.Exit. It must not be
	// changed.
	Save(c *Credential) error
	// Remove drops what is kept for the exit; it is no error when nothing is.
	Remove(exit string) error
	// Recall returns the History that was kept last, an empty one where there
	// is none or it cannot be read, which the error then tells.
	Recall() (History, error)
	// Remember keeps h in place of the one before.
	Remember(h History) error
}

// restore takes up, once, what earlier runs have kept.
func (k *Keeper) restore() {
	if k.config.Store == nil {
		return
	}
	k.restored.Do(func() {
		kept, err := k.config.Store.Load()
		history, unread := k.config.Store.Recall()
		if err = errors.Join(err, unread); err != nil {
			k.config.Log.Error("kept credentials cannot be used; what they were for logs in anew", "credential", k.config.Name, "error", err)
		}
		now := time.Now()
		k.mu.Lock()
		k.relive(history, now)
		k.mu.Unlock()
		for _, c := range kept {
			k.mu.Lock()
			k.generation++
			c.Generation = k.generation
			k.mu.Unlock()
			switch {
			case (c.Exit != "") != (k.config.Source.Bound() == BoundToExit):
				continue // it was bound otherwise
			case c.Expired(now) && c.Refresh.IsZero():
				k.forget(c)
				continue
			case !c.Expired(now):
				k.config.Log.Info("a credential of an earlier run is still good", "kept", c, "age", now.Sub(c.Obtained).Round(time.Second))
			}
			k.mu.Lock()
			s := k.slotFor(c.Exit, now)
			s.credential, s.kept = c, true
			k.mu.Unlock()
		}
	})
}

// PreferredExit is the exit to be leased for a start without a login: the name
// of the one whose credential is good and was obtained last. It is empty where
// no exit is better than another.
func (k *Keeper) PreferredExit() string {
	if parts, ok := k.config.Source.(stack); ok {
		return parts.preferredExit()
	}
	k.restore()
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	var best *Credential
	for _, s := range k.slots {
		c := s.credential
		if c == nil || s.rejected || c.Expired(now) {
			continue
		}
		if best == nil || c.Obtained.After(best.Obtained) {
			best = c
		}
	}
	if best == nil {
		return ""
	}
	return best.Exit
}

// fits tells whether c was obtained through via, or is bound to no exit.
func (k *Keeper) fits(c *Credential, via Via) bool {
	return c.Exit == k.key(via) && (c.Exit == "" || c.ExitID == via.ID)
}

// newer returns what somebody has kept for via after old was obtained, such as
// a person who logged in by hand; nil where nobody has.
func (k *Keeper) newer(via Via, old *Credential) *Credential {
	if k.config.Store == nil {
		return nil
	}
	kept, _ := k.config.Store.Load() // what is wrong was said at the start
	for _, c := range kept {
		// Without the monotonic clock, which is not kept.
		after := old == nil || c.Obtained.Round(0).After(old.Obtained.Round(0))
		if after && k.fits(c, via) && !c.Expired(time.Now()) {
			return c
		}
	}
	return nil
}

// takenSince tells whether Look has taken up anything after the n-th time. It
// calls it when that was long ago.
func (k *Keeper) takenSince(n uint64) bool {
	k.mu.Lock()
	now := time.Now()
	due := k.taken <= n && now.Sub(k.looked) >= lookEvery
	if due {
		k.looked = now
	}
	k.mu.Unlock()
	if due {
		k.Look()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.taken > n
}

// Look takes up at once what somebody else has kept for this Keeper since it
// was asked last, such as a person who logged in by hand, and ends the wait that
// failed logins have brought. It tells whether there was anything. Without it
// a login finds out that begins anyway, or HoldError.Over.
func (k *Keeper) Look() (some bool) {
	if parts, ok := k.config.Source.(stack); ok {
		for _, part := range parts {
			some = part.Look() || some
		}
		if some {
			k.resume()
		}
		return some
	}
	if k.config.Store == nil {
		return false
	}
	k.restore()
	k.keeping.Lock() // what a login of ours has kept, it holds as well
	defer k.keeping.Unlock()
	kept, _ := k.config.Store.Load() // what is wrong was said at the start
	for _, c := range kept {
		if k.takeUp(c, time.Now()) {
			k.config.Log.Info("somebody has logged in meanwhile", "credential", k.config.Name, "kept", c)
			some = true
		}
	}
	if some {
		k.rememberHeld()
	}
	return some
}

// resume ends every wait of a stack that a part of it may have caused.
func (k *Keeper) resume() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taken++
	k.refused, k.refusal = 0, hold{}
	for _, s := range k.slots {
		s.failures, s.hold = 0, hold{}
	}
}

// takeUp holds c in place of an older one.
func (k *Keeper) takeUp(c *Credential, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if (c.Exit != "") != (k.config.Source.Bound() == BoundToExit) || c.Expired(now) {
		return false
	}
	// Without the monotonic clock, which is not kept.
	after := func(t time.Time) bool { return c.Obtained.Round(0).After(t.Round(0)) }
	if s := k.slots[c.Exit]; !after(k.arrived) || s != nil && (s.flight != nil || s.credential != nil && !after(s.credential.Obtained)) {
		return false
	}
	s := k.slotFor(c.Exit, now)
	k.generation++
	c.Generation = k.generation
	k.refused, k.refusal = 0, hold{}
	*s = slot{credential: c, used: s.used, kept: true}
	k.taken, k.arrived = k.taken+1, c.Obtained
	return true
}

// keep saves c. k.keeping is held.
func (k *Keeper) keep(c *Credential) {
	if k.config.Store == nil {
		return
	}
	if err := k.config.Store.Save(c); err != nil {
		k.config.Log.Warn("the credential is not kept for the next run", "credential", k.config.Name, "error", err)
	}
}

// forget has the store drop c, unless another is held by now in its place. Of a
// credential that can be renewed without a login it leaves what that takes.
func (k *Keeper) forget(c *Credential) {
	if k.config.Store == nil {
		return
	}
	k.keeping.Lock()
	defer k.keeping.Unlock()
	k.mu.Lock()
	s := k.slots[c.Exit]
	replaced := s != nil && s.credential != nil && s.credential != c
	k.mu.Unlock()
	if replaced {
		return
	}
	if !c.Refresh.IsZero() {
		k.keep(&Credential{
			Refresh: c.Refresh, Obtained: c.Obtained, Expires: time.Now(), Exit: c.Exit, ExitID: c.ExitID,
		})
		return
	}
	if err := k.config.Store.Remove(c.Exit); err != nil {
		k.config.Log.Warn("a credential that has ended is still kept", "credential", k.config.Name, "error", err)
	}
}
