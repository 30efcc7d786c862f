//go:build linux

package browser_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

func TestAStreamIsReadInThePageOfTheLogin(t *testing.T) {
	site := newBoundSite(t)
	dir := tempDir(t)
	runtime := newRuntime(t, browser.Config{TempDir: dir, IdleTimeout: -1})
	out := &exit{}
	source, c := site.login(t, runtime, out.via())
	in := (&browser.Reader{Runtime: runtime, Logins: []*browser.Source{source}}).Inside(out.via(), c)
	resp := mustGet(t, in, auth.Page{}, site.URL+"/feed", "Last-Event-ID", "41", "User-Agent", "me", "Cookie", "a=b")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %v %q", resp.Status, resp.Header, body)
	}
	asked := <-site.asked
	if asked.Header.Get("Last-Event-ID") != "41" || asked.UserAgent() != c.UserAgent || strings.Contains(asked.Header.Get("Cookie"), "a=b") {
		t.Errorf("the site was asked with %v", asked.Header)
	}
	lines := bufio.NewReader(resp.Body)
	for i := range 5 { // each comes before the next one is sent
		event := fmt.Sprintf("data: événement %d\n", i)
		site.events <- event
		if line, err := lines.ReadString('\n'); line != event || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	site.events <- "end"
	if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}

	// A second stream of the identity, and one that is cut.
	one, two := mustGet(t, in, auth.Page{}, site.URL+"/feed"), mustGet(t, in, auth.Page{}, site.URL+"/feed")
	one.Body.Close()
	eventually(t, "the site hears that the first is closed", func() bool { return site.open.Load() == 1 })
	if _, err := one.Body.Read(make([]byte, 1)); err == nil {
		t.Error("a closed body is read")
	}
	site.events <- "cut"
	if _, err := io.ReadAll(two.Body); err == nil {
		t.Error("a cut looks like an end")
	}
	if out.dials.Load() == 0 {
		t.Error("nothing left through the exit")
	}
	if len(processesOf(t, dir)) == 0 {
		t.Error("the browser stopped while an identity lives in it")
	}
	in.Close()
}

func TestABigEventAndAReaderThatWaits(t *testing.T) {
	site := newBoundSite(t)
	runtime := newRuntime(t, browser.Config{})
	in := (&browser.Reader{Runtime: runtime}).Inside(auth.Via{}, nil)
	defer in.Close()
	resp := mustGet(t, in, auth.Page{}, site.URL+"/public")
	big := make([]byte, 5<<20)
	rand.Read(big)
	go func() { site.events <- string(big) }()
	got := make([]byte, len(big))
	if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("%v, equal: %v", err, bytes.Equal(got, big))
	}
	// The page stops reading at a mebibyte; Chromium's own buffers, and the
	// system's, hold less than a hundred more.
	const most = 40
	sent := 0
	for held := false; !held; {
		select {
		case site.events <- string(big):
			if sent++; sent == most {
				t.Fatalf("the site is not held back after %d MB that nobody reads", sent*5)
			}
		case <-time.After(2 * time.Second):
			held = true
		}
	}
	if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, big) {
		t.Errorf("after the wait: %v, equal: %v", err, bytes.Equal(got, big))
	}
}

func TestEventSource(t *testing.T) {
	site := newBoundSite(t)
	runtime := newRuntime(t, browser.Config{})
	in := (&browser.Reader{Runtime: runtime}).Inside(auth.Via{}, nil)
	defer in.Close()
	page := auth.Page{EventSource: true, Types: []string{"tick", "error", "open"}}
	accept := []string{"Accept", "text/event-stream", "Cache-Control", "no-store"}
	resp := mustGet(t, in, page, site.URL+"/public?after=7", accept...)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	site.events <- "retry: 1\n: a comment\n\nid: 1\nevent: tick\ndata: one\ndata:  two\n\nevent: unknown\ndata: x\n\nevent: error\ndata: é\n\nevent: open\ndata\n\nid\ndata: last\n\n"
	site.events <- "end"
	got, err := io.ReadAll(resp.Body)
	want := "id: 1\nevent: tick\ndata: one\ndata:  two\n\nevent: error\ndata: é\n\nevent: open\ndata: \n\nid: \ndata: last\n\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %q\nwant %q", err, got, want)
	}
	// What the browser keeps to itself is known.
	resp = mustGet(t, in, page, site.URL+"/teapot", accept...)
	if resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-Why") != "tea" {
		t.Errorf("a teapot is %s with %v", resp.Status, resp.Header)
	}
	if resp = mustGet(t, in, page, site.URL+"/", accept...); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/html" {
		t.Errorf("a page is %s with %v", resp.Status, resp.Header)
	}
	if _, err := get(t, in, page, site.URL+"/public", "Accept", "text/event-stream", "Last-Event-ID", "7"); err == nil || !strings.Contains(err.Error(), "Last-Event-Id") {
		t.Errorf("a cursor that cannot be sent: %v", err)
	}
	// What is no event stream is fetched, such as a page that is read before it.
	if body, err := io.ReadAll(mustGet(t, in, page, site.URL+"/").Body); err != nil || string(body) != "nothing here" {
		t.Errorf("%q, %v", body, err)
	}
	// Meanwhile it has not connected again by itself, for which it had a
	// millisecond to wait.
	if n := site.opened.Load(); n != 1 {
		t.Errorf("%d connections to the feed", n)
	}
}

func TestAnswersThatAreNoStream(t *testing.T) {
	site := newBoundSite(t)
	other := newBoundSite(t)
	runtime := newRuntime(t, browser.Config{})
	reader := &browser.Reader{Runtime: runtime}
	out := &exit{}
	in := reader.Inside(out.via(), nil)
	defer in.Close()
	for path, want := range map[string]string{"/feed": "403 for browsers only", "/teapot": "418 I am a teapot"} {
		resp := mustGet(t, in, auth.Page{}, site.URL+path)
		body, err := io.ReadAll(resp.Body)
		if got := fmt.Sprint(resp.StatusCode, " ", string(body)); got != want || err != nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	_, err := get(t, in, auth.Page{URL: other.URL + "/"}, site.URL+"/public")
	if err == nil || !strings.Contains(err.Error(), "the page could not fetch it") {
		t.Errorf("another origin: %v", err)
	}
	post, err := http.NewRequestWithContext(t.Context(), http.MethodPost, site.URL+"/login", strings.NewReader("a=b"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: in.Transport(auth.Page{})}).Do(post)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("a request with a body: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}

	// The exit's own error is in the chain, before the page is open and after.
	refused := errors.New("proxy refuses the password")
	dead := reader.Inside((&exit{err: refused}).via(), nil)
	defer dead.Close()
	if _, err := get(t, dead, auth.Page{}, site.URL+"/public"); !errors.Is(err, refused) {
		t.Errorf("a dead exit: %v", err)
	}
	out.die(refused)
	if _, err := get(t, in, auth.Page{}, site.URL+"/public"); !errors.Is(err, refused) {
		t.Errorf("an exit that died: %v", err)
	}
	// A context ends the wait, and the answer.
	out.live()
	ctx, cancel := context.WithCancelCause(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, site.URL+"/public", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = (&http.Client{Transport: in.Transport(auth.Page{})}).Do(req); err != nil {
		t.Fatal(err)
	}
	stopped := errors.New("stopped")
	time.AfterFunc(50*time.Millisecond, func() { cancel(stopped) })
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, stopped) {
		t.Errorf("a stopped answer: %v", err)
	}
}

// What was obtained elsewhere comes with its cookies and its User-Agent.
func TestASessionOfAnotherBrowser(t *testing.T) {
	site := newBoundSite(t)
	runtime := newRuntime(t, browser.Config{})
	in := (&browser.Reader{Runtime: runtime}).Inside(auth.Via{}, &auth.Credential{
		UserAgent: "Mozilla/5.0 (another)",
		Cookies: []*http.Cookie{
			{Name: "session", Value: "in", Domain: "127.0.0.1", Path: "/", HttpOnly: true, Expires: time.Now().Add(time.Hour)},
			{Name: "else", Value: "where", Domain: ".example.com", Path: "/", Secure: true, SameSite: http.SameSiteNoneMode},
		},
	})
	defer in.Close()
	// There was no login in the browser that could have been lost.
	if resp := mustGet(t, in, auth.Page{}, site.URL+"/feed"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("%s", resp.Status)
	}
	if asked := <-site.asked; asked.UserAgent() != "Mozilla/5.0 (another)" || asked.Header.Get("Cookie") != "session=in" {
		t.Errorf("the site was asked with %v", asked.Header)
	}
}

// A stream that is given up while the page opens does not take those along that
// are read in other pages of the identity; and a page that leads away is opened
// again.
func TestStreamsOfOneIdentityDoNotDisturbEachOther(t *testing.T) {
	site, slow := newBoundSite(t), newBoundSite(t)
	asked, leave := make(chan bool), make(chan bool)
	mux := site.Config.Handler.(*http.ServeMux)
	mux.HandleFunc("/leave", func(w http.ResponseWriter, r *http.Request) { <-leave })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		asked <- true
		<-asked
		fmt.Fprintf(w, "<!doctype html><script>fetch('/leave').then(() => { location = %q })</script>", slow.URL+"/")
	})
	runtime := newRuntime(t, browser.Config{})
	in := (&browser.Reader{Runtime: runtime}).Inside(auth.Via{}, nil)
	defer in.Close()
	steady := mustGet(t, in, auth.Page{}, site.URL+"/public")
	away := auth.Page{URL: site.URL + "/slow"}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, site.URL+"/public", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := (&http.Client{Transport: in.Transport(away)}).Do(req); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, %v", resp, err)
	}
	asked <- true
	resp := mustGet(t, in, away, site.URL+"/public")
	leave <- true
	if _, err := io.ReadAll(resp.Body); err == nil || err == io.EOF {
		t.Errorf("a page that went elsewhere: %v", err)
	}
	over := make(chan bool)
	defer close(over)
	go func() { // as often as it is opened
		for {
			select {
			case <-asked:
				asked <- true
			case <-over:
				return
			}
		}
	}()
	eventually(t, "the page is opened again", func() bool {
		resp, err := get(t, in, away, site.URL+"/public") // which may be too early
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	close(leave)
	eventually(t, "one stream is left", func() bool { return site.open.Load() == 1 })
	site.events <- "data: steady\n\n"
	got := make([]byte, 14)
	if _, err := io.ReadFull(steady.Body, got); err != nil || string(got) != "data: steady\n\n" {
		t.Errorf("the other stream: %q, %v", got, err)
	}
}

func TestABrowserThatDiesTakesItsClearanceAlong(t *testing.T) {
	site := newBoundSite(t)
	dir := tempDir(t)
	runtime := newRuntime(t, browser.Config{TempDir: dir, IdleTimeout: -1})
	out := &exit{}
	source, c := site.login(t, runtime, out.via())
	reader := &browser.Reader{Runtime: runtime, Logins: []*browser.Source{source}}
	in := reader.Inside(out.via(), c)
	resp := mustGet(t, in, auth.Page{}, site.URL+"/feed")
	signalAll(t, dir, syscall.SIGKILL, "chromium")
	if n, err := resp.Body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes of a dead browser, %v", n, err)
	}
	// Another browser has the cookies, and that is not enough.
	lost := (*auth.LostError)(nil)
	if _, err := get(t, in, auth.Page{}, site.URL+"/feed"); !errors.As(err, &lost) || lost.Status != http.StatusForbidden {
		t.Errorf("with the cookies alone: %v", err)
	}
	in.Close()
	c, err := source.Obtain(t.Context(), out.via(), c)
	if err != nil {
		t.Fatal(err)
	}
	in = reader.Inside(out.via(), c)
	if resp := mustGet(t, in, auth.Page{}, site.URL+"/feed"); resp.StatusCode != 200 {
		t.Errorf("after a login: %s", resp.Status)
	}
	// Once it was let in, a refusal is an answer like any other.
	restored := reader.Inside(auth.Via{Exit: "another"}, c)
	defer restored.Close()
	if resp := mustGet(t, restored, auth.Page{}, site.URL+"/public"); resp.StatusCode != 200 {
		t.Errorf("a public feed: %s", resp.Status)
	}
	if resp := mustGet(t, restored, auth.Page{}, site.URL+"/feed"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("without the page: %s", resp.Status)
	}
	in.Close()
}

func TestAPageThatCrashesIsOpenedAnew(t *testing.T) {
	site := newBoundSite(t)
	dir := tempDir(t)
	runtime := newRuntime(t, browser.Config{TempDir: dir})
	in := (&browser.Reader{Runtime: runtime}).Inside(auth.Via{}, nil)
	defer in.Close()
	resp := mustGet(t, in, auth.Page{}, site.URL+"/public")
	signalAll(t, dir, syscall.SIGKILL, "--type=renderer")
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a crash looks like an end")
	}
	resp = mustGet(t, in, auth.Page{}, site.URL+"/public")
	go func() { site.events <- "data: 1\n\n"; site.events <- "end" }()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "data: 1\n\n" {
		t.Errorf("%q, %v", body, err)
	}
}

// A login whose page no stream takes, and one that a later login has replaced,
// are not kept for ever; Close ends all of them, frozen or not.
func TestPagesThatAreLeft(t *testing.T) {
	site := newBoundSite(t)
	dir := tempDir(t)
	runtime := newRuntime(t, browser.Config{TempDir: dir, IdleTimeout: -1})
	source, first := site.login(t, runtime, auth.Via{})
	reader := &browser.Reader{Runtime: runtime, Logins: []*browser.Source{source}}
	in := reader.Inside(auth.Via{}, first)
	second, err := source.Obtain(t.Context(), auth.Via{}, first)
	if err != nil {
		t.Fatal(err)
	}
	next := reader.Inside(auth.Via{}, second)
	for name, in := range map[string]auth.Inside{"the first": in, "the second": next} {
		if resp := mustGet(t, in, auth.Page{}, site.URL+"/feed"); resp.StatusCode != 200 {
			t.Errorf("%s identity: %s", name, resp.Status)
		}
	}
	lost := (*auth.LostError)(nil)
	stranger := reader.Inside(auth.Via{}, &auth.Credential{}) // that somebody else has brought
	if _, err := get(t, stranger, auth.Page{}, site.URL+"/feed"); !errors.As(err, &lost) {
		t.Errorf("the page of a login served another credential: %v", err)
	}
	stranger.Close()
	in.Close()
	eventually(t, "the first identity's stream ends", func() bool { return site.open.Load() == 1 })
	next.Close()
	eventually(t, "the browser stops", func() bool { return len(processesOf(t, dir)) == 0 })

	in = reader.Inside(auth.Via{}, nil)
	resp := mustGet(t, in, auth.Page{}, site.URL+"/public")
	signalAll(t, dir, syscall.SIGSTOP, "chromium")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := runtime.Close(ctx); err != nil {
		t.Error(err)
	}
	nothingLeft(t, dir)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a stream outlives the runtime")
	}
	in.Close()
	if _, err := get(t, reader.Inside(auth.Via{}, nil), auth.Page{}, site.URL+"/public"); !errors.Is(err, browser.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	resp.Body.Close()
	eventually(t, "its goroutines end", func() bool {
		var stacks strings.Builder
		pprof.Lookup("goroutine").WriteTo(&stacks, 1)
		return !strings.Contains(stacks.String(), "auth/browser.(*")
	})
}
