package framework

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowerLineHealsWhatTheFasterOneLacks has two connections side by side,
// of which the faster one never brings some events: nothing is to be called
// missing, and nothing to come out of order.
func TestSlowerLineHealsWhatTheFasterOneLacks(t *testing.T) {
	sequence := func(ev *Event) (uint64, bool) { return decimal(ev.Data) }
	for name, c := range map[string]struct {
		types []string
		lacks func(k, n int) bool
		want  []string
	}{
		"within it":            {nil, func(k, n int) bool { return k == 1 && n >= 20 && n < 25 }, nil},
		"within it, of types":  {[]string{"message"}, func(k, n int) bool { return k == 1 && n >= 20 && n < 25 }, nil},
		"before it":            {nil, func(k, n int) bool { return k == 3 && n < 49 }, []string{"overlapped numbers eof"}},
		"before it, of types":  {[]string{"message"}, func(k, n int) bool { return k == 3 && n < 49 }, []string{"overlapped seen_again eof"}},
		"ignored at its start": {[]string{"message"}, func(k, n int) bool { return k == 3 && n < 48 }, []string{"overlapped seen_again eof"}},
		"both":                 {nil, func(_, n int) bool { return n >= 20 && n < 25 }, []string{"known skipped 20-24 missing 5 filled 0"}},
	} {
		for _, id := range []string{"", "same"} {
			t.Run(name+"/"+id, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &feedSite{every: 250 * time.Millisecond, start: time.Now(), last: 200, id: func(int) string { return id }, data: strconv.Itoa, first: replays["exact"]}
					s.kind = func(n int) string {
						if n%3 == 0 {
							return "other"
						}
						return "message"
					}
					s.fate = func(k int) fate {
						f := fate{lacks: func(n int) bool { return c.lacks(k, n) }}
						switch {
						case k == 2:
							f.lag = 1600 * time.Millisecond
						case k == 1 && len(c.want) == 1 && name != "both":
							f.after = 10 * time.Second
						}
						return f
					}
					m := &memoryLog{}
					holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), Lines: 2, Types: c.types, Sequence: sequence}, m, number(100))
					wantOf := slices.Clone(c.want)
					if id != "" && name == "before it" { // found by the sequence of the events
						wantOf[0] = "overlapped seen_again eof"
					}
					wantGaps(t, m.ledger(), wantOf...)
					var want []string
					for n := 1; n <= 100; n++ {
						if (c.types == nil || n%3 > 0) && (name != "both" || n < 20 || n >= 25) {
							want = append(want, strconv.Itoa(n))
						}
					}
					if got := m.data(); !slices.Equal(got, want) {
						t.Errorf("got %v", got)
					}
				})
			})
		}
	}
}

// TestAStopDoesNotPassWhatTheSlowerLineHasNotBrought stops a stream while a line
// waits that is ahead of the other one.
func TestAStopDoesNotPassWhatTheSlowerLineHasNotBrought(t *testing.T) {
	for after := 500 * time.Millisecond; after < 5*time.Second; after += 100 * time.Millisecond {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now().Add(-10 * time.Second), last: 200, id: strconv.Itoa, data: strconv.Itoa}
				conns := 0
				s.first = func(int, int) int { conns++; return 11*conns + 19 } // 30 and 41
				s.fate = func(k int) fate { return fate{lag: time.Duration(2-k) * 2 * time.Second} }
				log := holdFor(t, &Stream{Target: s, Lines: 2}, after+7*time.Millisecond)
				if a := log.account(s.id); a.gaps > 0 || a.lost > 0 || len(a.silently) > 0 {
					t.Errorf("%+v", a)
				}
			})
		})
	}
}

// TestAStopDeliversWhatALineHolds stops a stream while one of its lines is dead
// and the other waits for it: without ids nothing brings again what that one
// has read.
func TestAStopDeliversWhatALineHolds(t *testing.T) {
	for k := range 20 { // the two end in either order
		t.Run(strconv.Itoa(k), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now(), last: 200, id: func(int) string { return "" }, data: strconv.Itoa}
				conns := 0
				s.first = func(int, int) int { conns++; return 29*conns - 28 } // 1 and 30
				s.fate = func(k int) fate { return map[int]fate{1: {after: 5100 * time.Millisecond, mute: true}}[k] }
				log := holdFor(t, &Stream{Target: s, Lines: 2, StaleAfter: time.Minute}, 9100*time.Millisecond)
				if a := log.account(s.id); a.delivered != 20+7 || a.gaps != 1 || a.doubled > 0 || len(a.silently) > 0 {
					t.Errorf("%+v, want 1 to 20 and 30 to 36", a)
				}
			})
		})
	}
}

// TestWhatALineHoldsOutlivesItsConnection has one line be dead, which nobody
// knows for long, and the connections of the other end while they wait for it.
func TestWhatALineHoldsOutlivesItsConnection(t *testing.T) {
	for name, id := range map[string]func(int) string{"no ids": func(int) string { return "" }, "ids": strconv.Itoa} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				read := map[int]bool{}
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now(), last: 400, id: id, first: replays["none"]}
				s.data = func(n int) string {
					mu.Lock()
					defer mu.Unlock()
					read[n] = true
					return strconv.Itoa(n)
				}
				s.fate = func(k int) fate {
					if k > 8 {
						return fate{} // both are back
					}
					return fate{after: 5100 * time.Millisecond, mute: k == 1}
				}
				log := holdFor(t, &Stream{Target: s, Lines: 2, StaleAfter: 40 * time.Second, MaxWait: 2 * time.Second}, 80*time.Second)
				if a := log.account(s.id); a.delivered != len(read) || a.doubled > 0 || len(a.silently) > 0 || s.conns < 9 {
					t.Errorf("%d events were read by %d connections: %+v", len(read), s.conns, a)
				}
			})
		})
	}
}

// TestTheBeginningOfAReplayIsNotDeliveredAgain has a connection end when it has
// brought the first event of a replay, while the other line is silent.
func TestTheBeginningOfAReplayIsNotDeliveredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &feedSite{every: 20 * time.Second, start: time.Now(), last: 400, id: func(int) string { return "" }, data: strconv.Itoa, first: replays["before"]}
		s.fate = func(k int) fate {
			return map[int]fate{
				1: {after: 1003 * time.Second, mute: true},
				2: {after: 1001 * time.Second},
				3: {after: 5 * time.Second, lag: 30 * s.every},
			}[k]
		}
		log := holdFor(t, &Stream{Target: s, Lines: 2, StaleAfter: time.Hour, MaxWait: time.Second}, 2*time.Hour)
		if a := log.account(s.id); a.lost > 0 || a.doubled > 0 || a.gaps > 0 || s.conns < 4 {
			t.Errorf("%d connections: %+v", s.conns, a)
		}
	})
}

// TestWhatLiesBetweenTwoLinesIsAskedFor has a first line that is slower and
// ends before it has brought what the second one began with: neither had a
// cursor to begin from, but what is in between can be replayed.
func TestWhatLiesBetweenTwoLinesIsAskedFor(t *testing.T) {
	for name, c := range map[string]struct {
		id   func(int) string
		want []string
	}{
		"numbers": {strconv.Itoa, []string{"replayed numbers skipped 35-40 missing 0 filled 6"}},
		"opaque":  {func(n int) string { return fmt.Sprintf("x%d", n) }, []string{"possible", "possible eof"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now().Add(-10 * time.Second), last: 200, id: c.id, data: strconv.Itoa}
				conns := 0
				s.first = func(from, _ int) int {
					if from > 0 {
						return from + 1
					}
					conns++
					return 11*conns + 19 // 30 and 41
				}
				s.fate = func(k int) fate {
					if k == 1 {
						return fate{lag: 2600 * time.Millisecond, after: 1200 * time.Millisecond}
					}
					return fate{}
				}
				m := &memoryLog{}
				holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), Lines: 2}, m, number(100))
				wantGaps(t, m.ledger(), c.want...)
				got := m.data()
				slices.SortFunc(got, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
				if !slices.Equal(got, numbers(30, 100)) {
					t.Errorf("got %v", m.data())
				}
			})
		})
	}
}

// TestFurtherLineMayBeginEarlier has a second line that is slower to begin and
// was open earlier: what it brings from before the first one opens no gap.
func TestFurtherLineMayBeginEarlier(t *testing.T) {
	for name, sequence := range map[string]func(*Event) (uint64, bool){
		"ids": nil, "sequence": func(ev *Event) (uint64, bool) { return decimal(ev.Data) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now().Add(-10 * time.Second), last: 200, id: strconv.Itoa, data: strconv.Itoa}
				conns := 0
				s.first = func(int, int) int { conns++; return 42 - 2*conns } // 40 and 38
				s.fate = func(k int) fate { return fate{lag: time.Duration(k-1) * 1600 * time.Millisecond} }
				m := &memoryLog{}
				holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), Lines: 2, Sequence: sequence}, m, number(100))
				wantGaps(t, m.ledger())
				got := m.data()
				slices.Sort(got)
				var want []string
				for n := 38; n <= 100; n++ {
					want = append(want, strconv.Itoa(n))
				}
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("got %v", got)
				}
			})
		})
	}
}

// TestLinesThatBeginTogetherOpenNoGap has two lines begin within a few events
// of each other, each a little earlier or later in the feed than the other and
// with a lag of its own, before anything is known of the stream: nothing is
// missing, and the ledger says nothing else.
func TestLinesThatBeginTogetherOpenNoGap(t *testing.T) {
	const ms = time.Millisecond
	for name, kind := range map[string]struct {
		id       func(int) string
		sequence func(*Event) (uint64, bool)
	}{
		"numbers":  {id: strconv.Itoa},
		"opaque":   {id: func(n int) string { return fmt.Sprintf("x%x", n*7919) }},
		"no ids":   {id: func(int) string { return "" }},
		"sequence": {id: func(int) string { return "" }, sequence: func(ev *Event) (uint64, bool) { return decimal(ev.Data) }},
	} {
		for early := range 5 { // events that the second line begins before the first
			for step := range 22 {
				every, lag := 250*ms, time.Duration(step)*100*ms
				if step > 10 { // a slow feed
					every, lag = 40*time.Second, time.Duration(step-11)*800*ms
				}
				for _, behind := range []int{0, 1} { // which of the lines lags
					t.Run(fmt.Sprintf("%s/%d early/every %v/line %d lags %v", name, early, every, behind, lag), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							s := &feedSite{every: every, start: time.Now().Add(-40 * every), last: 200, id: kind.id, data: strconv.Itoa}
							conns := 0
							s.first = func(int, int) int { conns++; return 41 - early*(conns-1) }
							s.fate = func(k int) fate {
								if k-1 == behind {
									return fate{lag: 50*ms + lag}
								}
								return fate{lag: 20 * ms}
							}
							m := &memoryLog{}
							holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), Lines: 2, Sequence: kind.sequence, StaleAfter: -1}, m, number(100))
							wantGaps(t, m.ledger())
							got := m.data()
							slices.Sort(got)
							want := numbers(min(41, 41-early), 100)
							slices.Sort(want)
							if !slices.Equal(got, want) {
								t.Errorf("got %v", got)
							}
						})
					})
				}
			}
		}
	}
}

// lateSite is a site without replay that goes silent for a while on three
// lines: of their successors the one that is opened last brings its first event
// before the others, which then bring late what it lacks.
func lateSite(id func(int) string) *feedSite {
	s := &feedSite{every: 250 * time.Millisecond, start: time.Now(), last: 200, id: id, data: strconv.Itoa, first: replays["none"]}
	s.fate = func(k int) fate {
		return map[int]fate{
			1: {after: 10_100 * time.Millisecond, mute: true},
			2: {after: 10_100 * time.Millisecond, mute: true},
			3: {after: 11_100 * time.Millisecond, mute: true},
			4: {lag: 1800 * time.Millisecond},
			5: {lag: 1900 * time.Millisecond},
		}[k]
	}
	return s
}

// TestWhatALineBringsLateIsNotTheEndOfTheStream has one line bring late what
// another one then begins with.
func TestWhatALineBringsLateIsNotTheEndOfTheStream(t *testing.T) {
	for name, id := range map[string]func(int) string{
		"no ids": func(int) string { return "" },
		"stamps": func(n int) string { return strconv.Itoa(1e9 + n/4) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := holdFor(t, &Stream{Target: lateSite(id), Lines: 3}, 40*time.Second)
				a := log.account(id)
				if a.doubled > 0 || len(a.silently) > 0 || a.lost == 0 || a.gaps != 2 {
					t.Errorf("%+v", a)
				}
				if !slices.ContainsFunc(log.tail, func(e TailEvent) bool { return e.Late }) {
					t.Error("nothing came late: the test tests nothing")
				}
			})
		})
	}
}

// TestWhatCameLateIsNotTheEndAfterARestartEither stops the stream around the
// time when something comes late, and goes on with a site that replays.
func TestWhatCameLateIsNotTheEndAfterARestartEither(t *testing.T) {
	late := 0
	for _, back := range []int{0, 1, 2, 4, 12} {
		for stop := 17 * time.Second; stop < 20*time.Second; stop += 50 * time.Millisecond {
			t.Run(fmt.Sprint(back, " ", stop), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, log := lateSite(func(int) string { return "" }), &survivor{}
					for i, d := range []time.Duration{stop + 7*time.Millisecond, 10 * time.Second} {
						ctx, cancel := context.WithTimeout(t.Context(), d)
						r, err := newRunner(ctx, &Stream{Name: "t/s", Target: s, Lines: 3 - 2*i, Limits: quickly(), StaleAfter: 5 * time.Second}, log)
						if err != nil {
							t.Fatal(err)
						}
						if err := r.run(ctx); err != nil {
							t.Error(err)
						}
						r.now().Identities.Close()
						cancel()
						if i == 0 && log.tail[len(log.tail)-1].Late {
							late++
						}
						s.first = func(from, _ int) int { return from + 1 - back }
					}
					a := log.account(s.id)
					if len(a.silently) > 0 {
						t.Errorf("%+v", a)
					}
					if a.doubled > 0 && stop > 19*time.Second && back != 1 { // one event is no evidence
						t.Errorf("what came late hides the place of what came before and after it: %+v", a)
					}
				})
			})
		}
	}
	if late < 10 {
		t.Errorf("what came late was the last to be delivered %d times: the test tests nothing", late)
	}
}
