package sse

import (
	"bytes"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// cutBy cuts in at lengths taken from cuts, in turn.
func cutBy(in, cuts []byte) *pieces {
	var p pieces
	for i := 0; len(in) > 0; i++ {
		n := len(in)
		if len(cuts) > 0 {
			n = min(n, int(cuts[i%len(cuts)])+1)
		}
		p = append(p, string(in[:n]))
		in = in[n:]
	}
	return &p
}

// FuzzDecoder compares with the reference, however the input is cut, and checks
// that limits depend on the bytes and not on the cuts.
func FuzzDecoder(f *testing.F) {
	for i, c := range cases {
		f.Add([]byte(c.in), []byte{byte(i), 3, 0, 17}, byte(i))
		f.Add([]byte(strings.ReplaceAll(c.in, "\n", "\r\n")), []byte{byte(i)}, byte(2*i))
		f.Add([]byte(strings.ReplaceAll(c.in, "\n", "\r")), []byte{}, byte(0))
	}
	for _, in := range []string{
		"id: 1\nevent: price\ndata: " + strings.Repeat("x", 300) + "\n\n: hi\n\nid: 2\ndata: \xE2\x82\n\n",
		"data: a\n: " + strings.Repeat("c", 2000) + "\ndata: b\n\n{" + strings.Repeat("j", 3000) + "}\n\n",
	} {
		f.Add([]byte(in), []byte{7, 200}, byte(100))
	}
	f.Fuzz(func(t *testing.T, in, cuts []byte, limit byte) {
		if len(in) > 8<<10 {
			return // longer ones are slow and show nothing new
		}
		shorten := func(o outcome) outcome {
			for i, c := range o.Comments { // a long one is not told in full
				o.Comments[i] = c[:min(len(c), 300)]
			}
			return o
		}
		want := shorten(refDecode(string(in), "start"))
		o := Options{LastEventID: "start", Buffer: 1 + len(cuts)*16}
		got, stats, err := run(t, cutBy(in, cuts), o)
		if err != io.EOF || int(stats.Bytes) != len(in) {
			t.Fatalf("error %v after %d bytes of %d", err, stats.Bytes, len(in))
		}
		if got := shorten(got); !reflect.DeepEqual(got, want) {
			t.Fatalf("%q cut by %v:\n got %+v\nwant %+v", in, cuts, got, want)
		}

		o.MaxEvent = 1 + int64(limit)
		for _, o.OnTooLarge = range []Policy{Skip, Fail} {
			whole, _, err := run(t, bytes.NewReader(in), o)
			cut, _, cutErr := run(t, cutBy(in, cuts), o)
			if o.OnTooLarge == Fail && err != io.EOF {
				// What else the failing Read brought is not the same.
				whole.LeftData, cut.LeftData = "", ""
			}
			if !reflect.DeepEqual(whole, cut) || !reflect.DeepEqual(err, cutErr) && o.OnTooLarge == Skip {
				t.Fatalf("%q, limit %d, policy %d, cut by %v:\nwhole %+v, %v\n  cut %+v, %v", in, o.MaxEvent, o.OnTooLarge, cuts, whole, err, cut, cutErr)
			}
			for _, e := range whole.Events {
				if int64(len(e.Data)) > 3*o.MaxEvent || !slices.ContainsFunc(want.Events, func(w event) bool { return w.Data == e.Data && w.Type == e.Type }) {
					t.Fatalf("%q, limit %d: event %+v", in, o.MaxEvent, e)
				}
			}
		}
	})
}

func FuzzUTF8(f *testing.F) {
	for _, s := range []string{"", "a", "\xE2\x82", "\xF0\x9F\x98A", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xC0\xAF", "\xFF\xFEé"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if got, want := string(appendRepaired(nil, in)), refUTF8(string(in)); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
		ascii := !slices.ContainsFunc(in, func(b byte) bool { return b > 0x7F })
		if isASCII(in) != ascii {
			t.Errorf("isASCII(%q) = %v", in, !ascii)
		}
	})
}

// TestFuzzSeeds asserts that the seeds, which come from the table, are there.
func TestFuzzSeeds(t *testing.T) {
	if len(cases) < 70 {
		t.Errorf("only %d seeds", len(cases))
	}
}
