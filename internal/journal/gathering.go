package journal

import (
	"encoding/binary"

	"github.com/holdline/scrape/framework"
)

// gathering is the chunk being gathered: its meta and data as the format has
// them, and its streams. It is reused, so that appending allocates nothing.
type gathering struct {
	// gen tells one use from the next: streamLog.row is valid for its gen.
	gen  uint64
	rows []row
	logs []*streamLog // of rows
	meta []byte
	data []byte
	// extra is about what the streams take in the header.
	extra int
	count int
	// entries counts events, moves and notes; urged says that the committer
	// was told that the chunk is half full.
	entries uint64
	urged   bool
	base    int64
	now     int64 // time of the last event
	typ     string
}

func (g *gathering) reset(gen uint64) {
	clear(g.rows)
	clear(g.logs)
	*g = gathering{gen: gen, rows: g.rows[:0], logs: g.logs[:0], meta: reuse(g.meta), data: reuse(g.data)}
}

// reuse keeps a buffer for the next chunk unless one large event has blown it
// up.
func reuse(b []byte) []byte {
	if cap(b) > 4*DefaultChunkBytes {
		return nil
	}
	return b[:0]
}

func (g *gathering) empty() bool { return len(g.rows) == 0 }

func (g *gathering) size() int { return len(g.meta) + len(g.data) + g.extra }

// row returns the row of the stream in this chunk.
func (g *gathering) row(l *streamLog) *row {
	if l.gen != g.gen {
		const rowOverhead = 16
		l.gen, l.row = g.gen, len(g.rows)
		g.rows = append(g.rows, row{name: l.state.name})
		g.logs = append(g.logs, l)
		g.extra += rowOverhead + len(l.state.name)
	}
	return &g.rows[l.row]
}

func (g *gathering) event(l *streamLog, ev *framework.Event) {
	r := g.row(l)
	at := ev.Time.UnixNano()
	if g.count == 0 {
		g.base, g.now = at, at
	}
	cursor := string(ev.Cursor)
	flags := byte(0)
	if len(ev.ID) > 0 {
		flags |= flagID
	}
	if ev.Type != g.typ {
		flags |= flagType
	}
	// A row's cursor may have been moved without an event; the decoder knows
	// only events, so r.shown is what it will believe.
	switch {
	case cursor == r.shown:
	case cursor == string(ev.ID):
		flags |= flagCursorIsID
	default:
		flags |= flagCursor
	}
	if ev.Filled || ev.Late || ev.Sequenced || ev.Again != nil {
		flags |= flagExtension
	}
	m := binary.AppendUvarint(g.meta, uint64(l.row))
	m = append(m, flags)
	m = binary.AppendVarint(m, at-g.now)
	if flags&flagID != 0 {
		m = appendBytes(m, ev.ID)
	}
	if flags&flagType != 0 {
		m = appendBytes(m, ev.Type)
	}
	if flags&flagCursor != 0 {
		m = appendBytes(m, cursor)
	}
	if flags&flagExtension != 0 {
		var fields [2 + 2 + 2 + binary.MaxVarintLen64]byte
		x := fields[:0]
		if ev.Filled {
			x = appendField(x, tagFilled, "")
		}
		if ev.Late {
			x = appendField(x, tagLate, "")
		}
		if ev.Sequenced {
			x = appendNumber(x, tagSequence, ev.Sequence)
		}
		if ev.Again != nil {
			x = appendField(x, tagAgain, string(appendAgain(nil, ev.Again)))
		}
		m = appendBytes(m, x)
	}
	g.meta = binary.AppendUvarint(m, uint64(len(ev.Data)))
	g.data = append(g.data, ev.Data...)
	g.now, g.typ = at, ev.Type
	g.count++
	r.count++
	r.shown = cursor
	if ev.Again == nil {
		g.move(r, cursor)
	}
}

func (g *gathering) move(r *row, cursor string) {
	g.extra += len(cursor) - len(r.cursor)
	r.cursor, r.moved = cursor, true
}

func (g *gathering) note(r *row, n framework.Note) {
	const noteOverhead = 4
	g.extra += noteOverhead + len(n.Body)
	r.notes = append(r.notes, framework.Note{Kind: n.Kind, Body: append([]byte(nil), n.Body...)})
}

// body returns the plain body of the chunk. It takes the data's own buffer, so
// that nothing large is copied; the gathering is of no use after that but for
// reset.
func (g *gathering) body() []byte {
	if g.count == 0 {
		return nil
	}
	g.data = append(g.data, g.meta...)
	g.data = binary.LittleEndian.AppendUint32(g.data, uint32(len(g.meta)))
	return g.data
}
