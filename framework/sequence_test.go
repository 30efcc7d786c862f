package framework

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// played is a target that plays one list of events per connection, a second
// apart. An entry is "type:number"; the number is in the data, and there is no
// id.
type played struct {
	connections [][]string
	opened      int
}

func (p *played) Open(ctx context.Context, _ *Session, _ Cursor) (Connection, error) {
	if p.opened == len(p.connections) {
		return nil, ErrDone
	}
	p.opened++
	ctx, cancel := context.WithCancel(ctx)
	return &playedConn{ctx: ctx, cancel: cancel, events: p.connections[p.opened-1]}, nil
}

type playedConn struct {
	ctx    context.Context
	cancel context.CancelFunc
	events []string
}

func (c *playedConn) Next(ev *Event) error {
	if len(c.events) == 0 {
		return &HTTPError{Status: 503}
	}
	select {
	case <-time.After(time.Second):
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	typ, n, _ := strings.Cut(c.events[0], ":")
	c.events = c.events[1:]
	*ev = Event{Type: typ, Data: fmt.Appendf(nil, `{"meta":{"seq":%s}}`, n), Time: time.Now()}
	return nil
}

func (c *playedConn) Close() error { c.cancel(); return nil }

func ticks(numbers ...int) (list []string) {
	for _, n := range numbers {
		list = append(list, fmt.Sprintf("tick:%d", n))
	}
	return list
}

func TestSequenceNamesWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		connections [][]string
		types       []string
		want        []string // gaps
		delivered   []int
	}{
		"nothing":                   {[][]string{ticks(5, 6, 7), ticks(8, 9)}, nil, []string{"replayed numbers server_error"}, []int{5, 6, 7, 8, 9}},
		"replayed":                  {[][]string{ticks(5, 6, 7), ticks(6, 7, 8)}, nil, []string{"replayed seen_again server_error"}, []int{5, 6, 7, 8}},
		"between connections":       {[][]string{ticks(5, 6), ticks(9, 10)}, nil, []string{"known server_error 7-8 missing 2 filled 0"}, []int{5, 6, 9, 10}},
		"within a connection":       {[][]string{ticks(5, 6, 9, 10)}, nil, []string{"known skipped 7-8 missing 2 filled 0"}, []int{5, 6, 9, 10}},
		"comes late":                {[][]string{ticks(5, 8, 7, 6, 9)}, nil, []string{"replayed numbers skipped 6-7 missing 0 filled 2"}, []int{5, 8, 7, 6, 9}},
		"comes late in part":        {[][]string{ticks(5, 9, 7, 10)}, nil, []string{"known skipped 6-8 missing 2 filled 1"}, []int{5, 9, 7, 10}},
		"comes with the next":       {[][]string{ticks(1, 2, 5), ticks(3, 4, 6)}, nil, []string{"replayed numbers skipped 3-4 missing 0 filled 2"}, []int{1, 2, 5, 3, 4, 6}},
		"begins anew":               {[][]string{ticks(5, 6), ticks(1, 2, 3)}, nil, []string{"possible server_error"}, []int{5, 6, 1, 2, 3}},
		"begins anew, hole is lost": {[][]string{ticks(1, 5, 6), {"tock:1", "tock:2", "tock:4"}}, nil, []string{"known skipped 2-4 missing 3 filled 0 lost", "possible server_error", "known skipped 3-3 missing 1 filled 0"}, []int{1, 5, 6, 1, 2, 4}},
		"begins anew anywhere":      {[][]string{ticks(5, 6), {"tock:4", "tock:7"}}, nil, []string{"possible server_error", "known skipped 5-6 missing 2 filled 0"}, []int{5, 6, 4, 7}},
		"begins anew at one":        {[][]string{ticks(5, 6, 1, 3)}, nil, []string{"possible skipped", "known skipped 2-2 missing 1 filled 0"}, []int{5, 6, 1, 3}},
		"ids begin anew, later":     {[][]string{ticks(1, 5, 6), append(ticks(7, 8, 9), "tock:5", "tock:6", "tock:8")}, nil, []string{"known skipped 2-4 missing 3 filled 0 lost", "replayed numbers server_error", "known skipped 7-7 missing 1 filled 0"}, []int{1, 5, 6, 7, 8, 9, 5, 6, 8}},
		"three connections":         {[][]string{ticks(5, 6), ticks(6, 7), ticks(8)}, nil, []string{"replayed seen_again server_error", "replayed numbers server_error"}, []int{5, 6, 7, 8}},
		"other types are replayed":  {[][]string{{"tick:1", "other:2", "tick:3"}, {"other:2", "tick:3", "tick:4"}}, []string{"tick"}, []string{"replayed seen_again server_error"}, []int{1, 3, 4}},
		"a hole of another type":    {[][]string{{"tick:1", "other:3", "tick:4"}, {"other:6", "tick:7"}}, []string{"tick"}, []string{"known skipped 2-2 missing 1 filled 0", "known server_error 5-5 missing 1 filled 0", "replayed numbers server_error"}, []int{1, 4, 7}},
		"other types count":         {[][]string{{"tick:1", "other:2", "tick:3", "other:4"}, {"other:5", "tick:6", "other:7", "other:9"}}, []string{"tick"}, []string{"replayed numbers server_error", "known skipped 8-8 missing 1 filled 0"}, []int{1, 3, 6}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &memoryLog{}
				holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: c.connections}, Limits: quickly(), Types: c.types, Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
				wantGaps(t, m.ledger(), c.want...)
				var want []string
				for _, n := range c.delivered {
					want = append(want, fmt.Sprintf(`{"meta":{"seq":%d}}`, n))
				}
				if got := m.data(); !slices.Equal(got, want) {
					t.Errorf("got %v", got)
				}
			})
		})
	}
}

func TestSequenceSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		run := func(p *played) {
			holdUntil(t, &Stream{Name: "t/s", Target: p, Limits: quickly(), Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
		}
		run(&played{connections: [][]string{ticks(5, 6)}})
		run(&played{connections: [][]string{ticks(7, 8)}})
		run(&played{connections: [][]string{ticks(11)}})
		wantGaps(t, m.ledger(), "replayed numbers restart", "known restart 9-10 missing 2 filled 0")
		// What comes late after another restart closes the hole.
		run(&played{connections: [][]string{ticks(9, 10, 12)}})
		wantGaps(t, m.ledger(), "replayed numbers restart", "replayed numbers restart 9-10 missing 0 filled 2")
	})
}

// What other types were numbered after the last event is not known in the next
// run: the first one of them proves nothing.
func TestSequenceOfSomeTypesSurvivesARestart(t *testing.T) {
	for name, c := range map[string]struct {
		first, second []string
		want          []string
	}{
		"begins with another type": {[]string{"tick:1", "other:2", "tick:3"}, []string{"other:9", "tick:10"}, []string{"possible restart"}},
		"and then has a hole":      {[]string{"tick:1", "other:2", "tick:3"}, []string{"other:9", "tick:12"}, []string{"possible restart", "known restart 10-11 missing 2 filled 0"}},
		"and another hole":         {[]string{"tick:1", "other:2", "tick:3"}, []string{"other:9", "other:12", "tick:13"}, []string{"known restart 10-11 missing 2 filled 0", "possible restart"}},
		"begins with this type":    {[]string{"tick:1", "tick:2", "tick:3", "tick:4", "other:5"}, []string{"tick:6"}, []string{"possible restart"}},
		"is replayed":              {[]string{"tick:1", "other:2", "tick:3", "other:4"}, []string{"other:2", "tick:3", "other:4", "tick:5"}, []string{"replayed seen_again restart"}},
		"is replayed with a hole":  {[]string{"tick:1", "other:2", "tick:3", "other:4"}, []string{"tick:3", "other:6", "tick:7"}, []string{"known restart 4-5 missing 2 filled 0", "replayed seen_again restart"}},
		"adjoins":                  {[]string{"tick:1", "other:2", "tick:3", "other:4"}, []string{"other:4", "tick:5"}, []string{"replayed numbers restart"}},
		"is the first":             {nil, []string{"other:9", "tick:10"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &memoryLog{}
				for _, list := range [][]string{c.first, c.second} {
					if list != nil {
						holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: [][]string{list}}, Limits: quickly(), Types: []string{"tick"}, Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
					}
				}
				wantGaps(t, m.ledger(), c.want...)
			})
		})
	}
}

// A stop right after something came late does not set the count back.
func TestWhatCameLateDoesNotSetTheCountBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		run := func(list []string) {
			holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: [][]string{list}}, Limits: quickly(), Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
		}
		run(ticks(5, 8, 9, 6, 7))
		run(ticks(10, 11))
		want := []string{"replayed numbers skipped 6-7 missing 0 filled 2", "replayed numbers restart"}
		wantGaps(t, m.ledger(), want...)
		// One that began anew does.
		run([]string{"tock:4", "tock:5"})
		run([]string{"tock:6"})
		wantGaps(t, m.ledger(), append(want, "possible restart", "replayed numbers restart")...)
	})
}

func TestNumbersThatBeganAnewAreNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		run := func(list ...string) {
			holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: [][]string{list}}, Limits: quickly(), Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
		}
		run("tick:1", "tick:5", "tock:1", "tock:2")
		run("tock:3", "tock:4")
		wantGaps(t, m.ledger(), "known skipped 2-4 missing 3 filled 0 lost", "possible skipped", "replayed numbers restart")
	})
}

// What had the missing numbers before the site began them anew does not fill
// the hole, either.
func TestNumbersFromBeforeTheyBeganAnewFillNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		run := func(list ...string) {
			holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: [][]string{list}}, Limits: quickly(), Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
		}
		run("tick:1", "tick:2", "tick:3", "tick:4", "tock:1", "tock:4", "tock:5")
		run("tock:6")
		wantGaps(t, m.ledger(), "known skipped 2-3 missing 2 filled 0", "replayed numbers restart")
	})
}

func TestNumbersOfOtherTypesCountDuringAHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: &countingSource{life: 30 * time.Second}, RenewBefore: 10 * time.Second, AttemptsPerHour: -1})})
		defer ids.Close()
		s := &site{every: time.Second, start: time.Now()}
		s.script = func(int, Cursor) step { return step{after: 30 * time.Second, mute: true} }
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			c, err := s.Open(ctx, sess, from)
			return &typedConn{c}, err
		})
		m := &memoryLog{}
		sequence := func(ev *Event) (uint64, bool) {
			n, err := strconv.ParseUint(string(ev.Data), 10, 64)
			return n, err == nil
		}
		holdUntil(t, &Stream{Name: "t/s", Target: target, Identities: ids, Limits: quickly(), StaleAfter: 15 * time.Second, Types: []string{"third"}, Sequence: sequence}, m, number(150))
		l := m.ledger()
		for _, g := range l.Gaps {
			if g.State != GapOverlapped || g.Cause != CauseRenewal || g.To.Sub(g.From) > 3*time.Second {
				t.Errorf("a handover is %+v", g)
			}
		}
		held := readNotes(m.notes).held
		for i := range held[1:] {
			if both := held[i].To.Sub(held[i+1].From); both > 5*time.Second {
				t.Errorf("two connections were held for %v: the successor did not join", both)
			}
		}
		if len(l.Gaps) < 5 {
			t.Errorf("%d handovers", len(l.Gaps))
		}
	})
}

// typedConn gives every third event the type "third".
type typedConn struct{ Connection }

func (c *typedConn) Next(ev *Event) error {
	err := c.Connection.Next(ev)
	if n, _ := strconv.Atoi(string(ev.Data)); err == nil && n%3 == 0 {
		ev.Type = "third"
	}
	return err
}

func TestJSONSequence(t *testing.T) {
	for data, want := range map[string]string{
		`{"a":{"n":7}}`:                    "7 true",
		`{"a":{"n":"7"}}`:                  "7 true",
		`{"a":{"n":18446744073709551615}}`: "18446744073709551615 true",
		`{"a":{"n":-1}}`:                   "0 false",
		`{"a":{"n":1.5}}`:                  "0 false",
		`{"a":{"n":null}}`:                 "0 false",
		`{"a":{}}`:                         "0 false",
		`not JSON`:                         "0 false",
		``:                                 "0 false",
	} {
		n, ok := JSONSequence("a.n")(&Event{Data: []byte(data)})
		if got := fmt.Sprint(n, ok); ok && got != want || !ok && want != "0 false" {
			t.Errorf("%s: %s, want %s", data, got, want)
		}
	}
}
