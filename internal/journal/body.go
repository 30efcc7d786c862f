package journal

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/holdline/scrape/framework"
)

// pieceBytes is how much of a body is compressed at once. Pieces of this size
// take three quarters of the time that the whole takes, and one part in a
// hundred more space.
const pieceBytes = 64 << 10

// codedLen is how much room compressing a body of n bytes may need.
func codedLen(n int) int {
	return (n/pieceBytes + 1) * (pieceHead + s2.MaxEncodedLen(pieceBytes))
}

// codeBody returns the body as it is stored: in dst, which has room for
// codedLen, when that is shorter.
func codeBody(dst, raw []byte) (coding byte, body []byte) {
	const worthIt = 128
	if len(raw) <= worthIt {
		return codingNone, raw
	}
	dst = dst[:cap(dst)]
	n := 0
	for rest := raw; len(rest) > 0; {
		piece := rest[:min(len(rest), pieceBytes)]
		rest = rest[len(piece):]
		// Its length comes first, in as many bytes as it may need.
		coded := s2.Encode(dst[n+pieceHead:], piece)
		putPieceHead(dst[n:], len(coded))
		n += pieceHead + len(coded)
	}
	if n < len(raw) {
		return codingPieces, dst[:n]
	}
	return codingNone, raw
}

// plainBody undoes codeBody. The result may be a view into body.
func plainBody(coding byte, body []byte, rawLen int) ([]byte, error) {
	switch coding {
	case codingNone:
		if len(body) != rawLen {
			return nil, fmt.Errorf("body has %d bytes, not %d", len(body), rawLen)
		}
		return body, nil
	case codingS2:
		n, err := s2.DecodedLen(body)
		if err != nil || n != rawLen {
			return nil, fmt.Errorf("body does not decompress to %d bytes", rawLen)
		}
		raw, err := s2.Decode(nil, body)
		if err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
		return raw, nil
	case codingPieces:
		return plainPieces(body, rawLen)
	}
	return nil, fmt.Errorf("coding %d of the body is unknown to this program: run a newer scrape", coding)
}

func plainPieces(body []byte, rawLen int) ([]byte, error) {
	if rawLen > (len(body)/pieceHead+1)*pieceBytes {
		return nil, fmt.Errorf("body does not decompress to %d bytes", rawLen)
	}
	raw := make([]byte, rawLen)
	n := 0
	for c := (cut{b: body}); len(c.b) > 0; {
		piece := c.bytes()
		if c.err != nil {
			return nil, fmt.Errorf("body: %w", c.err)
		}
		size, err := s2.DecodedLen(piece)
		if err != nil || size > min(rawLen-n, pieceBytes) {
			return nil, fmt.Errorf("body does not decompress to %d bytes", rawLen)
		}
		if _, err := s2.Decode(raw[n:n+size], piece); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
		n += size
	}
	if n != rawLen {
		return nil, fmt.Errorf("body decompresses to %d bytes, not %d", n, rawLen)
	}
	return raw, nil
}

// pieceHead is the length of a piece's length: a uvarint of three bytes,
// however small it is, so that the piece need not be moved.
const pieceHead = 3

func putPieceHead(b []byte, n int) {
	b[0], b[1], b[2] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)
}

// bodyTrailer is the length of meta's length.
const bodyTrailer = 4

// minEventMeta is the least that one event takes in meta: it bounds what a
// wrong count can make a reader allocate.
const minEventMeta = 4

// parseEvents decodes the plain body of a chunk, and notes in h whether events
// of it came again. Data is shared with raw.
func parseEvents(h *header, raw []byte) ([]framework.StoredEvent, error) {
	if h.count == 0 && len(raw) == 0 {
		return nil, nil
	}
	if len(raw) < bodyTrailer {
		return nil, fmt.Errorf("body: %w", errShort)
	}
	data, n := raw[:len(raw)-bodyTrailer], binary.LittleEndian.Uint32(raw[len(raw)-bodyTrailer:])
	if uint64(n) > uint64(len(data)) {
		return nil, fmt.Errorf("body: %w", errShort)
	}
	data, meta := data[:len(data)-int(n)], data[len(data)-int(n):]
	if h.count > len(meta)/minEventMeta {
		return nil, fmt.Errorf("body is too short for %d events", h.count)
	}
	events := make([]framework.StoredEvent, h.count)
	cursors := make([]string, len(h.rows))
	// One string holds all ids, types and cursors: strings are views into it.
	text := string(meta)
	str := func(v []byte, m *cut) string {
		end := len(text) - len(m.b)
		return text[end-len(v) : end]
	}
	now, typ := h.base, ""
	m := cut{b: meta}
	for i := range events {
		ev := &events[i]
		stream, flags := m.uvarint(), m.byte()
		now += m.varint()
		if m.err != nil || stream >= uint64(len(h.rows)) {
			return nil, fmt.Errorf("event %d: its stream or time is not valid", i+1)
		}
		if flags&^flagsKnown != 0 {
			return nil, fmt.Errorf("event %d: flags %#x are unknown to this program: run a newer scrape", i+1, flags)
		}
		ev.Stream, ev.Time = int(stream), time.Unix(0, now)
		if flags&flagID != 0 {
			v := m.bytes()
			ev.ID = str(v, &m)
		}
		if flags&flagType != 0 {
			v := m.bytes()
			typ = str(v, &m)
		}
		ev.Type = typ
		switch {
		case flags&flagCursor != 0:
			v := m.bytes()
			cursors[stream] = str(v, &m)
		case flags&flagCursorIsID != 0:
			cursors[stream] = ev.ID
		}
		ev.Cursor = framework.Cursor(cursors[stream])
		if flags&flagExtension != 0 {
			if err := parseExtension(ev, m.bytes()); err != nil {
				return nil, fmt.Errorf("event %d: %w", i+1, err)
			}
			h.again = h.again || ev.Again != nil
		}
		n := m.uvarint()
		if m.err != nil || n > uint64(len(data)) {
			return nil, fmt.Errorf("event %d: %w", i+1, errShort)
		}
		ev.Data, data = data[:n:n], data[n:]
	}
	if len(m.b) != 0 || len(data) != 0 {
		return nil, fmt.Errorf("body holds more than %d events", h.count)
	}
	return events, nil
}

// parseExtension decodes what few events have.
func parseExtension(ev *framework.StoredEvent, b []byte) error {
	c := cut{b: b}
	for c.more() {
		tag, v := c.uvarint(), cut{b: c.bytes()}
		if c.err != nil {
			break
		}
		switch tag {
		case tagFilled:
			ev.Filled = true
		case tagLate:
			ev.Late = true
		case tagSequence:
			ev.Sequence, ev.Sequenced = v.uvarint(), true
		case tagAgain:
			ev.Again = &framework.Again{Event: string(v.bytes()), Sink: string(v.bytes()), Record: int(v.uvarint())}
		}
		if v.err != nil {
			return v.err
		}
	}
	return c.err
}

func appendAgain(b []byte, a *framework.Again) []byte {
	return binary.AppendUvarint(appendBytes(appendBytes(b, a.Event), a.Sink), uint64(a.Record))
}
