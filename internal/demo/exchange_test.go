package demo_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/internal/demo"
	"github.com/holdline/scrape/internal/demo/demotest"
)

const (
	user     = "trader"
	password = "correct-horse"
	soon     = 10 * time.Second // for what must happen
	quiet    = 300 * time.Millisecond
)

// open starts an exchange on free ports without accidents and ends it with the test.
func open(t *testing.T, change func(*demo.Options)) *demo.Exchange {
	t.Helper()
	e, stop := start(t, change)
	t.Cleanup(stop)
	return e
}

// start is open with an end of its own, which may be called twice.
func start(t *testing.T, change func(*demo.Options)) (*demo.Exchange, func()) {
	t.Helper()
	o := demo.Options{Listen: "127.0.0.1:0", Rate: 200, TokenLife: time.Hour, Silence: -1, RevokeChance: -1, ProxyLife: -1}
	if change != nil {
		change(&o)
	}
	e, err := demo.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	ended := false
	return e, func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(soon):
			t.Error("Run does not return")
		}
	}
}

// visit brings a visitor into the site.
func visit(t *testing.T, e *demo.Exchange, proxy *url.URL) *demotest.Visitor {
	t.Helper()
	v := demotest.New(e.URL(), proxy)
	t.Cleanup(v.Client.CloseIdleConnections)
	if err := v.Enter(t.Context(), user, password); err != nil {
		t.Fatal(err)
	}
	return v
}

// visitFrom brings a visitor into the site from an exit's address but without
// its proxy, which may close what it carries at any time. What the visitor does
// then goes through the proxy.
func visitFrom(t *testing.T, e *demo.Exchange, address string, proxy *url.URL) *demotest.Visitor {
	t.Helper()
	v := demotest.New(e.URL(), nil)
	dial := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	v.Client.Transport = &http.Transport{DialContext: dial.DialContext, DisableKeepAlives: true}
	if err := v.Enter(t.Context(), user, password); err != nil {
		t.Fatal(err)
	}
	v.Client.Transport = way(t, proxy, false).Transport
	return v
}

func exit(t *testing.T, e *demo.Exchange, kind demo.Kind, n int) demo.Exit {
	t.Helper()
	for _, x := range e.Exits() {
		if x.Kind == kind {
			if n == 0 {
				return x
			}
			n--
		}
	}
	t.Fatalf("no such exit: %s", kind)
	return demo.Exit{}
}

// item is a block of the stream, read in the most obvious way.
type item struct {
	id, event, data, comment, retry string
}

// reading is an open stream; items ends when the stream does.
type reading struct {
	items chan item
	err   error // after items is closed
	close func()
}

func read(t *testing.T, v *demotest.Visitor, last string) *reading {
	t.Helper()
	r, err := tryRead(t, v, last)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tryRead is read where the site may refuse.
func tryRead(t *testing.T, v *demotest.Visitor, last string) (*reading, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := v.Stream(ctx, last)
	if err != nil {
		cancel()
		return nil, err
	}
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type is %q", ct)
	}
	r := &reading{items: make(chan item), close: cancel}
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		defer resp.Body.Close()
		defer close(r.items)
		var it item
		var data []string
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch name {
			case "id":
				it.id = value
			case "event":
				it.event = value
			case "data":
				data = append(data, value)
			case "retry":
				it.retry = value
			case "":
				if lines.Text() != "" {
					it.comment = value
					continue
				}
				it.data = strings.Join(data, "\n")
				select {
				case r.items <- it:
				case <-ctx.Done():
					return
				}
				it, data = item{}, nil
			}
		}
		r.err = lines.Err()
	}()
	return r, nil
}

// within does what only works while something lasts that ends after life. What
// fails earlier than that fails the test. What was too late shows nothing: the
// machine was busy, and it is done once more.
func within(t *testing.T, life time.Duration, do func() error) {
	t.Helper()
	for {
		began := time.Now()
		err := do()
		if err == nil {
			return
		}
		if time.Since(began) < life-time.Millisecond { // the site's clock counts these
			t.Fatal(err)
		}
	}
}

// tryNext is the next block, whatever it is.
func (r *reading) tryNext() (item, error) {
	select {
	case it, ok := <-r.items:
		if !ok {
			return it, fmt.Errorf("the stream ended: %v", r.err)
		}
		return it, nil
	case <-time.After(soon):
		return item{}, errors.New("the stream is silent")
	}
}

func (r *reading) next(t *testing.T) item {
	t.Helper()
	it, err := r.tryNext()
	if err != nil {
		t.Fatal(err)
	}
	return it
}

// price is the next price update.
func (r *reading) price(t *testing.T) item {
	t.Helper()
	for {
		if it := r.next(t); it.event == "price_update" {
			return it
		}
	}
}

// falls waits until the stream is silent, and fails if it is closed instead. It
// returns the last event that was told, where last was the one before.
func (r *reading) falls(t *testing.T, last int) int {
	t.Helper()
	for end := time.After(soon); ; {
		select {
		case it, ok := <-r.items:
			if !ok {
				t.Fatalf("the stream was closed: %v", r.err)
			}
			if it.event != "price_update" {
				continue
			}
			if last++; it.id != strconv.Itoa(last) {
				t.Fatalf("got event %s, want %d", it.id, last)
			}
		case <-time.After(quiet):
			return last
		case <-end:
			t.Fatal("the stream goes on")
		}
	}
}

// ends waits until the stream is closed.
func (r *reading) ends(t *testing.T) {
	t.Helper()
	for end := time.After(soon); ; {
		select {
		case _, ok := <-r.items:
			if !ok {
				return
			}
		case <-end:
			t.Fatal("the stream goes on")
		}
	}
}

// exactly checks that the stream tells the n events from first on.
func (r *reading) exactly(t *testing.T, e *demo.Exchange, first int64, n int) {
	t.Helper()
	if err := r.tryExactly(t, e, first, n); err != nil {
		t.Fatal(err)
	}
}

// tryExactly is exactly where the stream may end or fall silent.
func (r *reading) tryExactly(t *testing.T, e *demo.Exchange, first int64, n int) error {
	t.Helper()
	for id := first; id < first+int64(n); {
		it, err := r.tryNext()
		switch want := e.Feed().Event(id).Data(); {
		case err != nil:
			return err
		case it.event != "price_update":
		case it.id != strconv.FormatInt(id, 10) || it.data != want:
			t.Fatalf("got event %s\n%s\nwant %d\n%s", it.id, it.data, id, want)
		default:
			id++
		}
	}
	return nil
}

func status(t *testing.T, v *demotest.Visitor) (int, *http.Response) {
	t.Helper()
	resp, err := v.Stream(t.Context(), "")
	if err == nil {
		resp.Body.Close()
		return resp.StatusCode, resp
	}
	bad, ok := errors.AsType[*demotest.StatusError](err)
	if !ok {
		t.Fatal(err)
	}
	return bad.Status, resp
}

func TestAFreshExchangeTellsEveryEventFromOne(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := visit(t, e, nil)
	r := read(t, v, "")
	if it := r.next(t); it.retry != "2000" || it.comment == "" {
		t.Errorf("the stream begins with %+v", it)
	}
	r.exactly(t, e, 1, 300)
}

func TestTheStreamGoesOnAfterLastEventID(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := visit(t, e, nil)
	r := read(t, v, "")
	r.exactly(t, e, 1, 50)
	r.close()
	read(t, v, "50").exactly(t, e, 51, 50)
	read(t, v, "7").exactly(t, e, 8, 100)

	// A fresh EventSource can only use the query.
	resp, err := v.Get(t.Context(), "/api/v1/market/stream?last_event_id=20&access_token="+v.Token, "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			if id != "21" {
				t.Errorf("asked for what follows 20, got %s", id)
			}
			return
		}
	}
	t.Fatal(lines.Err())
}

func TestTheReplayWindowIsTold(t *testing.T) {
	t.Parallel()
	e := open(t, func(o *demo.Options) { o.ReplayWindow = 200 * time.Millisecond; o.Rate = 1000 })
	v := visit(t, e, nil)
	for e.Feed().LastID(time.Now()) < 600 {
		time.Sleep(time.Until(e.Feed().Time(600)))
	}
	for _, last := range []string{"1", "no number", "99999999"} {
		r := read(t, v, last)
		r.next(t)
		comment := r.next(t).comment
		_, tail, _ := strings.Cut(comment, "beginning at event ")
		first, err := strconv.ParseInt(tail, 10, 64)
		if err != nil || first < 100 {
			t.Fatalf("after %q: the stream says %q", last, comment)
		}
		r.exactly(t, e, first, 100)
	}
}

func TestHeartbeatsCarryNoID(t *testing.T) {
	t.Parallel()
	// One event a second: however late heartbeats come, they are the most of it.
	e := open(t, func(o *demo.Options) { o.Heartbeat = 20 * time.Millisecond; o.Rate = 1 })
	r := read(t, visit(t, e, nil), "")
	for range 1000 {
		if it := r.next(t); it.event == "heartbeat" {
			if it.id != "" || !strings.HasPrefix(it.data, `{"time":"`) {
				t.Errorf("heartbeat is %+v", it)
			}
			return
		}
	}
	t.Fatal("no heartbeat")
}

func TestARestartGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	same := func(o *demo.Options) { o.Dir = dir; o.Seed = 7 }
	e, stop := start(t, same)
	v := visit(t, e, nil)
	r := read(t, v, "")
	r.exactly(t, e, 1, 20)
	first := e.Feed()
	stop()
	r.ends(t)

	again := open(t, func(o *demo.Options) { o.Dir = dir; o.Rate = 0 })
	if again.Feed() != first {
		t.Fatalf("another market: %+v, was %+v", again.Feed(), first)
	}
	// The session, the clearance and the token are the site's word: still good.
	cookies := v.Client.Jar.Cookies(mustParse(t, e.URL()))
	v.Site = again.URL()
	v.Client.Jar.SetCookies(mustParse(t, again.URL()), cookies)
	read(t, v, "20").exactly(t, again, 21, 50)

	for name, change := range map[string]func(*demo.Options){
		"seed": func(o *demo.Options) { o.Seed = 8 },
		"rate": func(o *demo.Options) { o.Rate = 3 },
	} {
		o := demo.Options{Listen: "127.0.0.1:0", Dir: dir}
		change(&o)
		e, err := demo.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Listen(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("another %s: error is %v", name, err)
		}
	}
}

// ended is a context that is over: a Run that should have failed ends too.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestADamagedDirectoryIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "exchange.json")
	if err := os.WriteFile(path, []byte(`{"seed": 1, "key": "c2VjcmV0`), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := demo.New(demo.Options{Listen: "127.0.0.1:0", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	err = e.Run(ended(t))
	if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "c2Vj") {
		t.Errorf("error is %v", err)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	t.Parallel()
	first := open(t, nil)
	taken := strings.TrimPrefix(first.URL(), "http://")
	e, err := demo.New(demo.Options{Listen: taken, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	err = e.Run(ended(t))
	if err == nil || !strings.Contains(err.Error(), taken) || !strings.Contains(err.Error(), "Listen") {
		t.Errorf("error is %v", err)
	}
}

func TestBadOptionsAreAllNamed(t *testing.T) {
	t.Parallel()
	_, err := demo.New(demo.Options{Listen: "nowhere", Rate: -1, TokenLife: -1, MuteChance: 2})
	for _, name := range []string{"Listen", "Rate", "TokenLife", "MuteChance"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
}

func TestRunLeavesNothing(t *testing.T) {
	target := echo(t)
	before := runtime.NumGoroutine()
	e, stop := start(t, nil)
	get(t, way(t, exit(t, e, demo.HTTP, 0).URL, false), target) // leaves an idle connection to the target
	var open []*reading
	for _, x := range []demo.Exit{exit(t, e, demo.HTTP, 0), exit(t, e, demo.SOCKS5, 0), exit(t, e, demo.Gateway, 0)} {
		u := *x.URL
		if x.Kind == demo.Gateway {
			u.User = url.UserPassword("gw-user-session-a", "gw-pass")
		}
		v := visit(t, e, &u)
		open = append(open, read(t, v, ""))
		open[len(open)-1].price(t)
	}
	for _, x := range e.Exits() { // those who connect and say nothing
		c, err := net.Dial("tcp", x.URL.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	stop()
	for _, r := range open {
		r.ends(t)
	}
	for _, x := range e.Exits() {
		if c, err := net.Dial("tcp", x.URL.Host); err == nil {
			c.Close()
			t.Errorf("%s still listens", x)
		}
	}
	// Goroutines of the visitors' own connections end a moment later.
	for end := time.Now().Add(soon); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("goroutines are left: %s", stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
