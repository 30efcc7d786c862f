package framework

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// memoryLog is a StreamLog in memory. What one run wrote the next one resumes
// from.
type memoryLog struct {
	mu     sync.Mutex
	events []Event
	notes  []Note
	cursor Cursor
	fail   func(*Event) error // of Append
	until  func(*Event) bool  // ends the run after the event
	stop   context.CancelFunc
}

func (m *memoryLog) Resume(context.Context) (Resume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Resume{Cursor: m.cursor, Known: len(m.events) > 0, Notes: slices.Clone(m.notes)}
	for _, ev := range m.events[max(0, len(m.events)-4096):] {
		r.Tail = append(r.Tail, TailEvent{ID: string(ev.ID), Hash: HashEvent(ev.Type, ev.Data), Time: ev.Time, Cursor: ev.Cursor, Sequence: ev.Sequence, Sequenced: ev.Sequenced, Filled: ev.Filled, Late: ev.Late})
	}
	return r, nil
}

func (m *memoryLog) History(ctx context.Context, most int) ([]TailEvent, error) {
	r, err := m.Resume(ctx)
	tail := slices.DeleteFunc(r.Tail, func(e TailEvent) bool { return e.Filled })
	return tail[max(0, len(tail)-most):], err
}

func (m *memoryLog) Append(_ context.Context, ev *Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(ev); err != nil {
			return err
		}
	}
	kept := *ev
	kept.ID, kept.Data = slices.Clone(ev.ID), slices.Clone(ev.Data)
	m.events, m.cursor = append(m.events, kept), ev.Cursor
	if m.until != nil && m.until(ev) {
		m.stop()
	}
	return nil
}

func (m *memoryLog) Move(_ context.Context, c Cursor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cursor = c
	return nil
}

func (m *memoryLog) Note(_ context.Context, n Note) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notes = append(m.notes, Note{n.Kind, bytes.Clone(n.Body)})
	return nil
}

func (m *memoryLog) Committed() uint64 { return 0 }

// data returns what the events hold, in the order in which they were appended.
func (m *memoryLog) data() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ev := range m.events {
		out = append(out, string(ev.Data))
	}
	return out
}

func (m *memoryLog) ledger() Ledger {
	m.mu.Lock()
	defer m.mu.Unlock()
	var last time.Time
	if n := len(m.events); n > 0 {
		last = m.events[n-1].Time
	}
	return ReadLedger(m.notes, last)
}

// holdUntil runs the stream into the log until an event for which until is
// true has been appended, and returns its account.
func holdUntil(t *testing.T, s *Stream, m *memoryLog, until func(*Event) bool) StreamStats {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
	defer cancel()
	m.until, m.stop = until, cancel
	r, err := newRunner(ctx, s, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.run(ctx); err != nil {
		t.Fatal(err)
	}
	if s.Identities == nil {
		r.now().Identities.Close()
	}
	if ctx.Err() == context.DeadlineExceeded {
		t.Fatal("the stream did not come so far in a day")
	}
	return r.stats.snapshot(time.Now())
}

func number(n int) func(*Event) bool {
	return func(ev *Event) bool { return string(ev.Data) == strconv.Itoa(n) }
}

// gaps are the ledger's gaps, each as a line without its times.
func gaps(l Ledger) (out []string) {
	for _, g := range l.Gaps {
		line := strings.TrimSpace(fmt.Sprintf("%s %s", g.State, g.Proof)) + " " + string(g.Cause)
		if g.LastID > 0 {
			line += fmt.Sprintf(" %d-%d", g.FirstID, g.LastID)
		}
		if g.Missing > 0 || g.Filled > 0 {
			line += fmt.Sprintf(" missing %d filled %d", g.Missing, g.Filled)
		}
		if g.Lost {
			line += " lost"
		}
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

func wantGaps(t *testing.T, l Ledger, want ...string) {
	t.Helper()
	if got := gaps(l); !slices.Equal(got, want) {
		t.Errorf("gaps\n got %q\nwant %q", got, want)
	}
}

func TestLedgerTellsHowEachOutageWasHealed(t *testing.T) {
	reset := errors.New("connection reset")
	opaque := func(s *site) Target { // ids that do not count
		return TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			c, err := s.Open(ctx, sess, Cursor(strings.TrimPrefix(string(from), "id-")))
			if err != nil {
				return nil, err
			}
			return &opaqueConn{c}, nil
		})
	}
	for name, c := range map[string]struct {
		replay, opaque bool
		check          int
		want           []string
	}{
		"numbers adjoin":               {replay: true, want: []string{"replayed numbers broken"}},
		"numbers and events before":    {replay: true, check: 3, want: []string{"replayed seen_again broken"}},
		"numbers are missing":          {want: []string{"known broken 8-37 missing 30 filled 0"}},
		"opaque ids, nothing repeated": {replay: true, opaque: true, want: []string{"possible broken"}},
		"opaque ids, events before":    {replay: true, opaque: true, check: 3, want: []string{"replayed seen_again broken"}},
		"opaque ids, no replay":        {opaque: true, check: 3, want: []string{"possible broken"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &site{every: time.Second, start: time.Now(), replay: c.replay}
				s.script = func(n int, _ Cursor) step {
					switch n {
					case 1:
						return step{events: 7, err: reset}
					case 2:
						return step{refuse: &HTTPError{Status: 503, Header: map[string][]string{"Retry-After": {"30"}}}}
					}
					return step{events: 1 << 60}
				}
				target := Target(s)
				if c.opaque {
					target = opaque(s)
				}
				m := &memoryLog{}
				stream := &Stream{Name: "t/s", Target: target, Limits: quickly(), MinWait: time.Millisecond, ReplayCheck: c.check}
				begin := time.Now()
				holdUntil(t, stream, m, number(60))
				l := m.ledger()
				wantGaps(t, l, c.want...)
				if g := l.Gaps[0]; g.From.Sub(begin) != 7*time.Second || g.To.Sub(begin) < 30*time.Second {
					t.Errorf("the outage lasted from %v to %v", g.From.Sub(begin), g.To.Sub(begin))
				}
				if len(l.Held) != 2 || l.Held[0].Events != 7 || l.Held[0].Exit != "direct" || l.Held[0].Identity != 1 || l.Held[0].To.Sub(begin) != 7*time.Second {
					t.Errorf("held %+v", l.Held)
				}
				if last := s.froms[len(s.froms)-1]; strings.TrimPrefix(string(last), "id-") != strconv.Itoa(7-c.check) {
					t.Errorf("resumed from %q", last)
				}
				if c.replay {
					if got := m.data(); !slices.Equal(got, numbers(1, 60)) {
						t.Errorf("got %v", got)
					}
				}
			})
		})
	}
}

// opaqueConn hides the numbers in the ids of a site.
type opaqueConn struct{ Connection }

func (c *opaqueConn) Next(ev *Event) error {
	err := c.Connection.Next(ev)
	if err == nil {
		ev.ID, ev.Cursor = []byte("id-"+string(ev.ID)), "id-"+ev.Cursor
	}
	return err
}

func TestPlannedHandoverIsHealedByOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: &countingSource{life: 30 * time.Second}, RenewBefore: 10 * time.Second, AttemptsPerHour: -1})})
		defer ids.Close()
		s := &site{every: time.Second, start: time.Now()}
		s.script = func(int, Cursor) step { return step{after: 30 * time.Second, mute: true} }
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, Identities: ids, Limits: quickly(), StaleAfter: 5 * time.Second}, m, number(60))
		l := m.ledger()
		if len(l.Gaps) < 2 {
			t.Fatalf("%d handovers in a minute", len(l.Gaps))
		}
		for _, g := range gaps(l) {
			if !strings.HasPrefix(g, "overlapped ") || !strings.HasSuffix(g, " renewal") {
				t.Errorf("a handover is %q", g)
			}
		}
		if sum := l.Sum(); sum.HeldShare() != 1 || sum.Coverage() != 1 || len(l.Held) != 1 || l.Held[0].Connections < 3 {
			t.Errorf("held %v of the time: %+v", sum.HeldShare(), l.Held)
		}
	})
}

func TestKilledProgramLeavesAnHonestLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		m := &memoryLog{}
		begin := time.Now()
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly()}, m, number(20))
		// A killed program writes no last entry.
		end := m.notes[len(m.notes)-1]
		if e := readNotes([]Note{end}); len(e.held) != 1 || e.held[0].To.IsZero() {
			t.Fatalf("the last note is %s", end.Body)
		}
		m.notes = m.notes[:len(m.notes)-1]
		if l := m.ledger(); len(l.Held) != 1 || l.To.Sub(begin) != 20*time.Second || l.Sum().HeldShare() < 0.9 {
			t.Errorf("before the next run: %+v", l)
		}
		time.Sleep(10 * time.Second)
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly()}, m, number(50))
		l := m.ledger()
		wantGaps(t, l, "known restart 21-30 missing 10 filled 0")
		if len(l.Held) != 2 || l.Held[0].To.Sub(begin) != 20*time.Second || l.Held[0].Cause != CauseRestart || l.Held[1].From.Sub(begin) < 30*time.Second {
			t.Errorf("held %+v", l.Held)
		}
		if got, want := l.Sum().Coverage(), 1-11.0/50; got < want-0.05 || got > want+0.05 {
			t.Errorf("coverage %v, want about %v", got, want)
		}
	})
}

func TestReplayCheckSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), ReplayCheck: 5}, m, number(20))
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), ReplayCheck: 5}, m, number(30))
		wantGaps(t, m.ledger(), "replayed seen_again restart")
		if !slices.Equal(s.froms, []Cursor{"", "15"}) {
			t.Errorf("resumed from %q", s.froms)
		}
	})
}

// Ids that skip numbers, or whose numbers other types have too, show no hole in
// the next run, either.
func TestIDsThatSkipNumbersNameNothingAfterARestart(t *testing.T) {
	for name, c := range map[string]struct {
		id   func(int) string
		kind func(int) string
		want string
	}{
		"count":       {strconv.Itoa, nil, "known restart 33-40 missing 8 filled 0"},
		"skip":        {func(n int) string { return strconv.Itoa(n + n/10) }, nil, "possible restart"},
		"other types": {strconv.Itoa, func(n int) string { return []string{"other", "message"}[min(n%10, 1)] }, "possible restart"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &feedSite{every: time.Second, start: time.Now(), last: 100, id: c.id, data: strconv.Itoa, kind: c.kind, fate: func(int) fate { return fate{} }}
				s.first = func(_, next int) int { return next }
				m := &memoryLog{}
				run := func(until int) {
					stream := &Stream{Name: "t/s", Target: s, Limits: quickly()}
					if c.kind != nil {
						stream.Types = []string{"message"}
					}
					holdUntil(t, stream, m, number(until))
				}
				run(32)
				time.Sleep(8 * time.Second)
				run(51)
				wantGaps(t, m.ledger(), c.want)
			})
		})
	}
}

func TestForgottenEventsAreNotTakenForABeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly()}, m, number(3))
		forgetful := &forgetfulLog{m}
		r, err := newRunner(t.Context(), &Stream{Name: "t/s", Target: s, Limits: quickly()}, forgetful)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		m.until, m.stop = number(10), cancel
		if err := r.run(ctx); err != nil {
			t.Fatal(err)
		}
		r.now().Identities.Close()
		wantGaps(t, m.ledger(), "possible restart")
	})
}

// forgetfulLog keeps no events.
type forgetfulLog struct{ *memoryLog }

func (f *forgetfulLog) Resume(ctx context.Context) (Resume, error) {
	r, err := f.memoryLog.Resume(ctx)
	r.Tail = nil
	return r, err
}
