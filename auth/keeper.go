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

	// endingWindow is the most before its end that a credential is handed out
	// only where there can be no other.
	endingWindow = 10 * time.Second

	// shortestLife is the least that a credential whose end is not known must
	// have lasted for its life to teach anything.
	shortestLife = 30 * time.Second
	// loudSkew is the difference of clocks from which it is said.
	loudSkew = 30 * time.Second

	// lookEvery is how often at most a Keeper that holds back looks whether a
	// person has logged in by hand. Those who wait ask half as often, so that
	// each of them finds it due.
	lookEvery = 5 * time.Second

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
	// Store keeps credentials between runs, and with them what keeps a program
	// that is started again and again from hammering a login form; nil keeps
	// nothing. What is wrong with it is logged, and costs a login at most.
	Store Store
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

	restored sync.Once
	keeping  sync.Mutex // held while the store is changed, and before mu

	mu         sync.Mutex
	slots      map[string]*slot
	generation uint64
	attempts   []time.Time   // those of the last hour, oldest first
	lastTook   time.Duration // of the last good login
	refused    int           // in a row
	refusal    hold
	stats      Stats
	lived      time.Duration // how long the last one lasted that was refused
	lifetime   time.Duration // seen twice; 0 is not known
	told       map[string]bool
	taken      uint64        // how often something was taken up that others had kept
	arrived    time.Time     // when the last of that was obtained
	looked     time.Time     // when the store was looked into last
	skew       time.Duration // as the site's last answer says
	heard      bool          // an answer has said it
}

// slot is what is held for one exit.
type slot struct {
	credential *Credential
	rejected   bool // the site no longer takes credential
	kept       bool // credential is from the store, and nobody knows how long it was good
	flight     *flight
	failures   int // in a row
	hold       hold
	used       time.Time
}

// hold forbids logins until a time.
type hold struct {
	since time.Time
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
	return &Keeper{config: config, slots: map[string]*slot{}, told: map[string]bool{}}
}

// Get returns the good credential held for via, at once. Where there is none,
// or it ends within seconds, it logs in, together with everybody else who asks
// meanwhile. The error is ctx's, a *HoldError when no login may be tried now, or
// what the Source returned.
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
// generation: Get does not hand it out again, and it is no longer kept. It
// logs in nowhere and does nothing when another credential is held by now.
func (k *Keeper) Reject(via Via, generation uint64) {
	k.mu.Lock()
	s := k.slots[k.key(via)]
	if s == nil || s.credential == nil || s.credential.Generation != generation || s.rejected {
		k.mu.Unlock()
		return
	}
	s.rejected = true
	rejected := s.credential
	say := k.learn(s, time.Now())
	k.mu.Unlock()
	k.warn(say)
	k.forget(rejected)
	k.remember()
}

type line struct {
	text  string
	attrs []any
}

func (k *Keeper) warn(say []line) {
	for _, line := range say {
		k.config.Log.Warn(line.text, line.attrs...)
	}
}

// once returns a line that is said once by a Keeper. k.mu is held.
func (k *Keeper) once(text string, attrs ...any) []line {
	if k.told[text] {
		return nil
	}
	k.told[text] = true
	return []line{{text, append([]any{"credential", k.config.Name}, attrs...)}}
}

// learn notes how long a credential lasted that is refused now. A life that was
// seen twice is what the next ones are taken to last. It returns what there is
// to be said. k.mu is held.
func (k *Keeper) learn(s *slot, now time.Time) (say []line) {
	c := s.credential
	if given(k.config.Source) || s.kept || c.Expired(now) {
		return nil
	}
	lived := now.Sub(c.Obtained)
	if !c.Expires.IsZero() && lived < c.Expires.Sub(c.Obtained)*9/10 {
		say = k.once("the site refuses a credential long before its end", "lasted", lived.Round(time.Second), "left", c.Expires.Sub(now).Round(time.Second), "site_clock_ahead", c.Skew)
	}
	if lived < shortestLife {
		return say
	}
	alike := func(a, b time.Duration) bool { return (a - b).Abs() <= max(a, b)/10 }
	switch {
	case alike(lived, k.lived):
		k.lifetime = min(lived, k.lived)
		say = append(say, k.once("credentials are renewed before the site refuses them, which it did twice at the same age", "age", k.lifetime.Round(time.Second))...)
	case lived < k.lifetime:
		k.lifetime = 0 // it is not what it was
	}
	k.lived = lived
	return say
}

// ends is when c is taken to end: when it says so, or at the age at which the
// site refused others like it. Zero is not known. k.mu is held.
func (k *Keeper) ends(c *Credential) time.Time {
	if k.lifetime == 0 {
		return c.Expires
	}
	return Earlier(c.Expires, c.Obtained.Add(k.lifetime))
}

func (k *Keeper) endOf(c *Credential) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ends(c)
}

// RenewAt is when a planned renewal of c should begin: early enough for a
// login as long as the last one, and with jitter, so that those who share c
// hand over one after the other. Ask once per credential; zero means that its
// end is not known. An end that c does not tell is known once the site has
// refused two credentials at about the same age.
func (k *Keeper) RenewAt(c *Credential) time.Time {
	k.mu.Lock()
	took, end := k.lastTook, k.ends(c)
	k.mu.Unlock()
	if end.IsZero() {
		return time.Time{}
	}
	life := end.Sub(c.Obtained)
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
	return end.Add(-window + rand.N(window/4+1))
}

// Stats returns the counts so far.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	stats := k.stats
	if parts, ok := k.config.Source.(stack); ok {
		stats.Logins = 0 // putting parts together is none
		for _, part := range parts {
			stats.Logins += part.Stats().Logins
		}
	}
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
