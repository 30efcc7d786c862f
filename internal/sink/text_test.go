package sink

import (
	"encoding/hex"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "price": "price", "ü\n": "ü\n", `a\x00`: `a\x00`,
		"a\x00": `\x6100`, "\xff": `\xff`, `\x`: `\x5c78`, `\xff`: `\x5c786666`,
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%q) is %q, want %q", in, got, want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("plain")
	f.Add(`\xff`)
	f.Add("\xff\x00")
	f.Fuzz(func(t *testing.T, s string) {
		out := Text(s)
		if !utf8.ValidString(out) || strings.IndexByte(out, 0) >= 0 {
			t.Fatalf("Text(%q) is %q, which is no text", s, out)
		}
		if digits, ok := strings.CutPrefix(out, `\x`); ok {
			b, err := hex.DecodeString(digits)
			if err != nil || string(b) != s {
				t.Fatalf("Text(%q) is %q, which gives back %q (%v)", s, out, b, err)
			}
		} else if out != s {
			t.Fatalf("Text(%q) is %q", s, out)
		}
	})
}
