package framework

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// span lists events of a type with the numbers from first to last.
func span(typ string, first, last int) (list []string) {
	for n := first; n <= last; n++ {
		list = append(list, fmt.Sprintf("%s:%d", typ, n))
	}
	return list
}

// Numbers are missing, and then the site begins them anew: those of the next
// count do not fill the hole, also where the connection, or the run, ends before
// anything shows that they are not the ones that are missing.
func TestNumbersOfTheNextCountFillNoHole(t *testing.T) {
	holed := slices.Concat(span("tick", 1, 5), span("tick", 40, 60))
	for name, c := range map[string]struct {
		runs [][][]string
		want []string
	}{
		"they contradict": {[][][]string{{holed, span("tock", 20, 50)}},
			[]string{"known skipped 6-39 missing 34 filled 0 lost", "possible server_error"}},
		"within a connection": {[][][]string{{slices.Concat(holed, span("tock", 20, 50))}},
			[]string{"known skipped 6-39 missing 34 filled 0 lost"}},
		"all of the hole, cut": {[][][]string{{holed, span("tock", 6, 39), span("tock", 61, 70)}},
			[]string{"known skipped 6-39 missing 34 filled 0", "possible server_error", "possible server_error"}},
		"in the next run": {[][][]string{{holed}, {span("tock", 20, 25)}, {span("tock", 61, 70)}},
			[]string{"known skipped 6-39 missing 34 filled 0", "possible restart", "possible restart"}},
		"in the next run, they contradict": {[][][]string{{holed, span("tock", 20, 25)}, {span("tock", 26, 50)}},
			[]string{"known skipped 6-39 missing 34 filled 0 lost", "possible server_error"}},
		"none was begun": {[][][]string{{holed, span("tick", 20, 50), span("tick", 61, 70)}},
			[]string{"known skipped 6-39 missing 14 filled 20", "replayed numbers server_error", "replayed numbers server_error"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &memoryLog{}
				for _, run := range c.runs {
					holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: run}, Limits: quickly(), Sequence: JSONSequence("meta.seq")}, m, func(*Event) bool { return false })
				}
				wantGaps(t, m.ledger(), c.want...)
			})
		})
	}
}

// A number that came from the history is that of another event once the site
// has begun them anew, in the next run, too.
func TestWhatWasFetchedDoesNotHideTheNextCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		run := func(list []string) {
			s := &Stream{Name: "t/s", Target: &played{connections: [][]string{list}}, Limits: quickly(), Sequence: JSONSequence("meta.seq")}
			s.Backfill = &Backfill{Fetch: func(context.Context, *Session, uint64, uint64) ([]Event, error) { return events(upTo(6, 39)...), nil }}
			holdUntil(t, s, m, func(*Event) bool { return false })
		}
		run(slices.Concat(span("tick", 1, 5), span("tick", 40, 60), span("tock", 2, 4)))
		run(span("tock", 5, 39))
		got := 0
		for _, ev := range m.events {
			if ev.Type == "tock" && !ev.Filled {
				got++
			}
		}
		if got != 38 {
			t.Errorf("%d events of the next count were delivered, want 38", got)
		}
	})
}

// A second line begins where the ids have begun anew, at numbers that were never
// there, before the first one has come so far, which it never does.
func TestALineThatIsAheadOfANewBeginningIsNotTakenForAnEarlierOne(t *testing.T) {
	for _, dies := range []bool{true, false} {
		t.Run(fmt.Sprint(dies), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const first = 60 // of the old ids
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now().Add(-10 * time.Second), last: 200, data: strconv.Itoa}
				conns := 0
				s.first = func(_, next int) int {
					conns++
					return map[int]int{1: 45, 2: 65}[min(conns, 2)] + max(0, next-65)*min(1, conns/3)
				}
				s.id = func(n int) string {
					if n <= first {
						return strconv.Itoa(1000 + n)
					}
					return strconv.Itoa(n - first)
				}
				s.fate = func(k int) fate {
					switch {
					case k == 1 && dies:
						return fate{lag: 2 * time.Second, after: 7300 * time.Millisecond}
					case k == 1:
						return fate{lag: 2 * time.Second}
					}
					return fate{}
				}
				a := holdFor(t, &Stream{Target: s, Lines: 2}, 40*time.Second).account(s.id)
				if len(a.silently) > 0 || a.doubled > 0 || !dies && (a.gaps > 0 || a.lost > 0) {
					t.Errorf("%+v", a)
				}
				if dies && a.lost == 0 {
					t.Error("nothing is lost: the test tests nothing")
				}
			})
		})
	}
}
