package browser

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

const (
	// waitForStreams is how long the space of a login waits for the streams of
	// its identity.
	waitForStreams = time.Minute
	// pageTime is how long a page may take to open, and interstitialTime how
	// long its script may then take where the site let it in with a check of the
	// browser only.
	pageTime         = 20 * time.Second
	interstitialTime = 10 * time.Second
)

// stay is a space that stays open for the streams of an identity.
type stay struct {
	*space
	runtime *Runtime
	ctx     context.Context // ended when the space is gone
	cancel  context.CancelCauseFunc
	ending  sync.Once

	calling sync.Mutex
	calls   sync.WaitGroup // to the browser, which take no context
	over    bool           // guarded by calling

	login  playwright.Page // that the login has left, or nil
	proven atomic.Bool     // the site has let it in

	turn chan struct{} // held by whoever opens a page
	tabs map[string]*tab

	// Of the space that a login has left, guarded by Source.mu.
	credential *auth.Credential
	key        string
	users      int
	timer      *time.Timer
}

// errGone is the cause when the browser or the space in it has ended.
var errGone = errors.New("the browser that read it has ended")

// stayOpen has the space stay open. It reports false when the runtime is
// closed: then the caller closes it. Whoever called has joined the runtime.
func (s *space) stayOpen(r *Runtime, login playwright.Page) (*stay, bool) {
	st := &stay{space: s, runtime: r, login: login, turn: make(chan struct{}, 1), tabs: map[string]*tab{}}
	st.ctx, st.cancel = context.WithCancelCause(context.Background())
	if !r.stay(st) {
		return nil, false
	}
	st.context.OnClose(func(playwright.BrowserContext) { st.cancel(errGone) })
	return st, true
}

// end closes the space without waiting for that. Runtime.Close waits for it.
func (s *stay) end() {
	s.ending.Do(func() {
		s.cancel(errGone)
		go func() {
			s.close()
			s.calling.Lock()
			s.over = true
			s.calling.Unlock()
			returned := make(chan struct{})
			go func() { s.calls.Wait(); close(returned) }()
			select {
			case <-returned:
			case <-time.After(patience):
			}
			s.runtime.gone(s)
		}()
	})
}

// call makes a call to the browser in a goroutine of its own.
func (s *stay) call(fn func()) {
	s.calling.Lock()
	defer s.calling.Unlock()
	if s.over {
		go fn() // which the browser is not there for any more
		return
	}
	s.calls.Go(fn)
}

func (s *stay) alive() bool { return s.ctx.Err() == nil && s.live.alive() }

// tab returns the page that requests to u are sent from: that of address, or
// where that is empty one of the origin of u.
func (s *stay) tab(ctx context.Context, address string, u *url.URL) (*tab, error) {
	key := address
	if address == "" {
		key = originOf(u)
		address = key + "/"
	}
	if err := take(ctx, s.turn); err != nil {
		return nil, err
	}
	t := s.tabs[key]
	if t != nil && t.usable() {
		<-s.turn
		return t, nil
	}
	if t != nil {
		t.drop()
		delete(s.tabs, key)
	}
	type opened struct {
		tab *tab
		err error
	}
	done := make(chan opened, 1)
	// It goes on when whoever asked has gone: to break it off would close the
	// space, and others are read in it.
	s.call(func() {
		defer func() { <-s.turn }()
		var t *tab
		err := s.within(s.ctx, pageTime+interstitialTime, func(ctx context.Context) (err error) {
			t, err = s.openTab(ctx, address, key)
			return err
		})
		if err == nil {
			s.tabs[key] = t
		}
		done <- opened{t, err}
	})
	select {
	case o := <-done:
		return o.tab, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// openTab takes the page that the login has left, where that will do, or opens
// one.
func (s *stay) openTab(ctx context.Context, address, key string) (t *tab, err error) {
	if p := s.login; p != nil && !p.IsClosed() && (p.URL() == address || origin(p.URL()) == key) {
		t, err = s.newTab(p)
		if err == nil {
			return t, nil
		}
		s.login = nil // it may have crashed
	}
	page, err := s.context.NewPage()
	if err != nil {
		return nil, err
	}
	if t, err = s.newTab(page); err == nil {
		if err = t.goTo(ctx, address); err == nil {
			return t, nil
		}
	}
	s.call(func() { page.Close() })
	return nil, err
}

// tab is a page that requests are sent from.
type tab struct {
	stay   *stay
	page   playwright.Page
	cdp    playwright.CDPSession
	origin string
	ctx    context.Context // ended when the page is gone
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	answers map[string]answered // of the page's EventSources, by address
	failed  map[string]string   // why a request did not come through, by address
}

// answered is the head of an answer.
type answered struct {
	status int
	header map[string]string
}

// maxNoted bounds what a page's own requests can make a tab remember.
const maxNoted = 64

func (s *stay) newTab(page playwright.Page) (*tab, error) {
	t := &tab{stay: s, page: page, origin: origin(page.URL()), answers: map[string]answered{}, failed: map[string]string{}}
	t.ctx, t.cancel = context.WithCancelCause(s.ctx)
	page.OnCrash(func(playwright.Page) { t.cancel(errors.New("the page that read it has crashed")) })
	page.OnClose(func(playwright.Page) { t.cancel(errGone) })
	page.OnResponse(func(r playwright.Response) {
		if r.Request().ResourceType() == "eventsource" {
			note(t, t.answers, r.URL(), answered{r.Status(), r.Headers()})
		}
	})
	page.OnRequestFailed(func(r playwright.Request) {
		if why := r.Failure(); why != nil {
			note(t, t.failed, r.URL(), why.Error())
		}
	})
	var err error
	t.cdp, err = s.context.NewCDPSession(page)
	return t, err
}

func note[T any](t *tab, in map[string]T, address string, v T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(in) >= maxNoted {
		clear(in)
	}
	in[address] = v
}

// noted takes what was noted of an address.
func noted[T any](t *tab, in map[string]T, address string) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := in[address]
	delete(in, address)
	return v, ok
}

// usable tells whether the page is where it was: some are led away, as to a
// form for a login.
func (t *tab) usable() bool {
	return t.ctx.Err() == nil && !t.page.IsClosed() && origin(t.page.URL()) == t.origin
}

// drop gives the page up.
func (t *tab) drop() {
	t.cancel(errGone)
	if t.page == t.stay.login {
		t.stay.login = nil
	}
	t.stay.call(func() { t.page.Close() })
}

// goTo opens the page and waits until its scripts have run, also those that
// are all there is of a page which checks the browser before it lets it in.
func (t *tab) goTo(ctx context.Context, address string) error {
	_, err := t.page.Goto(address, playwright.PageGotoOptions{
		WaitUntil: playwright.WaitUntilStateDomcontentloaded,
		Timeout:   milliseconds(pageTime),
	})
	if err != nil && !strings.Contains(err.Error(), "interrupted by another navigation") {
		return err
	}
	for deadline := time.Now().Add(interstitialTime); ; {
		value, err := t.page.Evaluate(pageState)
		state, _ := value.(string)
		switch {
		case err == nil && state == "ready", time.Now().After(deadline):
			t.origin = origin(t.page.URL())
			return nil
		case errors.Is(err, playwright.ErrTargetClosed):
			return err
		}
		select {
		case <-time.After(glance):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pageState tells whether a page is there: loaded, and not refused.
const pageState = `() => document.readyState != "complete" ? "loading" :
	(performance.getEntriesByType("navigation")[0]?.responseStatus ?? 200) < 400 ? "ready" : "refused"`

// originOf is the origin of an address (RFC 6454, section 4).
func originOf(u *url.URL) string {
	host := strings.ToLower(u.Host)
	if u.Scheme == "http" {
		host = strings.TrimSuffix(host, ":80")
	} else {
		host = strings.TrimSuffix(host, ":443")
	}
	return u.Scheme + "://" + host
}

func origin(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return originOf(u)
}
