package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/holdline/scrape/framework"
)

// The chunk format, version 1. What is written is final: a later version gets
// another version byte, and what version 1 may still learn goes into new tags.
//
// One JetStream message is one frame. Integers of the fixed part are little
// endian; "uvarint" and "varint" are those of encoding/binary.
//
//	offset size
//	     0    4  magic "HLJC"
//	     4    1  version, 1
//	     5    1  kind: 1 chunk, 2 part of a chunk, 3 snapshot, 4 hole
//	     6    1  coding of the body: 0 as it is, 1 one S2 block, 2 S2
//	             blocks of up to 64 KiB each, {length uvarint, block}
//	     7    1  0
//	     8    4  CRC32C (Castagnoli) of every other byte of the frame
//	    12   16  journal id
//	    28    4  partition
//	    32    8  number: of this chunk or part, from 1, contiguous in its
//	             partition; in a snapshot that of the chunk it was taken after
//	    40    8  when the writer sent it, nanoseconds since 1970 UTC
//	    48    4  h, length of the header
//	    52    4  length of the body before coding (0 in a part)
//	    56    h  header, never compressed
//	  56+h       body, to the end of the frame
//
// The header is a list of fields {tag uvarint, length uvarint, value}. Readers
// skip tags that they do not know.
//
//	1  stream (repeated; its place in the list is the stream's index):
//	   fields {1 name; 2 number of its events in the chunk, uvarint;
//	   3 cursor after the chunk, absent when it did not move;
//	   4 note, repeated: kind byte, then body;
//	   5 number of the last chunk with an event of the stream, uvarint
//	     (snapshots only)}
//	2  number of parts that precede this chunk, uvarint (absent: none)
//	3  index of this part among the parts of its chunk, from 0, uvarint
//	4  time that the first event's time is relative to, nanoseconds, varint
//	5  number of events, uvarint
//	6  number of the oldest chunk kept, uvarint (snapshots only)
//
// A chunk whose body is too long for one message is preceded by parts with the
// numbers just before its own. The coded body is the concatenation of the
// parts' bodies and the chunk's. Parts that no chunk claims were left by a
// writer that died between them, and mean nothing.
//
// The body is {data of all events, one after the other; meta; length of meta,
// 4 bytes little endian}, or empty when there are no events. Meta holds for each
// event:
//
//	stream index, uvarint
//	flags, one byte
//	time since the event before (the first: since header field 4), varint ns
//	flag 1:  id        {length uvarint, bytes}; without the flag it is empty
//	flag 2:  type      {length uvarint, bytes}; without it as the event before
//	flag 4:  cursor    {length uvarint, bytes}; without 4 and 8 it is that of
//	                   the stream's event before in this chunk, or empty
//	flag 8:  the cursor is the same as the id
//	flag 16: extension {length uvarint, fields as in the header}
//	length of the data, uvarint
//
// The fields of an event's extension:
//
//	1  the event was missed and came later than its place, from the site's
//	   history; the value is empty
//	2  the event's number in its stream, uvarint
//	3  the event was a dead letter and was appended again: {length uvarint,
//	   its place the first time}, {length uvarint, the sink}, the record's
//	   ordinal, uvarint
//	4  the event was brought after one that follows it in the stream, or may
//	   have been; the value is empty
//
// A snapshot has an empty body; its streams carry everything that a restart
// needs to know of the chunks up to its number.
//
// A hole has neither header nor body. It takes the number of a chunk that was
// committed and is lost, so that no number is ever used twice.
const (
	frameMagic   = "HLJC"
	frameVersion = 1
	frameFixed   = 56

	kindChunk    = 1
	kindPart     = 2
	kindSnapshot = 3
	kindHole     = 4

	codingNone   = 0
	codingS2     = 1
	codingPieces = 2

	tagStream = 1
	tagParts  = 2
	tagPart   = 3
	tagBase   = 4
	tagCount  = 5
	tagOldest = 6

	tagName   = 1
	tagEvents = 2
	tagCursor = 3
	tagNote   = 4
	tagLast   = 5

	tagFilled   = 1
	tagSequence = 2
	tagAgain    = 3
	tagLate     = 4

	flagID         = 1
	flagType       = 2
	flagCursor     = 4
	flagCursorIsID = 8
	flagExtension  = 16
	flagsKnown     = 31

	journalIDLen = 16

	// maxBody bounds what a frame may ask a reader to allocate.
	maxBody = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errShort says that a length points beyond the bytes that are there.
var errShort = errors.New("a length points beyond the end")

// row is one stream of a chunk or snapshot.
type row struct {
	name   string
	count  int
	cursor string
	moved  bool
	notes  []framework.Note
	last   uint64
	// shown is the cursor of the stream's last event in the chunk, while it is
	// being gathered.
	shown string
}

// frame is a message taken apart; header and body are views into it.
type frame struct {
	kind, coding byte
	journal      framework.JournalID
	partition    int
	seq          uint64
	sent         time.Time
	rawLen       int
	header, body []byte
}

// header is the decoded header of a frame.
type header struct {
	rows  []row
	parts int
	part  int
	base  int64
	count int
	// oldest is the oldest chunk kept, in a snapshot.
	oldest uint64
	// again tells, once the body was parsed, whether an event came again.
	again bool
}

// appendFrame appends the whole message.
func appendFrame(b []byte, f *frame) []byte {
	start := len(b)
	b = append(b, frameMagic...)
	b = append(b, frameVersion, f.kind, f.coding, 0)
	b = append(b, 0, 0, 0, 0)
	b = append(b, f.journal...)
	b = binary.LittleEndian.AppendUint32(b, uint32(f.partition))
	b = binary.LittleEndian.AppendUint64(b, f.seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(f.sent.UnixNano()))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.header)))
	b = binary.LittleEndian.AppendUint32(b, uint32(f.rawLen))
	b = append(b, f.header...)
	b = append(b, f.body...)
	binary.LittleEndian.PutUint32(b[start+8:], frameSum(b[start:]))
	return b
}

// frameSum is the CRC32C of everything but the checksum itself.
func frameSum(b []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, b[:8]), castagnoli, b[12:])
}

// parseFrame checks the message and takes it apart.
func parseFrame(b []byte) (frame, error) {
	if len(b) < frameFixed || string(b[:4]) != frameMagic {
		return frame{}, errors.New("not a chunk of a journal")
	}
	if b[4] != frameVersion {
		return frame{}, fmt.Errorf("chunk format %d is newer than this program, which knows format %d: run a newer scrape", b[4], frameVersion)
	}
	if sum := binary.LittleEndian.Uint32(b[8:]); sum != frameSum(b) {
		return frame{}, errors.New("checksum does not match")
	}
	f := frame{
		kind:      b[5],
		coding:    b[6],
		journal:   framework.JournalID(b[12:28]),
		partition: int(binary.LittleEndian.Uint32(b[28:])),
		seq:       binary.LittleEndian.Uint64(b[32:]),
		sent:      time.Unix(0, int64(binary.LittleEndian.Uint64(b[40:]))),
		rawLen:    int(binary.LittleEndian.Uint32(b[52:])),
	}
	h := binary.LittleEndian.Uint32(b[48:])
	if uint64(h) > uint64(len(b)-frameFixed) {
		return frame{}, fmt.Errorf("header: %w", errShort)
	}
	if f.rawLen > maxBody {
		return frame{}, fmt.Errorf("body of %d bytes is larger than the limit of %d", f.rawLen, maxBody)
	}
	f.header = b[frameFixed : frameFixed+int(h)]
	f.body = b[frameFixed+int(h):]
	return f, nil
}

// appendField appends a field with the value.
func appendField[T ~string | ~[]byte](b []byte, tag uint64, v T) []byte {
	b = binary.AppendUvarint(b, tag)
	return appendBytes(b, v)
}

// appendNumber appends a field with a number.
func appendNumber(b []byte, tag, v uint64) []byte {
	b = binary.AppendUvarint(b, tag)
	b = append(b, byte(uvarintLen(v)))
	return binary.AppendUvarint(b, v)
}

func appendBytes[T ~string | ~[]byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// appendHeader appends the header's fields; scratch is reused between calls.
func appendHeader(b []byte, h *header, scratch *[]byte) []byte {
	for i := range h.rows {
		r := &h.rows[i]
		s := appendField((*scratch)[:0], tagName, r.name)
		if r.count > 0 {
			s = appendNumber(s, tagEvents, uint64(r.count))
		}
		if r.moved {
			s = appendField(s, tagCursor, r.cursor)
		}
		for _, n := range r.notes {
			s = binary.AppendUvarint(s, tagNote)
			s = binary.AppendUvarint(s, uint64(len(n.Body)+1))
			s = append(append(s, n.Kind), n.Body...)
		}
		if r.last > 0 {
			s = appendNumber(s, tagLast, r.last)
		}
		b = appendField(b, tagStream, s)
		*scratch = s
	}
	if h.parts > 0 {
		b = appendNumber(b, tagParts, uint64(h.parts))
	}
	if h.part > 0 {
		b = appendNumber(b, tagPart, uint64(h.part))
	}
	if h.count > 0 {
		s := binary.AppendVarint((*scratch)[:0], h.base)
		b = appendField(b, tagBase, s)
		*scratch = s
		b = appendNumber(b, tagCount, uint64(h.count))
	}
	if h.oldest > 0 {
		b = appendNumber(b, tagOldest, h.oldest)
	}
	return b
}

// cut is a cursor over foreign bytes. After the first mistake it yields
// nothing more and keeps the error.
type cut struct {
	b   []byte
	err error
}

func (c *cut) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cut) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cut) byte() byte {
	if len(c.b) == 0 {
		c.fail()
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cut) bytes() []byte {
	n := c.uvarint()
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

// count is a uvarint that must fit what a chunk can hold.
func (c *cut) count() int {
	v := c.uvarint()
	if v > math.MaxInt32 {
		c.fail()
		return 0
	}
	return int(v)
}

func (c *cut) more() bool { return c.err == nil && len(c.b) > 0 }

func (c *cut) fail() {
	c.b = nil
	if c.err == nil {
		c.err = errShort
	}
}

// parseHeader decodes the header's fields. Strings and notes are copies.
func parseHeader(b []byte) (header, error) {
	var h header
	for c := (cut{b: b}); ; {
		if !c.more() {
			if c.err != nil {
				return header{}, fmt.Errorf("header: %w", c.err)
			}
			return h, nil
		}
		tag, v := c.uvarint(), cut{b: c.bytes()}
		if c.err != nil {
			continue
		}
		switch tag {
		case tagStream:
			r, err := parseRow(v.b)
			if err != nil {
				return header{}, fmt.Errorf("stream %d of the header: %w", len(h.rows), err)
			}
			h.rows = append(h.rows, r)
		case tagParts:
			h.parts = v.count()
		case tagPart:
			h.part = v.count()
		case tagBase:
			h.base = v.varint()
		case tagCount:
			h.count = v.count()
		case tagOldest:
			h.oldest = v.uvarint()
		}
		if v.err != nil {
			return header{}, fmt.Errorf("header field %d: %w", tag, v.err)
		}
	}
}

func parseRow(b []byte) (row, error) {
	var r row
	c := cut{b: b}
	for c.more() {
		tag, v := c.uvarint(), cut{b: c.bytes()}
		if c.err != nil {
			break
		}
		switch tag {
		case tagName:
			r.name = string(v.b)
		case tagEvents:
			r.count = v.count()
		case tagCursor:
			r.cursor, r.moved = string(v.b), true
		case tagNote:
			n := framework.Note{Kind: v.byte()}
			n.Body = append(n.Body, v.b...)
			r.notes = append(r.notes, n)
		case tagLast:
			r.last = v.uvarint()
		}
		if v.err != nil {
			return r, v.err
		}
	}
	return r, c.err
}
