package journal

import (
	"encoding/hex"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// goldenBody is the body of a chunk whose events have extensions, as version 1
// writes it for ever.
const goldenBody = "78797a787776" + // data
	"001b000161047469636b" + "040202ac02" + "01" +
	"0011000162" + "020100" + "01" +
	"0011000163" + "050100020100" + "01" +
	"0009000164" + "01" +
	"0011000165" + "0c" + "030a" + "046a2f3131" + "03612f73" + "07" + "01" +
	"0019000166" + "020400" + "01" + "47000000"

func extended() []*framework.Event {
	at := time.Unix(1_700_000_000, 0)
	return []*framework.Event{
		{ID: []byte("a"), Type: "tick", Cursor: "a", Data: []byte("x"), Time: at, Sequence: 300, Sequenced: true},
		{ID: []byte("b"), Type: "tick", Cursor: "a", Data: []byte("y"), Time: at, Filled: true},
		{ID: []byte("c"), Type: "tick", Cursor: "a", Data: []byte("z"), Time: at, Sequenced: true, Filled: true},
		{ID: []byte("d"), Type: "tick", Cursor: "d", Data: []byte("x"), Time: at},
		{ID: []byte("e"), Type: "tick", Cursor: "d", Data: []byte("w"), Time: at, Again: &framework.Again{Event: "j/11", Sink: "a/s", Record: 7}},
		{ID: []byte("f"), Type: "tick", Cursor: "f", Data: []byte("v"), Time: at, Late: true},
	}
}

func TestExtensionsAreFinal(t *testing.T) {
	var g gathering
	g.reset(1)
	l := &streamLog{state: &streamState{name: "a/one"}}
	for _, ev := range extended() {
		g.event(l, ev)
	}
	raw := g.body()
	if got := hex.EncodeToString(raw); got != goldenBody {
		t.Errorf("the format has changed; it must not.\n got %s\nwant %s", got, goldenBody)
	}
	h := header{rows: g.rows, base: g.base, count: g.count}
	events, err := parseEvents(&h, raw)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range extended() {
		got := events[i]
		if got.ID != string(want.ID) || got.Cursor != want.Cursor || got.Sequence != want.Sequence || got.Sequenced != want.Sequenced || got.Filled != want.Filled || got.Late != want.Late || !reflect.DeepEqual(got.Again, want.Again) {
			t.Errorf("event %d is %+v, want %+v", i, got, want)
		}
	}
}

func TestExtensionOfALaterProgramIsSkipped(t *testing.T) {
	var ev framework.StoredEvent
	b := appendField(appendField(nil, tagFilled, ""), 99, "what may come")
	if err := parseExtension(&ev, appendNumber(b, tagSequence, 7)); err != nil || !reflect.DeepEqual(ev, framework.StoredEvent{Filled: true, Sequence: 7, Sequenced: true}) {
		t.Errorf("%+v, %v", ev, err)
	}
	if err := parseExtension(&ev, []byte{2, 9, 1}); err == nil {
		t.Error("a length beyond the end was not noticed")
	}
}

func TestTailKeepsWhatASeamNeeds(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	l := stream(t, j, "a/one")
	for _, ev := range extended() {
		if err := l.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	r := resume(t, j, "a/one")
	wanted := slices.DeleteFunc(extended(), func(ev *framework.Event) bool { return ev.Again != nil })
	if len(r.Tail) != len(wanted) || r.Cursor != "f" {
		t.Fatalf("a tail of %d events and the cursor %q, want %d and f: what comes again is no part of the stream", len(r.Tail), r.Cursor, len(wanted))
	}
	for i, want := range wanted {
		got := r.Tail[i]
		if got.ID != string(want.ID) || got.Cursor != want.Cursor || got.Sequence != want.Sequence || got.Sequenced != want.Sequenced || got.Filled != want.Filled || got.Late != want.Late {
			t.Errorf("event %d is %+v, want %+v", i, got, want)
		}
	}
}

// A chunk says that nothing in it came again only where that is so, to those
// that read along and to those that read the disk.
func TestChunkSaysThatNothingCameAgain(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	l := stream(t, j, "a/one")
	wants := func(when string) {
		t.Helper()
		said := 0
		for _, c := range readAll(t, j) {
			if len(c.Events) == 0 {
				continue
			}
			said++
			if again := slices.ContainsFunc(c.Events, func(ev framework.StoredEvent) bool { return ev.Again != nil }); c.NoneAgain == again {
				t.Errorf("%s: chunk %d with %d events says %v", when, c.Seq, len(c.Events), c.NoneAgain)
			}
		}
		if said < 2 {
			t.Errorf("%s: %d chunks", when, said)
		}
	}
	for _, ev := range extended() {
		if err := l.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
		if err := j.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wants("live")
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	wants("from the disk")
}
