package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A feed is written as the answers to one request after the other; the answer
// to those after the last one is 204. What stands in it is sent as it is, and
// flushed before every line that begins with "== ":
//
//	== answer 200 text/event-stream   the next answer begins
//	== header Retry-After: 1          before the first line of the answer
//	== pause 300ms
//	== wait                           until goOn is called
//	== count 500 5ms                  events numbered on from Last-Event-ID, up to 500
//	== big 1000000                    one event with so many bytes of data
//	== hang                           say nothing more until the client leaves
//	== cut                            reset the connection
//	== again                          this answer to all that follow, too
type answer struct {
	status int
	kind   string
	header [][2]string
	steps  []feedStep
	again  bool
}

type feedStep struct {
	text  string
	pause time.Duration
	count int
	big   int
	wait  bool
	hang  bool
	cut   bool
}

func parseFeed(text string) ([]answer, error) {
	var all []answer
	for line := range strings.Lines(text) {
		directive, ok := strings.CutPrefix(line, "== ")
		if word := strings.Fields(directive); ok && word[0] == "answer" {
			status, err := strconv.Atoi(word[1])
			if err != nil {
				return nil, err
			}
			all = append(all, answer{status: status, kind: strings.Join(word[2:], " ")})
			continue
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("%q stands before the first answer", line)
		}
		a := &all[len(all)-1]
		if !ok {
			if n := len(a.steps); n > 0 && a.steps[n-1].text != "" {
				a.steps[n-1].text += line
			} else {
				a.steps = append(a.steps, feedStep{text: line})
			}
			continue
		}
		var s feedStep
		var err error
		switch word := strings.Fields(directive); word[0] {
		case "header":
			name, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(directive, "header ")), ": ")
			a.header = append(a.header, [2]string{name, value})
			continue
		case "again":
			a.again = true
			continue
		case "pause":
			s.pause, err = time.ParseDuration(word[1])
		case "count":
			if s.count, err = strconv.Atoi(word[1]); err == nil {
				s.pause, err = time.ParseDuration(word[2])
			}
		case "big":
			s.big, err = strconv.Atoi(word[1])
		case "wait":
			s.wait = true
		case "hang":
			s.hang = true
		case "cut":
			s.cut = true
		default:
			err = fmt.Errorf("no such directive: %s", line)
		}
		if err != nil {
			return nil, err
		}
		a.steps = append(a.steps, s)
	}
	return all, nil
}

// feedServer serves a feed.
type feedServer struct {
	*httptest.Server
	over chan struct{}
	once sync.Once
	on   chan struct{}
	sent atomic.Int64 // numbered events
	late atomic.Int64 // pauses between them that took longer than tardy

	mu       sync.Mutex
	answers  []answer
	requests io.Writer
	times    []time.Time // of the requests
}

func newFeedServer(answers []answer, requests io.Writer) *feedServer {
	f := &feedServer{answers: answers, requests: requests, over: make(chan struct{}), on: make(chan struct{})}
	f.Server = httptest.NewServer(f)
	return f
}

// tardy is a pause between two numbered events that is the feed's own fault: it
// was not given the processor.
const tardy = 200 * time.Millisecond

// goOn ends a wait.
func (f *feedServer) goOn() {
	select {
	case f.on <- struct{}{}:
	case <-f.over:
	}
}

func (f *feedServer) Close() {
	f.once.Do(func() { close(f.over) })
	f.Server.Close()
}

// asked returns when the requests came.
func (f *feedServer) asked() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.times...)
}

func (f *feedServer) next(r *http.Request) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.times = append(f.times, time.Now())
	if f.requests != nil {
		dump, _ := httputil.DumpRequest(r, true)
		fmt.Fprintf(f.requests, "%s\n", bytes.ReplaceAll(dump, []byte("\r"), nil))
	}
	if len(f.answers) == 0 {
		return answer{status: http.StatusNoContent}
	}
	a := f.answers[0]
	if !a.again {
		f.answers = f.answers[1:]
	}
	return a
}

func (f *feedServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := f.next(r)
	if a.kind != "" {
		w.Header().Set("Content-Type", a.kind)
	}
	for _, h := range a.header {
		w.Header().Set(h[0], h[1])
	}
	w.WriteHeader(a.status)
	flush := http.NewResponseController(w).Flush
	flush()
	n, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	out := bufio.NewWriterSize(w, 64<<10)
	for _, s := range a.steps {
		switch {
		case s.text != "":
			out.WriteString(s.text)
		case s.count > 0:
			last := time.Now()
			for n++; n <= s.count; n++ {
				fmt.Fprintf(out, "id: %d\nevent: tick\ndata: {\"n\":%d}\n\n", n, n)
				out.Flush()
				flush()
				f.sent.Add(1)
				now := time.Now()
				if now.Sub(last) > tardy {
					f.late.Add(1)
				}
				last = now
				if !f.wait(r, s.pause) {
					return
				}
			}
		case s.big > 0:
			out.WriteString("data: ")
			block := bytes.Repeat([]byte("x"), 64<<10)
			for left := s.big; left > 0; left -= len(block) {
				if _, err := out.Write(block[:min(left, len(block))]); err != nil {
					return
				}
			}
			out.WriteString("\n\n")
		case s.cut:
			out.Flush()
			flush()
			panic(http.ErrAbortHandler)
		}
		out.Flush()
		flush()
		if s.wait {
			select {
			case <-f.on:
			case <-r.Context().Done():
				return
			case <-f.over:
				return
			}
		}
		if s.hang {
			f.wait(r, time.Hour)
			return
		}
		if s.count == 0 && !f.wait(r, s.pause) {
			return
		}
	}
}

// wait tells whether anybody is still there after d.
func (f *feedServer) wait(r *http.Request, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-f.over:
	}
	return false
}

// newConnectProxy serves a forward proxy with a password: CONNECT, and requests
// in absolute form. What it is asked for is written to requests, and how often
// it refused a password. A user that ends with * is any that begins so, as a
// provider takes sessions, and is written as well.
func newConnectProxy(user, password string, requests io.Writer) *httptest.Server {
	account, sessions := strings.CutSuffix(user, "*")
	var mu sync.Mutex
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(requests, format+"\n", args...)
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		basic, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Proxy-Authorization"), "Basic "))
		who, word, _ := strings.Cut(string(basic), ":")
		if word != password || who != account && !(sessions && strings.HasPrefix(who, account)) {
			note("refused %s %s", r.Method, r.Host)
			w.Header().Set("Proxy-Authenticate", `Basic realm="proxy"`)
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if sessions {
			note("as %s", who)
		}
		note("%s %s", r.Method, r.Host)
		if r.Method != http.MethodConnect {
			(&httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}, FlushInterval: -1}).ServeHTTP(w, r)
			return
		}
		site, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer site.Close()
		w.WriteHeader(http.StatusOK)
		client, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		go func() {
			io.Copy(site, buffered)
			site.Close()
		}()
		io.Copy(client, site)
	}))
}
