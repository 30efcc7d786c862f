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
	if d.usual.text != nil && d.asUsual(ev) {
		return true
	}
	b, p := d.buf[:d.stop], d.pos
	var id, typ, data []byte
	first, value := 0, 0 // the end of an id that comes first, and the beginning of the data
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
			data, value = b[p:p+n:p+n], p
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
			if p += n + 1; p-n-1-d.pos == len(usualID) {
				first = p
			}
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
	if data == nil || !d.take(ev, id, typ, data, p) {
		return false
	}
	if first > 0 && value+len(data)+1 == p {
		d.usual.learn(b[first:value], len(typ))
	}
	return true
}

// take takes the event of a block that ends at p.
func (d *Decoder) take(ev *Event, id, typ, data []byte, p int) bool {
	switch block := d.buf[d.pos:p]; {
	case int64(len(block)) > min(maxField, d.o.MaxEvent):
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

// usual is what lies between the id of an event and its data. In most feeds it
// is the same for all of them, and comparing it costs less than reading it.
type usual struct {
	text []byte // from the end of the id's line to the value of data; nil where nothing is usual
	typ  int    // the length of the type, which the first line holds if there are two
}

const usualID, usualType = "id: ", "event: "

// learn has events be usual that are like the one with this text.
func (u *usual) learn(text []byte, typ int) {
	switch bytes.Count(text, []byte("\n")) {
	case 0:
	case 1:
		if !bytes.HasPrefix(text, []byte(usualType)) {
			return
		}
	default:
		return
	}
	u.text, u.typ = append(u.text[:0], text...), typ
}

// asUsual is whole for an event with an id, the usual text, and data to the
// blank line.
func (d *Decoder) asUsual(ev *Event) bool {
	b, u := d.buf[d.pos:d.stop], &d.usual
	if len(b) < len(usualID) || string(b[:len(usualID)]) != usualID {
		return false
	}
	id := b[len(usualID):]
	n := nearLF(id)
	if n < 0 {
		return false
	}
	rest := id[n+1:]
	if len(rest) <= len(u.text) || string(rest[:len(u.text)]) != string(u.text) || rest[len(u.text)] == ' ' && u.text[len(u.text)-1] != ' ' {
		return false
	}
	data := rest[len(u.text):]
	end := bytes.IndexByte(data, '\n')
	if end < 0 || end+1 >= len(data) || data[end+1] != '\n' {
		return false
	}
	var typ []byte
	if u.typ > 0 {
		typ = rest[len(usualType) : len(usualType)+u.typ : len(usualType)+u.typ]
	}
	return d.take(ev, id[:n:n], typ, data[:end:end], d.stop-len(data)+end+1)
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
