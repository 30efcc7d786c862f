package framework

import (
	"context"
	"encoding/json"
	"time"

	"github.com/holdline/scrape/internal/splice"
)

// The kinds of [Note] in a stream's ledger. Their bodies are JSON objects that
// stay in journals for ever: fields are added, and never change their meaning.
const (
	// NoteHeld: a connection was opened, or was held; the body is a [Held]. A
	// later one with the same From and Exit takes the place of an earlier one.
	NoteHeld byte = 1
	// NoteGap: events stopped, and what became of it; the body is a [Gap]. A
	// later one with the same To and FirstID takes the place of an earlier one.
	NoteGap byte = 2
	// NoteEpoch: the site began its ids anew; the body is an [Epoch].
	NoteEpoch byte = 3
	// NoteTotal: older entries summed up; the body is a [Total].
	NoteTotal byte = 4
	// NoteLost: a sink did not get a part of the stream; the body is a [Lost].
	NoteLost byte = 5
)

// GapState says what became of a stretch in which events stopped, or how sure
// it is that some are missing.
type GapState string

const (
	// GapReplayed: nothing is missing; Proof says what shows it.
	GapReplayed GapState = "replayed"
	// GapOverlapped: nothing is missing, another connection was open beside
	// the one that ended; Proof says what shows it.
	GapOverlapped GapState = "overlapped"
	// GapFilled: events were missing for certain, and all of them were fetched
	// from the site's history.
	GapFilled GapState = "filled"
	// GapPossible: nothing shows that events are missing, nor that none are.
	GapPossible GapState = "possible"
	// GapKnown: events are missing for certain.
	GapKnown GapState = "known"
)

// Open tells whether events are missing, or may be.
func (s GapState) Open() bool { return s == GapKnown || s == GapPossible }

// Proof is what shows that nothing is missing.
type Proof string

const (
	// ProofNumbers: the numbers on both sides adjoin, or all between came late.
	ProofNumbers Proof = "numbers"
	// ProofSeenAgain: the new connection began with events that the old one
	// had brought.
	ProofSeenAgain Proof = "seen_again"
)

// Gap is a stretch of a stream in which events stopped: it was missed, may
// have been, or was healed.
type Gap struct {
	State GapState `json:"state"`
	// Proof is set where State is replayed or overlapped.
	Proof Proof `json:"proof,omitempty"`
	// From is when the last event before it was received, To the first after
	// it; From is zero when the program does not know.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to"`
	// FirstID and LastID are the numbers that were missing when it was found,
	// inclusive, where ids or [Stream.Sequence] count without holes. Missing
	// counts those that are missing still, Filled those that came later.
	FirstID uint64 `json:"first_id,omitempty"`
	LastID  uint64 `json:"last_id,omitempty"`
	Missing uint64 `json:"missing,omitempty"`
	Filled  uint64 `json:"filled,omitempty"`
	// Left are the numbers missing still, once some came later: the first 64
	// stretches of them.
	Left []Range `json:"left,omitempty"`
	// Lost says that the missing numbers cannot come any more, since the site
	// has begun them anew.
	Lost bool `json:"lost,omitempty"`
	// Doubled counts the events after it that may have been delivered before,
	// since nothing tells them apart from those that were.
	Doubled uint64 `json:"doubled,omitempty"`
	// Cause is why the connection before it ended, or CauseCursor where it is
	// open because the site did not go on from the cursor.
	Cause Cause `json:"cause,omitempty"`
}

// Range is a stretch of numbers, inclusive.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Epoch is a new beginning of a stream's ids: from here on they name other
// events than before.
type Epoch struct {
	At time.Time `json:"at"`
	// ID is the id that came with other content than before.
	ID string `json:"id"`
}

// Lost is a part of the journal that did not reach a sink of the stream, since
// it was damaged, or dropped before the sink had read it. It tells nothing of
// the other sinks; whether the part held events of the stream is not known.
type Lost struct {
	At   time.Time `json:"at"`
	Sink string    `json:"sink"`
	// FromChunk and ToChunk are inclusive.
	FromChunk uint64 `json:"from_chunk"`
	ToChunk   uint64 `json:"to_chunk"`
	Why       string `json:"why"`
}

// Held is a stretch during which a connection was held.
type Held struct {
	From time.Time `json:"from"`
	// To is zero while the connection is open; it stays so when the program
	// was killed.
	To time.Time `json:"to,omitzero"`
	// Exit is the exit's name.
	Exit string `json:"exit"`
	// Identity counts the identities that the run made for the target; 0 in
	// entries of older versions.
	Identity uint64 `json:"identity,omitempty"`
	// Connections is how many connections in a row the entry stands for; 0
	// means one.
	Connections uint64 `json:"connections,omitempty"`
	// Events is how many events they brought.
	Events uint64 `json:"events"`
	// Cause is why the last one ended; empty while it is open, and after the
	// program was asked to stop.
	Cause Cause `json:"cause,omitempty"`
}

// Total is what older entries of a ledger were summed up to, usually those of
// one day.
type Total struct {
	// From and To are the beginning of the first and the end of the last entry.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Held is how long connections were held, in seconds.
	Held        float64 `json:"held_s"`
	Connections uint64  `json:"connections"`
	Events      uint64  `json:"events"`
	// Gaps are the totals of the gaps in each state.
	Gaps map[GapState]GapTotal `json:"gaps,omitempty"`
}

// GapTotal is the total of the gaps in one state.
type GapTotal struct {
	Count uint64 `json:"count"`
	// Seconds is their length together, Missing how many events they lack for
	// certain, Filled how many came later.
	Seconds float64 `json:"s"`
	Missing uint64  `json:"missing,omitempty"`
	Filled  uint64  `json:"filled,omitempty"`
}

// seam writes into the ledger how the event joins what was there before, ahead
// of the event itself; within says that it is not the first of its connection.
// It runs under r.mu.
func (r *runner) seam(ctx context.Context, l *line, v splice.Verdict, ev *Event, within bool) error {
	if v.Join == splice.Proven {
		r.loose = 0
		if err := r.mend(ctx, l); err != nil {
			return err
		}
	}
	g := Gap{From: r.lastEvent.UTC(), To: ev.Time.UTC(), Doubled: uint64(l.doubtful), Cause: r.lostCause}
	switch {
	case within:
		g.Cause = CauseSkipped
	case l.succeeds != "":
		g.Cause = l.succeeds
	case r.lostCause != "":
	case v.Join == splice.Proven:
		return nil // a further line has come: nothing had stopped
	case v.Join == splice.Missing:
		g.Cause = CauseSkipped // by all the lines
	}
	if l.anew && !within && v.Join != splice.Proven {
		g.Cause = CauseCursor
	}
	switch v.Join {
	case splice.Missing:
		g.State, g.FirstID, g.LastID, g.Missing = GapKnown, v.From, v.To, v.To-v.From+1
		r.Log.Warn("events are missing", "from_id", g.FirstID, "to_id", g.LastID, "missing", g.Missing, "cause", g.Cause)
		r.dig(g)
	case splice.Possible:
		g.State = GapPossible
		r.Log.Warn("events may be missing: the site gives no proof that none are", "since", g.From.Format(time.RFC3339), "cause", g.Cause)
	default:
		g.State, g.Proof = GapReplayed, ProofNumbers
		if l.succeeds != "" {
			g.State = GapOverlapped
		}
		if l.again {
			g.Proof = ProofSeenAgain
		}
	}
	if g.State.Open() {
		r.stats.gap(g)
		if !within {
			l.told(g, r.splice.End()-1)
		}
	}
	return r.note(ctx, NoteGap, g)
}

// noteOpen writes into the ledger that a connection is open, so that a program
// that is killed leaves a trace of it.
func (r *runner) noteOpen(ctx context.Context, a *attempt) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.note(ctx, NoteHeld, a.held())
}

// restarted writes a new beginning of the ids into the ledger, and gives up the
// numbers that were missing before it.
func (r *runner) restarted(ctx context.Context, l *line, ev *Event) error {
	const shown = 1 << 10 // a note has its limit
	id := string(ev.ID[:min(len(ev.ID), shown)])
	r.Log.Warn("the site has begun its ids anew", "id", id)
	if err := r.note(ctx, NoteEpoch, Epoch{At: ev.Time.UTC(), ID: id}); err != nil {
		return err
	}
	return r.forget(ctx, l)
}

// beginning is the event with which ids began anew.
type beginning struct {
	at int64
	id string
}

// beginnings are those that the ledger tells of.
func (e *entries) beginnings() map[beginning]bool {
	all := make(map[beginning]bool, len(e.epochs))
	for _, x := range e.epochs {
		all[beginning{x.At.UnixNano(), x.ID}] = true
	}
	return all
}

// held is the entry of an open connection.
func (a *attempt) held() Held {
	return Held{From: a.began.UTC(), Exit: a.id.lease.exit(), Identity: a.id.serial}
}

// recallLedger takes up what the ledger of earlier runs left open: known gaps,
// and connections that a killed program held until, at least, its last event.
func (r *runner) recallLedger(ctx context.Context, e *entries) error {
	for _, h := range e.held {
		if !h.To.IsZero() {
			continue
		}
		h.To, h.Cause = h.From, CauseRestart
		if r.lastEvent.After(h.To) {
			h.To = r.lastEvent.UTC()
		}
		if err := r.note(ctx, NoteHeld, h); err != nil {
			return err
		}
	}
	for _, g := range e.gaps {
		if g.State == GapKnown && !g.Lost {
			r.dig(g)
		}
	}
	return nil
}

func (r *runner) note(ctx context.Context, kind byte, body any) error {
	if err := r.log.Note(ctx, newNote(kind, body)); err != nil {
		return &journalError{err}
	}
	return nil
}

// newNote makes a note of one of the bodies above.
func newNote(kind byte, body any) Note {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // all fields are plain
	}
	return Note{Kind: kind, Body: b}
}
