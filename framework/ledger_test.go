package framework

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * float64(time.Second))) }

func TestBodiesOfTheLedgerAreFinal(t *testing.T) {
	for _, c := range []struct {
		note Note
		want string
	}{
		{newNote(NoteHeld, Held{From: at(0), Exit: "direct", Identity: 3}), `{"from":"2026-03-01T00:00:00Z","exit":"direct","identity":3,"events":0}`},
		{newNote(NoteHeld, Held{From: at(0), To: at(1.5), Exit: "a", Identity: 3, Connections: 2, Events: 9, Cause: CauseEOF}),
			`{"from":"2026-03-01T00:00:00Z","to":"2026-03-01T00:00:01.5Z","exit":"a","identity":3,"connections":2,"events":9,"cause":"eof"}`},
		{newNote(NoteGap, Gap{State: GapReplayed, Proof: ProofSeenAgain, From: at(1), To: at(2), Cause: CauseSilence}),
			`{"state":"replayed","proof":"seen_again","from":"2026-03-01T00:00:01Z","to":"2026-03-01T00:00:02Z","cause":"silence"}`},
		{newNote(NoteGap, Gap{State: GapKnown, To: at(2), FirstID: 7, LastID: 20, Missing: 4, Filled: 10, Left: []Range{{8, 9}, {19, 20}}, Lost: true}),
			`{"state":"known","to":"2026-03-01T00:00:02Z","first_id":7,"last_id":20,"missing":4,"filled":10,"left":[{"first":8,"last":9},{"first":19,"last":20}],"lost":true}`},
		{newNote(NoteGap, Gap{State: GapPossible, To: at(2), Doubled: 3}), `{"state":"possible","to":"2026-03-01T00:00:02Z","doubled":3}`},
		{newNote(NoteEpoch, Epoch{At: at(2), ID: "7"}), `{"at":"2026-03-01T00:00:02Z","id":"7"}`},
		{newNote(NoteTotal, Total{From: at(0), To: at(60), Held: 59.5, Connections: 2, Events: 9, Gaps: map[GapState]GapTotal{GapKnown: {Count: 1, Seconds: 0.5, Missing: 3}}}),
			`{"from":"2026-03-01T00:00:00Z","to":"2026-03-01T00:01:00Z","held_s":59.5,"connections":2,"events":9,"gaps":{"known":{"count":1,"s":0.5,"missing":3}}}`},
	} {
		if got := string(c.note.Body); got != c.want {
			t.Errorf("kind %d: the form has changed; it must not.\n got %s\nwant %s", c.note.Kind, got, c.want)
		}
	}
}

func TestLaterNotesReplaceEarlierOnes(t *testing.T) {
	l := ReadLedger([]Note{
		newNote(NoteHeld, Held{From: at(0), Exit: "a"}),
		newNote(NoteHeld, Held{From: at(0), Exit: "b"}), // another line
		newNote(NoteGap, Gap{State: GapKnown, From: at(4), To: at(5), FirstID: 7, LastID: 8, Missing: 2}),
		newNote(NoteHeld, Held{From: at(0), To: at(9), Exit: "a", Events: 3}),
		newNote(NoteGap, Gap{State: GapKnown, From: at(4), To: at(5), FirstID: 10, LastID: 10, Missing: 1}),
		newNote(NoteGap, Gap{State: GapFilled, From: at(4), To: at(5), FirstID: 7, LastID: 8, Filled: 2}),
		{Kind: 200, Body: []byte("of a newer program")},
		{Kind: NoteGap, Body: []byte("damaged")},
	}, at(7))
	want := Ledger{From: at(0), To: at(9),
		Held: []Held{{From: at(0), To: at(9), Exit: "a", Events: 3}, {From: at(0), To: at(7), Exit: "b"}},
		Gaps: []Gap{{State: GapFilled, From: at(4), To: at(5), FirstID: 7, LastID: 8, Filled: 2}, {State: GapKnown, From: at(4), To: at(5), FirstID: 10, LastID: 10, Missing: 1}}}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("got %+v", l)
	}
	if sum := l.Sum(); sum.Held != 9 || sum.HeldShare() != 1 || math.Abs(sum.Coverage()-8.0/9) > 1e-9 {
		t.Errorf("sum %+v, coverage %v", sum, sum.Coverage())
	}
}

func TestAdjacentStretchesOfOneExitAreOne(t *testing.T) {
	l := ReadLedger([]Note{
		newNote(NoteHeld, Held{From: at(0), To: at(10), Exit: "a", Identity: 1, Events: 1}),
		newNote(NoteHeld, Held{From: at(10.5), To: at(20), Exit: "a", Identity: 2, Events: 2}),
		newNote(NoteHeld, Held{From: at(19), To: at(30), Exit: "a", Identity: 3, Events: 4, Cause: CauseEOF}), // overlaps
		newNote(NoteHeld, Held{From: at(31.5), To: at(40), Exit: "a"}),
		newNote(NoteHeld, Held{From: at(40), To: at(50), Exit: "b"}),
	}, time.Time{})
	want := []Held{
		{From: at(0), To: at(30), Exit: "a", Identity: 3, Connections: 3, Events: 7, Cause: CauseEOF},
		{From: at(31.5), To: at(40), Exit: "a"}, {From: at(40), To: at(50), Exit: "b"}}
	if !reflect.DeepEqual(l.Held, want) {
		t.Errorf("got %+v", l.Held)
	}
	if sum := l.Sum(); sum.Connections != 5 || sum.Held != 48.5 {
		t.Errorf("sum %+v", sum)
	}
}

func TestSinceKeepsWhatReachesBeyond(t *testing.T) {
	l := ReadLedger([]Note{
		newNote(NoteTotal, Total{From: at(0), To: at(10), Held: 10}),
		newNote(NoteHeld, Held{From: at(10), To: at(30), Exit: "a"}),
		newNote(NoteGap, Gap{State: GapKnown, From: at(12), To: at(15), FirstID: 1, LastID: 1, Missing: 1}),
		newNote(NoteGap, Gap{State: GapPossible, From: at(18), To: at(24)}),
		newNote(NoteGap, Gap{State: GapPossible, To: at(25)}),
	}, time.Time{}).Since(at(20))
	want := Ledger{From: at(20), To: at(30), Held: []Held{{From: at(20), To: at(30), Exit: "a"}},
		Gaps: []Gap{{State: GapPossible, From: at(20), To: at(24)}, {State: GapPossible, To: at(25)}}}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("got %+v", l)
	}
}

// TestCompactionKeepsTheSums: whatever is summed up, and however often, counts
// the same.
func TestCompactionKeepsTheSums(t *testing.T) {
	const keep = 64
	rnd := rand.New(rand.NewPCG(1, 2))
	states := []GapState{GapReplayed, GapOverlapped, GapFilled, GapPossible, GapKnown}
	var all, kept []Note
	now := 0.0
	for n := range 3000 {
		from := now
		now += 60 + rnd.Float64()*3600 // two months in all
		open := newNote(NoteHeld, Held{From: at(from), Exit: "a"})
		h := newNote(NoteHeld, Held{From: at(from), To: at(now), Exit: string('a' + rune(rnd.IntN(2))), Events: uint64(rnd.IntN(100))})
		g := Gap{State: states[rnd.IntN(len(states))], From: at(now), To: at(now + 1 + rnd.Float64()*10)}
		if g.State == GapKnown {
			g.FirstID, g.LastID, g.Missing = uint64(n), uint64(n+3), 4
		}
		if n%100 == 7 { // a program that was killed
			h = open
		}
		now += 20
		notes := []Note{h, newNote(NoteGap, g)}
		all, kept = append(all, notes...), append(kept, notes...)
		if len(kept) > 2*keep {
			kept = CompactNotes(kept, keep)
			if len(kept) > keep {
				t.Fatalf("%d notes were kept, want %d at most", len(kept), keep)
			}
		}
	}
	whole, short := ReadLedger(all, time.Time{}).Sum(), ReadLedger(kept, time.Time{})
	got := short.Sum()
	if len(short.Totals) < 2 || len(short.Gaps) < keep/8 || short.Gaps[len(short.Gaps)-1].To.Before(at(now-60)) {
		t.Errorf("%d totals, %d gaps", len(short.Totals), len(short.Gaps))
	}
	known := 0
	for _, g := range short.Gaps[:len(short.Gaps)/4] {
		if g.State == GapKnown {
			known++
		}
	}
	if known == 0 {
		t.Error("no known gap was kept for longer")
	}
	near := func(a, b float64) bool { return math.Abs(a-b) < 1e-3*max(a, 1) }
	if !got.From.Equal(whole.From) || !got.To.Equal(whole.To) || got.Connections != whole.Connections || got.Events != whole.Events || !near(whole.Held, got.Held) {
		t.Errorf("got  %+v\nwant %+v", got, whole)
	}
	for _, s := range states {
		a, b := whole.Gaps[s], got.Gaps[s]
		if a.Count != b.Count || a.Missing != b.Missing || !near(a.Seconds, b.Seconds) {
			t.Errorf("%s: got %+v, want %+v", s, b, a)
		}
	}
}

func TestCompactionKeepsAnOpenConnectionAndForeignNotes(t *testing.T) {
	notes := []Note{{Kind: 200, Body: []byte("newer")}, newNote(NoteHeld, Held{From: at(0), Exit: "a"})}
	for n := range 20 {
		notes = append(notes, newNote(NoteHeld, Held{From: at(float64(n)), To: at(float64(n) + 1), Exit: "bc"[n%2:][:1]}))
		notes = append(notes, newNote(NoteGap, Gap{State: GapPossible, From: at(float64(n)), To: at(float64(n) + 1)}))
	}
	for n := range 20 { // killed again and again
		notes = append(notes, newNote(NoteHeld, Held{From: at(-float64(n) - 1), Exit: "b"}))
	}
	for n := range 20 { // the site began its ids anew
		notes = append(notes, newNote(NoteEpoch, Epoch{At: at(float64(n)), ID: "1"}))
	}
	notes = CompactNotes(notes, 16)
	if len(notes) > 16 {
		t.Fatalf("%d notes", len(notes))
	}
	// The connection ends after its beginning was shortened.
	notes = append(notes, newNote(NoteHeld, Held{From: at(0), To: at(30), Exit: "a", Events: 5}))
	l := ReadLedger(notes, at(20))
	ended := slices.ContainsFunc(l.Held, func(h Held) bool { return h.Exit == "a" && h.To.Equal(at(30)) && h.Events == 5 })
	if !ended || l.Sum().Connections != 41 || l.Sum().Events != 5 {
		t.Errorf("held %+v, totals %+v", l.Held, l.Totals)
	}
	if last := (Epoch{At: at(19), ID: "1"}); !slices.Equal(l.Epochs, []Epoch{last}) || !slices.Equal(l.Since(at(18)).Epochs, l.Epochs) || len(l.Since(at(19)).Epochs) != 0 {
		t.Errorf("new epochs %+v", l.Epochs)
	}
	if e := readNotes(notes); len(e.other) != 1 || e.other[0].Kind != 200 {
		t.Errorf("what is not understood was lost: %v", e.other)
	}
}
