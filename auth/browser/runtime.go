// Package browser obtains credentials by driving a real Chromium through steps
// that are data, and reads streams inside it where their clearance does not move
// out.
//
// The main type is Source, an auth.Source: it opens a page, fills, clicks and
// waits as its Steps say, and hands on cookies, storage values, the User-Agent
// and the headers that go with it. Reader, an auth.Browser, sends requests from
// a page, such as the one that a login has left open, and hands their answers on
// as they come. All Sources and Readers of a program share one Runtime: one
// driver and one browser, which live only while they are needed.
//
// It deliberately knows nothing of proxies: the browser leaves through a
// forwarder on the loopback that dials through the auth.Via of the login. It
// solves no CAPTCHA and pretends to be no other browser than it is.
package browser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdline/scrape/auth"
)

const (
	defaultIdleTimeout = 20 * time.Second
	defaultMaxLogins   = 4
)

// ErrClosed is returned by logins after Runtime.Close.
var ErrClosed = errors.New("the browser runtime is closed")

// Config says where the browser and its driver are and how they run. Its zero
// value will do.
type Config struct {
	// Chromium and Node are paths; empty looks for them as Find says.
	Chromium, Node string
	// DriverDir is where Install puts the Playwright driver; empty means
	// PLAYWRIGHT_DRIVER_PATH, else holdline/playwright/<version> in the user's
	// cache directory.
	DriverDir string
	// TempDir holds the private directories of browsers. It must not be on a
	// file system mounted noexec, nor longer than 30 characters, because
	// Chromium puts a socket there. Empty means the system's, or /tmp where
	// that is too long.
	TempDir string
	// IdleTimeout is how long the browser is kept without a login or a stream;
	// zero means 20 seconds, negative stops it at once.
	IdleTimeout time.Duration
	// MaxLogins is how many logins run at once, each taking about 100 MB;
	// others wait. Zero means 4.
	MaxLogins int
	// Headed shows the browser's window.
	Headed bool
	// Log may be nil.
	Log *slog.Logger
}

func (c Config) tempDir() string {
	if c.TempDir != "" {
		return c.TempDir
	}
	if dir := os.TempDir(); len(dir) <= longestBase {
		return dir
	}
	return "/tmp"
}

func (c Config) driverDir() (string, error) {
	if c.DriverDir != "" {
		return filepath.Abs(c.DriverDir)
	}
	if dir := os.Getenv("PLAYWRIGHT_DRIVER_PATH"); dir != "" {
		return filepath.Abs(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("driver directory: %w", err)
	}
	return filepath.Join(cache, "holdline", "playwright", driverVersion), nil
}

// Runtime is the one driver and the one browser of a program. They are started
// by the first login or stream and stopped when there has been none for a while. Its methods
// may be called from any number of goroutines.
type Runtime struct {
	config Config
	slots  chan struct{} // one for each login under way
	turn   chan struct{} // held by whoever starts or stops the browser
	ctx    context.Context
	cancel context.CancelCauseFunc

	live *live // guarded by turn; nil when stopped

	mu     sync.Mutex
	users  int // logins, and spaces that stay open
	idle   *time.Timer
	closed bool
	stays  map[*stay]bool // the spaces that stay open
	ends   sync.WaitGroup // of those spaces, until nothing is left of them
}

// NewRuntime returns a Runtime that has started nothing yet. Close it.
func NewRuntime(config Config) *Runtime {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.IdleTimeout == 0 {
		config.IdleTimeout = defaultIdleTimeout
	}
	if config.MaxLogins <= 0 {
		config.MaxLogins = defaultMaxLogins
	}
	r := &Runtime{
		config: config,
		slots:  make(chan struct{}, config.MaxLogins),
		turn:   make(chan struct{}, 1),
		stays:  map[*stay]bool{},
	}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	return r
}

// Close ends all logins and streams and stops the browser. It asks politely while ctx
// lasts, for three seconds at most, then kills exactly the processes that it
// started; when it returns nil nothing of them is left, neither process nor
// file. It may be called more than once.
func (r *Runtime) Close(ctx context.Context) error {
	r.cancel(ErrClosed)
	r.turn <- struct{}{} // a start under way ends now
	defer func() { <-r.turn }()
	r.mu.Lock()
	r.closed = true
	if r.idle != nil {
		r.idle.Stop()
	}
	open := slices.Collect(maps.Keys(r.stays))
	r.mu.Unlock()
	for _, s := range open {
		s.end()
	}
	err := r.stop(ctx)
	r.ends.Wait() // they end with their browser
	return err
}

// enter returns the browser, started where needed, for one login. The context
// it returns ends with ctx, or when the Runtime is closed. leave must be
// called.
func (r *Runtime) enter(ctx context.Context) (_ context.Context, l *live, leave func(), err error) {
	if r.ctx.Err() != nil {
		return nil, nil, nil, context.Cause(r.ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })
	release := func() { unhook(); cancel(nil) }
	if err := take(ctx, r.slots); err != nil {
		release()
		return nil, nil, nil, err
	}
	l, err = r.join(ctx)
	if err != nil {
		<-r.slots
		release()
		return nil, nil, nil, err
	}
	return ctx, l, func() { release(); <-r.slots; r.leave() }, nil
}

// join returns the browser, started where needed, which then has one user more.
// Each has to leave.
func (r *Runtime) join(ctx context.Context) (_ *live, err error) {
	if err := take(ctx, r.turn); err != nil {
		return nil, err
	}
	defer func() { <-r.turn }()

	if r.live != nil && !r.live.alive() {
		r.config.Log.Warn("the browser ended by itself; starting another")
		if err := r.stop(ctx); err != nil {
			r.config.Log.Warn("stopping the browser", "error", err)
		}
	}
	if r.live == nil {
		if r.live, err = start(ctx, r.config); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users++
	if r.idle != nil {
		r.idle.Stop()
	}
	return r.live, nil
}

// stay counts a space that stays open, made by one who has joined. It reports
// false when the Runtime is closed: then nothing stays.
func (r *Runtime) stay(s *stay) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.ctx.Err() != nil {
		return false
	}
	r.users++
	r.stays[s] = true
	r.ends.Add(1)
	return true
}

// gone is the end of a space that stayed open.
func (r *Runtime) gone(s *stay) {
	r.mu.Lock()
	delete(r.stays, s)
	r.mu.Unlock()
	r.ends.Done() // first: the browser may stop now, which Close waits for
	r.leave()
}

func take(ctx context.Context, slot chan<- struct{}) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave is the end of one use.
func (r *Runtime) leave() {
	r.mu.Lock()
	r.users--
	unused := r.users == 0
	if unused && r.config.IdleTimeout > 0 && r.ctx.Err() == nil {
		r.idle = time.AfterFunc(r.config.IdleTimeout, r.stopIdle)
	}
	r.mu.Unlock()
	if unused && r.config.IdleTimeout < 0 && r.ctx.Err() == nil {
		r.stopIdle()
	}
}

// stopIdle stops the browser if nobody uses it.
func (r *Runtime) stopIdle() {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	r.mu.Lock()
	unused := r.users == 0
	r.mu.Unlock()
	if !unused || r.live == nil {
		return
	}
	r.config.Log.Debug("nobody needs it, the browser stops")
	if err := r.stop(r.ctx); err != nil {
		r.config.Log.Warn("stopping the browser", "error", err)
	}
}

// stop stops the browser, if there is one. The turn is held.
func (r *Runtime) stop(ctx context.Context) error {
	if r.live == nil {
		return nil
	}
	err := r.live.stop(ctx)
	r.live = nil
	return err
}

// setupError is a *auth.LoginError about this machine.
func setupError(reason string, err error) error {
	return &auth.LoginError{Fault: auth.FaultSetup, Reason: reason, Err: err}
}
