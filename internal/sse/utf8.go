package sse

import (
	"encoding/binary"
	"unicode/utf8"
)

// isASCII looks at 32 bytes a step: it passes over every byte that is read.
func isASCII(b []byte) bool {
	const high = 0x8080808080808080
	le := binary.LittleEndian
	for len(b) >= 32 {
		if (le.Uint64(b)|le.Uint64(b[8:])|le.Uint64(b[16:])|le.Uint64(b[24:]))&high != 0 {
			return false
		}
		b = b[32:]
	}
	for len(b) >= 8 {
		if le.Uint64(b)&high != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// appendRepaired appends b to dst as the UTF-8 decoder of the Encoding standard
// reads it: each maximal subpart of an ill-formed sequence becomes one U+FFFD.
// (Package unicode/utf8 counts one per byte, bytes.ToValidUTF8 one per run.)
func appendRepaired(dst, b []byte) []byte {
	for len(b) > 0 {
		if r, n := utf8.DecodeRune(b); r != utf8.RuneError || n > 1 {
			dst = append(dst, b[:n]...)
			b = b[n:]
			continue
		}
		dst = append(dst, "\uFFFD"...)
		b = b[subpart(b):]
	}
	return dst
}

// subpart is the length of the maximal subpart that the ill-formed b begins with.
func subpart(b []byte) int {
	lower, upper, need := byte(0x80), byte(0xBF), 0
	switch c := b[0]; {
	case c >= 0xC2 && c <= 0xDF:
		need = 1
	case c >= 0xE0 && c <= 0xEF:
		need = 2
		switch c {
		case 0xE0:
			lower = 0xA0
		case 0xED: // surrogates
			upper = 0x9F
		}
	case c >= 0xF0 && c <= 0xF4:
		need = 3
		switch c {
		case 0xF0:
			lower = 0x90
		case 0xF4:
			upper = 0x8F
		}
	}
	n := 1
	for ; n <= need && n < len(b) && b[n] >= lower && b[n] <= upper; n++ {
		lower, upper = 0x80, 0xBF
	}
	return n
}
