package browser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

// errHung is the cause when a page or the browser does not answer in time.
var errHung = errors.New("the page does not answer")

// space is a place of its own in the browser: the cookies and the pages of one
// identity, which leave by its exit. A login has one, and may leave it to the
// streams of its identity.
type space struct {
	live      *live
	forwarder *forwarder
	log       *slog.Logger

	closeOnce sync.Once

	mu      sync.Mutex
	context playwright.BrowserContext
}

// newSpace begins a space that leaves through via. Nothing is in the browser
// before open.
func newSpace(l *live, via auth.Via, log *slog.Logger) (*space, error) {
	f, err := startForwarder(via.DialContext)
	if err != nil {
		return nil, setupError("no port on the loopback for the browser's way out", err)
	}
	return &space{live: l, forwarder: f, log: log}, nil
}

// open makes the browser context. pictures says that it loads them.
func (s *space) open(ctx context.Context, o playwright.BrowserNewContextOptions, pictures bool) error {
	o.Proxy = &playwright.Proxy{
		Server:   s.forwarder.url(),
		Username: &s.forwarder.user,
		Password: &s.forwarder.password,
	}
	o.AcceptDownloads = playwright.Bool(false)
	browserContext, err := s.live.browser.NewContext(o)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.context = browserContext
	s.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if pictures {
		return nil
	}
	return browserContext.Route("**/*", dropPictures)
}

// dropPictures spares the exit what no step needs.
func dropPictures(route playwright.Route) {
	switch route.Request().ResourceType() {
	case "image", "media", "font":
		route.Abort("blockedbyclient")
	default:
		route.Continue()
	}
}

// within runs fn under a deadline. Playwright's calls take no context: when ctx
// ends, or fn overstays, the browser context is closed, which ends the calls in
// it; and when that does not help, the browser is killed.
func (s *space) within(ctx context.Context, timeout time.Duration, fn func(context.Context) error) error {
	hard, cancel := context.WithTimeoutCause(ctx, timeout+patience, errHung)
	defer cancel()
	soft, cancelSoft := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %v", timeout))
	defer cancelSoft()
	returned := make(chan struct{})
	defer close(returned)
	stop := context.AfterFunc(hard, func() { s.giveUp(returned) })
	defer stop()
	err := fn(soft)
	if err != nil && hard.Err() != nil {
		// What the browser says now is of our making.
		return context.Cause(hard)
	}
	return err
}

// giveUp closes the browser context, and kills the browser when the calls in
// it have not returned thereafter.
func (s *space) giveUp(returned <-chan struct{}) {
	go s.closeContext()
	select {
	case <-returned:
	case <-time.After(patience):
		s.log.Warn("the browser does not answer; it is killed")
		s.live.kill()
	}
}

// close ends the space, whatever state the browser is in.
func (s *space) close() {
	closed := make(chan struct{})
	go func() { defer close(closed); s.closeContext() }()
	select {
	case <-closed:
	case <-time.After(patience):
		s.live.kill()
		<-closed
	}
	s.forwarder.close()
}

func (s *space) closeContext() {
	s.mu.Lock()
	browserContext := s.context
	s.mu.Unlock()
	if browserContext != nil {
		s.closeOnce.Do(func() { browserContext.Close() })
	}
}
