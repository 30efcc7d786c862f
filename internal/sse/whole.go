package sse

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// whole is scan for what most events are: a block that lies in the buffer to
// its blank line, small, with one data line, perhaps an id and a type, without
// CR, or NUL in an id. It takes the event, or changes nothing. The lines' way would
// do the same in half as much time again.
func (d *Decoder) whole(ev *Event) bool {
	b, p := d.buf[:d.stop], d.pos
	var id, typ, data []byte
	for {
		if p < len(b) && b[p] == '\n' {
			break
		}
		if p+len("event:") >= len(b) {
			return false
		}
		switch {
		case b[p] == 'd' && data == nil && string(b[p:p+5]) == "data:":
			if p += 5; b[p] == ' ' {
				p++
			}
			n := bytes.IndexByte(b[p:], '\n')
			if n < 0 {
				return false
			}
			data = b[p : p+n : p+n]
			p += n + 1
		case b[p] == 'i' && string(b[p:p+3]) == "id:":
			if p += 3; b[p] == ' ' {
				p++
			}
			n := nearLF(b[p:])
			if n < 0 {
				return false
			}
			id = b[p : p+n : p+n]
			p += n + 1
		case b[p] == 'e' && string(b[p:p+6]) == "event:":
			if p += 6; b[p] == ' ' {
				p++
			}
			n := nearLF(b[p:])
			if n < 0 {
				return false
			}
			typ = b[p : p+n : p+n]
			p += n + 1
		default:
			return false
		}
	}
	switch block := b[d.pos:p]; {
	case data == nil, int64(len(block)) > min(maxField, d.o.MaxEvent):
		return false
	case d.pos < d.high && !utf8.Valid(block):
		return false
	}
	d.pos, d.from = p+1, p+1
	d.block = d.offset()
	d.hasBlank = true
	if id != nil {
		d.passed = id
	}
	if len(typ) == 0 {
		typ = message
	}
	ev.ID, ev.HasID, ev.Type, ev.Data, ev.Time = d.lastID(), id != nil, typ, data, d.time
	d.stats.Events++
	return true
}

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
