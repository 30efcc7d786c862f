package transport

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// flusher is a compressor that can hand out what it has.
type flusher interface {
	io.WriteCloser
	Flush() error
}

// compressors are what servers compress with, by the encoding that they name.
var compressors = map[string]func(io.Writer) flusher{
	"gzip":        func(w io.Writer) flusher { return gzip.NewWriter(w) },
	"x-gzip":      func(w io.Writer) flusher { return gzip.NewWriter(w) },
	"deflate":     func(w io.Writer) flusher { return zlib.NewWriter(w) },
	"Deflate":     func(w io.Writer) flusher { return must(flate.NewWriter(w, 5)) }, // bare
	"br":          func(w io.Writer) flusher { return brotli.NewWriterLevel(w, 5) },
	"zstd":        func(w io.Writer) flusher { return must(zstd.NewWriter(w)) },
	"gzip, br":    func(w io.Writer) flusher { return twice(brotli.NewWriterLevel(w, 5)) },
	"identity":    func(w io.Writer) flusher { return plain{w} },
	"gzip ,zstd":  func(w io.Writer) flusher { return twice(must(zstd.NewWriter(w))) },
	"identity,br": func(w io.Writer) flusher { return brotli.NewWriter(w) },
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type plain struct{ io.Writer }

func (plain) Flush() error { return nil }
func (plain) Close() error { return nil }

// double is gzip inside of another encoding.
type double struct {
	*gzip.Writer
	outer flusher
}

func twice(outer flusher) flusher { return double{gzip.NewWriter(outer), outer} }

func (d double) Flush() error { return errors.Join(d.Writer.Flush(), d.outer.Flush()) }
func (d double) Close() error { return errors.Join(d.Writer.Close(), d.outer.Close()) }

func newTransport(t *testing.T, s *httptest.Server) *Transport {
	o := Options{DialContext: new(net.Dialer).DialContext, HeaderTimeout: 10 * time.Second}
	if s != nil && s.TLS != nil {
		o.TLS = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone() // net/http changes its own
	}
	tr := New(o)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func get(t *testing.T, tr http.RoundTripper, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// TestEventsAreNotHeldBack has a server flush after each event and say nothing
// more: each event must come out before the next is sent.
func TestEventsAreNotHeldBack(t *testing.T) {
	for name, compress := range compressors {
		for _, protocol := range []string{"h1", "h2"} {
			t.Run(protocol+" "+name, func(t *testing.T) {
				next := make(chan string)
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Encoding", name)
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
					c := compress(w)
					for event := range next {
						io.WriteString(c, event)
						c.Flush()
						w.(http.Flusher).Flush()
					}
					c.Close()
				}))
				if protocol == "h2" {
					s.EnableHTTP2 = true
					s.StartTLS()
				} else {
					s.Start()
				}
				defer s.Close()
				resp := get(t, newTransport(t, s), s.URL)
				if h2 := resp.ProtoMajor == 2; h2 != (protocol == "h2") {
					t.Fatalf("spoke %s", resp.Proto)
				}
				if e := resp.Header.Get("Content-Encoding"); name != "identity" && e != "" {
					t.Errorf("the answer still claims the encoding %q", e)
				}
				decodedBytes := 0
				for i := range 20 {
					event := fmt.Sprintf("data: event %d %s\n\n", i, strings.Repeat("x", i*i*i))
					next <- event
					got := make([]byte, len(event))
					if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != event {
						t.Fatalf("event %d: read %q, %v", i, got, err)
					}
					decodedBytes += len(event)
				}
				close(next)
				if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
					t.Fatalf("the end: %q, %v", rest, err)
				}
				wire := resp.Body.(*Body).Wire()
				if name == "identity" && wire != int64(decodedBytes) || name != "identity" && (wire == 0 || wire >= int64(decodedBytes)/2) {
					t.Errorf("%d bytes on the wire for %d decoded", wire, decodedBytes)
				}
			})
		}
	}
}

// arrivals brings each text with a read of its own, and counts them.
type arrivals struct {
	texts []string
	reads int
}

func (a *arrivals) Read(p []byte) (int, error) {
	a.reads++
	if len(a.texts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, a.texts[0])
	if a.texts[0] = a.texts[0][n:]; a.texts[0] == "" {
		a.texts = a.texts[1:]
	}
	return n, nil
}

// TestEncodingsReadAllThatHasArrived: behind them lies the socket, with no
// buffer between.
func TestEncodingsReadAllThatHasArrived(t *testing.T) {
	const events = 50
	for name, compress := range compressors {
		var b bytes.Buffer
		var from arrivals
		c := compress(&b)
		for i := range events {
			fmt.Fprintf(c, "data: %d\n\n", i)
			c.Flush()
			from.texts = append(from.texts, b.String())
			b.Reset()
		}
		c.Close()
		from.texts = append(from.texts, b.String())
		r, err := decode(&from, codings(http.Header{"Content-Encoding": {name}}))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if n := strings.Count(string(got), "\n\n"); err != nil || n != events {
			t.Errorf("%s: %d events, %v", name, n, err)
		}
		if most := events + 5; from.reads > most {
			t.Errorf("%s: %d reads for %d events", name, from.reads, events)
		}
	}
}

func TestEncodingsAreOffered(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Join(r.Header.Values("Accept-Encoding"), "|"))
	}))
	defer s.Close()
	tr := newTransport(t, s)
	for own, want := range map[string]string{"": AcceptEncoding, "identity": "identity"} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
		if own != "" {
			req.Header.Set("Accept-Encoding", own)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(resp.Body); string(got) != want {
			t.Errorf("with %q of its own the request offers %q, want %q", own, got, want)
		}
		if len(req.Header) > 1 {
			t.Errorf("the caller's request was changed: %v", req.Header)
		}
	}
}

// TestMembersAreNotHeldBack: a server may compress each event by itself and put
// the results behind each other, which gzip and zstd allow.
func TestMembersAreNotHeldBack(t *testing.T) {
	for _, name := range []string{"gzip", "zstd"} {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		r, err := decode(ours, []string{name})
		if err != nil {
			t.Fatal(err)
		}
		ours.SetDeadline(time.Now().Add(time.Minute)) // ends the test when it fails
		p := make([]byte, 4096)
		for i, event := range []string{"data: 1\n\n", "", "data: 2\n\n", strings.Repeat("data: 3\n\n", 1000)} {
			var member bytes.Buffer
			c := compressors[name](&member)
			io.WriteString(c, event)
			c.Close()
			go theirs.Write(member.Bytes())
			for got := ""; got != event; {
				n, err := r.Read(p)
				if got += string(p[:n]); err != nil || !strings.HasPrefix(event, got) {
					t.Fatalf("%s, event %d: %q, %v", name, i, got, err)
				}
			}
		}
		theirs.Close()
		if n, err := r.Read(p); n != 0 || err != io.EOF {
			t.Errorf("%s: at the end: %d bytes, %v", name, n, err)
		}
	}
}

func TestBrokenAndUnknownEncodings(t *testing.T) {
	for encoding, test := range map[string]struct{ body, want string }{
		"gzip":                   {"not gzip at all", "content encoding gzip"},
		"br":                     {"\xff\xff\xff\xff", "content encoding br"},
		"zstd":                   {"data: x\n\n", "content encoding zstd"},
		"compress":               {"x", `"compress", which is not known`},
		"br, br, br, br":         {"x", "4 content encodings"},
		"deflate":                {"x", "content encoding deflate"},
		"gzip, identity, lzma, ": {"x", `"lzma"`},
	} {
		t.Run(encoding, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", encoding)
				io.WriteString(w, test.body)
			}))
			defer s.Close()
			req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
			resp, err := newTransport(t, s).RoundTrip(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
}

// TestCutEncodingIsNoCleanEnd has the server end its answer in good order
// inside of a compressed stream.
func TestCutEncodingIsNoCleanEnd(t *testing.T) {
	for _, name := range []string{"gzip", "deflate", "br", "zstd"} {
		t.Run(name, func(t *testing.T) {
			var whole bytes.Buffer
			c := compressors[name](&whole)
			io.WriteString(c, strings.Repeat("data: an event\n\n", 100))
			c.Flush()
			cut := whole.Len()
			io.WriteString(c, "more")
			c.Close()
			r, err := decode(bytes.NewReader(whole.Bytes()[:cut]), []string{name})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err == nil || len(got) != 1600 {
				t.Errorf("read %d bytes and the error %v, want 1600 and one", len(got), err)
			}
		})
	}
}

func TestDecodersLeaveNothingBehind(t *testing.T) {
	for name, compress := range compressors {
		synctest.Test(t, func(t *testing.T) { // a goroutine left behind fails the bubble
			pr, pw := io.Pipe()
			go func() {
				c := compress(pw)
				io.WriteString(c, "an event")
				c.Flush()
			}()
			r, err := decode(pr, codings(http.Header{"Content-Encoding": {name}}))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len("an event"))
			if _, err := io.ReadFull(r, got); err != nil || string(got) != "an event" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			pr.Close()
		})
	}
}

// TestCloseEndsABlockedRead is what a watch relies on.
func TestCloseEndsABlockedRead(t *testing.T) {
	for name, compress := range compressors {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", name)
			c := compress(w)
			io.WriteString(c, "x")
			c.Flush()
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		resp := get(t, newTransport(t, s), s.URL)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		over := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, resp.Body)
			over <- err
		}()
		resp.Body.Close()
		select {
		case err := <-over:
			if err == nil {
				t.Errorf("%s: a closed body ended cleanly", name)
			}
		case <-ctx.Done():
			t.Errorf("%s: the read goes on", name)
		}
		cancel()
		s.Close()
	}
}
