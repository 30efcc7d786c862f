package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// script serves each connection with the next of the functions, in a bubble
// without a network, and counts the connections.
type script struct {
	mu    sync.Mutex
	serve []func(c net.Conn, r *bufio.Reader)
	conns int
}

func (s *script) dial(context.Context, string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == len(s.serve) {
		return nil, errors.New("the script has no more connections")
	}
	ours, theirs := net.Pipe()
	serve := s.serve[s.conns]
	s.conns++
	go func() {
		defer theirs.Close()
		serve(theirs, bufio.NewReader(theirs))
	}()
	return ours, nil
}

// said reads one request and returns its body.
func said(r *bufio.Reader) (string, error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(req.Body)
	return string(body), err
}

// says answers each request with a text.
func says(texts ...string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		for _, text := range texts {
			if _, err := said(r); err != nil {
				return
			}
			io.WriteString(c, text)
		}
		r.Peek(1) // until the client closes
	}
}

const (
	ok        = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	chunkedOK = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
)

// scripted runs a test in a bubble. What a request gets is its body.
func scripted(t *testing.T, f func(t *testing.T, s *script, tr *Transport), serve ...func(net.Conn, *bufio.Reader)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &script{serve: serve}
		tr := New(Options{DialContext: s.dial, HeaderTimeout: 10 * time.Second})
		f(t, s, tr)
		tr.CloseIdleConnections()
	})
}

func ask(tr *Transport, method, body string) (string, error) {
	req, err := http.NewRequest(method, "http://site.test/", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if body == "" {
		req.Body, req.GetBody = nil, nil
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func wantAnswer(t *testing.T, tr *Transport, method, body string) {
	t.Helper()
	if got, err := ask(tr, method, body); err != nil || got != "ok" {
		t.Fatalf("%s: %q, %v", method, got, err)
	}
}

func TestAConnectionServesOneRequestAfterTheOther(t *testing.T) {
	scripted(t, func(t *testing.T, s *script, tr *Transport) {
		wantAnswer(t, tr, "GET", "")
		wantAnswer(t, tr, "POST", "body")
		if got, err := ask(tr, "HEAD", ""); err != nil || got != "" {
			t.Errorf("HEAD: %q, %v", got, err)
		}
		if s.conns != 1 {
			t.Errorf("3 requests took %d connections", s.conns)
		}
		time.Sleep(idleTimeout + time.Second)
		synctest.Wait()
		wantAnswer(t, tr, "GET", "") // over another one: that one has rested for too long
		if s.conns != 2 {
			t.Errorf("%d connections, want 2", s.conns)
		}
	}, says(ok, ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), says(ok))
}

func TestConnectionsThatCannotBeUsedAgain(t *testing.T) {
	const late = "HTTP/1.1 408 Request Timeout\r\n\r\n"
	for name, c := range map[string]struct {
		first string // in pieces
		open  bool   // the site leaves it to us to close it
	}{
		"closed by the site":          {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", false},
		"closed without a word":       {ok, false},
		"to be closed by us":          {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", true},
		"HTTP/1.0":                    {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", true},
		"more than was asked":         {ok + late, true},
		"more, later":                 {ok + "|" + late, true},
		"more behind chunks":          {chunkedOK + "|2\r\nok\r\n0\r\n\r\n" + late, true},
		"more behind chunks, at once": {chunkedOK + "2\r\nok\r\n0\r\n\r\n" + late, true},
		"more behind chunks, later":   {chunkedOK + "2\r\nok\r\n0\r\n\r\n|" + late, true},
		"a byte more behind chunks":   {chunkedOK + "2\r\nok\r\n0\r\n\r\n|H", true},
	} {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, s *script, tr *Transport) {
				wantAnswer(t, tr, "GET", "")
				synctest.Wait()
				wantAnswer(t, tr, "POST", "body")
				if s.conns != 2 {
					t.Errorf("%d connections, want 2", s.conns)
				}
			}, func(conn net.Conn, r *bufio.Reader) {
				said(r)
				for piece := range strings.SplitSeq(c.first, "|") {
					io.WriteString(conn, piece)
				}
				if c.open {
					r.Peek(1)
				}
			}, says(ok))
		})
	}
}

// TestASiteThatClosesWhileTheRequestIsOnItsWay: the request was written to a
// connection that had rested, and nothing came back.
func TestASiteThatClosesWhileTheRequestIsOnItsWay(t *testing.T) {
	once := func(c net.Conn, r *bufio.Reader) {
		said(r)
		io.WriteString(c, ok)
		said(r)
	}
	for method, again := range map[string]bool{"GET": true, "HEAD": true, "POST": false} {
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			wantAnswer(t, tr, "GET", "")
			_, err := ask(tr, method, "body")
			if again != (err == nil) {
				t.Errorf("%s: %v", method, err)
			}
			if _, ok := err.(stale); ok {
				t.Errorf("the error is %v, want the connection's own", err)
			}
		}, once, says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	}
	// A fresh connection that ends so is the site's answer to everything.
	scripted(t, func(t *testing.T, s *script, tr *Transport) {
		if _, err := ask(tr, "GET", ""); !errors.Is(err, io.EOF) || s.conns != 1 {
			t.Errorf("%v after %d connections", err, s.conns)
		}
	}, func(_ net.Conn, r *bufio.Reader) { said(r) })
}

func TestHeadsThatAreNone(t *testing.T) {
	interim := "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
	for name, c := range map[string]struct {
		head string
		good bool
	}{
		"interim answers":          {strings.Repeat(interim, maxInterim) + ok, true},
		"too many interim answers": {strings.Repeat(interim, maxInterim+1) + ok, false},
		"endless":                  {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHead), false},
		"no HTTP":                  {"220 mail.test ESMTP\r\n\r\n", false},
	} {
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			if got, err := ask(tr, "GET", ""); (err == nil) != c.good || c.good && got != "ok" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}, says(c.head))
	}
	// A long body is no long head.
	scripted(t, func(t *testing.T, s *script, tr *Transport) {
		if got, err := ask(tr, "GET", ""); err != nil || len(got) != 3*maxHead {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}, says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 3*maxHead, strings.Repeat("x", 3*maxHead))))
}

// TestAnAnswerBeforeTheEndOfTheRequest: the site takes the head of an upload,
// refuses it and closes.
func TestAnAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReaderSize(c, 16)); err != nil {
				t.Error(err)
			}
			io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
			c.(*net.TCPConn).CloseWrite()
			io.CopyN(io.Discard, c, 1<<20) // the rest would be a reset
			c.Close()
		}
	}()
	tr := New(Options{DialContext: new(net.Dialer).DialContext})
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+ln.Addr().String(), strings.NewReader(strings.Repeat("x", 1<<20)))
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// TestTheEndOfTheContext ends a request wherever it is.
func TestTheEndOfTheContext(t *testing.T) {
	cause := errors.New("enough")
	mute := func(_ net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) }
	body := func(c net.Conn, r *bufio.Reader) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		io.Copy(io.Discard, r)
	}
	for name, serve := range map[string]func(net.Conn, *bufio.Reader){"head": mute, "body": body, "dial": nil} {
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			if serve == nil {
				tr.options.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(cause) })
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://site.test/", nil)
			resp, err := tr.RoundTrip(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if !errors.Is(err, cause) {
				t.Errorf("%s: the error is %v", name, err)
			}
		}, serve)
	}
}

// TestWhoDialsTakesWhatBecomesFree has an exit of one slot: the second
// request would wait for ever for a connection of its own.
func TestWhoDialsTakesWhatBecomesFree(t *testing.T) {
	scripted(t, func(t *testing.T, s *script, tr *Transport) {
		tr.options.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if s.conns == 1 {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return s.dial(ctx, network, addr)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { wantAnswer(t, tr, "GET", "") })
			synctest.Wait()
		}
		wg.Wait()
	}, func(c net.Conn, r *bufio.Reader) {
		for range 2 {
			said(r)
			time.Sleep(time.Second)
			io.WriteString(c, ok)
		}
	})
}

// closable is a body that knows whether it was closed.
type closable struct {
	io.Reader
	closed atomic.Bool
}

func (c *closable) Close() error { c.closed.Store(true); return nil }

func TestWhatIsNotSent(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"scheme":       func(r *http.Request) { r.URL.Scheme = "ftp" },
		"host":         func(r *http.Request) { r.URL.Host = "" },
		"method":       func(r *http.Request) { r.Method = "GET /" },
		"header name":  func(r *http.Request) { r.Header["a b"] = []string{"x"} },
		"header value": func(r *http.Request) { r.Header.Set("Authorization", "secret\r\nX: y") },
		"dial":         func(r *http.Request) {},
	} {
		body := &closable{Reader: strings.NewReader("x")}
		req, _ := http.NewRequest("POST", "http://site.test", body)
		change(req)
		dialled := false
		tr := New(Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
			dialled = true
			return nil, errors.New("no way")
		}})
		_, err := tr.RoundTrip(req)
		if err == nil || strings.Contains(err.Error(), "secret") || dialled != (name == "dial") || !body.closed.Load() {
			t.Errorf("%s: %v; dialled: %v, the body was closed: %v", name, err, dialled, body.closed.Load())
		}
	}
}

// TestAnswersThatWaitHaveNoBuffer: the buffer of the head goes when what came
// with it is used, whatever frames the body, and comes again for the next head.
func TestAnswersThatWaitHaveNoBuffer(t *testing.T) {
	for name, pieces := range map[string][]string{
		"chunks":    {chunkedOK + "1\r\no\r", "\n1\r\nk\r\n0\r\n\r\n"},
		"length":    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", "k"},
		"until end": {"HTTP/1.1 200 OK\r\n\r\no", "k"},
	} {
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			for range 2 {
				resp := get(t, tr, "http://site.test")
				body := resp.Body.(*Body).wire.ReadCloser.(*singleBody)
				if body.s.r == nil {
					t.Errorf("%s: what came with the head is gone", name)
				}
				read := make(chan string)
				go func() {
					b, err := io.ReadAll(resp.Body)
					read <- fmt.Sprint(string(b), err)
				}()
				synctest.Wait()
				if body.s.r != nil {
					t.Errorf("%s: a buffer waits with the stream", name)
				}
				time.Sleep(2 * time.Second)
				if got := <-read; got != "ok<nil>" {
					t.Errorf("%s: %s", name, got)
				}
				synctest.Wait()
				if body.s.r != nil {
					t.Errorf("%s: a buffer rests with the connection", name)
				}
			}
			if want := map[bool]int{false: 1, true: 2}[name == "until end"]; s.conns != want {
				t.Errorf("%s: %d connections, want %d", name, s.conns, want)
			}
		}, slices.Repeat([]func(net.Conn, *bufio.Reader){func(c net.Conn, r *bufio.Reader) {
			for range 2 {
				if _, err := said(r); err != nil {
					return
				}
				io.WriteString(c, pieces[0])
				time.Sleep(time.Second)
				io.WriteString(c, pieces[1])
				if name == "until end" {
					return
				}
			}
			r.Peek(1)
		}}, 2)...)
	}
}

// TestAnswersThatWaitHaveNoGoroutine is why the protocols are spoken here.
func TestAnswersThatWaitHaveNoGoroutine(t *testing.T) {
	const many = 50
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		s := httptest.NewUnstartedServer(feed(nil))
		s.EnableHTTP2 = proto == "HTTP/2.0"
		s.StartTLS()
		tr := newTransport(t, s)
		// The server is of this process, too: what counts are the others.
		servers := regexp.MustCompile(`net/http\.\(\*(conn|connReader|Server|http2serverConn)\)`)
		ours := func() (n int) {
			buf := make([]byte, 4<<20)
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if !servers.MatchString(g) {
					n++
				}
			}
			return n
		}
		before := ours()
		for range many {
			resp := get(t, tr, s.URL)
			if b := make([]byte, len(proto)); resp.Proto != proto {
				t.Fatalf("the answer is %s", resp.Proto)
			} else if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, func() bool { return ours()-before <= 1 }) // the one that reads frames
		s.CloseClientConnections()
		s.Close()
	}
}
