package auth

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// ErrTooManyLogins is why a Keeper holds back when Config.AttemptsPerHour is
// used up.
var ErrTooManyLogins = errors.New("too many logins within the last hour")

const (
	defaultLoginTimeout    = 90 * time.Second
	defaultAttemptsPerHour = 60

	// After a failure the next login waits, doubling from first to limit.
	failureWait, failureWaitLimit = time.Second, 5 * time.Minute
	// The site's own "wrong password" is answered with far more patience, and
	// refusalLimit of them in a row with none at all.
	refusalWait  = time.Minute
	refusalLimit = 3

	// maxHeld bounds the exits that a Keeper remembers; beyond it the one that
	// was asked for longest ago is forgotten.
	maxHeld = 4096
)

// Config is what a Keeper needs. Only Source is required.
type Config struct {
	// Name is the credential's name in messages.
	Name   string
	Source Source
	// RenewBefore is how long before its end a credential is renewed. Zero
	// takes a fifth of its life up to 20 minutes of it, then 15 minutes, and an
	// hour for what lives longer than 90 minutes.
	RenewBefore time.Duration
	// LoginTimeout limits one login; zero means 90 seconds.
	LoginTimeout time.Duration
	// AttemptsPerHour limits the logins begun within any hour, good or bad,
	// over all exits, so that a site never sees its form hammered; zero means
	// 60, negative means no limit. A credential that lives T and is used
	// through N exits needs N×(1h/T).
	AttemptsPerHour int
	// Log may be nil.
	Log *slog.Logger
	// OnLogin, if set, is told of every login that came to an end, before the
	// callers waiting for it go on. It is called from several goroutines when
	// several exits log in at once.
	OnLogin func(Login)
}

// Login is one login that came to an end.
type Login struct {
	Exit string
	Took time.Duration
	// Credential is nil when Err is not.
	Credential *Credential
	Err        error
}

// Stats counts the logins of a Keeper since it was made.
type Stats struct {
	// Logins went well, Failures did not. A login that was given up because
	// nobody waited for it any more is neither.
	Logins, Failures uint64
	// Held is the number of credentials held.
	Held int
}

// Keeper holds the credentials that one Source gives: one for each exit, or
// one in all, as the Source is bound. It starts nothing by itself: a login
// runs while at least one caller waits for it and is over when the last one
// has left. Its methods may be called from any number of goroutines.
type Keeper struct {
	config Config

	mu         sync.Mutex
	slots      map[string]*slot
	generation uint64
	attempts   []time.Time   // those of the last hour, oldest first
	lastTook   time.Duration // of the last good login
	refused    int           // in a row
	refusal    hold
	stats      Stats
}

// slot is what is held for one exit.
type slot struct {
	credential *Credential
	rejected   bool // the site no longer takes credential
	flight     *flight
	failures   int // in a row
	hold       hold
	used       time.Time
}

// hold forbids logins until a time.
type hold struct {
	until time.Time
	err   error
}

// flight is one login under way.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	// Guarded by Keeper.mu, and not written after done is closed.
	waiters    int
	landed     bool // the Source has answered
	abandoned  bool // the last waiter left before that
	credential *Credential
	err        error
}

// NewKeeper returns a Keeper that holds nothing yet.
func NewKeeper(config Config) *Keeper {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.LoginTimeout <= 0 {
		config.LoginTimeout = defaultLoginTimeout
	}
	if config.AttemptsPerHour == 0 {
		config.AttemptsPerHour = defaultAttemptsPerHour
	}
	return &Keeper{config: config, slots: map[string]*slot{}}
}

// Get returns the good credential held for via, at once. Where there is none
// it logs in, together with everybody else who asks meanwhile. The error is
// ctx's, a *HoldError when no login may be tried now, or what the Source
// returned.
func (k *Keeper) Get(ctx context.Context, via Via) (*Credential, error) {
	return k.obtain(ctx, via, 0)
}

// Renew returns a credential other than the one of generation old. Only the
// first who asks causes a login, everybody else gets the new one; so any
// number of streams may call it with the generation that they hold. When it
// fails the old credential stays, and Get goes on returning it while it lasts,
// unless Reject was called too. Errors are those of Get.
func (k *Keeper) Renew(ctx context.Context, via Via, old uint64) (*Credential, error) {
	return k.obtain(ctx, via, old)
}

// Reject tells that the site no longer takes the credential of this
// generation: Get does not hand it out again. It logs in nowhere and does
// nothing when another credential is held by now.
func (k *Keeper) Reject(via Via, generation uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.slots[k.key(via)]; s != nil && s.credential != nil && s.credential.Generation == generation {
		s.rejected = true
	}
}

// RenewAt is when a planned renewal of c should begin: early enough for a
// login as long as the last one, and with jitter, so that those who share c
// hand over one after the other. Ask once per credential; zero means that its
// end is not known.
func (k *Keeper) RenewAt(c *Credential) time.Time {
	if c.Expires.IsZero() {
		return time.Time{}
	}
	k.mu.Lock()
	took := k.lastTook
	k.mu.Unlock()
	life := c.Expires.Sub(c.Obtained)
	window := k.config.RenewBefore
	switch {
	case window > 0:
	case life <= 20*time.Minute:
		window = life / 5
	case life <= 90*time.Minute:
		window = 15 * time.Minute
	default:
		window = time.Hour
	}
	// Twice the login leaves the last half of the jitter to be late in. But a
	// credential is used for half of its life at least: else a slow login
	// would have the keeper log in without end.
	window = min(max(window, 2*took), life/2)
	return c.Expires.Add(-window + rand.N(window/4+1))
}

// Stats returns the counts so far.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	stats := k.stats
	for _, s := range k.slots {
		if s.credential != nil {
			stats.Held++
		}
	}
	return stats
}

func (k *Keeper) key(via Via) string {
	if k.config.Source.Bound() == BoundToExit {
		return via.Exit
	}
	return ""
}
