package ndjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

// read reads everything and returns the values, the oddities and the error.
func read(r io.Reader, o Options) (values, odd []string, err error) {
	o.OnOddity = func(x Oddity) { odd = append(odd, fmt.Sprintf("%v %d %s", x.Kind, x.Size, x.First)) }
	d := NewDecoder(r, o)
	for {
		v, at, err := d.Next()
		if err != nil {
			if _, _, again := d.Next(); again != err {
				return values, odd, fmt.Errorf("first %v, then %v", err, again)
			}
			return values, odd, err
		}
		if at.IsZero() {
			return nil, nil, errors.New("a value without its time")
		}
		values = append(values, string(v))
	}
}

func TestValues(t *testing.T) {
	big := `"` + strings.Repeat("x", 98) + `"` // 100 bytes
	for _, test := range []struct {
		name, in    string
		values, odd []string
	}{
		{"plain", "{\"a\":1}\n[2]\n\"x\"\n3\nnull\n", []string{`{"a":1}`, `[2]`, `"x"`, `3`, `null`}, nil},
		{"CR LF and white space", " {\"a\": 1}\t\r\n\r\n  \n{}\r\n", []string{`{"a": 1}`, `{}`}, nil},
		{"a BOM", "\xEF\xBB\xBF{}\n\xEF\xBB\xBF{}\n", []string{`{}`}, []string{"not JSON 5 \xEF\xBB\xBF{}"}},
		{"a BOM and no line end", "\xEF\xBB\xBF{}", []string{`{}`}, nil},
		{"no line end, whole", "{}\n{\"a\":1}", []string{`{}`, `{"a":1}`}, nil},
		{"no line end, a number may be cut", "1\n12", []string{`1`}, []string{"unterminated line 2 12"}},
		{"no line end, cut", "{\"a\":", nil, []string{"unterminated line 5 {\"a\":"}},
		{"text between", "{}\nHTTP/1.1 502\n{}\n", []string{`{}`, `{}`}, []string{"not JSON 12 HTTP/1.1 502"}},
		{"two on a line", "{} {}\n", nil, []string{"not JSON 5 {} {}"}},
		{"at the limit", big + "\r\n", []string{big}, nil},
		{"beyond the limit", big[:99] + "x\"\n{}\n", []string{`{}`}, []string{"event too large 101 " + big[:99] + "x\""}},
		{"far beyond the limit", strings.Repeat("y", 100_000) + "\n{}\n", []string{`{}`}, []string{"event too large 100000 " + strings.Repeat("y", 128)}},
		{"beyond the limit to the end", "{}\n" + strings.Repeat("y", 5000), []string{`{}`}, []string{"event too large 5000 " + strings.Repeat("y", 128)}},
		{"the sentinel", "{}\n[DONE]\n", []string{`{}`, `[DONE]`}, nil},
		{"the sentinel without a line end", "{}\n[DONE]", []string{`{}`, `[DONE]`}, nil},
		{"nothing", "", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, cut := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "one byte": iotest.OneByteReader, "error with data": iotest.DataErrReader,
			} {
				values, odd, err := read(cut(strings.NewReader(test.in)), Options{MaxValue: 100, Sentinel: "[DONE]"})
				if err != io.EOF || !slices.Equal(values, test.values) {
					t.Errorf("%s: %q, %v; want %q", name, values, err, test.values)
				}
				// How much of a long line is known when it is given up depends on the cuts.
				if len(odd) != len(test.odd) {
					t.Fatalf("%s: oddities %q, want %q", name, odd, test.odd)
				}
				for i := range odd {
					kind, size, first := split(odd[i])
					wantKind, wantSize, wantFirst := split(test.odd[i])
					if kind != wantKind || size != wantSize || !strings.HasPrefix(wantFirst, first) || first == "" {
						t.Errorf("%s: oddity %q, want %q", name, odd[i], test.odd[i])
					}
				}
			}
		})
	}
}

func split(odd string) (kind, size, first string) {
	i := strings.IndexFunc(odd, func(r rune) bool { return '0' <= r && r <= '9' })
	size, first, _ = strings.Cut(odd[i:], " ")
	return odd[:i], size, first
}

func TestTooLargeFails(t *testing.T) {
	values, odd, err := read(strings.NewReader("{}\n"+strings.Repeat("x", 5000)+"\n{}\n"), Options{MaxValue: 100, Fail: true})
	large, ok := errors.AsType[*TooLargeError](err)
	if !ok || !errors.Is(err, ErrMaxValue) || large.Size < 100 || len(values) != 1 || len(odd) != 0 {
		t.Errorf("%q %q %v", values, odd, err)
	}
}

func TestABrokenLineIsNotDelivered(t *testing.T) {
	boom := errors.New("reset")
	values, odd, err := read(io.MultiReader(strings.NewReader("{}\n{}"), iotest.ErrReader(boom)), Options{})
	if err != boom || len(values) != 1 || len(odd) != 0 {
		t.Errorf("%q %q %v", values, odd, err)
	}
}

// counting is a Budget.
type counting struct{ used, most, limit atomic.Int64 }

func (c *counting) Acquire(n int64) bool {
	if c.used.Add(n) > c.limit.Load() {
		c.used.Add(-n)
		return false
	}
	c.most.Store(max(c.most.Load(), c.used.Load()))
	return true
}
func (c *counting) Release(n int64) { c.used.Add(-n) }

func TestBudget(t *testing.T) {
	long := `"` + strings.Repeat("x", 200_000) + `"`
	b := &counting{}
	b.limit.Store(1 << 20)
	values, odd, err := read(strings.NewReader(long+"\n{}\n"+long+"\n"), Options{Budget: b})
	if err != io.EOF || len(values) != 3 || len(odd) != 0 {
		t.Errorf("within the budget: %d values, %q, %v", len(values), odd, err)
	}
	if b.used.Load() != 0 || b.most.Load() < 200_000 {
		t.Errorf("%d bytes are still held, the most was %d", b.used.Load(), b.most.Load())
	}
	b.limit.Store(100_000)
	values, odd, err = read(strings.NewReader(long+"\n{}\n"), Options{Budget: b})
	if err != io.EOF || !slices.Equal(values, []string{"{}"}) || len(odd) != 1 || b.used.Load() != 0 {
		t.Errorf("beyond the budget: %q, %d oddities, %v, %d held", values, len(odd), err, b.used.Load())
	}
	_, _, err = read(strings.NewReader(long+"\n{}\n"), Options{Budget: b, Fail: true})
	if !errors.Is(err, ErrBudget) {
		t.Errorf("error is %v", err)
	}
}

func TestBudgetIsGivenBackAtOnce(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	b := &counting{}
	b.limit.Store(1 << 20)
	// Once a long value has been consumed, before the next read …
	held := int64(-1)
	r := io.MultiReader(strings.NewReader(`"`+long+"\"\n"), readerFunc(func([]byte) (int, error) {
		held = b.used.Load()
		return 0, errors.New("reset")
	}))
	if values, _, err := read(r, Options{Budget: b}); len(values) != 1 || err == nil || held != 0 {
		t.Errorf("%d values, %v, %d bytes held", len(values), err, held)
	}
	// … and where the feed breaks inside of one.
	read(io.MultiReader(strings.NewReader(long), iotest.ErrReader(errors.New("reset"))), Options{Budget: b})
	if b.used.Load() != 0 || b.most.Load() < 200_000 {
		t.Errorf("%d bytes are still held, the most was %d", b.used.Load(), b.most.Load())
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestADecoderLeftAloneGivesItsBudgetBack(t *testing.T) {
	b := &counting{}
	b.limit.Store(1 << 20)
	func() {
		d := NewDecoder(io.MultiReader(strings.NewReader("{}\n"+strings.Repeat("x", 300_000)), blocked{}), Options{Budget: b})
		d.Next()
		func() {
			defer func() { recover() }()
			d.Next()
		}()
	}()
	if b.used.Load() == 0 {
		t.Fatal("nothing was held")
	}
	for range 100 {
		runtime.GC()
		if b.used.Load() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d bytes are held by nobody", b.used.Load())
}

// blocked stands for a read that never returns.
type blocked struct{}

func (blocked) Read([]byte) (int, error) { panic("blocked") }

// TestAValueComesWithItsLineEnd would hang if more were read than is needed.
func TestAValueComesWithItsLineEnd(t *testing.T) {
	d := NewDecoder(io.MultiReader(strings.NewReader("{}\n[1]\n"), blocked{}), Options{})
	for _, want := range []string{"{}", "[1]"} {
		if v, _, err := d.Next(); err != nil || string(v) != want {
			t.Fatalf("%q, %v", v, err)
		}
	}
}

func TestAReaderThatGivesNothing(t *testing.T) {
	if _, _, err := read(nothing{}, Options{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("error is %v", err)
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

// FuzzDecoder compares with a split into lines, for reads of any size.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("{}\n[1]\r\n\nx\n{\"a\":\n1}\n\xEF\xBB\xBF{}\n12"), int64(1))
	f.Add([]byte("\xEF\xBB\xBF{}\n"+strings.Repeat("x", 70)+"\n[DONE]"), int64(2))
	f.Fuzz(func(t *testing.T, in []byte, seed int64) {
		const most = 40
		var want []string
		lines := bytes.Split(bytes.TrimPrefix(in, []byte("\xEF\xBB\xBF")), []byte("\n"))
		for i, line := range lines {
			v := bytes.Trim(line, " \t\r")
			last := i == len(lines)-1
			// A line is given up by its length, white space included.
			if len(v) > most || len(line) > most {
				if !last && len(v) <= most && len(v) > 0 || last {
					return // what counts depends on the cuts
				}
				continue
			}
			ok := json.Valid(v) && (!last || v[0] == '{' || v[0] == '[')
			if ok || string(v) == "[DONE]" {
				want = append(want, string(v))
			}
		}
		values, _, err := read(&random{in, rand.New(rand.NewSource(seed))}, Options{MaxValue: most, Sentinel: "[DONE]"})
		if err != io.EOF || !slices.Equal(values, want) {
			t.Errorf("%q, %v; want %q", values, err, want)
		}
	})
}

// random reads in pieces of random size.
type random struct {
	b []byte
	r *rand.Rand
}

func (r *random) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+r.r.Intn(50))], r.b)
	r.b = r.b[n:]
	return n, nil
}
