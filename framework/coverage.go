package framework

import (
	"context"
	"encoding/json"
	"time"

	"github.com/holdline/scrape/internal/splice"
)

// The kinds of [Note] in a stream's ledger. Their bodies are JSON.
const (
	// NoteHeld: a connection was held; the body is a [Held].
	NoteHeld byte = 1
	// NoteGap: a stretch was missed, or may have been; the body is a [Gap].
	NoteGap byte = 2
)

// GapState says how sure a gap is.
type GapState string

const (
	// GapKnown: events are missing for certain.
	GapKnown GapState = "known"
	// GapPossible: nothing shows that events are missing, nor that none are.
	GapPossible GapState = "possible"
)

// Gap is a stretch of a stream that was missed, or may have been.
type Gap struct {
	State GapState `json:"state"`
	// From is when the last event before it was received, To the first after
	// it; From is zero when the program does not know.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to"`
	// FirstID and LastID are the missing numbers, inclusive, and Missing
	// counts them, where the ids of the stream are numbers without holes.
	FirstID uint64 `json:"first_id,omitempty"`
	LastID  uint64 `json:"last_id,omitempty"`
	Missing uint64 `json:"missing,omitempty"`
	// Cause is why the connection before it ended.
	Cause Cause `json:"cause,omitempty"`
}

// Held is a stretch during which a connection was held.
type Held struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Exit is the exit's name.
	Exit string `json:"exit"`
	// Events is how many events the connection brought.
	Events uint64 `json:"events"`
	// Cause is why it ended.
	Cause Cause `json:"cause,omitempty"`
}

// gap writes a gap into the ledger, before the event that ends it.
func (r *runner) gap(ctx context.Context, v splice.Verdict, ev *Event) error {
	g := Gap{State: GapPossible, From: r.lastEvent, To: ev.Time, Cause: r.lostCause}
	if v.Join == splice.Missing {
		g.State, g.FirstID, g.LastID, g.Missing = GapKnown, v.From, v.To, v.To-v.From+1
	}
	r.stats.gap(g)
	if g.State == GapKnown {
		r.Log.Warn("events are missing", "from_id", g.FirstID, "to_id", g.LastID, "missing", g.Missing, "cause", g.Cause)
	} else {
		r.Log.Info("events may be missing: the site gives no proof that none are", "since", g.From.Format(time.RFC3339), "cause", g.Cause)
	}
	return r.note(ctx, NoteGap, g)
}

func (r *runner) note(ctx context.Context, kind byte, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err // cannot happen: all fields are plain
	}
	if err := r.log.Note(ctx, Note{Kind: kind, Body: b}); err != nil {
		return &journalError{err}
	}
	return nil
}
