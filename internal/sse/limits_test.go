package sse

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// all returns the data of the events up to the error, and the oddities.
func all(t *testing.T, r io.Reader, o Options) (data []string, odd []Oddity, d *Decoder, err error) {
	t.Helper()
	o.OnOddity = func(o Oddity) { odd = append(odd, o) }
	d = NewDecoder(r, o)
	var ev Event
	for {
		if err := d.Next(&ev); err != nil {
			return data, odd, d, err
		}
		data = append(data, string(ev.Data))
	}
}

func TestOddities(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		in   string
		want Oddity
	}{
		{"error: {\"code\":429}\n", Oddity{Kind: UnknownField, First: `error: {"code":429}`, Size: 19}},
		{"{" + long + "}\n", Oddity{Kind: UnknownField, First: "{" + long[:127], Size: 5002}},
		{"data: [DONE]", Oddity{Kind: Unterminated, First: "[DONE]", Size: 12}},
		{":", Oddity{Kind: Unterminated, First: ":", Size: 1}},
		{"id: 4\r\n", Oddity{Kind: Unterminated, Size: 7}},
		{"id: a\x00b\n", Oddity{Kind: NULInID, First: "id: a\x00b", Size: 7}},
		{"retry: soon\n", Oddity{Kind: BadRetry, First: "retry: soon", Size: 11}},
		{"event: ping\n\n", Oddity{Kind: NoData, First: "ping", Size: 13}},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
			if _, odd, _, _ := all(t, r, Options{}); len(odd) != 1 || odd[0] != c.want {
				t.Errorf("%.50q: %+v, want %+v", c.in, odd, c.want)
			}
		}
	}
	if _, odd, _, _ := all(t, strings.NewReader(strings.Repeat("data: 1\n", 186)), Options{}); len(odd) != 2 ||
		odd[0].Kind != NoBlankLine || odd[0].Size != 64*8 || !strings.HasPrefix(odd[0].First, "1\n1\n") || odd[1].Kind != Unterminated {
		t.Errorf("no blank line: %+v", odd)
	}
}

func TestOddityOfOneLine(t *testing.T) {
	in := "{" + strings.Repeat("x", 3000) + "}\nerror: 1\n"
	for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in))} {
		if _, odd, _, _ := all(t, r, Options{}); len(odd) != 2 || odd[0].Size != 3002 || odd[1].Size != 8 {
			t.Errorf("%+v, want one of 3002 and one of 8 bytes", odd)
		}
	}
}

func TestUnfinished(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // Bytes First ID Type Data
	}{
		{"data: a\n\n", `0 "" "" "" ""`},
		{"data: a\n\n: bye\n", `0 "" "" "" ""`},
		{"data: a\n\nretry: 5\nnonsense\n", `0 "" "" "" ""`},
		{"data: a\n\ndata: [DONE]", `12 "[DONE]" "" "" "[DONE]"`},
		{"data: a\n\ndata:[DONE]\r", `12 "[DONE]" "" "" "[DONE]"`},
		{"data: a\ndata", `12 "a\n" "" "" "a\n"`},
		{"data\ndata", `9 "\n" "" "" "\n"`},
		{"id: 1\nevent: e\ndata: \xFFb\nda", `26 "�b" "1" "e" "�b"`},
		{"event: deployment_success\n", `26 "" "" "deployment_success" ""`},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
			_, _, d, err := all(t, r, Options{})
			l := d.Unfinished()
			if got := fmt.Sprintf("%d %q %q %q %q", l.Bytes, l.First, l.ID, l.Type, l.Data); err != io.EOF || got != c.want {
				t.Errorf("%q: %s, want %s (%v)", c.in, got, c.want, err)
			}
		}
	}
}

func TestTooLarge(t *testing.T) {
	big := strings.Repeat("x", 100)
	for _, c := range []struct {
		name, in string
		events   string
		odd      Oddity
		left     int64
	}{
		{"one line", "id: 7\ndata: " + big + "\n\ndata: b\n\n", "[b]",
			Oddity{Kind: TooLarge, First: big, Size: 114, ID: "7", Reason: ErrMaxEvent}, 0},
		{"id behind it", "data: " + big + "\ndata: more\nevent: e\nid: 8\n\ndata: b\n\n", "[b]",
			Oddity{Kind: TooLarge, First: big, Size: 134, ID: "8", Reason: ErrMaxEvent}, 0},
		{"many lines", strings.Repeat("data: 12345678\n", 11) + "\ndata: b\n\n", "[b]",
			Oddity{Kind: TooLarge, First: strings.Repeat("12345678\n", 11)[:89], Size: 166, Reason: ErrMaxEvent}, 0},
		{"id", "id: " + big + "\ndata: a\n\ndata: b\n\n", "[b]",
			Oddity{Kind: TooLarge, First: "id: " + big, Size: 114, Reason: ErrMaxEvent}, 0},
		{"unfinished", "data: a\n\nid: 9\ndata: " + big, "[a]",
			Oddity{Kind: TooLarge, First: big, Size: 112, Reason: ErrMaxEvent}, 112},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i := range len(c.in) {
				r := &pieces{c.in[:i], c.in[i:]}
				events, odd, d, err := all(t, r, Options{MaxEvent: 100, Buffer: 16})
				if err != io.EOF || fmt.Sprint(events) != c.events {
					t.Fatalf("split at %d: events %v, error %v", i, events, err)
				}
				if len(odd) == 0 || odd[0].Kind != c.odd.Kind || odd[0].Size != c.odd.Size || odd[0].ID != c.odd.ID || odd[0].Reason != c.odd.Reason ||
					!strings.HasPrefix(c.odd.First, odd[0].First) || len(odd[0].First) < 80 {
					t.Fatalf("split at %d: %+v, want %+v", i, odd, c.odd)
				}
				if left := d.Unfinished().Bytes; left != c.left {
					t.Fatalf("split at %d: %d bytes left over, want %d", i, left, c.left)
				}
				if d.LastEventID() != c.odd.ID {
					t.Fatalf("split at %d: id %q", i, d.LastEventID())
				}
			}
			_, _, d, err := all(t, strings.NewReader(c.in), Options{MaxEvent: 100, OnTooLarge: Fail})
			var tooLarge *TooLargeError
			if !errors.As(err, &tooLarge) || !errors.Is(err, ErrMaxEvent) || tooLarge.Size <= 100 || d.LastEventID() != "" {
				t.Fatalf("Fail: %v, id %q", err, d.LastEventID())
			}
		})
	}
}

func TestMaxEventIsExact(t *testing.T) {
	in := "data: 1234\n\ndata: 12345\n\nid: 6\ndata: 12\ndata: \n\ndata: 1\ndata: 123\n\n"
	events, odd, _, _ := all(t, strings.NewReader(in), Options{MaxEvent: 10})
	if fmt.Sprintf("%q", events) != `["1234" "12\n" "1\n123"]` || len(odd) != 1 {
		t.Errorf("events %q, oddities %+v", events, odd)
	}
	field := strings.Repeat("7", maxField-len("id: "))
	events, odd, d, _ := all(t, strings.NewReader("id: "+field+"\ndata: a\n\nid: 8"+field+"\ndata: b\n\n"), Options{})
	if len(events) != 1 || len(odd) != 1 || d.LastEventID() != field {
		t.Errorf("%d events, %d oddities with ids of 64 KiB and a byte more", len(events), len(odd))
	}
}

// flood is prefix, then n bytes x, then suffix; it watches the decoder's buffer.
type flood struct {
	parts  []io.Reader
	d      *Decoder
	buffer int
}

func (f *flood) Read(b []byte) (int, error) {
	f.buffer = max(f.buffer, len(f.d.buf))
	return io.MultiReader(f.parts...).Read(b)
}

type xs struct{}

func (xs) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// What is not kept takes no memory, however long it is.
func TestEndlessLines(t *testing.T) {
	for _, c := range []struct{ name, prefix, suffix, want string }{
		{"comment", "data: a\n:", "\ndata: b\n\n", `["a\nb" "last"]`},
		{"unknown field", "data: a\nnonsense", "\ndata: b\n\n", `["a\nb" "last"]`},
		{"data", "id: 1\ndata: ", "\n\n", `["last"]`},
		{"data of many lines", "data: a\ndata: ", "\ndata: b\n\n", `["last"]`},
		{"id", "data: a\nid: ", "\n\n", `["last"]`},
		{"type", "data: a\nevent:", "\n\n", `["last"]`},
		{"retry", "data: a\nretry:", "\n\n", `["last"]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 4 << 20
			f := &flood{}
			// Each Read consumes its own part of the readers.
			f.parts = []io.Reader{strings.NewReader(c.prefix), io.LimitReader(xs{}, n), strings.NewReader(c.suffix + "data: last\n\n")}
			f.d = NewDecoder(f, Options{MaxEvent: 100 << 10})
			var events []string
			var ev Event
			for {
				err := f.d.Next(&ev)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				events = append(events, string(ev.Data))
			}
			if fmt.Sprintf("%q", events) != c.want {
				t.Errorf("events %q, want %s", events, c.want)
			}
			if most := 256 << 10; f.buffer > most {
				t.Errorf("buffer of %d bytes", f.buffer)
			}
			if s := f.d.Stats(); s.Bytes < n {
				t.Errorf("%d bytes read", s.Bytes)
			}
		})
	}
}

func TestLongComment(t *testing.T) {
	in := ":" + strings.Repeat("c", 3000) + "\n"
	for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in))} {
		out, _, _ := run(t, r, Options{})
		if len(out.Comments) != 1 || len(out.Comments[0]) != maxIgnored-1 {
			t.Errorf("%d comments, the first of %d bytes", len(out.Comments), len(out.Comments[0]))
		}
	}
}

func TestBudget(t *testing.T) {
	budget := NewBudget(48 << 10)
	next := func(d *Decoder, want string) {
		t.Helper()
		var ev Event
		if err := d.Next(&ev); err != nil || string(ev.Data[:min(len(ev.Data), 10)]) != want {
			t.Fatalf("event %.10q, error %v, want %q", ev.Data, err, want)
		}
	}
	// The first takes most of the budget and stops inside its event.
	pr, pw := io.Pipe()
	stuck := NewDecoder(pr, Options{Budget: budget})
	done := make(chan error)
	go func() { done <- stuck.Next(new(Event)) }()
	if _, err := pw.Write([]byte("data: " + strings.Repeat("x", 40<<10))); err != nil {
		t.Fatal(err)
	}
	held := budget.Used()
	if held < 24<<10 {
		t.Fatalf("%d bytes held for 40 KiB", held)
	}

	big := "id: 1\ndata: " + strings.Repeat("y", 40<<10) + "\n\ndata: small\n\n"
	var odd []Oddity
	d := NewDecoder(strings.NewReader(big+big), Options{Budget: budget, OnOddity: func(o Oddity) { odd = append(odd, o) }})
	next(d, "small")
	if len(odd) != 1 || odd[0].Kind != TooLarge || odd[0].Reason != ErrBudget || odd[0].ID != "1" || !strings.HasPrefix(odd[0].First, "yyy") {
		t.Errorf("oddities %+v", odd)
	}
	if budget.Used() != held {
		t.Errorf("%d bytes held after a refused event, %d before", budget.Used(), held)
	}
	failing := NewDecoder(strings.NewReader(big), Options{Budget: budget, OnTooLarge: Fail})
	if err := failing.Next(new(Event)); !errors.Is(err, ErrBudget) {
		t.Errorf("error %v, want ErrBudget", err)
	}

	pw.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-done; err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if budget.Used() != 0 {
		t.Errorf("%d bytes held after the end", budget.Used())
	}
	next(d, "yyyyyyyyyy") // there is room again
	if budget.Used() == 0 {
		t.Error("a large event takes nothing of the budget")
	}
	next(d, "small")
	if err := d.Next(new(Event)); err != io.EOF || budget.Used() != 0 {
		t.Errorf("%d bytes held after %v", budget.Used(), err)
	}
}

func TestClose(t *testing.T) {
	budget := NewBudget(1 << 20)
	d := NewDecoder(strings.NewReader("data: "+strings.Repeat("x", 100<<10)+"\n\n"), Options{Budget: budget})
	if err := d.Next(new(Event)); err != nil {
		t.Fatal(err)
	}
	if budget.Used() == 0 {
		t.Fatal("nothing held")
	}
	d.Close()
	d.Close()
	if budget.Used() != 0 {
		t.Errorf("%d bytes held after Close", budget.Used())
	}
	if err := d.Next(new(Event)); err != ErrClosed {
		t.Errorf("Next after Close: %v", err)
	}

	// What is still buffered is no clean end.
	d = NewDecoder(iotest.DataErrReader(strings.NewReader("data: a\n\ndata: b\n\n")), Options{})
	if err := d.Next(new(Event)); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if err := d.Next(new(Event)); err != ErrClosed {
		t.Errorf("Next after Close with an event buffered: %v", err)
	}
}

// An abandoned decoder does not keep its part of the budget for ever.
func TestGarbage(t *testing.T) {
	budget := NewBudget(1 << 20)
	func() {
		d := NewDecoder(strings.NewReader("data: "+strings.Repeat("x", 100<<10)+"\n\n"), Options{Budget: budget})
		if err := d.Next(new(Event)); err != nil || budget.Used() == 0 {
			t.Fatalf("%d bytes held, error %v", budget.Used(), err)
		}
	}()
	for deadline := time.Now().Add(30 * time.Second); budget.Used() != 0; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes held", budget.Used())
		}
	}
}

// The buffer is small when idle, however large the burst before was.
func TestBufferShrinks(t *testing.T) {
	burst := strings.Repeat("data: 0123456789\n\n", 10_000)
	for _, large := range []string{burst, "data: " + strings.Repeat("x", 1<<20) + "\n\n"} {
		budget := NewBudget(4 << 20)
		parts := pieces{large}
		for range 10 {
			parts = append(parts, ": heartbeat\n", "data: beat\n\n")
		}
		d := NewDecoder(&parts, Options{Budget: budget})
		var ev Event
		most := 0
		for d.Next(&ev) == nil {
			most = max(most, len(d.buf))
			if len(parts) == 1 && (len(d.buf) != defaultBuffer || budget.Used() != 0) {
				t.Errorf("buffer of %d bytes, %d held, after 20 heartbeats", len(d.buf), budget.Used())
			}
		}
		if most < maxRead {
			t.Errorf("buffer of %d bytes at most: the test shows nothing", most)
		}
	}
}

// framed is a feed without an end whose framing is taken out of what is read,
// as that of HTTP's chunks: it never fills the slice that it is given.
type framed struct{}

func (framed) Read(p []byte) (n int, err error) {
	const event = "data: 1\n\n"
	for len(p)-n >= len("9\r\n"+event+"\r\n") {
		n += copy(p[n:], event)
		p = p[:len(p)-len("9\r\n\r\n")]
	}
	return n, nil
}

// The buffer of a fast feed grows whatever its framing.
func TestBufferGrows(t *testing.T) {
	d := NewDecoder(framed{}, Options{})
	var ev Event
	for range 20_000 {
		if err := d.Next(&ev); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.buf) != maxRead {
		t.Errorf("the buffer has %d bytes, want %d", len(d.buf), maxRead)
	}
}

// What a large event needed stays for the next one, while others do not need it.
func TestBudgetTight(t *testing.T) {
	large := "data: " + strings.Repeat("x", 1<<20) + "\n\n"
	for _, c := range []struct {
		budget int64
		stays  bool
	}{{3 << 20, false}, {8 << 20, true}} {
		budget := NewBudget(c.budget)
		d := NewDecoder(&pieces{large, "data: beat\n\n"}, Options{Budget: budget})
		var ev Event
		for range 2 {
			if err := d.Next(&ev); err != nil {
				t.Fatal(err)
			}
		}
		if stays := budget.Used() > 0; stays != c.stays {
			t.Errorf("%d bytes of %d held after the next event", budget.Used(), c.budget)
		}
	}
}

func TestRepairedShrinks(t *testing.T) {
	d := NewDecoder(&pieces{"data: " + strings.Repeat("\xFF", 100<<10) + "\n\n", "data: \xFF\n\n"}, Options{})
	var ev Event
	for _, want := range []int{300 << 10, 3} {
		if err := d.Next(&ev); err != nil || len(ev.Data) != want {
			t.Fatalf("event of %d bytes, error %v, want %d", len(ev.Data), err, want)
		}
	}
	if c := cap(d.repaired); c > maxRead {
		t.Errorf("%d bytes kept for an event of 3", c)
	}
}

// repeat yields its bytes for ever, at most cut at a time.
type repeat struct {
	in  []byte
	cut int
	at  int
}

func (r *repeat) Read(b []byte) (int, error) {
	if r.at == len(r.in) {
		r.at = 0
	}
	n := copy(b[:min(len(b), r.cut)], r.in[r.at:])
	r.at += n
	return n, nil
}

func TestNoAllocations(t *testing.T) {
	block := "id: 4711\nevent: price_update\ndata: {\"price\":\"60000.01\"}\n\n"
	for name, in := range map[string]string{
		"LF":         block,
		"CRLF":       strings.ReplaceAll(block, "\n", "\r\n"),
		"CR":         strings.ReplaceAll(block, "\n", "\r"),
		"many lines": "data: a\ndata: b\n\nid: 5\n\n: c\nretry: 5\ndata: d\n\n",
		"not UTF-8":  "id: \xFF\nevent: \xFF\ndata: \xFF\xFE\n\n",
		"UTF-8":      "id: ü\ndata: 日本語\n\n",
		"odd":        "error: x\nretry: y\nevent: e\n\ndata: a\n\n",
		"large":      "data: " + strings.Repeat("x", 20<<10) + "\n\n",
	} {
		for _, cut := range []int{1400, 7, 64 << 10} {
			d := NewDecoder(&repeat{in: []byte(in), cut: cut}, Options{Budget: NewBudget(1 << 20), OnComment: func([]byte) {}, OnID: func([]byte) {}})
			var ev Event
			next := func() {
				if err := d.Next(&ev); err != nil {
					t.Fatal(err)
				}
			}
			for range 20 { // to its working size
				next()
			}
			if n := testing.AllocsPerRun(50, next); n != 0 {
				t.Errorf("%s in reads of %d: %v allocations per event", name, cut, n)
			}
		}
	}
}

// audit checks before every Read that no byte will be looked at again, and
// counts the buffers.
type audit struct {
	r     io.Reader
	t     *testing.T
	d     *Decoder
	buf   *byte
	grown int
}

func (a *audit) Read(b []byte) (int, error) {
	d := a.d
	if d.from != d.stop || d.cr != d.stop {
		a.t.Fatalf("scanned to %d and %d of %d", d.from, d.cr, d.stop)
	}
	if &d.buf[0] != a.buf {
		a.buf = &d.buf[0]
		a.grown++
	}
	return a.r.Read(b)
}

// A large event is not scanned again, nor copied, with each Read.
func TestLinear(t *testing.T) {
	line := strings.Repeat("x", 256<<10)
	for name, in := range map[string]string{
		"one line":   "id: 1\ndata: " + line + "\n\n",
		"many lines": strings.Repeat("data: 0123456789\n", 15_000) + "\n",
		"CR":         strings.Repeat("data: 0123456789\r", 15_000) + "\r",
	} {
		for _, cut := range []int{1, 1400} {
			a := &audit{t: t, r: &repeat{in: []byte(in), cut: cut}}
			a.d = NewDecoder(a, Options{})
			var ev Event
			for range 2 {
				if err := a.d.Next(&ev); err != nil {
					t.Fatal(err)
				}
				if len(ev.Data) < 150_000 {
					t.Errorf("%s: event of %d bytes", name, len(ev.Data))
				}
			}
			if a.grown > 11 { // doubling from 512 bytes to 512 KiB
				t.Errorf("%s in reads of %d: %d buffers", name, cut, a.grown)
			}
		}
	}
}

func TestKindString(t *testing.T) {
	seen := map[string]bool{}
	for k := range kinds {
		if s := k.String(); s == "" || seen[s] {
			t.Errorf("kind %d is %q", int(k), s)
		}
		seen[k.String()] = true
	}
	if s := kinds.String(); !strings.HasPrefix(s, "Kind(") {
		t.Errorf("beyond the last: %q", s)
	}
	var b bytes.Buffer
	fmt.Fprint(&b, &TooLargeError{Size: 9, Reason: ErrBudget})
	if !strings.Contains(b.String(), ErrBudget.Error()) {
		t.Errorf("error %q", b.String())
	}
}
