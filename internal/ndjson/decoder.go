// Package ndjson reads JSON values that come one a line (NDJSON, JSON Lines)
// from a connection that may stay open for days.
//
// The main type is [Decoder]. It hands on each value as it came and looks at
// it only to see that it is JSON; it knows nothing of connections or cursors.
package ndjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	defaultMaxValue = 16 << 20
	base            = 1 << 10
	free            = 16 << 10 // of the buffer, beyond which the budget pays
	maxFirst        = 128      // of Oddity.First
)

var (
	// ErrMaxValue is why a line beyond [Options.MaxValue] was too large.
	ErrMaxValue = errors.New("it exceeds the limit for one event; raise it if the feed means it")
	// ErrBudget is why a line within its limit was too large: the unfinished
	// events of all streams together exceed [Options.Budget].
	ErrBudget = errors.New("the budget for the unfinished events of all streams is used up")
)

// Budget is a number of bytes shared by many decoders: what their buffers hold
// beyond 16 KiB each. Its methods may be called concurrently.
type Budget interface {
	// Acquire takes n bytes, or none and returns false.
	Acquire(n int64) bool
	// Release gives n bytes back.
	Release(n int64)
}

// Options are the settings of a [Decoder]. The zero value is usable.
type Options struct {
	// MaxValue bounds one line, in bytes; 0 means 16 MiB.
	MaxValue int64
	// Fail makes Next return a [*TooLargeError] for a line beyond a limit;
	// otherwise it is skipped and reported.
	Fail bool
	// Budget bounds the memory of unfinished lines over many decoders; nil
	// means no such bound.
	Budget Budget
	// Sentinel is a line that counts as a value although it may be no JSON,
	// such as "[DONE]".
	Sentinel string
	// OnOddity is told what is dropped. It is called inside Next.
	OnOddity func(Oddity)
}

// Kind is a kind of [Oddity].
type Kind int

const (
	// NotJSON is a line that is not one JSON value.
	NotJSON Kind = iota
	// TooLarge is a line that was skipped.
	TooLarge
	// Unterminated is a last line without its line end that cannot be told to
	// be whole.
	Unterminated
)

// String names the kind for logs and metrics.
func (k Kind) String() string {
	return [...]string{"not JSON", "event too large", "unterminated line"}[k]
}

// Oddity is a line that was dropped.
type Oddity struct {
	Kind  Kind
	First string // its first bytes, at most 128
	Size  int64
	// Reason says why a line was TooLarge: ErrMaxValue or ErrBudget; nil for
	// the other kinds.
	Reason error
}

// TooLargeError is returned by Next, with [Options.Fail], for a line beyond a
// limit.
type TooLargeError struct {
	Size   int64 // bytes of the line so far
	Reason error // ErrMaxValue or ErrBudget
}

// Error tells the size and the limit.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("ndjson: event of more than %d bytes: %v", e.Size, e.Reason)
}

// Unwrap returns the reason.
func (e *TooLargeError) Unwrap() error { return e.Reason }

// Decoder reads values from one body. Its methods must not be called
// concurrently.
type Decoder struct {
	r   io.Reader
	o   Options
	err error // the reader's; the lines in the buffer go first

	buf       []byte
	pos, stop int // what has not been consumed
	from      int // no LF in [pos, from)
	begun     bool
	time      time.Time // of the last read

	skipping int64 // bytes dropped of a line that is too large, 0 if none
	first    string
	reason   error

	held *account
}

// account is what a decoder holds of the budget. It outlives a decoder that is
// left in the middle of a line.
type account struct {
	budget Budget
	n      atomic.Int64
}

func (a *account) drop() { a.budget.Release(a.n.Swap(0)) }

// NewDecoder makes a decoder of the bytes of r. It reads nothing yet.
func NewDecoder(r io.Reader, o Options) *Decoder {
	if o.MaxValue <= 0 {
		o.MaxValue = defaultMaxValue
	}
	d := &Decoder{r: r, o: o, buf: make([]byte, base)}
	if o.Budget != nil {
		d.held = &account{budget: o.Budget}
		runtime.AddCleanup(d, (*account).drop, d.held)
	}
	return d
}

// Next returns the next value, without the white space around it, and when the
// read that completed it returned. The value is a view into the decoder, valid
// until the next call. Blank lines are passed over: they are heartbeats.
//
// A last line without a line end counts if it is an object or an array and the
// reader ended with io.EOF: of a number or a word nobody can tell whether it is
// whole. The error is the reader's own or a [*TooLargeError]; it stays the
// same.
func (d *Decoder) Next() (value []byte, at time.Time, err error) {
	for {
		if i := bytes.IndexByte(d.buf[d.from:d.stop], '\n'); i >= 0 {
			line := d.buf[d.pos : d.from+i]
			d.pos = d.from + i + 1
			d.from = d.pos
			if d.skipping > 0 {
				d.skipped(len(line))
				continue
			}
			if v := d.value(line); v != nil {
				return v, d.time, nil
			}
			continue
		}
		d.from = d.stop
		if d.err != nil {
			if v := d.last(); v != nil {
				return v, d.time, nil
			}
			return nil, time.Time{}, d.err
		}
		d.fill()
	}
}

// content is a line without what surrounds its value.
func (d *Decoder) content(line []byte) []byte {
	if !d.begun {
		d.begun = true
		line = bytes.TrimPrefix(line, []byte("\xEF\xBB\xBF"))
	}
	v := bytes.Trim(line, " \t\r")
	return v[:len(v):len(v)]
}

// value is what a line holds, nil if that is nothing.
func (d *Decoder) value(line []byte) []byte {
	v := d.content(line)
	switch {
	case len(v) == 0:
	case int64(len(v)) > d.o.MaxValue:
		d.tooLarge(v, ErrMaxValue)
		d.skipped(0)
	case d.sentinel(v) || json.Valid(v):
		return v
	default:
		d.odd(NotJSON, v)
	}
	return nil
}

// last is the value of the last line, which has no line end.
func (d *Decoder) last() []byte {
	defer d.give()
	line := d.buf[d.pos:d.stop]
	d.pos, d.from = d.stop, d.stop
	if d.skipping > 0 {
		d.skipped(len(line))
		return nil
	}
	v := d.content(line)
	switch {
	case len(v) == 0 || d.err != io.EOF:
	case d.sentinel(v) || (v[0] == '{' || v[0] == '[') && int64(len(v)) <= d.o.MaxValue && json.Valid(v):
		return v
	default:
		d.odd(Unterminated, v)
	}
	return nil
}

func (d *Decoder) sentinel(v []byte) bool { return d.o.Sentinel != "" && string(v) == d.o.Sentinel }

// skipped reports the line that was dropped, with the bytes of its end.
func (d *Decoder) skipped(end int) {
	if d.skipping > 0 && d.o.OnOddity != nil {
		d.o.OnOddity(Oddity{TooLarge, d.first, d.skipping + int64(end), d.reason})
	}
	d.skipping = 0
}

func (d *Decoder) odd(k Kind, v []byte) {
	if d.o.OnOddity != nil {
		d.o.OnOddity(Oddity{Kind: k, First: string(v[:min(len(v), maxFirst)]), Size: int64(len(v))})
	}
}

// tooLarge drops the line that begins with b.
func (d *Decoder) tooLarge(b []byte, reason error) {
	if d.o.Fail {
		d.err = &TooLargeError{int64(len(b)), reason}
		d.pos, d.from = d.stop, d.stop
		return
	}
	d.first = string(b[:min(len(b), maxFirst)])
	d.skipping, d.reason = int64(len(b)), reason
}

// fill makes room and reads once.
func (d *Decoder) fill() {
	if part := d.buf[d.pos:d.stop]; d.skipping > 0 {
		d.skipping += int64(len(part))
		d.pos, d.stop = 0, 0
	} else if int64(len(part)) > d.o.MaxValue+2 { // it may end with CR and white space yet
		d.tooLarge(part, ErrMaxValue)
		d.pos, d.stop = 0, 0
	} else if !d.room() {
		d.tooLarge(part, ErrBudget)
		d.pos, d.stop = 0, 0
	}
	d.from = d.stop
	if d.err != nil {
		return
	}
	if d.stop == 0 && len(d.buf) > free {
		d.resize(base)
	}
	for range 100 {
		n, err := d.r.Read(d.buf[d.stop:])
		if n > 0 {
			d.time = time.Now()
		}
		d.stop += n
		if d.err = err; n > 0 || err != nil {
			return
		}
	}
	d.err = io.ErrNoProgress
}

// room sees to it that a quarter of the buffer is free behind the unfinished
// line. It reports false when the budget does not allow for that.
func (d *Decoder) room() bool {
	n := d.stop - d.pos
	size := len(d.buf)
	if n == 0 && d.stop == size && size < free {
		size *= 2 // the last read took all there was room for
	}
	for size-n < size/4 {
		size *= 2
	}
	if size != len(d.buf) {
		return d.resize(size)
	}
	if d.pos > 0 {
		d.stop = copy(d.buf, d.buf[d.pos:d.stop])
		d.pos = 0
	}
	return true
}

// resize moves the unfinished line into a buffer of this size.
func (d *Decoder) resize(size int) bool {
	if d.held != nil {
		want := int64(max(0, size-free))
		have := d.held.n.Load()
		if want > have && !d.held.budget.Acquire(want-have) {
			return false
		}
		if want < have {
			d.held.budget.Release(have - want)
		}
		d.held.n.Store(want)
	}
	to := make([]byte, size)
	d.stop = copy(to, d.buf[d.pos:d.stop])
	d.pos, d.buf = 0, to
	return true
}

// give gives the budget back.
func (d *Decoder) give() {
	if d.held != nil {
		d.held.drop()
	}
}
