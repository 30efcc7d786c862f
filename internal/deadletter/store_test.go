package deadletter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

func open(t *testing.T, path string, limit int64) *Store {
	t.Helper()
	s, err := Open(path, limit, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func at(seq uint64, event int) framework.Position {
	return framework.Position{Journal: "abcdefghijklmnop", Seq: seq, Event: event}
}

// refused is a letter of the sink about one record of the event.
func refused(seq uint64, event, record int, sink string) framework.DeadLetter {
	return framework.DeadLetter{
		Key: framework.Key{Position: at(seq, event), Record: record}, Stream: "t/s", Sink: sink, Reason: sink + " says no",
		Event: framework.StoredEvent{ID: fmt.Sprint("id", event), Type: "price", Cursor: "c", Time: time.Unix(5, 7), Data: []byte("\x00raw")},
	}
}

func letters(t *testing.T, s *Store, f Filter) (list []Letter) {
	t.Helper()
	for l, err := range s.Letters(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

// journal is what Send appends to.
type journal struct {
	events []*framework.Event
	passed uint64 // the consumer has read so far
	err    error
}

func (j *journal) Append(_ context.Context, _ string, ev *framework.Event) error {
	if j.err != nil {
		return j.err
	}
	j.events = append(j.events, ev)
	return nil
}
func (j *journal) Sync(context.Context) error { return j.err }
func (j *journal) Passed(_ context.Context, _ string, chunk uint64) (bool, error) {
	return j.passed >= chunk, nil
}

// consume has the consumer read what was appended, as chunk seq, refusing those
// whose data says bad.
func consume(t *testing.T, c framework.Sink, from framework.Position, seq uint64, events []*framework.Event) framework.Position {
	t.Helper()
	b := &framework.Batch{From: from, To: at(seq, len(events))}
	for i, ev := range events {
		rec := framework.Record{Key: framework.Key{Position: at(seq, i+1)}, Stream: "t/s", ID: string(ev.ID), Type: ev.Type, Time: ev.Time, Data: ev.Data, Again: ev.Again}
		if strings.Contains(string(ev.Data), "bad") {
			rec.Reason = "it says bad"
		}
		b.Records = append(b.Records, rec)
	}
	if err := c.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.To
}

func TestLetterIsKeptOnceWithWhoHasNotGotIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dead.db")
	s := open(t, path, 0)
	for range 2 {
		if err := s.Keep([]framework.DeadLetter{refused(3, 2, 0, "t/a"), refused(3, 2, 4, "t/b"), refused(3, 2, 5, "t/b")}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	list := letters(t, open(t, path, 0), Filter{})
	if len(list) != 1 {
		t.Fatalf("%d letters, want 1", len(list))
	}
	l := list[0]
	if time.Since(l.Seen) > time.Minute {
		t.Errorf("seen %v", l.Seen)
	}
	l.Seen = time.Time{}
	want := Letter{Event: "abcdefghijklmnop/0/3/2", Stream: "t/s", ID: "id2", Type: "price", Cursor: "c", Time: time.Unix(5, 7), Data: []byte("\x00raw"), Reason: "t/a says no",
		Missing: []Refusal{{"t/a", 0, "t/a says no", 0}, {"t/b", 4, "t/b says no", 0}, {"t/b", 5, "t/b says no", 0}}}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("got  %+v\nwant %+v", l, want)
	}
}

// A letter is retired once its event has come again for each sink that had not
// got it, and not before.
func TestSendingRetiresLetters(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "dead.db"), 0)
	c := s.Consumer()
	info := framework.SinkInfo{ID: "t/dead letters", Journal: at(0, 0).Journal}
	from, err := c.Open(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	// The consumer sees both, the sinks one each.
	from = consume(t, c, from, 1, []*framework.Event{{Data: []byte("bad 1")}, {Data: []byte("bad 2")}, {Data: []byte("bad 3")}})
	if err := s.Keep([]framework.DeadLetter{refused(1, 1, 0, "t/a"), refused(1, 1, 0, "t/b"), refused(1, 2, 7, "t/b")}); err != nil {
		t.Fatal(err)
	}
	j := &journal{}
	done, err := s.Send(t.Context(), Filter{}, j)
	if err != nil || done != (Sending{Sent: 3, Unasked: 1}) {
		t.Fatalf("sent %+v, %v", done, err)
	}
	if done, err := s.Send(t.Context(), Filter{}, j); err != nil || done != (Sending{UnderWay: 3, Unasked: 1}) {
		t.Errorf("sent twice: %+v, %v", done, err)
	}
	var got []framework.Again
	for _, ev := range j.events {
		got = append(got, *ev.Again)
	}
	first, second := at(1, 1).String(), at(1, 2).String()
	if want := []framework.Again{{Event: first, Sink: "t/a"}, {Event: first, Sink: "t/b"}, {Event: second, Sink: "t/b", Record: 7}}; !slices.Equal(got, want) {
		t.Fatalf("appended %v, want %v", got, want)
	}
	j.events[0].Data = []byte("mended")
	j.events[2].Data = []byte("still bad")
	from = consume(t, c, from, 2, j.events[:1])
	if n := len(letters(t, s, Filter{Events: []string{first}})); n != 1 {
		t.Error("the letter is retired although one sink has not got it")
	}
	from = consume(t, c, from, 3, j.events[1:])
	for _, l := range letters(t, s, Filter{Retired: true}) {
		if retired := !l.Retired.IsZero(); retired != (l.Event == first || l.Event == second) {
			t.Errorf("%s: retired %v", l.Event, retired)
		}
	}
	if again := letters(t, s, Filter{Events: []string{at(3, 2).String()}}); len(again) != 1 || again[0].Again != second {
		t.Errorf("what was refused again: %+v", again)
	}
	if _, err := c.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Position(info.ID, 0); err != nil || p != from {
		t.Errorf("the consumer is at %v, %v, want %v", p, err, from)
	}
	var wrong *framework.PositionError
	if err := c.Write(t.Context(), &framework.Batch{From: at(1, 1), To: at(9, 9)}); !errors.As(err, &wrong) {
		t.Errorf("a batch from elsewhere: %v", err)
	}
}

// A crash between the mark and the append loses nothing and sends nothing
// twice: what the consumer has not found by the end of the journal never came.
func TestSendingSurvivesACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dead.db")
	s := open(t, path, 0)
	if err := s.Keep([]framework.DeadLetter{refused(1, 1, 0, "t/a")}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(t.Context(), Filter{}, &journal{err: errors.New("the power went")}); err == nil {
		t.Fatal("no error")
	}
	s.Close()
	s = open(t, path, 0)
	if err := s.Settle([]uint64{9}); err != nil {
		t.Fatal(err)
	}
	j := &journal{passed: 8}
	if done, err := s.Send(t.Context(), Filter{}, j); err != nil || done != (Sending{UnderWay: 1}) {
		t.Errorf("before the consumer was at the end: %+v, %v", done, err)
	}
	j.passed = 9
	if done, err := s.Send(t.Context(), Filter{}, j); err != nil || done != (Sending{Sent: 1}) {
		t.Errorf("after it: %+v, %v", done, err)
	}
}

func TestFullStoreDropsTheOldest(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "dead.db"), 1000)
	big := func(n int) framework.DeadLetter {
		l := refused(uint64(n), 1, 0, "t/a")
		l.Event.Data = make([]byte, 100)
		return l
	}
	for n := 1; n <= 25; n++ {
		if err := s.Keep([]framework.DeadLetter{big(n)}); err != nil {
			t.Fatal(err)
		}
	}
	list := letters(t, s, Filter{})
	if n := len(list); n > 10 || n < 8 || list[n-1].Event != at(25, 1).String() {
		t.Errorf("%d letters, want the last 8 to 10", n)
	}
	if l := list[0]; len(l.Missing) != 1 {
		t.Errorf("the letter %+v has lost its refusal", l)
	}
	var refusals int
	if err := s.db.QueryRow(`SELECT count(*) FROM refusals`).Scan(&refusals); err != nil || refusals != len(list) {
		t.Errorf("%d refusals for %d letters, %v", refusals, len(list), err)
	}
}

func TestLettersAreChosen(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "dead.db"), 0)
	var all []framework.DeadLetter
	for n := range 600 { // more than a page
		l := refused(uint64(n+1), 1, 0, "t/a")
		l.Stream = fmt.Sprintf("t%d/s%d", n%2, n%3)
		all = append(all, l)
	}
	if err := s.Keep(all); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		Filter
		want int
	}{
		{Filter{}, 600}, {Filter{Target: "t1"}, 300}, {Filter{Stream: "t1/s1"}, 100}, {Filter{Target: "t"}, 0},
		{Filter{Events: []string{at(7, 1).String(), at(9, 1).String()}}, 2},
	} {
		if n := len(letters(t, s, test.Filter)); n != test.want {
			t.Errorf("%+v chooses %d letters, want %d", test.Filter, n, test.want)
		}
	}
	if open, retired, err := s.Counts(t.Context()); err != nil || open != 600 || retired != 0 {
		t.Errorf("%d open, %d retired, %v", open, retired, err)
	}
}
