package sse

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// cases are inputs for every rule, with the events they dispatch. The other
// outcomes are compared with the reference.
var cases = []struct {
	name, in string
	want     []event
}{
	{"empty stream", "", nil},
	{"data only", "data: a\n\n", []event{{"", "message", "a"}}},
	{"all fields", "id: 7\nevent: price\ndata: {\"p\":1}\nretry: 5\n\n", []event{{"7", "price", `{"p":1}`}}},
	{"id after data", "data: a\nid: 7\n\n", []event{{"7", "message", "a"}}},
	{"no space", "data:a\n\n", []event{{"", "message", "a"}}},
	{"one space removed of two", "data:  a\n\n", []event{{"", "message", " a"}}},
	{"tab kept", "data:\ta\n\n", []event{{"", "message", "\ta"}}},
	{"trailing space kept", "data: a \n\n", []event{{"", "message", "a "}}},
	{"space before colon", "data : a\n\n", nil},
	{"space before name", " data: a\n\n", nil},
	{"colons in value", "data: a:b: c\n\n", []event{{"", "message", "a:b: c"}}},
	{"many lines", "data: a\ndata\ndata:\ndata: \ndata: b\n\n", []event{{"", "message", "a\n\n\n\nb"}}},
	{"lines around fields", "data: first\nid: 12345678\ndata: second line\nevent: t\ndata:x\n\n", []event{{"12345678", "t", "first\nsecond line\nx"}}},
	{"leading empty lines", "data:\ndata: \ndata:a\n\n", []event{{"", "message", "\n\na"}}},
	{"empty data", "data:\n\n", []event{{"", "message", ""}}},
	{"data without colon", "data\n\n", []event{{"", "message", ""}}},
	{"two without colon", "data\ndata\n\n", []event{{"", "message", "\n"}}},
	{"type without data", "event: a\n\ndata: b\n\n", []event{{"", "message", "b"}}},
	{"last type wins", "event: a\nevent: b\ndata: c\n\n", []event{{"", "b", "c"}}},
	{"empty type is message", "event: a\nevent:\ndata: c\n\n", []event{{"", "message", "c"}}},
	{"type does not stick", "event: a\ndata: 1\n\ndata: 2\n\n", []event{{"", "a", "1"}, {"", "message", "2"}}},
	{"id sticks", "id: 1\ndata: a\n\ndata: b\n\n", []event{{"1", "message", "a"}, {"1", "message", "b"}}},
	{"empty id resets", "id: 1\ndata: a\n\nid\ndata: b\n\nid:2\ndata: c\n\nid:\ndata: d\n\n",
		[]event{{"1", "message", "a"}, {"", "message", "b"}, {"2", "message", "c"}, {"", "message", "d"}}},
	{"ids of several events", "id: 1\ndata: a\n\nid: 2\ndata: b\n\ndata: c\n\nid: 3\nevent: e\ndata: d\n\ndata: e\n\n",
		[]event{{"1", "message", "a"}, {"2", "message", "b"}, {"2", "message", "c"}, {"3", "e", "d"}, {"3", "message", "e"}}},
	{"like the one before", "id: 1\nevent: a\ndata: u\n\nid: 2\nevent: a\ndata: v\n\nid: 3\nevent: b\ndata: w\n\nid: 4\nevent: bb\ndata: x\n\nid: 5\ndata: y\n\nid: 6\ndata: z\n\n",
		[]event{{"1", "a", "u"}, {"2", "a", "v"}, {"3", "b", "w"}, {"4", "bb", "x"}, {"5", "message", "y"}, {"6", "message", "z"}}},
	{"two ids, like the one before", "id: 1\nid: 2\ndata: a\n\nid: 3\nid: 2\ndata: b\n\nid: 4\nevent: e\nid: 5\ndata: c\n\nid: 6\nevent: e\nid: 5\ndata: d\n\n",
		[]event{{"2", "message", "a"}, {"2", "message", "b"}, {"5", "e", "c"}, {"5", "e", "d"}}},
	{"two types, like the one before", "id: 1\nevent: e\nevent: f\ndata: a\n\nid: 2\nevent: e\nevent: f\ndata: b\n\n", []event{{"1", "f", "a"}, {"2", "f", "b"}}},
	{"spaces unlike the one before", "id: 1\ndata:a\n\nid: 2\ndata: b\n\nid: 3\ndata:  c\n\nid: 4\ndata:d\n\nid:5\ndata: e\n\nid:  6\nevent:e\ndata: f\n\nid: 7\nevent: e\ndata: g\n\nid: 8\nevent:  e\ndata: h\n\nid: 9\nevent:  e\ndata: i\n\n",
		[]event{{"1", "message", "a"}, {"2", "message", "b"}, {"3", "message", " c"}, {"4", "message", "d"}, {"5", "message", "e"}, {" 6", "e", "f"}, {"7", "e", "g"}, {"8", " e", "h"}, {"9", " e", "i"}}},
	{"an id behind the type, and not", "event: e\nid: 1\ndata: a\n\nid: 2\ndata: b\n\nevent: e\nid: 3\ndata: c\n\n", []event{{"1", "e", "a"}, {"2", "message", "b"}, {"3", "e", "c"}}},
	{"longer than the one before", "id: 1\nevent: \ndata: a\n\nid: 2\nevent: \ndata: b\ndata: c\n\nid: 3\nevent: \ndata: d\nevent: e\n\nid: 4\nevent: \ndata: e\nid: 5\n\nid: 6\nevent: \ndata: \n\nid\nevent: \ndata: f\n\n",
		[]event{{"1", "message", "a"}, {"2", "message", "b\nc"}, {"3", "e", "d"}, {"5", "message", "e"}, {"6", "message", ""}, {"", "message", "f"}}},
	{"id-only block", "data: a\n\nid: 2\n\ndata: b\n\nid: 3\n\n", []event{{"", "message", "a"}, {"2", "message", "b"}}},
	{"NUL in id", "id: 1\ndata: a\n\nid: 2\x003\ndata: b\n\n", []event{{"1", "message", "a"}, {"1", "message", "b"}}},
	{"NUL, then a field in the id", "id: 1\ndata: a\n\nid: 2\x00data: b, which is part of the id\n\n", []event{{"1", "message", "a"}}},
	{"NUL elsewhere", "event: a\x00b\ndata: c\x00d\n\n", []event{{"", "a\x00b", "c\x00d"}}},
	{"id is a JSON array", "id: [{\"topic\":\"t\",\"offset\":-1}]\ndata: a\n\n", []event{{`[{"topic":"t","offset":-1}]`, "message", "a"}}},
	{"retry digits", "retry: 1500\n\n", nil},
	{"retry in an unfinished block", "retry: 1500\ndata: a", nil},
	{"retry not digits", "retry: 1500\nretry: 1e3\nretry: -1\nretry:\nretry\nretry: 12 \nretry:  1\nretry: \uff11\n\n", nil},
	{"retry huge", "retry: 99999999999999999999999999999999999\n\n", nil},
	{"retry leading zeros", "retry: 000000000000000000000000000000000000000000000010\n\n", nil},
	{"comments", ":\n: a\n:b\ndata: 1\n:c\ndata: 2\n\n", []event{{"", "message", "1\n2"}}},
	{"unknown fields", "error: {\"code\":1}\nid: 1\ndatas: a\nDATA: b\nda\nData\nids: 4\nevents: x\nretries: 3\ndata: c\n\n", []event{{"1", "message", "c"}}},
	{"unterminated line", "data: a\n\ndata: b", []event{{"", "message", "a"}}},
	{"unterminated block", "data: a\n\nid: 9\nevent: e\ndata: b\n", []event{{"", "message", "a"}}},
	{"unterminated sentinel", "data: {}\n\ndata: [DONE]", []event{{"", "message", "{}"}}},
	{"unterminated second line", "event: e\ndata: a\ndata: b", nil},
	{"unterminated name", "id: 3\ndata", nil},
	{"unterminated id", "data: a\n\nid: 5", []event{{"", "message", "a"}}},
	{"CRLF", "id: 1\r\ndata: a\r\n\r\ndata: b\r\n\r\n", []event{{"1", "message", "a"}, {"1", "message", "b"}}},
	{"CR", "id: 1\rdata: a\r\rdata: b\r\r", []event{{"1", "message", "a"}, {"1", "message", "b"}}},
	{"mixed ends", "data: a\r\ndata: b\rdata: c\n\r\ndata: d\n\r\r\ndata: e\r\n\n", []event{{"", "message", "a\nb\nc"}, {"", "message", "d"}, {"", "message", "e"}}},
	{"LF CR is two ends", "data: a\n\rdata: b\n\r", []event{{"", "message", "a"}, {"", "message", "b"}}},
	{"CR CRLF", "data: a\r\r\ndata: b\r\r\n", []event{{"", "message", "a"}, {"", "message", "b"}}},
	{"CR, then LF in one block", "data: a\n\nid: 1\rx\ndata: b\n\nid:\rdata: c\n\n", []event{{"", "message", "a"}, {"1", "message", "b"}, {"", "message", "c"}}},
	{"no other ends", "data: a\vb\fc\u0085d\u2028e\u2029f\n\n", []event{{"", "message", "a\vb\fc\u0085d\u2028e\u2029f"}}},
	{"BOM", "\uFEFFdata: a\n\n", []event{{"", "message", "a"}}},
	{"two BOMs", "\uFEFF\uFEFFdata: a\n\ndata: b\n\n", []event{{"", "message", "b"}}},
	{"BOM later", "data: a\n\n\uFEFFdata: b\n\n", []event{{"", "message", "a"}}},
	{"BOM alone", "\uFEFF", nil},
	{"half a BOM", "\xEF\xBBdata: a\n\ndata: b\n\n", []event{{"", "message", "b"}}},
	{"BOM and blank", "\uFEFF\n\ndata: a\n\n", []event{{"", "message", "a"}}},
	{"BOM and CR", "\uFEFF\r\ndata: a\r\r", []event{{"", "message", "a"}}},
	{"UTF-8", "id: ü\nevent: ä\ndata: 日本語 😀\n\n", []event{{"ü", "ä", "日本語 😀"}}},
	{"invalid byte", "id: a\xFFb\nevent: \xC0\xAF\ndata: \x80x\n\n", []event{{"a\uFFFDb", "\uFFFD\uFFFD", "\uFFFDx"}}},
	{"truncated sequence is one", "data: \xE2\x82\ndata: \xF0\x9F\x98A\xF0\x90\x80\n\n", []event{{"", "message", "\uFFFD\n\uFFFDA\uFFFD"}}},
	{"overlong and surrogates", "data: \xE0\x80\x80|\xED\xA0\x80|\xF4\x90\x80\x80|\xF0\x80\x80\x80\n\n",
		[]event{{"", "message", strings.Join([]string{strings.Repeat("\uFFFD", 3), strings.Repeat("\uFFFD", 3), strings.Repeat("\uFFFD", 4), strings.Repeat("\uFFFD", 4)}, "|")}}},
	{"U+FFFD itself", "data: \uFFFD\n\n", []event{{"", "message", "\uFFFD"}}},
	{"invalid then ASCII", "data: \xFF\n\ndata: a\n\ndata: \xFE\n\n", []event{{"", "message", "\uFFFD"}, {"", "message", "a"}, {"", "message", "\uFFFD"}}},
	{"lone colon at the end", "data: a\n\n:", []event{{"", "message", "a"}}},
	{"blank lines only", "\n\n\r\r\n\n", nil},

	// Shaped like what real feeds were recorded to send.
	{"error as a field", "data: {\"n\":1}\n\nerror: {\"code\":429}\n\n", []event{{"", "message", `{"n":1}`}}},
	{"bare JSON", "data: {\"n\":1}\r\n\r\n{\r\n  \"error\": {\r\n    \"code\": 499\r\n  }\r\n}\r\n", []event{{"", "message", `{"n":1}`}}},
	{"error as a comment", "event: done\ndata: {}\n\n:408: 408 Request Timeout\n", []event{{"", "done", "{}"}}},
	{"comment on the event", ":)\nevent: update\ndata: 1\n\n", []event{{"", "update", "1"}}},
	{"single CRLF", "data: {\"blocked\":true}\r\n", nil},
	{"never a blank line", strings.Repeat("data: {\"t\":1}\n", 100), nil},
	{"many lines after a blank one", "\n" + strings.Repeat("data: {\"t\":1}\n", 100), nil},
	{"extra blank lines", "\n\n\ndata: a\n\n\n\nevent: b\ndata: c\n\n\n", []event{{"", "message", "a"}, {"", "b", "c"}}},
	{"heartbeat without data", "event: ping\n\nevent: ping\n\ndata: 1\n\n", []event{{"", "message", "1"}}},
}

// run decodes all of r and collects what can be compared with the reference.
func run(t testing.TB, r io.Reader, o Options) (outcome, Stats, error) {
	t.Helper()
	out := outcome{Retry: -1}
	var odd [kinds]int64
	o.OnComment = func(text []byte) { out.Comments = append(out.Comments, refUTF8(string(text))) }
	o.OnID = func(id []byte) { out.IDs = append(out.IDs, string(id)) }
	o.OnOddity = func(o Oddity) { odd[o.Kind]++ }
	d := NewDecoder(r, o)
	defer d.Close()
	var ev Event
	for {
		err := d.Next(&ev)
		if err == nil {
			var all []Event // stay valid together
			for more := true; more; more = d.Buffered(&ev) {
				if got := d.LastEventID(); got != string(ev.ID) {
					t.Errorf("LastEventID %q after an event with the id %q", got, ev.ID)
				}
				all = append(all, ev)
			}
			for _, ev := range all {
				out.Events = append(out.Events, event{string(ev.ID), string(ev.Type), string(ev.Data)})
				out.Own = append(out.Own, ev.HasID)
			}
			continue
		}
		if again := d.Next(&ev); again != err {
			t.Errorf("Next after the end gave %v, then %v", err, again)
		}
		out.LastID = d.LastEventID()
		if retry, ok := d.Retry(); ok {
			out.Retry = retry.Milliseconds()
		}
		left := d.Unfinished()
		out.LeftData, out.LeftType, out.LeftID = string(left.Data), string(left.Type), string(left.ID)
		s := d.Stats()
		out.Odd = s.Oddities
		if odd != s.Oddities {
			t.Errorf("oddities told %v, counted %v", odd, s.Oddities)
		}
		if int(s.Events) != len(out.Events) || int(s.Comments) != len(out.Comments) || int(s.IDOnly) != len(out.IDs) {
			t.Errorf("stats %+v with %d events, %d comments, %d ids", s, len(out.Events), len(out.Comments), len(out.IDs))
		}
		return out, s, err
	}
}

// pieces delivers its strings one per Read (or less, if there is no room).
type pieces []string

func (p *pieces) Read(b []byte) (int, error) {
	for len(*p) > 0 && (*p)[0] == "" {
		*p = (*p)[1:]
	}
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	(*p)[0] = (*p)[0][n:]
	return n, nil
}

// everyWay decodes in whole, byte by byte, with the error beside the last
// bytes, and split in two at every place; all must come out as want.
func everyWay(t *testing.T, in string, o Options, want outcome) {
	t.Helper()
	check := func(how string, r io.Reader, o Options) {
		t.Helper()
		got, s, err := run(t, r, o)
		if err != io.EOF {
			t.Errorf("%s: error %v", how, err)
		}
		if int(s.Bytes) != len(in) {
			t.Errorf("%s: %d bytes counted of %d", how, s.Bytes, len(in))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s of %.100q:\n got %+v\nwant %+v", how, in, got, want)
		}
	}
	tiny := o
	tiny.Buffer = 1
	check("whole", strings.NewReader(in), o)
	check("whole, tiny buffer", strings.NewReader(in), tiny)
	check("bytes", iotest.OneByteReader(strings.NewReader(in)), o)
	check("bytes, tiny buffer", iotest.OneByteReader(strings.NewReader(in)), tiny)
	check("error with data", iotest.DataErrReader(strings.NewReader(in)), o)
	for i := range len(in) {
		check(fmt.Sprint("split at ", i), &pieces{in[:i], in[i:]}, o)
	}
}

func TestStandard(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := refDecode(c.in, "")
			if !reflect.DeepEqual(want.Events, c.want) {
				t.Fatalf("the reference gives %q, the table %q", want.Events, c.want)
			}
			everyWay(t, c.in, Options{}, want)
			everyWay(t, c.in, Options{LastEventID: "before"}, refDecode(c.in, "before"))
		})
	}
}

func TestLastEventID(t *testing.T) {
	in := "data: a\n\nid: 2\n\nid: 3\ndata: b\n\nid: 4\ndata: cut\n"
	var told []string
	d := NewDecoder(strings.NewReader(in), Options{
		LastEventID: "1",
		OnID:        func(id []byte) { told = append(told, string(id)) },
	})
	var ev Event
	steps := []struct{ id, told string }{{"1", "[]"}, {"3", "[2]"}}
	for _, want := range steps {
		if err := d.Next(&ev); err != nil {
			t.Fatal(err)
		}
		if d.LastEventID() != want.id || string(ev.ID) != want.id || fmt.Sprint(told) != want.told {
			t.Errorf("id %q, event %q, told %v, want %v", d.LastEventID(), ev.ID, told, want)
		}
	}
	if err := d.Next(&ev); err != io.EOF {
		t.Fatal(err)
	}
	if d.LastEventID() != "3" {
		t.Errorf("an unfinished block moved the id to %q", d.LastEventID())
	}
	if left := d.Unfinished(); string(left.ID) != "4" || string(left.Data) != "cut" || left.Bytes != 16 {
		t.Errorf("left over: %+v", left)
	}
}

// step is a reader that counts the calls and fails the test when called too often.
type step struct {
	t     *testing.T
	parts []string
	reads int
}

func (s *step) Read(b []byte) (int, error) {
	if s.reads == len(s.parts) {
		s.t.Error("Read beyond the script")
		return 0, io.EOF
	}
	s.reads++
	return copy(b, s.parts[s.reads-1]), nil
}

// An event is returned as soon as its last byte is there, and Read is not
// called while another one is complete.
func TestReadsOnlyWhenNeeded(t *testing.T) {
	r := &step{t: t, parts: []string{
		"data: a\n\ndata: b\n\nda", "ta: c\r\r", "\ndata: d\r\n\r", "\ndata: e\n", "\n",
	}}
	d := NewDecoder(r, Options{})
	var ev Event
	for _, want := range []struct {
		data  string
		reads int
	}{{"a", 1}, {"b", 1}, {"c", 2}, {"d", 3}, {"e", 5}} {
		if err := d.Next(&ev); err != nil {
			t.Fatal(err)
		}
		if string(ev.Data) != want.data || r.reads != want.reads {
			t.Errorf("%q after %d reads, want %q after %d", ev.Data, r.reads, want.data, want.reads)
		}
	}
}

// slow takes a second for each Read.
type slow struct{ r io.Reader }

func (s slow) Read(b []byte) (int, error) {
	time.Sleep(time.Second)
	return s.r.Read(b)
}

func TestTimeOfRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		d := NewDecoder(slow{&pieces{"data: a\n\ndata: b\n\ndata: c\n", "\n"}}, Options{})
		var ev Event
		for _, want := range []time.Duration{1, 1, 2} {
			if err := d.Next(&ev); err != nil {
				t.Fatal(err)
			}
			if got := ev.Time.Sub(start); got != want*time.Second {
				t.Errorf("%s came after %v, want %ds", ev.Data, got, want)
			}
		}
	})
}

func TestReaderErrors(t *testing.T) {
	reset := errors.New("connection reset")
	for _, want := range []error{io.EOF, io.ErrUnexpectedEOF, reset} {
		for _, beside := range []bool{false, true} {
			var r io.Reader = io.MultiReader(strings.NewReader("data: a\n\nid: 1\ndata: b\n"), iotest.ErrReader(want))
			if beside {
				r = iotest.DataErrReader(r)
			}
			out, _, err := run(t, r, Options{})
			if err != want {
				t.Errorf("error %v, want %v", err, want)
			}
			if len(out.Events) != 1 || out.LeftData != "b" || out.LastID != "" {
				t.Errorf("%v: %+v", want, out)
			}
			if odd := out.Odd[Unterminated] == 1; odd != (want == io.EOF) {
				t.Errorf("%v: unterminated block told: %v", want, odd)
			}
		}
	}
	if _, _, err := run(t, iotest.ErrReader(nil), Options{}); err != io.ErrNoProgress {
		t.Errorf("a reader that reads nothing: %v", err)
	}
}
