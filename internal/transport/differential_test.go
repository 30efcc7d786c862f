package transport

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// outcome is what a caller sees of an answer.
type outcome struct {
	Failed, Cut bool // without an answer; in its body
	Status      int
	Proto       string
	Header      http.Header
	Length      int64
	Body        string
	Trailer     []string // as announced
}

// outcomes sends the same requests, one after the other.
func outcomes(t *testing.T, rt http.RoundTripper, times int, method, url, body string) (list []outcome) {
	t.Helper()
	for range times {
		var r io.Reader
		if body != "" {
			r = strings.NewReader(body)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, url, r)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "identity") // else each offers its own
		req.Header.Set("User-Agent", "test")
		req.Header.Set("Cookie", "a=1; b=2")
		resp, err := rt.RoundTrip(req)
		if err != nil {
			list = append(list, outcome{Failed: true})
			continue
		}
		announced := slices.Sorted(maps.Keys(resp.Trailer)) // those that come we leave out
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		delete(resp.Header, "Date")
		list = append(list, outcome{
			Cut: err != nil, Status: resp.StatusCode, Proto: resp.Proto, Header: resp.Header,
			Length: resp.ContentLength, Body: string(b), Trailer: announced,
		})
	}
	return list
}

// TestAnswersAreThoseOfNetHTTP sends what sites send over HTTP/1.1, well formed
// or not, to net/http's own Transport and to ours.
func TestAnswersAreThoseOfNetHTTP(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	// The others leave it to the client.
	closes := regexp.MustCompile("until the end|without|too little|cut|1.0 with chunks|nothing|another protocol")
	chunked := head + "Transfer-Encoding: chunked\r\n\r\n"
	answers := map[string]string{
		"length":                        head + "Content-Length: 2\r\n\r\nok",
		"length 0":                      head + "Content-Length: 0\r\n\r\n",
		"too little":                    head + "Content-Length: 5\r\n\r\nok",
		"lengths that agree":            head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
		"lengths that differ":           head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
		"a list of lengths":             head + "Content-Length: 2, 2\r\n\r\nok",
		"a negative length":             head + "Content-Length: -1\r\n\r\nok",
		"a signed length":               head + "Content-Length: +2\r\n\r\nok",
		"until the end":                 head + "\r\nok",
		"Connection: close":             head + "Connection: close\r\nContent-Length: 2\r\n\r\nok",
		"chunks":                        chunked + "1\r\no\r\n1;ext=1\r\nk\r\n0\r\n\r\n",
		"chunks and length":             head + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"chunks that are cut":           chunked + "5\r\nok",
		"chunks without an end":         chunked + "2\r\nok\r\n",
		"a chunk that is none":          chunked + "x\r\nok\r\n0\r\n\r\n",
		"a chunk too long":              chunked + "1\r\nok\r\n0\r\n\r\n",
		"an endless chunk size":         chunked + strings.Repeat("0", 100) + "2\r\nok\r\n0\r\n\r\n",
		"trailers":                      head + "Trailer: X-Sum, X-More\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
		"unknown transfer encoding":     head + "Transfer-Encoding: gzip\r\n\r\nok",
		"two transfer encodings":        head + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"chunked twice":                 head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"204":                           "HTTP/1.1 204 No Content\r\n\r\n",
		"204 with a length":             "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
		"304 with a length":             "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
		"304 with chunks":               "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HEAD":                          head + "Content-Length: 2\r\n\r\n",
		"HEAD without a length":         head + "\r\n",
		"HEAD of chunks":                head + "Transfer-Encoding: chunked\r\n\r\n",
		"interim":                       "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + head + "Content-Length: 2\r\n\r\nok",
		"HTTP/1.0":                      "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.0 that is kept":         "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.0 without a length":     "HTTP/1.0 200 OK\r\n\r\nok",
		"HTTP/1.0 with chunks":          "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/2.0 as text":              "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"no reason":                     "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
		"bare newlines":                 "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"a folded header":               head + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
		"a header that begins folded":   head + " X: a\r\nContent-Length: 2\r\n\r\nok",
		"a header with a space":         head + "X : a\r\nContent-Length: 2\r\n\r\nok",
		"a header without a colon":      head + "X\r\nContent-Length: 2\r\n\r\nok",
		"a header without a name":       head + ": x\r\nContent-Length: 2\r\n\r\nok",
		"a header with NUL":             head + "X: \x00\r\nContent-Length: 2\r\n\r\nok",
		"headers of Latin-1":            head + "X: \xe4\r\nContent-Length: 2\r\n\r\nok",
		"many values":                   head + "X: 1\r\nx: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok",
		"a status of two digits":        "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
		"no status":                     "HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok",
		"another protocol":              "ICY 200 OK\r\n\r\nok",
		"a head that is cut":            head + "Content-Le",
		"a large head":                  head + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100) + "Content-Length: 2\r\n\r\nok",
		"a redirect":                    "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
		"a location that is no address": "HTTP/1.1 201 Created\r\nLocation: %zz\r\nContent-Length: 0\r\n\r\n",
		"nothing":                       "",
	}
	for name, coded := range framings {
		answers["chunked: "+name] = chunked + coded
	}
	for name, answer := range answers {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var conns atomic.Int64
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				conns.Add(1)
				go func() {
					defer c.Close()
					r := bufio.NewReader(c)
					for {
						if _, err := said(r); err != nil {
							return
						}
						io.WriteString(c, answer)
						if closes.MatchString(name) {
							return
						}
					}
				}()
			}
		}()
		for _, method := range []string{"GET", "HEAD", "POST"} {
			if (method == "HEAD") != strings.HasPrefix(name, "HEAD") {
				continue
			}
			body := map[bool]string{true: "body"}[method == "POST"]
			theirs := &http.Transport{Proxy: nil, ResponseHeaderTimeout: 10 * time.Second}
			want := outcomes(t, theirs, 2, method, "http://"+ln.Addr().String(), body)
			theirs.CloseIdleConnections()
			took := conns.Swap(0)
			ours := newTransport(t, nil)
			got := outcomes(t, ours, 2, method, "http://"+ln.Addr().String(), body)
			ours.CloseIdleConnections()
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %s:\n got %+v\nwant %+v", name, method, got, want)
			}
			if n := conns.Swap(0); n != took && !want[0].Failed {
				t.Errorf("%s, %s: %d connections, net/http takes %d", name, method, n, took)
			}
		}
		ln.Close()
	}
}

// TestCutAnswersAreThoseOfNetHTTP has a site send bodies of every framing in
// pieces of random lengths, some of them not to their end.
func TestCutAnswersAreThoseOfNetHTTP(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		coded, data := chunkedBody(r)
		answer := "HTTP/1.1 200 OK\r\n" + []string{
			"Transfer-Encoding: chunked\r\n\r\n" + coded,
			fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(data), data),
			"\r\n" + data,
		}[seed%3]
		closes := seed%3 == 2
		if seed%4 == 3 {
			answer, closes = answer[:r.IntN(len(answer))], true
		}
		conns := 0
		dial := func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			conns++
			go func() {
				defer theirs.Close()
				for in := bufio.NewReader(theirs); ; {
					if _, err := said(in); err != nil {
						return
					}
					for cut := newCutter(answer, seed); cut.text != ""; {
						p := make([]byte, 1<<10)
						n, _ := cut.Read(p) // it has no other error than its end
						if _, err := theirs.Write(p[:n]); err != nil {
							return
						}
					}
					if closes {
						return
					}
				}
			}()
			return ours, nil
		}
		theirs := &http.Transport{DialContext: dial}
		want := outcomes(t, theirs, 2, "GET", "http://site.test", "")
		theirs.CloseIdleConnections()
		took := conns
		conns = 0
		ours := New(Options{DialContext: dial})
		got := outcomes(t, ours, 2, "GET", "http://site.test", "")
		ours.CloseIdleConnections()
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d, %.1000q:\n got %.1000s\nwant %.1000s", seed, answer, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
		}
		if conns != took && !want[0].Failed {
			t.Errorf("seed %d, %.1000q: %d connections, net/http takes %d", seed, answer, conns, took)
		}
	}
}

// TestAnswersOfAServerAreThoseOfNetHTTP does so with Go's server, which speaks
// either protocol.
func TestAnswersOfAServerAreThoseOfNetHTTP(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	handler := http.NewServeMux()
	handler.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		for name := range r.Header {
			fmt.Fprintln(w, name, r.Header[name])
		}
		fmt.Fprintln(w, r.Method, r.URL, r.Host, r.ContentLength, r.TransferEncoding, len(b), err)
	})
	handler.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		io.Copy(w, r.Body)
	})
	handler.HandleFunc("/refused", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	})
	handler.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, big) })
	handler.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(big)))
		io.WriteString(w, big)
	})
	handler.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "short")
	})
	handler.HandleFunc("/aborted", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	handler.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "ok")
	})
	handler.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.Header()["X"] = []string{"1", "2", ""}
		w.Header().Set("Etag", `"x"`)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
	})
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		s := httptest.NewUnstartedServer(handler)
		s.EnableHTTP2 = proto == "HTTP/2.0"
		s.StartTLS()
		theirs := s.Client().Transport.(*http.Transport)
		ours := newTransport(t, s)
		for _, path := range []string{
			"/request", "/request?q=%20x&y", "/request/../request", "/echo", "/refused", "/big", "/length", "/short", "/aborted", "/hints", "/nowhere",
			"/status/200", "/status/204", "/status/205", "/status/304", "/status/307", "/status/401", "/status/503", "/status/599",
		} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
				for _, body := range []string{"", "body", big} {
					reads := path == "/request" || path == "/echo" // else the answer to much may get lost
					if body != "" && (method == "GET" || method == "HEAD") || body == big && !reads || !slices.Contains([]string{"GET", "HEAD", "POST"}, method) && path != "/request" {
						continue
					}
					want := outcomes(t, theirs, 2, method, s.URL+path, body)
					theirs.CloseIdleConnections()
					got := outcomes(t, ours, 2, method, s.URL+path, body)
					ours.CloseIdleConnections()
					for _, list := range [][]outcome{want, got} { // in any order
						for i := range list {
							if strings.HasPrefix(path, "/request") {
								list[i].Body = strings.Join(slices.Sorted(strings.Lines(list[i].Body)), "")
							}
						}
					}
					if !reflect.DeepEqual(got, want) {
						t.Errorf("%s %s %s, %d bytes:\n got %.2000s\nwant %.2000s", proto, method, path, len(body), fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
					}
				}
			}
		}
		s.Close()
	}
}
