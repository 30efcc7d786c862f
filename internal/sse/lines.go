package sse

import (
	"encoding/binary"
	"math/bits"
)

// nearLF is where the first LF of b is, or -1 if there is none within 64 bytes
// or a NUL comes before it. Ids and types are short: a call of bytes.IndexByte
// costs more than finding their end.
func nearLF(b []byte) int {
	const (
		lows  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	for i := 0; i+8 <= len(b) && i < 64; i += 8 {
		// The lowest byte that is zero in x has the lowest bit set in m.
		nul := binary.LittleEndian.Uint64(b[i:])
		lf := nul ^ '\n'*lows
		if m := ((nul-lows)&^nul | (lf-lows)&^lf) & highs; m != 0 {
			i += bits.TrailingZeros64(m) / 8
			if b[i] == 0 {
				return -1
			}
			return i
		}
	}
	return -1
}
