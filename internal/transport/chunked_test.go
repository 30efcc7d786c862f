package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// framings are chunked bodies as sites send them, well formed or not. Where the
// name says so the connection ends behind them.
var framings = map[string]string{
	"chunks":                             "1\r\no\r\n2\r\nk!\r\n0\r\n\r\n",
	"no chunk":                           "0\r\n\r\n",
	"sizes of two digits":                "1F\r\n" + strings.Repeat("x", 0x1f) + "\r\n1f\r\n" + strings.Repeat("x", 0x1f) + "\r\n0\r\n\r\n",
	"sizes with zeros":                   "0000000000000002\r\nok\r\n0000000000000000\r\n\r\n",
	"a size of 17 digits":                "00000000000000002\r\nok\r\n0\r\n\r\n",
	"a size that is none":                "x\r\nok\r\n0\r\n\r\n",
	"a size of another base":             "0x2\r\nok\r\n0\r\n\r\n",
	"a signed size":                      "+2\r\nok\r\n0\r\n\r\n",
	"a negative size":                    "-2\r\nok\r\n0\r\n\r\n",
	"no size":                            "\r\nok\r\n0\r\n\r\n",
	"no size but an extension":           ";x\r\nok\r\n0\r\n\r\n",
	"no size but a space":                " \r\nok\r\n0\r\n\r\n",
	"a space before the size":            " 2\r\nok\r\n0\r\n\r\n",
	"spaces behind the size":             "2 \t \r\nok\r\n0 \r\n\r\n",
	"a space in the size":                "0 2\r\nok\r\n0\r\n\r\n",
	"extensions":                         "2;a=1;b=\"x;y\"\r\nok\r\n0;c \r\n\r\n",
	"an empty extension":                 "2;\r\nok\r\n0;\r\n\r\n",
	"a space before an extension":        "2 ;a=1\r\nok\r\n0\r\n\r\n",
	"odd bytes in an extension":          "2;\x00\x7f\xff\r\nok\r\n0\r\n\r\n",
	"a bare LF behind a size":            "2\nok\r\n0\r\n\r\n",
	"a bare LF behind an extension":      "2;a\nok\r\n0\r\n\r\n",
	"a bare LF behind the last chunk":    "2\r\nok\r\n0\n\r\n",
	"a space and a bare LF":              "2 \nok\r\n0\r\n\r\n",
	"a CR in a size":                     "2\r\r\nok\r\n0\r\n\r\n",
	"a CR in an extension":               "2;a\rb\r\nok\r\n0\r\n\r\n",
	"a bare CR, cut":                     "2\rok\r\n0\r\n\r\n",
	"a bare LF behind data":              "2\r\nok\n0\r\n\r\n",
	"a bare CR behind data":              "2\r\nok\r0\r\n\r\n",
	"a CR and more behind data":          "2\r\nok\rx2\r\nok\r\n0\r\n\r\n",
	"nothing behind data":                "2\r\nok0\r\n\r\n",
	"a chunk too long":                   "1\r\nok\r\n0\r\n\r\n",
	"a chunk too short":                  "3\r\nok\r\n0\r\n\r\n",
	"a chunk too long by a line":         "2\r\nok\r\n\r\n0\r\n\r\n",
	"the longest line":                   "2;" + strings.Repeat("x", maxChunkLine-4) + "\r\n" + "ok\r\n0\r\n\r\n",
	"a line too long":                    "2;" + strings.Repeat("x", maxChunkLine-3) + "\r\n" + "ok\r\n0\r\n\r\n",
	"padding too long":                   "2" + strings.Repeat(" ", maxChunkLine) + "\r\n" + "ok\r\n0\r\n\r\n",
	"bytes one by one":                   strings.Repeat("1\r\nx\r\n", 5000) + "0\r\n\r\n",
	"an extension with each byte":        strings.Repeat("1;some extension\r\nx\r\n", 5000) + "0\r\n\r\n",
	"extensions paid for by data":        strings.Repeat("100;"+strings.Repeat("x", 512)+"\r\n"+strings.Repeat("x", 0x100)+"\r\n", 100) + "0\r\n\r\n",
	"the most that is no data":           excess(maxExcess) + "0\r\n\r\n",
	"more than that":                     excess(maxExcess+1) + "0\r\n\r\n",
	"an extension too many at the end":   excess(maxExcess) + "0;" + strings.Repeat("x", 1000) + "\r\n\r\n",
	"trailers":                           "2\r\nok\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
	"a trailer without a colon":          "2\r\nok\r\n0\r\nX-Sum\r\n\r\n",
	"a trailer without a name":           "2\r\nok\r\n0\r\n: 1\r\n\r\n",
	"a folded trailer":                   "2\r\nok\r\n0\r\nX: 1\r\n 2\r\n\r\n",
	"a trailer that begins folded":       "2\r\nok\r\n0\r\n X: 1\r\n\r\n",
	"a bare LF behind a trailer":         "2\r\nok\r\n0\r\nX: 1\nY: 2\r\n\r\n",
	"a bare LF for the trailers, cut":    "2\r\nok\r\n0\r\n\n",
	"a bare LF behind the trailers, cut": "2\r\nok\r\n0\r\nX: 1\n\n",
	"a CR before the trailers":           "2\r\nok\r\n0\r\n\rX: 1\r\n\r\n",
	"the longest trailer":                "2\r\nok\r\n0\r\nX: " + strings.Repeat("x", maxTrailers-7) + "\r\n\r\n",
	"a trailer too long":                 "2\r\nok\r\n0\r\nX: " + strings.Repeat("x", maxTrailers-6) + "\r\n\r\n",
	"nothing, cut":                       "",
	"a size, cut":                        "2",
	"a size and CR, cut":                 "2\r",
	"an extension, cut":                  "2;x",
	"data, cut":                          "2\r\no",
	"a chunk, cut":                       "2\r\nok",
	"a chunk and CR, cut":                "2\r\nok\r",
	"a whole chunk, cut":                 "2\r\nok\r\n",
	"the last size, cut":                 "2\r\nok\r\n0",
	"the last line, cut":                 "2\r\nok\r\n0\r\n",
	"the end and CR, cut":                "2\r\nok\r\n0\r\n\r",
	"a trailer, cut":                     "2\r\nok\r\n0\r\nX: 1\r\n",
	"a large chunk, cut":                 "fffffffffffffff\r\nok",
}

// excess are chunks with so much that is no data beyond what is allowed for,
// without the end of the body.
func excess(bytes int) string {
	var b strings.Builder
	for bytes > 0 {
		n := min(bytes, 4000)
		bytes -= n
		// Free are 16 bytes of framing, and 2 for the one of data.
		fmt.Fprintf(&b, "1;%s\r\nx\r\n", strings.Repeat("x", n+16+2-len("1;\r\n")))
	}
	return b.String()
}

// differences are what is refused that net/http takes.
var differences = map[string]struct {
	coded string
	err   error
}{
	// Nobody has a chunk of an exabyte. net/http takes some such sizes, and
	// refuses others, since its sum of what is no data overflows.
	"a size of an exabyte":    {"1000000000000000\r\nok", errChunkSize},
	"a size of nearly 2^64":   {"fffffffffffffffe\r\nok", errChunkSize},
	"a size of 2^63 and more": {"8000000000000001\r\nok", errChunkSize},
	// What net/http takes for the end of the trailers, others may not: what
	// follows it would be an answer to the one, and trailers to the other. (It
	// looks for an end in CRLF, too, without which it takes none.)
	"trailers that end in a bare LF":    {"2\r\nok\r\n0\r\nX: 1\n\nY: 2\r\n\r\n", errTrailers},
	"no trailers, ended by a bare LF":   {"2\r\nok\r\n0\r\n\nY: 2\r\n\r\n", errTrailers},
	"trailers that end in LF and CRLF":  {"2\r\nok\r\n0\r\nX: 1\n\r\nY: 2\r\n\r\n", errTrailers},
	"an answer behind such an end":      {"2\r\nok\r\n0\r\nX: 1\n\nHTTP/1.1 200 OK\r\n\r\n", errTrailers},
	"trailers that would be two of one": {"2\r\nok\r\n0\r\n\n\r\n\r\n", errTrailers},
}

const maxCut = 64 << 10

// cutter brings a text in pieces, and takes it in slices, of lengths that
// follow from a seed: of one byte for 0, and of any for 1.
type cutter struct {
	text string
	seed uint64
	rand *rand.Rand
}

func newCutter(text string, seed uint64) *cutter {
	return &cutter{text, seed, rand.New(rand.NewPCG(seed, 0))}
}

// size is the length of the next piece or slice.
func (c *cutter) size() int {
	switch {
	case c.seed == 0:
		return 1
	case c.seed == 1:
		return maxCut
	}
	return 1 + c.rand.IntN(1<<c.rand.IntN(10))
}

func (c *cutter) Read(p []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size())], c.text)
	c.text = c.text[n:]
	return n, nil
}

// unchunked is a chunked body as we read it.
func unchunked(t *testing.T, coded string, seed uint64) (data string, rest bool, err error) {
	t.Helper()
	from := newCutter(coded, seed)
	c := &chunked{from: from}
	var b []byte
	for p := make([]byte, maxCut+1); ; {
		size := from.size()
		p[size] = '~'
		n, err := c.Read(p[:size])
		if b = append(b, p[:n]...); n == 0 && err == nil || p[size] != '~' {
			t.Fatalf("%.100q: %d bytes and no error, or more than there was room for", coded, n)
		}
		if err == nil {
			continue
		}
		if n, again := c.Read(p); n != 0 || again != err {
			t.Fatalf("%.100q: %d bytes and %v after %v", coded, n, again, err)
		}
		if err == io.EOF {
			err = nil
		}
		return string(b), c.behind || from.text != "", err
	}
}

// reference is a chunked body as net/http reads it: by the reader that
// httputil.NewChunkedReader gives as well, and with its trailers.
func reference(t *testing.T, coded string) (data string, rest bool, err error) {
	t.Helper()
	r := bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_, none := r.Peek(1)
	return string(b), none == nil, err
}

// wantReference compares the two, however the body is cut. It tells whether
// they differ on purpose.
func wantReference(t *testing.T, coded string, seed uint64) (differs bool) {
	t.Helper()
	want, wantRest, wantErr := reference(t, coded)
	got, rest, err := unchunked(t, coded, seed)
	switch {
	case errors.Is(err, errChunkSize) && strings.HasPrefix(want, got):
		return want != got || wantErr == nil
	case errors.Is(err, errTrailers) && want == got:
		return wantErr == nil
	case got != want || (err == nil) != (wantErr == nil):
		t.Fatalf("%.200q (seed %d):\n got %d bytes, %v: %.200q\nwant %d bytes, %v: %.200q", coded, seed, len(got), err, got, len(want), wantErr, want)
	case err == nil && rest != wantRest:
		t.Fatalf("%.200q (seed %d): something behind it: %v, want %v", coded, seed, rest, wantRest)
	}
	return false
}

func TestChunksAreThoseOfNetHTTP(t *testing.T) {
	for name, coded := range framings {
		cuts := uint64(20)
		if len(coded) > 2*maxChunkLine {
			cuts = 3
		}
		for seed := range cuts {
			// First in a body, and behind a chunk.
			for _, before := range []string{"", "2\r\nok\r\n"} {
				for _, behind := range []string{"", "HTTP/1.1 408"} {
					if wantReference(t, before+coded+behind, seed) {
						t.Errorf("%s: refused, and not by net/http", name)
					}
				}
			}
		}
	}
	for name, c := range differences {
		if _, _, err := reference(t, c.coded); err == nil && !errors.Is(c.err, errTrailers) {
			t.Errorf("%s: net/http takes it for good", name)
		}
		for seed := range uint64(20) {
			if _, _, err := unchunked(t, c.coded, seed); !errors.Is(err, c.err) {
				t.Errorf("%s: %v, want %v", name, err, c.err)
			}
			wantReference(t, c.coded, seed)
		}
	}
}

// chunkedBody is a well-formed body and its data.
func chunkedBody(r *rand.Rand) (coded, data string) {
	var b, d strings.Builder
	line := func(size int) {
		format := []string{"%x", "%X", "%08x", "%x ", "%x;a", "%x;b=\"c d\" "}[r.IntN(6)]
		fmt.Fprintf(&b, format+"\r\n", size)
	}
	for range r.IntN(10) {
		text := strings.Repeat(string(rune('a'+r.IntN(26)))+"\r\n0\r\n", 2000)[:1+r.IntN(1<<r.IntN(14))]
		line(len(text))
		b.WriteString(text + "\r\n")
		d.WriteString(text)
	}
	line(0)
	for range max(0, r.IntN(6)-3) {
		b.WriteString("X-Sum: 1\r\n")
	}
	b.WriteString("\r\n")
	return b.String(), d.String()
}

// mangled is a text with something wrong in it.
func mangled(r *rand.Rand, text string) string {
	const odd = "\r\n\r\n\r\n0123456789abcdefABCDEFxg;:= \t\x00"
	for range 1 + r.IntN(3) {
		i := r.IntN(len(text) + 1)
		j := min(len(text), i+r.IntN(3))
		switch with := odd[r.IntN(len(odd)):][:1]; r.IntN(4) {
		case 0:
			text = text[:i]
		case 1:
			text = text[:i] + text[j:]
		case 2:
			text = text[:i] + with + text[i:]
		default:
			text = text[:i] + with + text[j:]
		}
	}
	return text
}

// TestTheMostThatIsNoData has the sums of two of the framings right.
func TestTheMostThatIsNoData(t *testing.T) {
	// 32 bytes of data pay for 16 + 64 bytes, of which their size takes 4.
	paid := excess(maxExcess) + "20\r\n" + strings.Repeat("x", 32) + "\r\n"
	for more, want := range []error{nil, errExcess} {
		for _, coded := range []string{excess(maxExcess + more), paid + excess(76+more)} {
			for _, seed := range []uint64{0, 1} {
				if _, _, err := unchunked(t, coded+"0\r\n\r\n", seed); err != want {
					t.Errorf("%d bytes more: %v", more, err)
				}
				wantReference(t, coded+"0\r\n\r\n", seed)
			}
		}
	}
}

func TestRandomChunksAreThoseOfNetHTTP(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		coded, data := chunkedBody(r)
		if got, rest, err := unchunked(t, coded, seed); got != data || rest || err != nil {
			t.Fatalf("seed %d: %d bytes of %d, something behind it: %v; %v", seed, len(got), len(data), rest, err)
		}
		wantReference(t, coded, seed)
		wantReference(t, mangled(r, coded), seed)
	}
}

func FuzzChunked(f *testing.F) {
	seeds := slices.Collect(maps.Values(framings))
	for _, c := range differences {
		seeds = append(seeds, c.coded)
	}
	for _, coded := range seeds {
		if len(coded) < 2*maxChunkLine { // longer ones slow it down
			f.Add([]byte(coded), uint64(0))
			f.Add([]byte(coded), uint64(1))
		}
	}
	f.Fuzz(func(t *testing.T, coded []byte, seed uint64) { wantReference(t, string(coded), seed) })
}

// waits is a text of which the second half comes late.
type waits struct {
	now, late string
	waited    bool
}

func (w *waits) Read(p []byte) (n int, err error) {
	if w.now == "" {
		w.waited, w.now, w.late = true, w.late, ""
	}
	if n = copy(p, w.now); n == 0 {
		err = io.EOF
	}
	w.now = w.now[n:]
	return n, err
}

// TestDataThatHasComeDoesNotWait cuts a body at each byte.
func TestDataThatHasComeDoesNotWait(t *testing.T) {
	const coded = "5\r\nfirst\r\n6;x=y\r\nsecond\r\n0\r\nX: 1\r\n\r\n"
	for cut := range coded {
		want, _, _ := reference(t, coded[:cut])
		for _, size := range []int{1, 3, 1 << 10} {
			w := &waits{now: coded[:cut], late: coded[cut:]}
			c := &chunked{from: w}
			var got []byte
			for len(got) < len(want) {
				p := make([]byte, size)
				n, err := c.Read(p)
				if got = append(got, p[:n]...); err != nil || w.waited {
					t.Fatalf("%q, then a pause: waited for it with %q in hand of %q, or failed: %v", coded[:cut], got, want, err)
				}
			}
		}
	}
}

// TestNoRoom: nothing is read, nor waited for, where nothing is asked for.
func TestNoRoom(t *testing.T) {
	c := &chunked{from: strings.NewReader("2\r\nok\r\n0\r\n\r\n")}
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if b, err := io.ReadAll(c); string(b) != "ok" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// endless is a feed of chunks that are always there.
type endless struct {
	text string
	at   int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], e.text[e.at:])
		n += k
		e.at = (e.at + k) % len(e.text)
	}
	return n, nil
}

// BenchmarkChunks reads events of 200 bytes, each a chunk of its own, in the
// slices of a busy feed: by net/http's reader behind a buffer of 4 KiB, and by
// ours.
func BenchmarkChunks(b *testing.B) {
	const size, head = 200, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	text := strings.Repeat(fmt.Sprintf("%x\r\n%s\r\n", size, strings.Repeat("x", size)), 400)
	memory := func(*testing.B) io.Reader { return &endless{text: text} }
	loopback := func(b *testing.B) io.Reader {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		go func() {
			c, err := ln.Accept()
			for err == nil {
				_, err = io.WriteString(c, text)
			}
		}()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c
	}
	theirs := func(b *testing.B, from io.Reader) io.Reader {
		resp, err := http.ReadResponse(bufio.NewReaderSize(io.MultiReader(strings.NewReader(head), from), readBuffer), nil)
		if err != nil {
			b.Fatal(err)
		}
		return resp.Body
	}
	ours := func(_ *testing.B, from io.Reader) io.Reader { return &chunked{from: from} }
	for name, from := range map[string]func(*testing.B) io.Reader{"memory": memory, "loopback": loopback} {
		for reader, body := range map[string]func(*testing.B, io.Reader) io.Reader{"net.http": theirs, "ours": ours} {
			b.Run(name+"/"+reader, func(b *testing.B) {
				r := body(b, from(b))
				p := make([]byte, 32<<10)
				b.SetBytes(size)
				b.ResetTimer()
				for left := b.N * size; left > 0; {
					n, err := r.Read(p)
					if err != nil {
						b.Fatal(err)
					}
					left -= n
				}
			})
		}
	}
}
