package sse

import (
	"bytes"
	"math"
)

const (
	defaultBuffer = 512      // of an idle stream, of which there may be thousands
	maxRead       = 32 << 10 // the buffer grows this far for reading alone, free of charge
	window        = 4        // rounds that a buffer has to be too large for before it shrinks
)

// buffer holds the data of the block being read and the bytes behind it that
// are not consumed yet:
//
//	| ... | data ... dataEnd | consumed | pos ... from ... cr ... stop | free |
//
// Whatever the cuts of the input, a byte is moved a bounded number of times:
// the data to the front once, a line down to it once, and all of it again only
// when the size has doubled.
type buffer struct {
	buf           []byte
	data, dataEnd int
	pos           int // begins the line being read
	from          int // no LF in [pos, from)
	cr            int // the first CR from pos on, stop if there is none
	stop          int // ends what has been read
	high          int // only ASCII in [high, stop)

	base, most int  // bounds of its size
	full       bool // the last Read took most of the room
	peak       int  // the most that was in use in the present window
	rounds     int
	shrink     bool     // the event it grew for is given up
	account    *account // nil without a budget
}

func newBuffer(o Options) buffer {
	base := o.Buffer
	if base <= 0 {
		base = defaultBuffer
	}
	base = max(base, 16)
	most := int(min(o.MaxEvent, math.MaxInt/2)) + maxField + maxRead
	b := buffer{base: base, most: max(base, most)}
	if o.Budget != nil {
		b.account = &account{budget: o.Budget}
	}
	return b
}

// findCR sets cr to the first CR in [from, stop).
func (b *buffer) findCR(from int) {
	b.cr = b.stop
	if i := bytes.IndexByte(b.buf[from:b.stop], '\r'); i >= 0 {
		b.cr = from + i
	}
}

// add takes over n bytes that were read behind stop.
func (b *buffer) add(n int) {
	old := b.stop
	// Who takes a framing out of what was read returns less than there was
	// room for, however much waits.
	b.full = n > (len(b.buf)-old)/2
	b.stop += n
	b.peak = max(b.peak, b.stop)
	b.findCR(old) // whoever reads has consumed the CRs before
	if !isASCII(b.buf[old:b.stop]) {
		b.high = b.stop
	}
}

// room makes room for a Read: it moves what is in use to the front, and resizes
// the buffer as the load asks for. It reports false, and changes nothing, if
// the budget does not allow for the size that the unfinished event needs.
func (b *buffer) room() bool {
	held, part := b.dataEnd-b.data, b.stop-b.pos
	size := b.size(held, part)
	if !b.charge(size) {
		return false
	}
	if size == len(b.buf) && b.pos == held {
		return true // nothing to move
	}
	to := b.buf
	if size != len(to) {
		to = make([]byte, size)
	}
	copy(to, b.buf[b.data:b.dataEnd])
	copy(to[held:], b.buf[b.pos:b.stop])
	switch {
	case b.high > b.pos:
		b.high += held - b.pos
	case b.high > b.data:
		b.high = held
	default:
		b.high = 0
	}
	shift := held - b.pos
	b.data, b.dataEnd = 0, held
	b.pos, b.from, b.cr, b.stop = held, b.from+shift, b.cr+shift, b.stop+shift
	b.buf = to
	return true
}

// size tells how large the buffer should be for the next Read, with held bytes
// of data and part bytes of a line in use.
func (b *buffer) size(held, part int) int {
	size := max(len(b.buf), b.base)
	if b.full && size < maxRead {
		size = min(2*size, maxRead)
	}
	// A round is over when something was consumed and no data is held.
	if held == 0 && b.pos > 0 {
		b.rounds++
		// What a large event needed is kept for the next one, unless it does
		// not come or others need it.
		tight := b.account != nil && b.account.tight()
		if b.rounds >= window || tight {
			if tight {
				size = min(size, b.free())
			} else if b.peak <= size/4 {
				size = max(b.base, 2*b.peak)
			}
			b.rounds, b.peak = 0, 0
		}
	}
	if b.shrink {
		b.shrink = false
		size = min(size, b.free())
	}
	for size-held-part < size/4 && size < b.most {
		size = min(2*size, b.most)
	}
	return size
}

// charge pays the budget for a buffer of this size, or gives back.
func (b *buffer) charge(size int) bool {
	return b.account == nil || b.account.hold(int64(max(0, size-b.free())))
}

// free is the size that costs nothing.
func (b *buffer) free() int { return max(b.base, maxRead) }

// drop consumes everything.
func (b *buffer) drop() {
	b.data, b.dataEnd = 0, 0
	b.pos, b.from, b.cr = b.stop, b.stop, b.stop
}

// discard gives the memory back.
func (b *buffer) discard() {
	b.drop()
	b.buf = nil
	b.pos, b.from, b.cr, b.stop, b.high = 0, 0, 0, 0, 0
	b.charge(0)
}
