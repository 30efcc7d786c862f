package sse

import (
	"bytes"
	"errors"
	"io"
	"math"
	"runtime"
	"time"
	"unicode/utf8"
)

const (
	defaultMaxEvent = 16 << 20
	maxField        = 64 << 10 // an id, event or retry line
	maxIgnored      = 1 << 10  // kept of a line that only its first bytes matter of
	maxFirst        = 128      // of Oddity.First and Unfinished.First
	noBlankLines    = 64       // data lines until NoBlankLine
)

var (
	// ErrMaxEvent is why an event beyond [Options.MaxEvent], or a single id,
	// event or retry line beyond 64 KiB, was too large.
	ErrMaxEvent = errors.New("it exceeds the limit for one event; raise it if the feed means it")
	// ErrBudget is why an event within its own limit was too large: the
	// unfinished events of all decoders together exceed [Options.Budget].
	ErrBudget = errors.New("the budget for the unfinished events of all streams is used up")
	// ErrClosed is returned by Next after Close.
	ErrClosed = errors.New("sse: decoder is closed")
)

var (
	bom     = []byte("\xEF\xBB\xBF")
	message = []byte("message")
)

// Decoder reads events from one response body. Its methods must not be called
// concurrently.
type Decoder struct {
	r     io.Reader
	o     Options
	err   error // sticky; the lines in the buffer go first
	ended bool  // nothing more to say but err
	left  Unfinished
	stats Stats

	buffer
	begun  bool      // past the place of a BOM
	skipLF bool      // a CR ended the last line: an LF here belongs to it
	time   time.Time // of the last Read
	cut    int64     // bytes left out of the line being read: see bound

	// The block being read. Its data is in the buffer.
	block int64  // offset of its first byte in the stream
	lines int    // data lines so far
	typ   []byte // the event type buffer
	id    []byte // the last event ID buffer, where hasID
	hasID bool
	fresh bool // nothing of it is consumed yet
	// Of a block that is too large: why, and its first bytes. Its data is dropped.
	tooLarge error
	first    string

	last     []byte // the last event ID string …
	passed   []byte // … unless it lies here still, in the buffer
	retry    time.Duration
	hasRetry bool
	hasBlank bool   // there has been a blank line
	guarded  bool   // the garbage collector will settle the account
	repaired []byte // the data of an event that was not UTF-8
	usual    usual
}

// NewDecoder makes a decoder of the bytes of r. It reads nothing yet.
func NewDecoder(r io.Reader, o Options) *Decoder {
	if o.MaxEvent <= 0 {
		o.MaxEvent = defaultMaxEvent
	}
	return &Decoder{r: r, o: o, buffer: newBuffer(o), last: []byte(o.LastEventID), fresh: true}
}

// Next puts the next event into ev. It calls Read only when no complete event
// is buffered, and returns an event as soon as its last byte is there.
//
// The error is io.EOF where the reader ended with io.EOF, whatever it left over
// (see [Decoder.Unfinished]), a [*TooLargeError], or the reader's own error as
// it is; it stays the same from then on, and ev is left alone.
func (d *Decoder) Next(ev *Event) error {
	for !d.ended {
		if d.scan(ev) {
			return nil
		}
		d.bound()
		if d.err != nil {
			d.end()
			d.oddEnd()
			break
		}
		d.fill()
	}
	return d.err
}

// Buffered puts the next event into ev if it is there already and lies in the
// buffer as it is to be delivered, as most do; otherwise it reports false, and
// Next says what comes. It calls nothing, and what earlier events hold stays
// valid until the next call of Next.
func (d *Decoder) Buffered(ev *Event) bool {
	return d.fresh && !d.skipLF && d.pos < d.stop && d.cr == d.stop && d.whole(ev)
}

// LastEventID is the standard's last event ID string: what to resume from. A
// block sets it when its blank line has come, with an event or without.
func (d *Decoder) LastEventID() string { return string(d.lastID()) }

func (d *Decoder) lastID() []byte {
	if d.passed != nil {
		return d.passed
	}
	return d.last
}

// keep copies the last event ID out of the buffer, before that is used again.
func (d *Decoder) keep() {
	if d.passed != nil {
		d.last, d.passed = append(d.last[:0], d.passed...), nil
	}
}

// Retry is the reconnection time that the feed asked for last, and whether it
// has asked. It counts at once, even in a block that is never finished.
func (d *Decoder) Retry() (time.Duration, bool) { return d.retry, d.hasRetry }

// Unfinished tells, once Next has returned an error, what was left over. Its
// slices stay valid.
func (d *Decoder) Unfinished() Unfinished { return d.left }

// Stats tells the counts so far.
func (d *Decoder) Stats() Stats { return d.stats }

// Close gives the buffers and what they hold of the budget back; Next does so
// itself when it returns an error. It does not close the reader.
func (d *Decoder) Close() {
	if !d.ended {
		d.err = ErrClosed
		d.end()
	}
}

// scan consumes the complete lines in the buffer until one dispatches an event.
func (d *Decoder) scan(ev *Event) bool {
	buf := d.buf[:d.stop]
	for {
		if d.skipLF && d.pos < len(buf) {
			d.skipLF = false
			if buf[d.pos] == '\n' {
				d.pos++
				d.from = d.pos
			}
		}
		if d.fresh && d.pos < len(buf) {
			if d.cr == len(buf) && d.whole(ev) {
				return true
			}
			d.fresh = false // not tried again: the cuts of the input must not cost
		}
		// Lines end with LF, CR LF or CR. No CR lies before d.cr.
		i := d.from + bytes.IndexByte(buf[d.from:d.cr], '\n')
		if i < d.from {
			if i = d.cr; i == len(buf) {
				d.from = i
				return false
			}
			// A CR ends the line at once: the LF it may belong with can be
			// long in coming.
			d.skipLF = true
			d.findCR(i + 1)
		}
		line := buf[d.pos:i]
		d.pos = i + 1
		d.from = d.pos
		if len(line) > 0 {
			d.field(line)
			d.cut = 0
		} else if d.dispatch(ev) {
			return true
		}
	}
}

// field interprets a line that is not blank.
func (d *Decoder) field(line []byte) {
	if line[0] == ':' {
		d.stats.Comments++
		if d.o.OnComment != nil {
			d.o.OnComment(line[1:min(len(line), maxIgnored)])
		}
		return
	}
	// Names are exact; a line without a colon is all name.
	switch {
	case len(line) > 4 && string(line[:5]) == "data:" || string(line) == "data":
		d.dataLine(line)
	case len(line) > 2 && string(line[:3]) == "id:" || string(line) == "id":
		d.idLine(line)
	case len(line) > 5 && string(line[:6]) == "event:" || string(line) == "event":
		d.typeLine(line)
	case len(line) > 5 && string(line[:6]) == "retry:" || string(line) == "retry":
		d.retryLine(line)
	default:
		d.odd(Oddity{Kind: UnknownField, Size: int64(len(line)) + d.cut}, line)
	}
}

// value is what follows the colon, without the one space that may begin it.
// Of a name without a colon it is empty.
func value(line []byte, name int) []byte {
	v := line[min(name, len(line)):]
	if len(v) > 0 && v[0] == ' ' {
		return v[1:]
	}
	return v
}

func (d *Decoder) dataLine(line []byte) {
	if int64(d.dataEnd-d.data)+int64(len(line)) > d.o.MaxEvent {
		d.exceed(ErrMaxEvent, line)
	}
	if d.tooLarge != nil {
		return
	}
	d.addData(value(line, len("data:")), d.pos-1)
	if d.lines == noBlankLines && !d.hasBlank {
		d.odd(Oddity{Kind: NoBlankLine, Size: d.offset() - d.block}, d.buf[d.data:d.dataEnd])
	}
}

// addData takes a value of the data field that ends at end in the buffer.
func (d *Decoder) addData(v []byte, end int) {
	d.lines++
	if d.lines == 1 {
		d.data, d.dataEnd = end-len(v), end
		return
	}
	// Close up with the data before. The line is behind it in the buffer and
	// longer than its value and an LF, so nothing unread is written over.
	d.buf[d.dataEnd] = '\n'
	d.dataEnd += 1 + copy(d.buf[d.dataEnd+1:], v)
}

func (d *Decoder) idLine(line []byte) {
	if !d.short(line) {
		return
	}
	v := value(line, len("id:"))
	if bytes.IndexByte(v, 0) >= 0 {
		d.odd(Oddity{Kind: NULInID, Size: int64(len(line))}, line)
		return
	}
	d.id = d.text(d.id[:0], v)
	d.hasID = true
}

func (d *Decoder) typeLine(line []byte) {
	if d.short(line) {
		d.typ = d.text(d.typ[:0], value(line, len("event:")))
	}
}

func (d *Decoder) retryLine(line []byte) {
	if !d.short(line) {
		return
	}
	const most = math.MaxInt64 / int64(time.Millisecond)
	v := value(line, len("retry:"))
	var ms int64
	for _, c := range v {
		if c < '0' || c > '9' {
			v = nil
			break
		}
		// A number too large for a Duration means the longest one.
		ms = min(ms*10+int64(c-'0'), most)
	}
	if len(v) == 0 {
		d.odd(Oddity{Kind: BadRetry, Size: int64(len(line))}, line)
		return
	}
	d.retry, d.hasRetry = time.Duration(ms)*time.Millisecond, true
}

// short reports that an id, event or retry line is to be interpreted: it is
// within its bound, and whole where the block is being skipped.
func (d *Decoder) short(line []byte) bool {
	if int64(len(line)) > min(maxField, d.o.MaxEvent) {
		d.exceed(ErrMaxEvent, line)
		return false
	}
	return d.tooLarge == nil || len(line) <= maxIgnored
}

// text appends v to dst, as UTF-8.
func (d *Decoder) text(dst, v []byte) []byte {
	if isASCII(v) || utf8.Valid(v) {
		return append(dst, v...)
	}
	return appendRepaired(dst, v)
}

// dispatch ends a block at its blank line and reports whether it is an event.
func (d *Decoder) dispatch(ev *Event) bool {
	start := d.block
	d.block = d.offset()
	d.hasBlank = true
	if d.hasID {
		d.last, d.id, d.passed = d.id, d.last, nil
	}
	if d.lines > 0 {
		ev.ID, ev.HasID = d.lastID(), d.hasID
		ev.Type = d.typ
		if len(d.typ) == 0 {
			ev.Type = message
		}
		ev.Data = d.buf[d.data:d.dataEnd:d.dataEnd]
		if d.data < d.high && !utf8.Valid(ev.Data) {
			d.repaired = appendRepaired(d.repaired[:0], ev.Data)
			ev.Data = d.repaired
		}
		ev.Time = d.time
		d.stats.Events++
		d.clear()
		return true
	}
	switch {
	case d.tooLarge != nil:
		d.odd(Oddity{Kind: TooLarge, Size: d.block - start, First: d.first, ID: d.LastEventID(), Reason: d.tooLarge}, nil)
	case len(d.typ) > 0:
		d.odd(Oddity{Kind: NoData, Size: d.block - start}, d.typ)
	}
	if d.hasID {
		d.stats.IDOnly++
		if d.o.OnID != nil {
			d.o.OnID(d.last)
		}
	}
	d.clear()
	return false
}

// clear begins a block.
func (d *Decoder) clear() {
	d.data, d.dataEnd, d.lines = 0, 0, 0
	d.typ = d.typ[:0]
	d.hasID = false
	d.tooLarge = nil
	d.fresh = true
}

// offset is where pos is in the stream.
func (d *Decoder) offset() int64 { return d.stats.Bytes - int64(d.stop-d.pos) }

// odd counts o and reports it, with the first bytes of b unless it has its own.
func (d *Decoder) odd(o Oddity, b []byte) {
	d.stats.Oddities[o.Kind]++
	if d.o.OnOddity == nil {
		return
	}
	if b != nil {
		o.First = string(b[:min(len(b), maxFirst)])
	}
	d.o.OnOddity(o)
}

// exceed applies the policy to the block being read, at this line of it.
func (d *Decoder) exceed(reason error, line []byte) {
	if d.tooLarge != nil {
		return
	}
	b := d.buf[d.data:d.dataEnd]
	if len(b) == 0 {
		b = bytes.TrimPrefix(bytes.TrimPrefix(line, []byte("data:")), []byte(" "))
	}
	d.tooLarge = reason
	d.first = string(b[:min(len(b), maxFirst)])
	if d.o.OnTooLarge == Fail {
		d.err = &TooLargeError{Size: int64(d.dataEnd - d.data + len(line)), Reason: reason}
		d.drop()
	}
	d.data, d.dataEnd, d.lines = 0, 0, 0
	d.shrink = true
}

// bound keeps the unfinished line within the limits, before more is read.
func (d *Decoder) bound() {
	part := d.buf[d.pos:d.stop]
	known := true
	switch {
	case bytes.HasPrefix(part, []byte("data:")):
		if int64(d.dataEnd-d.data)+int64(len(part)) > d.o.MaxEvent {
			d.exceed(ErrMaxEvent, part)
		}
	case bytes.HasPrefix(part, []byte("id:")), bytes.HasPrefix(part, []byte("event:")), bytes.HasPrefix(part, []byte("retry:")):
		d.short(part)
	default:
		known = false
	}
	// Of a line that will not be interpreted it is enough to know that it is
	// long; the rest of it need not be held.
	if over := d.stop - d.pos - (maxIgnored + 1); over > 0 && (!known || d.tooLarge != nil) {
		d.cut += int64(over)
		d.stop -= over
		d.from, d.cr = d.stop, d.stop
	}
}

// fill makes room and reads once.
func (d *Decoder) fill() {
	d.keep()
	if cap(d.repaired) > maxRead {
		d.repaired = nil
	}
	if !d.room() {
		d.exceed(ErrBudget, d.buf[d.pos:d.stop])
		d.bound()
		if d.err != nil {
			return
		}
		d.room() // no need to grow any more
	}
	if d.account != nil && !d.guarded && d.account.held.Load() > 0 {
		d.guarded = true
		runtime.AddCleanup(d, (*account).drop, d.account)
	}
	for range 100 {
		n, err := d.r.Read(d.buf[d.stop:])
		if n > 0 {
			d.time = time.Now()
			d.stats.Bytes += int64(n)
			d.add(n)
			if !d.begun {
				d.skipBOM()
			}
		}
		d.err = err
		if n > 0 || err != nil {
			return
		}
	}
	d.err = io.ErrNoProgress
}

// skipBOM looks for the one BOM that may begin the stream, until it is decided.
func (d *Decoder) skipBOM() {
	part := d.buf[d.pos:d.stop]
	if len(part) < len(bom) && bytes.HasPrefix(bom, part) {
		return
	}
	d.begun = true
	if bytes.HasPrefix(part, bom) {
		d.pos += len(bom)
		d.from = d.pos
	}
}

// end keeps what is left over and gives the memory back.
func (d *Decoder) end() {
	d.ended = true
	d.keep()
	part := d.buf[d.pos:d.stop]
	if len(part) > 0 || d.lines > 0 || d.hasID || len(d.typ) > 0 || d.tooLarge != nil {
		d.left.Bytes = d.stats.Bytes - d.block
		d.left.First = part
		if d.tooLarge == nil && (bytes.HasPrefix(part, []byte("data:")) || string(part) == "data") {
			d.addData(value(part, len("data:")), d.stop)
		}
		if d.lines > 0 {
			d.left.Data = d.text(nil, d.buf[d.data:d.dataEnd])
			d.left.First = d.left.Data
		}
		if d.tooLarge != nil {
			d.left.First = []byte(d.first)
		}
		d.left.First = bytes.Clone(d.left.First[:min(len(d.left.First), maxFirst)])
		d.left.Type = d.typ
		if d.hasID {
			d.left.ID = d.id
		}
	}
	d.discard()
}

// oddEnd reports what was lost at the end.
func (d *Decoder) oddEnd() {
	if d.tooLarge != nil && d.o.OnTooLarge == Skip {
		d.odd(Oddity{Kind: TooLarge, Size: d.left.Bytes, First: d.first, ID: d.LastEventID(), Reason: d.tooLarge}, nil)
	}
	if d.left.Bytes > 0 && d.err == io.EOF {
		d.odd(Oddity{Kind: Unterminated, Size: d.left.Bytes}, d.left.First)
	}
}
