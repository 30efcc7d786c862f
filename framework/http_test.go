package framework

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/sse"
)

// eventStream is the head of an answer with events.
func eventStream(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, text)
	w.(http.Flusher).Flush()
}

// anonymous makes identities that trust the server.
func anonymous(t *testing.T, s *httptest.Server) *Identities {
	c := IdentityConfig{}
	if s.TLS != nil {
		c.TLS = s.Client().Transport.(*http.Transport).TLSClientConfig
	}
	ids := NewIdentities(c)
	t.Cleanup(ids.Close)
	return ids
}

// hold reads a stream that ends by itself, or after so many events, and
// returns what it brought and its account.
func hold(t *testing.T, s *Stream, most int) (got []Event, account StreamStats, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if s.Name == "" {
		s.Name = "t/s"
	}
	if s.Limits == nil {
		s.Limits = quickly()
	}
	if s.MinWait == 0 {
		s.MinWait = time.Millisecond
	}
	f := newFeed()
	r, err := newRunner(ctx, s, f)
	if err != nil {
		t.Fatal(err)
	}
	running, enough := context.WithCancel(ctx)
	defer enough()
	if most > 0 {
		r.share = &allowance{left: uint64(most), over: enough}
	}
	over := make(chan error, 1)
	go func() { over <- r.run(running) }()
	take := func() {
		f.drain(func(next *Event, _ error) bool {
			ev := *next
			ev.ID, ev.Data = slices.Clone(ev.ID), slices.Clone(ev.Data)
			got = append(got, ev)
			return true
		})
	}
	for {
		select {
		case <-f.ready:
			take()
		case err = <-over:
			take()
			if ctx.Err() != nil {
				t.Fatalf("the stream did not end: %+v", r.stats.snapshot(time.Now()))
			}
			return got, r.stats.snapshot(time.Now()), err
		}
	}
}

func data(events []Event) (list []string) {
	for _, ev := range events {
		list = append(list, string(ev.Data))
	}
	return list
}

// A site that asks for a longer wait than a Duration holds gets the longest.
func TestRetryAfterIsBounded(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"30": 30 * time.Second, "7200": time.Hour, "9999999999": time.Hour, "10000000000": time.Hour, "99999999999999999999": time.Hour,
		"-5": 0, "soon": 0, "Sun, 06 Nov 1994 08:49:37 GMT": 0, "Fri, 31 Dec 2199 23:59:59 GMT": time.Hour,
	} {
		if v := Judge(outcomeOf(&HTTPError{Status: 429, Header: http.Header{"Retry-After": {value}}})); v.Wait != want {
			t.Errorf("Retry-After: %s waits %v, want %v", value, v.Wait, want)
		}
	}
}

func TestFiniteStreamsEnd(t *testing.T) {
	for name, test := range map[string]struct {
		body    string
		options SSEOptions
		want    []string
	}{
		"sentinel":                          {"data: a\n\ndata: b\n\ndata: [DONE]\n\ndata: c\n\n", SSEOptions{Done: "[DONE]"}, []string{"a", "b"}},
		"sentinel without its blank line":   {"data: a\n\ndata: b\n\ndata: [DONE]\n", SSEOptions{Done: "[DONE]"}, []string{"a", "b"}},
		"sentinel without its line end":     {"data: a\n\ndata: b\n\ndata: [DONE]", SSEOptions{Done: "[DONE]"}, []string{"a", "b"}},
		"sentinel with white space":         {"data: a\n\ndata: [DONE] ", SSEOptions{Done: "[DONE]"}, []string{"a"}},
		"end":                               {"data: a\n\ndata: b\n\n", SSEOptions{StopAtEnd: true}, []string{"a", "b"}},
		"end, the last event is incomplete": {"data: a\n\ndata: b\n", SSEOptions{StopAtEnd: true}, []string{"a"}},
		"lines with a sentinel":             {"{\"a\":1}\n[DONE]\n{}\n", SSEOptions{Wire: WireNDJSON, Done: "[DONE]"}, []string{`{"a":1}`}},
		"lines with a sentinel at the end":  {"{\"a\":1}\n[DONE]", SSEOptions{Wire: WireNDJSON, Done: "[DONE]"}, []string{`{"a":1}`}},
		"lines":                             {"{\"a\":1}\n\n{\"a\":2}", SSEOptions{Wire: WireNDJSON, StopAtEnd: true}, []string{`{"a":1}`, `{"a":2}`}},
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				eventStream(w, test.body)
			}))
			defer s.Close()
			got, account, err := hold(t, &Stream{Target: &SSE{Request: Request{URL: s.URL}, Options: test.options}, Identities: anonymous(t, s)}, 0)
			if err != nil || !slices.Equal(data(got), test.want) || requests != 1 || account.State != "done" {
				t.Errorf("%q, %v, %d requests, %s; want %q", data(got), err, requests, account.State, test.want)
			}
		})
	}
}

func TestACutFiniteStreamIsNoEnd(t *testing.T) {
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		eventStream(w, fmt.Sprintf("data: %d\n\n", n))
		if n == 1 {
			panic(http.ErrAbortHandler)
		}
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	defer s.Close()
	got, account, err := hold(t, &Stream{Target: &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{StopAtEnd: true}}, Identities: anonymous(t, s)}, 0)
	if err != nil || !slices.Equal(data(got), []string{"1", "2"}) || account.Reconnects[CauseBroken] != 1 {
		t.Errorf("%q %v %v", data(got), err, account.Reconnects)
	}
}

func TestTheWireIsKnownByItsContentType(t *testing.T) {
	for _, test := range []struct {
		content string
		wire    Wire
		want    Wire // empty: not the stream
	}{
		{"text/event-stream; charset=utf-8", "", WireSSE},
		{"Text/Event-Stream", WireAuto, WireSSE},
		{"text/event-stream; charset=utf-8; charset=UTF-8", "", WireSSE},
		{"text/event-stream, text/event-stream", "", WireSSE},
		{"text/html; charset=utf-8; charset=UTF-8", WireSSE, ""},
		{"application/x-ndjson", WireAuto, WireNDJSON},
		{"application/jsonl", "", WireNDJSON},
		{"application/json", WireAuto, ""},
		{"text/html", WireAuto, ""},
		{"", WireAuto, ""},
		{"text/html; charset=utf-8", WireSSE, ""},
		{"application/xhtml+xml", WireNDJSON, ""},
		{"text/plain", WireSSE, WireSSE},
		{"application/json", WireNDJSON, WireNDJSON},
		{"text/event-stream", WireNDJSON, WireNDJSON},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = []string{test.content}
			io.WriteString(w, "data: 1\n\n[2]\n")
		}))
		target := &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{
			Wire: test.wire, StopAtEnd: true, Answers: map[int]Verdict{200: {Remedy: Fail}},
		}}
		got, _, err := hold(t, &Stream{Target: target, Identities: anonymous(t, s)}, 0)
		want := map[Wire][]string{WireSSE: {"1"}, WireNDJSON: {"[2]"}}[test.want]
		refused, _ := errors.AsType[*HTTPError](err)
		if !slices.Equal(data(got), want) || (refused != nil) != (test.want == "") {
			t.Errorf("%q as %q: %q, %v", test.content, test.wire, data(got), err)
		}
		s.Close()
	}
}

// TestARefusalThatDoesNotEnd: some send the head of a refusal and then no more,
// and keep the connection.
func TestARefusalThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, site := io.Pipe()
		go io.WriteString(site, "no")
		began := time.Now()
		e := NewHTTPError(&http.Response{StatusCode: 503, Body: body}, "")
		if took := time.Since(began); took != refusalTimeout || e.Status != 503 || string(e.Body) != "no" {
			t.Errorf("%d %q after %v", e.Status, e.Body, took)
		}
	})
}

func TestAnswersByStatus(t *testing.T) {
	boom := map[int]Verdict{404: {Remedy: Stop}, 410: {Remedy: Fail}, 503: {Remedy: Reconnect, Wait: 300 * time.Millisecond}, 204: {Remedy: Reconnect}}
	for _, test := range []struct {
		status  int
		answers map[int]Verdict
		ends    bool // with the first answer
		fails   bool
		least   time.Duration
	}{
		{404, boom, true, false, 0},
		{410, boom, true, true, 0},
		{503, boom, false, false, 300 * time.Millisecond},
		{204, boom, false, false, 0},
		{204, nil, true, false, 0},
		{404, nil, false, false, 0},
		{410, nil, false, false, 0},
	} {
		t.Run(fmt.Sprint(test.status, len(test.answers)), func(t *testing.T) {
			n := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n++; n == 1 {
					w.WriteHeader(test.status)
					return
				}
				eventStream(w, "data: 1\n\n")
			}))
			defer s.Close()
			began := time.Now()
			got, _, err := hold(t, &Stream{
				Target:     &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{StopAtEnd: true, Answers: test.answers}},
				Identities: anonymous(t, s),
			}, 0)
			if (len(got) == 0) != test.ends || (err != nil) != test.fails || time.Since(began) < test.least {
				t.Errorf("%d events, %v, after %v", len(got), err, time.Since(began))
			}
			if test.fails && !strings.Contains(err.Error(), fmt.Sprint(test.status)) {
				t.Errorf("the error does not name the answer: %v", err)
			}
		})
	}
}

func TestAnswersOverrideTheEngine(t *testing.T) {
	for _, remedy := range []Remedy{Reconnect, Reauthenticate, Rotate, Stop, Fail} {
		o := outcomeOf(fmt.Errorf("opening: %w", &HTTPError{Status: 401, Header: http.Header{"Retry-After": {"3"}}, Verdict: Verdict{Remedy: remedy, Wait: time.Second}}))
		if v := Judge(o); v.Remedy != remedy || v.Wait != 3*time.Second || v.Cause != CauseExpired {
			t.Errorf("%v: verdict is %+v", remedy, v)
		}
	}
}

func TestEventsThatAreTooLarge(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, test := range []struct {
		wire Wire
		body string
	}{
		{WireSSE, "id: 1\ndata: a\n\nid: 2\ndata: " + long + "\n\nid: 3\ndata: b\n\n"},
		{WireNDJSON, "\"a\"\n\"" + long + "\"\n\"b\"\n"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { eventStream(w, test.body) }))
		o := SSEOptions{Wire: test.wire, MaxEvent: 100, StopAtEnd: true}
		got, account, err := hold(t, &Stream{Target: &SSE{Request: Request{URL: s.URL}, Options: o}, Identities: anonymous(t, s)}, 0)
		if err != nil || len(got) != 2 || account.DeadLetters != 1 || account.OdditiesByKind["event too large"] != 1 {
			t.Errorf("%s, skip: %q, %v, %+v", test.wire, data(got), err, account)
		}
		o.FailTooLarge = true
		got, account, err = hold(t, &Stream{Target: &SSE{Request: Request{URL: s.URL}, Options: o}, Identities: anonymous(t, s)}, 0)
		if err == nil || !strings.Contains(err.Error(), "raise it if the feed means it") || len(got) != 1 || account.DeadLetters != 0 {
			t.Errorf("%s, fail: %q, %v", test.wire, data(got), err)
		}
		s.Close()
	}
}

// TestEventsThatFindNoMemory: within their limit, while others have it all.
func TestEventsThatFindNoMemory(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for wire, body := range map[Wire]string{WireSSE: "data: a\n\ndata: " + long + "\n\ndata: b\n\n", WireNDJSON: "\"a\"\n\"" + long + "\"\n\"b\"\n"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { eventStream(w, body) }))
		target := &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{Wire: wire, StopAtEnd: true}}
		got, account, err := hold(t, &Stream{Target: target, Identities: anonymous(t, s), Budget: sse.NewBudget(0)}, 0)
		if err != nil || len(got) != 2 || account.DeadLetters != 1 || account.OdditiesByKind[oddityOf("", sse.ErrBudget)] != 1 {
			t.Errorf("%s: %d events, %v, %+v", wire, len(got), err, account)
		}
		s.Close()
	}
}

func TestOdditiesAreToldOnceAKind(t *testing.T) {
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		eventStream(w, "error: {\"code\": 1}\nerror: again\ndata: 1\n\nevent: empty\n\nretry: soon\ndata: 2\n\n")
		if n == 2 {
			io.WriteString(w, "data: [DONE]\n\n")
		}
	}))
	defer s.Close()
	var log bytes.Buffer
	got, account, err := hold(t, &Stream{
		Target:     &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{Done: "[DONE]"}},
		Identities: anonymous(t, s), Log: slog.New(slog.NewTextHandler(&log, nil)),
	}, 0)
	want := map[string]uint64{"unknown field": 4, "event without data": 2, "bad retry": 2}
	if err != nil || len(got) != 4 || !maps.Equal(account.OdditiesByKind, want) || account.Oddities != 8 || account.DeadLetters != 0 {
		t.Errorf("%d events, %v, oddities %d: %v", len(got), err, account.Oddities, account.OdditiesByKind)
	}
	if told := strings.Count(log.String(), "format drops"); told != 3 || !strings.Contains(log.String(), `{\"code\": 1}`) || strings.Contains(log.String(), "again") {
		t.Errorf("told %d times:\n%s", told, log.String())
	}
}

func TestBase64Payloads(t *testing.T) {
	payload := `{"n": 7, "text": "` + strings.Repeat("ü~?", 9) + `"}`
	var body strings.Builder
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		fmt.Fprintf(&body, "data: %s\n\n", e.EncodeToString([]byte(payload)))
	}
	body.WriteString("data: not base64!\n\ndata: [DONE]\n\n")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { eventStream(w, body.String()) }))
	defer s.Close()
	got, account, err := hold(t, &Stream{
		Target:     &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{Done: "[DONE]", Base64: true, Resume: ResumeBy{From: "json:n"}}},
		Identities: anonymous(t, s),
	}, 0)
	want := []string{payload, payload, payload, payload, "not base64!"}
	if err != nil || !slices.Equal(data(got), want) || account.OdditiesByKind["payload is not base64"] != 1 {
		t.Errorf("%q, %v, %v", data(got), err, account.OdditiesByKind)
	}
	if got[0].Cursor != "7" {
		t.Errorf("the cursor was looked for in the packed data: %q", got[0].Cursor)
	}
}

func TestBytesAreCountedOnTheWireAndDecoded(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	text := strings.Repeat("data: the same again and again\n\n", 200)
	io.WriteString(z, text)
	z.Close()
	for _, compressed := range []bool{true, false} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if compressed {
				w.Header().Set("Content-Encoding", "gzip")
				eventStream(w, packed.String())
			} else {
				eventStream(w, text)
			}
		}))
		_, account, err := hold(t, &Stream{Target: &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{StopAtEnd: true}}, Identities: anonymous(t, s)}, 0)
		wire := uint64(len(text))
		if compressed {
			wire = uint64(packed.Len())
		}
		want := Traffic{Bytes: uint64(len(text)), WireBytes: wire}
		if err != nil || account.Bytes != want.Bytes || account.WireBytes != want.WireBytes || account.Exits["direct"] != want || len(account.Exits) != 1 {
			t.Errorf("compressed %v: %d bytes, %d on the wire, %v; want %+v (%v)", compressed, account.Bytes, account.WireBytes, account.Exits, want, err)
		}
		s.Close()
	}
}

func TestExitsAreBounded(t *testing.T) {
	var s streamStats
	for i := range 2 * maxExits {
		s.through(fmt.Sprint(i)).decoded.Add(1)
	}
	if account := s.snapshot(time.Now()); account.Bytes != 2*maxExits || len(account.Exits) != maxExits+1 {
		t.Errorf("%d bytes through %d exits", account.Bytes, len(account.Exits))
	}
}

// TestGoAwayIsPlanned has a real server shut down under a stream, and another
// take its place.
func TestGoAwayIsPlanned(t *testing.T) {
	for _, handover := range []Handover{HandoverAuto, HandoverBreak} {
		t.Run(string(handover), func(t *testing.T) {
			var server, next *httptest.Server
			var connects atomic.Int64
			taken, announced, shut := make(chan struct{}), make(chan struct{}), make(chan struct{})
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 {
					t.Errorf("spoke %s", r.Proto)
				}
				if connects.Add(1) == 1 {
					eventStream(w, "id: 1\ndata: 1\n\n")
					go func() {
						defer close(shut)
						<-taken
						ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
						defer cancel()
						server.Config.Shutdown(ctx) // sends GOAWAY and waits for the stream in vain
						<-announced
						server.CloseClientConnections()
					}()
					<-r.Context().Done()
					return
				}
				if id := r.Header.Get("Last-Event-ID"); id != "1" {
					t.Errorf("came back with the cursor %q", id)
				}
				eventStream(w, "id: 2\ndata: 2\n\n")
				<-r.Context().Done()
			})
			server, next = httptest.NewUnstartedServer(handler), httptest.NewUnstartedServer(handler)
			for _, s := range []*httptest.Server{server, next} {
				s.EnableHTTP2 = true
				s.StartTLS()
				defer s.Close()
			}
			config := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			config.RootCAs.AddCert(next.Certificate())
			ids := NewIdentities(IdentityConfig{TLS: config})
			defer ids.Close()
			target := TargetFunc(func(ctx context.Context, s *Session, from Cursor) (Connection, error) {
				url := server.URL
				if connects.Load() > 0 {
					url = next.URL
				}
				c, err := (&SSE{Request: Request{URL: url}}).Open(ctx, s, from)
				for err != nil && ctx.Err() == nil { // a server on a slow machine gives up handshakes
					c, err = (&SSE{Request: Request{URL: url}}).Open(ctx, s, from)
				}
				if err == nil && url == server.URL {
					c.(Announcer).OnLeaving(func() { close(announced) })
					return &reading{httpConnection: c.(*httpConnection), second: func() { close(taken) }}, nil
				}
				return c, err
			})
			// A planned change does not wait: one that did would outlast the test.
			got, account, err := hold(t, &Stream{Target: target, Identities: ids, MinWait: 24 * time.Hour, StaleAfter: 24 * time.Hour, Handover: handover}, 2)
			<-shut
			if err != nil || !slices.Equal(data(got), []string{"1", "2"}) {
				t.Fatalf("%q, %v", data(got), err)
			}
			if len(account.Reconnects) != 1 || account.Reconnects[CauseGoAway] != 1 {
				t.Errorf("reconnects are %v", account.Reconnects)
			}
		})
	}
}

// reading tells when its first event has been taken: when the second is asked
// for.
type reading struct {
	*httpConnection
	asked  int
	second func()
}

func (r *reading) Next(ev *Event) error {
	if r.asked++; r.asked == 2 {
		r.second()
	}
	return r.httpConnection.Next(ev)
}

// TestGoAwayWithoutWarningIsFollowedAtOnce is the announcement that comes
// together with the end.
func TestGoAwayWithoutWarningIsFollowedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		s.script = func(n int, _ Cursor) step {
			if n == 1 {
				return step{events: 5, err: fmt.Errorf("%w: %w", ErrGoAway, io.ErrUnexpectedEOF)}
			}
			return step{events: 1000}
		}
		got, account, err := hold(t, &Stream{Target: s, MinWait: 10 * time.Second}, 9)
		if err != nil || !slices.Equal(data(got), numbers(1, 9)) || account.Reconnects[CauseGoAway] != 1 || s.times[1] != 5*time.Second {
			t.Errorf("%q, %v, %v, connected at %v", data(got), err, account.Reconnects, s.times)
		}
	})
}

// TestGoAwayLosesNothingWithoutReplay has a site that cannot replay announce
// the end of every connection some seconds before it.
func TestGoAwayLosesNothingWithoutReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: 500 * time.Millisecond, start: time.Now()}
		s.script = func(int, Cursor) step { return step{after: 30 * time.Second} }
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			c, err := s.Open(ctx, sess, from)
			return foretold{c}, err
		})
		got, account, err := hold(t, &Stream{Target: target, Limits: quickly()}, 300)
		if err != nil || !slices.Equal(data(got), numbers(1, 300)) {
			t.Fatalf("lost or doubled: %q, %v", data(got), err)
		}
		if n := account.Reconnects[CauseGoAway]; n < 5 || len(account.Reconnects) != 1 || s.most != 2 || len(account.Gaps) != 0 {
			t.Errorf("reconnects %v, %d connections side by side, gaps %v", account.Reconnects, s.most, account.Gaps)
		}
	})
}

// foretold is a connection that announces its end after 20 seconds.
type foretold struct{ Connection }

func (a foretold) OnLeaving(f func()) func() bool { return time.AfterFunc(20*time.Second, f).Stop }

// TestASilentHTTP2ConnectionIsNotUsedAgain has a whole connection fall silent
// with several streams on it: all come back on another one, and none of them
// asks this one twice.
func TestASilentHTTP2ConnectionIsNotUsedAgain(t *testing.T) {
	const streams = 5
	var mute atomic.Value // the connection that has fallen silent
	var asked [streams]atomic.Int32
	var all sync.WaitGroup // the streams, until each has been answered or has asked another connection
	all.Add(streams)
	var read sync.WaitGroup // the streams, until each has its first event: before that nothing is silent
	read.Add(streams)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i, err := strconv.Atoi(r.URL.Query().Get("stream"))
		if err != nil {
			t.Error(err)
			return
		}
		mute.CompareAndSwap(nil, r.RemoteAddr)
		if mute.Load() == r.RemoteAddr {
			if asked[i].Add(1) == 1 {
				all.Done()
			}
			all.Wait()
			eventStream(w, "id: 1\ndata: 1\n\n")
			if read.Wait(); i == streams-1 {
				eventStream(w, ":\n\n") // as a rule after the others have begun to wait for their second event
			}
			<-r.Context().Done()
			return
		}
		if asked[i].CompareAndSwap(0, 1) { // two connections were dialled at the same time
			all.Done()
		}
		eventStream(w, "id: 2\ndata: 2\n\ndata: [DONE]\n\n")
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	ids := anonymous(t, server)
	var wg sync.WaitGroup
	for i := range streams {
		sse := &SSE{Request: Request{URL: server.URL, Query: map[string]string{"stream": fmt.Sprint(i)}}, Options: SSEOptions{Done: "[DONE]"}}
		once := sync.OnceFunc(read.Done)
		target := TargetFunc(func(ctx context.Context, s *Session, from Cursor) (Connection, error) {
			c, err := sse.Open(ctx, s, from)
			if err != nil {
				return nil, err
			}
			return &reading{httpConnection: c.(*httpConnection), second: func() { once(); read.Wait() }}, nil
		})
		wg.Go(func() {
			got, account, err := hold(t, &Stream{Name: fmt.Sprint("t/", i), Target: target, Identities: ids, StaleAfter: 500 * time.Millisecond}, 0)
			// One finds the silence, and the connection goes with all that it carries.
			if err != nil || got == nil || string(got[len(got)-1].Data) != "2" {
				t.Errorf("%q, %v, %v", data(got), err, account.Reconnects)
			}
		})
	}
	wg.Wait()
	for i := range asked {
		if n := asked[i].Load(); n > 1 {
			t.Errorf("stream %d asked the silent connection %d times", i, n)
		}
	}
}

func TestCredentialsStayAtHomeThroughRedirects(t *testing.T) {
	var seen atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		r.Header.Write(&b)
		seen.Store(b.String() + r.URL.String())
		eventStream(w, "data: 1\n\n")
	}))
	defer other.Close()
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			// Cookies know no ports (RFC 6265, section 8.5), so the other host has another name.
			http.Redirect(w, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
			for _, want := range []string{"s3cret-bearer", "s3cret-key", "s3cret-jar", "s3cret-cookie"} {
				var b bytes.Buffer
				r.Header.Write(&b)
				if !strings.Contains(b.String(), want) {
					t.Errorf("the site itself did not get %s: %s", want, b.String())
				}
			}
		}
	}))
	defer home.Close()
	host := strings.TrimPrefix(home.URL, "http://")
	source := auth.Static(http.Header{"Authorization": {"Bearer s3cret-bearer"}}, []*http.Cookie{{Name: "c", Value: "s3cret-jar", Domain: "127.0.0.1", Path: "/"}})
	ids := NewIdentities(IdentityConfig{Hosts: []string{host}, Keeper: auth.NewKeeper(auth.Config{Source: source})})
	defer ids.Close()
	got, _, err := hold(t, &Stream{Identities: ids, Target: &SSE{
		Request: Request{
			URL: home.URL, Header: map[string]string{"X-Api-Key": "s3cret-key"},
			Cookies: map[string]string{"own": "s3cret-cookie"}, Query: map[string]string{"q": "s3cret-query"},
		},
		Options: SSEOptions{StopAtEnd: true},
	}}, 0)
	if err != nil || len(got) != 1 {
		t.Fatalf("%q, %v", data(got), err)
	}
	if s := seen.Load().(string); strings.Contains(s, "s3cret") {
		t.Errorf("the other host saw %s", s)
	}
}

func TestCookiesOfTheRequest(t *testing.T) {
	req, err := Request{URL: "http://127.0.0.1/", Header: map[string]string{"Cookie": "z=1"}, Cookies: map[string]string{"b": "2", "a": `x"y`}}.New(t.Context())
	if err != nil || req.Header.Get("Cookie") != `z=1; a=x"y; b=2` {
		t.Errorf("%q, %v", req.Header.Get("Cookie"), err)
	}
}

func TestEndlessRedirectsAreAWrongAnswer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }))
	defer s.Close()
	_, _, err := hold(t, &Stream{Identities: anonymous(t, s), Target: &SSE{
		Request: Request{URL: s.URL, Query: map[string]string{"key": "s3cret"}},
		Options: SSEOptions{Answers: map[int]Verdict{302: {Remedy: Fail}}},
	}}, 0)
	if e, ok := errors.AsType[*HTTPError](err); !ok || e.Status != 302 || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error is %v", err)
	}
}
