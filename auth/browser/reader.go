package browser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

// maxBody bounds the body of a request that a page sends.
const maxBody = 16 << 20

// Reader sends requests inside the browser and hands their answers on as they
// come: for sites whose clearance does not move out of the browser. It is an
// auth.Browser.
//
// An identity whose login was made in the browser goes on in the page that the
// login has left open (SourceConfig.KeepOpen); any other has a place with its
// cookies. All requests of an identity from one page share that page.
type Reader struct {
	// Runtime is required.
	Runtime *Runtime
	// Logins are the sources of the credentials that are logins in the
	// Runtime's browser.
	Logins []*Source
	// Log may be nil.
	Log *slog.Logger
}

// Inside implements auth.Browser.
func (r *Reader) Inside(via auth.Via, c *auth.Credential) auth.Inside {
	in := &inside{reader: r, via: via, credential: c, opening: make(chan struct{}, 1)}
	in.ctx, in.cancel = context.WithCancelCause(context.Background())
	if c == nil {
		return in
	}
	for _, login := range r.Logins {
		if left := login.claim(via, c); left != nil {
			in.stay, in.giveBack = left, func() { login.giveBack(left) }
			break
		}
	}
	return in
}

// inside is the place of one identity.
type inside struct {
	reader     *Reader
	via        auth.Via
	credential *auth.Credential // nil when anonymous
	ctx        context.Context  // ended by Close
	cancel     context.CancelCauseFunc

	opening  chan struct{} // held by whoever opens the space
	restored atomic.Bool   // the space has the credential's cookies, and not the page of its login

	mu       sync.Mutex
	stay     *stay // nil before the first request
	giveBack func()
	closed   bool
}

var errClosed = errors.New("the identity that it was read by was given up")

// Close implements auth.Inside.
func (in *inside) Close() {
	in.cancel(errClosed)
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	in.occupy(nil, nil)
}

// occupy gives the space back that the identity has, and takes another, or
// none for nil. It reports false, having given that one back too, after Close.
func (in *inside) occupy(st *stay, giveBack func()) bool {
	in.mu.Lock()
	was, closed := in.giveBack, in.closed
	in.stay, in.giveBack = st, giveBack
	if closed {
		in.stay, in.giveBack = nil, nil
	}
	in.mu.Unlock()
	if was != nil {
		was()
	}
	if closed && giveBack != nil {
		giveBack()
	}
	return !closed
}

// Transport implements auth.Inside.
func (in *inside) Transport(p auth.Page) http.RoundTripper { return &pageTransport{in, p} }

// pageTransport is an http.RoundTripper.
type pageTransport struct {
	in   *inside
	page auth.Page
}

// RoundTrip sends the request from the page. Its context, and Inside.Close, end
// the answer.
func (t *pageTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := wholeBody(req)
	if err != nil {
		return nil, err
	}
	in := t.in
	ctx, cancel := context.WithCancelCause(req.Context())
	unhook := context.AfterFunc(in.ctx, func() { cancel(context.Cause(in.ctx)) })
	done := func() { unhook(); cancel(nil) }
	resp, err := t.send(ctx, req, body, done)
	if err == nil {
		return resp, nil
	}
	done()
	for _, over := range []context.Context{req.Context(), in.ctx} {
		if over.Err() != nil {
			return nil, context.Cause(over)
		}
	}
	return nil, err
}

// send finds the page and sends from it. done is called when the answer is
// over.
func (t *pageTransport) send(ctx context.Context, req *http.Request, body []byte, done func()) (*http.Response, error) {
	st, page, err := t.find(ctx, req)
	var resp *http.Response
	if err == nil {
		resp, err = page.send(ctx, t.page, req, body, done)
	}
	if err != nil {
		if st != nil {
			if refused := st.forwarder.dialError([]string{req.URL.Hostname()}); refused != nil {
				return nil, refused
			}
		}
		return nil, err
	}
	switch {
	case resp.StatusCode < 300:
		st.proven.Store(true)
	case (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) && t.in.restored.Load() && !st.proven.Load():
		resp.Body.Close()
		return nil, &auth.LostError{Status: resp.StatusCode}
	}
	return resp, nil
}

// find returns the page to send from and the space that it is in, which may
// also be known where there is an error.
func (t *pageTransport) find(ctx context.Context, req *http.Request) (st *stay, page *tab, err error) {
	for range 2 {
		if st, err = t.in.place(ctx); err != nil {
			return nil, nil, err
		}
		st.forwarder.forget(req.URL.Hostname())
		page, err = st.tab(ctx, t.page.URL, req.URL)
		if ended := errors.Is(err, playwright.ErrTargetClosed) || errors.Is(err, errGone); !ended || ctx.Err() != nil {
			break
		}
		// The space had ended, and that is only known now.
		st.live.await()
		st.cancel(errGone)
	}
	if err != nil {
		err = fmt.Errorf("the page in the browser did not open: %s", short(firstLines(err.Error(), 1), 200))
	}
	return st, page, err
}

func wholeBody(req *http.Request) ([]byte, error) {
	if req.Body == nil {
		return nil, nil
	}
	defer req.Body.Close()
	body, err := io.ReadAll(io.LimitReader(req.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("the body of a request that a browser sends has %d bytes at most", maxBody)
	}
	return body, err
}

// place returns the identity's space, opened where there is none, or none any
// more.
func (in *inside) place(ctx context.Context) (*stay, error) {
	if err := take(ctx, in.opening); err != nil {
		return nil, err
	}
	defer func() { <-in.opening }()
	in.mu.Lock()
	st := in.stay
	in.mu.Unlock()
	if st != nil && st.alive() {
		return st, nil
	}
	st, err := in.reader.openPlace(ctx, in.via, in.credential)
	if err != nil {
		return nil, err
	}
	in.restored.Store(in.credential != nil && len(in.reader.Logins) > 0)
	if !in.occupy(st, st.end) {
		return nil, errClosed
	}
	return st, nil
}

// openPlace opens a space with the credential's cookies.
func (r *Reader) openPlace(ctx context.Context, via auth.Via, c *auth.Credential) (st *stay, err error) {
	began := time.Now()
	for try := 0; ; try++ {
		st, err = r.tryPlace(ctx, via, c)
		if err == nil {
			r.log().Debug("a place in the browser", "exit", via.Exit, "took", time.Since(began))
			return st, nil
		}
		if !errors.Is(err, playwright.ErrTargetClosed) || ctx.Err() != nil {
			return nil, err
		}
		if try > 0 {
			return nil, &auth.LoginError{Fault: auth.FaultBrowser, Reason: "the browser gives no place for a stream and ends"}
		}
		// It had ended, and that is only known now: another one will do.
	}
}

func (r *Reader) tryPlace(ctx context.Context, via auth.Via, c *auth.Credential) (*stay, error) {
	runtime := r.Runtime
	if runtime.ctx.Err() != nil {
		return nil, context.Cause(runtime.ctx)
	}
	l, err := runtime.join(ctx)
	if err != nil {
		return nil, err
	}
	defer runtime.leave() // the space counts for itself
	s, err := newSpace(l, via, r.log())
	if err != nil {
		return nil, err
	}
	err = s.within(ctx, launchTime, func(ctx context.Context) error {
		o, err := options(l, c)
		if err == nil {
			err = s.open(ctx, o, false)
		}
		if err == nil && c != nil && len(c.Cookies) > 0 {
			err = s.context.AddCookies(browserCookies(c.Cookies))
			if err != nil && !errors.Is(err, playwright.ErrTargetClosed) {
				err = errors.New("it does not take the credential's cookies") // which the error may quote
			}
		}
		return err
	})
	if err == nil {
		if st, ok := s.stayOpen(runtime, nil); ok {
			return st, nil
		}
		err = ErrClosed
	}
	s.close()
	if errors.Is(err, playwright.ErrTargetClosed) {
		l.await()
	} else if ctx.Err() == nil {
		err = &auth.LoginError{Fault: auth.FaultBrowser, Reason: "the browser gives no place for a stream", Err: errors.New(short(firstLines(err.Error(), 1), 200))}
	}
	return nil, err
}

func (r *Reader) log() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}

// options keep the credential's User-Agent, which another browser than this
// one may have had.
func options(l *live, c *auth.Credential) (o playwright.BrowserNewContextOptions, err error) {
	if c == nil || c.UserAgent == "" {
		return o, nil
	}
	session, err := l.browser.NewBrowserCDPSession()
	if err != nil {
		return o, err
	}
	defer session.Detach()
	result, err := session.Send("Browser.getVersion", map[string]any{})
	version, _ := result.(map[string]any)
	if own, _ := version["userAgent"].(string); own != c.UserAgent {
		o.UserAgent = &c.UserAgent
	}
	return o, err
}

// browserCookies are cookies as Playwright takes them.
func browserCookies(from []*http.Cookie) (all []playwright.OptionalCookie) {
	for _, c := range from {
		o := playwright.OptionalCookie{
			Name: c.Name, Value: c.Value, Domain: &c.Domain, Path: &c.Path,
			HttpOnly: &c.HttpOnly, Secure: &c.Secure,
		}
		if c.Path == "" {
			o.Path = playwright.String("/")
		}
		if !c.Expires.IsZero() {
			o.Expires = playwright.Float(float64(c.Expires.UnixMilli()) / 1000)
		}
		switch c.SameSite {
		case http.SameSiteStrictMode:
			o.SameSite = playwright.SameSiteAttributeStrict
		case http.SameSiteLaxMode:
			o.SameSite = playwright.SameSiteAttributeLax
		case http.SameSiteNoneMode:
			o.SameSite = playwright.SameSiteAttributeNone
		}
		all = append(all, o)
	}
	return all
}
