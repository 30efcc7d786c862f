package framework

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/proxies"
)

func fromStart(int, int) int { return 1 }

// A site that ignores the cursor and sends everything from the first event on:
// what lies below the window is known to the journal only.
func TestAReplayFromFarBelowTheWindowIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const last = 10_000
		site := &feedSite{every: time.Millisecond, start: time.Now(), last: last, id: strconv.Itoa, data: strconv.Itoa, first: fromStart}
		site.fate = func(k int) fate { return fate{after: 4 * time.Second} }
		a := holdFor(t, &Stream{Target: site}, 20*time.Second).account(site.id)
		if a.delivered != last || a.doubled != 0 || a.gaps != 0 || len(a.silently) > 0 {
			t.Errorf("%+v, want %d events once and no gap", a, last)
		}
		if site.conns < 3 {
			t.Errorf("%d connections: the test tests nothing", site.conns)
		}
	})
}

// The same with ids that are no numbers, in one life and in a second one, which
// recalls no more than the window.
func TestAReplayOfOpaqueIDsFromFarBelowTheWindowIsDropped(t *testing.T) {
	for name, first := range map[string]func(from, next int) int{
		"from the first on":  fromStart,
		"some before":        func(from, _ int) int { return from - 20 },
		"exactly the cursor": func(from, _ int) int { return from + 1 },
	} {
		for lines := 1; lines <= 2; lines++ {
			t.Run(fmt.Sprintf("%s, %d lines", name, lines), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const last = 12_000
					site := &feedSite{every: time.Millisecond, start: time.Now(), last: last, data: strconv.Itoa, first: first}
					site.id = func(n int) string { return fmt.Sprintf("x%x", n*7919) }
					site.fate = func(k int) fate { return fate{after: 5 * time.Second} }
					log := &survivor{}
					for _, d := range []time.Duration{5500 * time.Millisecond, 10 * time.Second} {
						ctx, cancel := context.WithTimeout(t.Context(), d)
						r, err := newRunner(ctx, &Stream{Name: "t/s", Target: site, Lines: lines, Limits: quickly(), StaleAfter: 5 * time.Second}, log)
						if err != nil {
							t.Fatal(err)
						}
						if err := r.run(ctx); err != nil {
							t.Error(err)
						}
						r.now().Identities.Close()
						cancel()
					}
					a := log.account(site.id)
					if a.delivered != last || a.doubled != 0 || a.lost != 0 || len(a.silently) > 0 {
						t.Errorf("%d delivered, %d doubled, %d lost, %d of them silently; want %d once", a.delivered, a.doubled, a.lost, len(a.silently), last)
					}
					if most := 2 * lines * site.conns; log.asked > most {
						t.Errorf("the journal was asked %d times by %d connections", log.asked, site.conns)
					}
					if name != "from the first on" && log.asked > 1 {
						t.Errorf("the journal was asked %d times without need", log.asked)
					}
				})
			})
		}
	}
}

// survivor is a ledger that outlives a run.
type survivor struct {
	ledger
	asked int
}

func (s *survivor) Resume(context.Context) (Resume, error) {
	r := Resume{Known: len(s.tail) > 0, Tail: slices.Clone(s.tail[max(0, len(s.tail)-4096):])}
	if r.Known {
		r.Cursor = Cursor(strconv.Itoa(s.entries[len(s.entries)-1].n))
	}
	return r, nil
}

func (s *survivor) History(ctx context.Context, most int) ([]TailEvent, error) {
	s.asked++
	return s.ledger.History(ctx, most)
}

// deepLog tells what was delivered before, as far back as it is asked, and ends
// the run when it is asked if it is to.
type deepLog struct {
	*memoryLog
	stopped bool
}

func (d *deepLog) History(ctx context.Context, most int) ([]TailEvent, error) {
	if d.stopped {
		d.stop()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var tail []TailEvent
	for _, ev := range d.events[max(0, len(d.events)-most):] {
		tail = append(tail, TailEvent{ID: string(ev.ID), Hash: HashEvent(ev.Type, ev.Data)})
	}
	return tail, nil
}

// The ids began anew before all that the journal's tail holds, and the site
// replays from before that.
func TestADeepReplayFromBeforeTheLastRunsEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const around, first, second = 9000, 10_000, 15_000
		s := &feedSite{every: time.Millisecond, start: time.Now(), last: second, fate: func(int) fate { return fate{} }}
		s.id = func(n int) string { return strconv.Itoa(n % around) }
		s.data = strconv.Itoa
		s.first = func(from, _ int) int { return max(1, from-4000) }
		m := &memoryLog{}
		for i, until := range []int{first, first + 4500, second} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			m.until, m.stop = number(until), cancel
			r, err := newRunner(ctx, &Stream{Name: "t/s", Target: s, Limits: quickly()}, &deepLog{memoryLog: m})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.run(ctx); err != nil {
				t.Fatal(err)
			}
			r.now().Identities.Close()
			if i == 1 {
				s.first = func(int, int) int { return 6000 }
			}
		}
		if got := m.data(); !slices.Equal(got, numbers(1, second)) {
			t.Errorf("%d events, want %d once", len(got), second)
		}
		wantGaps(t, m.ledger(), "replayed seen_again restart", "replayed seen_again restart")
	})
}

// A stop in the middle of a replay from below the window doubles nothing.
func TestAStopDuringADeepReplayDoublesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const last = 9000
		s := &feedSite{every: time.Millisecond, start: time.Now(), last: last, id: strconv.Itoa, data: strconv.Itoa, first: fromStart, fate: func(int) fate { return fate{} }}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly()}, m, number(last))
		ctx, cancel := context.WithCancel(t.Context())
		m.stop = cancel
		r, err := newRunner(ctx, &Stream{Name: "t/s", Target: s, Limits: quickly()}, &deepLog{m, true})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.run(ctx); err != nil {
			t.Fatal(err)
		}
		r.now().Identities.Close()
		if got := m.data(); !slices.Equal(got, numbers(1, last)) {
			t.Errorf("%d events, of which the last are %v", len(got), got[len(got)-3:])
		}
		if m.cursor != Cursor(strconv.Itoa(last)) {
			t.Errorf("the cursor is %q", m.cursor)
		}
	})
}

// A site that begins its ids anew with its second connection.
func TestANewEpochIsDeliveredAndNoted(t *testing.T) {
	for name, last := range map[string]int{"within the window": 100, "below the window": 9000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				epoch := 0
				site := &feedSite{every: time.Millisecond, start: time.Now(), last: last, id: strconv.Itoa, first: fromStart}
				site.data = func(n int) string { return fmt.Sprint(epoch, " ", n) }
				site.fate = func(k int) fate {
					epoch = k
					return fate{after: time.Duration(last+1000) * time.Millisecond}
				}
				log := holdFor(t, &Stream{Target: site, StaleAfter: -1}, time.Duration(2*last+2500)*time.Millisecond)
				epochs, events := 0, map[string]int{}
				for _, e := range log.entries {
					if e.epoch != nil {
						epochs++
					} else if e.gap == nil {
						events[e.value]++
					}
				}
				if epochs != 1 || len(events) != 2*last {
					t.Errorf("%d epochs noted, %d different events delivered; want 1 and %d", epochs, len(events), 2*last)
				}
			})
		})
	}
}

// A successor that is ahead of a line that never reaches it holds its events
// within bounds, and says that something may be missing.
func TestWhatALineHoldsIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		every time.Duration
		data  func(int) string
		joins time.Duration
	}{
		"events": {500 * time.Microsecond, strconv.Itoa, maxHeld * 500 * time.Microsecond},
		"bytes":  {50 * time.Millisecond, func(n int) string { return strings.Repeat("x", maxHeldBytes/50) + strconv.Itoa(n) }, 50 * 50 * time.Millisecond},
		"time":   {time.Second, strconv.Itoa, joinTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := &feedSite{every: c.every, start: time.Now(), last: 1 << 30, data: c.data}
				site.id = func(n int) string { return fmt.Sprintf("x%d", n) }
				site.first = func(_, next int) int { return next }
				// The first connection is 20 s behind and stays there.
				site.fate = func(k int) fate {
					if k == 1 {
						return fate{lag: 20 * time.Second}
					}
					time.Sleep(21 * time.Second)
					return fate{}
				}
				log := holdFor(t, &Stream{Target: site, Lines: 2, StaleAfter: -1}, 21*time.Second+joinTimeout+1500*time.Millisecond)
				largest := 0
				for i := 1; i < len(log.entries); i++ {
					if log.entries[i].gap == nil && log.entries[i].n > largest+100 && largest > 0 && log.entries[i-1].gap == nil {
						t.Errorf("from %d to %d without a word", largest, log.entries[i].n)
					}
					largest = max(largest, log.entries[i].n)
				}
				joined := slices.IndexFunc(log.entries, func(e entry) bool { return e.gap != nil })
				if joined < 0 {
					t.Fatal("the line has not joined")
				}
				took := log.entries[joined].at.Sub(site.start.Add(21 * time.Second))
				if took < c.joins-time.Second/2 || took > c.joins+1500*time.Millisecond {
					t.Errorf("the line has held events for %v, want %v", took, c.joins)
				}
			})
		})
	}
}

// With two lines an unannounced death costs nothing: not an event, and not
// the time until it is noticed.
func TestASilentDeathOfOneLineCostsNoTime(t *testing.T) {
	for _, kind := range []string{"ids", "no ids"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := &feedSite{every: 100 * time.Millisecond, start: time.Now(), last: 1200, id: feedKinds[kind].id, data: strconv.Itoa}
				site.first = func(_, next int) int { return next }
				site.fate = func(k int) fate { return fate{after: time.Duration(k) * 20 * time.Second, mute: true} }
				log := holdFor(t, &Stream{Target: site, Lines: 2, StaleAfter: 10 * time.Second}, 2*time.Minute+77*time.Millisecond)
				var before time.Time
				for _, e := range log.tail {
					if d := e.Time.Sub(before); !before.IsZero() && d > 150*time.Millisecond {
						t.Errorf("nothing was delivered for %v before %v", d, e.Time)
					}
					before = e.Time
				}
				if a := log.account(site.id); a.delivered < 1190 || a.gaps > 0 || a.doubled > 0 || len(a.silently) > 0 {
					t.Errorf("%+v", a)
				}
			})
		})
	}
}

// A line that is ahead joins when the other one has reached it, or has ended.
func TestALineJoinsAsSoonAsItMay(t *testing.T) {
	for name, behind := range map[string]fate{
		"reached, then the other one goes mute": {after: 9 * time.Second, mute: true, lag: 3 * time.Second},
		"the other one ends":                    {after: 7 * time.Second, lag: 4 * time.Second},
	} {
		for _, kind := range []string{"ids", "opaque", "no ids"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					site := &feedSite{every: 100 * time.Millisecond, start: time.Now(), last: 1 << 30, id: feedKinds[kind].id, data: strconv.Itoa}
					site.first = func(_, next int) int { return next }
					site.fate = func(k int) fate {
						if k == 1 {
							return behind
						}
						time.Sleep(time.Until(site.start.Add(5 * time.Second)))
						return fate{}
					}
					log := holdFor(t, &Stream{Target: site, Lines: 2, StaleAfter: 30 * time.Second}, 20*time.Second)
					before := site.start.Add(5 * time.Second)
					for _, e := range log.entries {
						if d := e.at.Sub(before); d > replayTimeout+200*time.Millisecond {
							t.Errorf("nothing was delivered for %v", d)
						}
						before = e.at
					}
					a := log.account(site.id)
					if len(a.silently) > 0 || a.lost > 0 && behind.mute || a.lost == 0 && !behind.mute {
						t.Errorf("%+v", a)
					}
				})
			})
		}
	}
}

func TestAStreamIsLiveWhileAnyLineIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := &feedSite{every: time.Second, start: time.Now(), last: 1 << 30, id: strconv.Itoa, data: strconv.Itoa}
		site.first = func(from, _ int) int { return from + 1 }
		var refuse atomic.Bool
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			if refuse.Load() {
				return nil, &HTTPError{Status: 503}
			}
			return site.Open(ctx, sess, from)
		})
		site.fate = func(k int) fate { return fate{after: time.Duration(k) * 20 * time.Second} }
		ctx, cancel := context.WithCancel(t.Context())
		r, err := newRunner(ctx, &Stream{Name: "t/s", Target: target, Limits: quickly(), Lines: 2}, &ledger{})
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan error)
		go func() { over <- r.run(ctx) }()
		state := func() string { synctest.Wait(); return r.stats.snapshot(time.Now()).State }
		time.Sleep(10*time.Second + time.Millisecond)
		refuse.Store(true)
		for _, want := range []string{"live", "live", "waiting"} { // at 10, 30 and 50 s
			if got := state(); got != want && !(want == "waiting" && got == "connecting") {
				t.Errorf("after %v the stream is %s, want %s", time.Since(site.start), got, want)
			}
			time.Sleep(20 * time.Second)
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
		r.now().Identities.Close()
	})
}

func TestLinesLeaveByDifferentExits(t *testing.T) {
	exits := make([]proxies.Exit, 3)
	for i := range exits {
		var err error
		if exits[i], err = proxies.ParseExit(fmt.Sprintf("http://127.0.0.1:%d", 9000+i)); err != nil {
			t.Fatal(err)
		}
	}
	pool, err := proxies.New(proxies.Config{Exits: exits})
	if err != nil {
		t.Fatal(err)
	}
	ids := NewIdentities(IdentityConfig{Key: "t", Pool: pool, Hosts: []string{"example.com"}})
	defer ids.Close()
	used := map[string]bool{}
	for n := range exits {
		id, err := ids.slot(n).acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer id.release()
		used[id.lease.exit()] = true
	}
	if len(used) != len(exits) {
		t.Errorf("three lines leave by %v", used)
	}
	if first, again := ids.slot(1), ids.slot(1); first != again || ids.slot(0) != ids {
		t.Error("a slot's identities are not shared by the target's streams")
	}
}

// An id without an event moves the cursor at once, unless another line knows
// better.
func TestAnIDWithoutAnEventMovesTheCursorAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			sess.Client = &http.Client{Transport: answers(pr)}
			req, err := http.NewRequest(http.MethodGet, "http://example.com/", nil)
			if err != nil {
				return nil, err
			}
			return OpenSSE(ctx, sess, req, from, SSEOptions{})
		})
		log := &keptLog{limit: 1000}
		ctx, cancel := context.WithCancel(t.Context())
		r, err := newRunner(ctx, &Stream{Name: "t/s", Target: target, Limits: quickly(), StaleAfter: -1}, log)
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan error)
		go func() { over <- r.run(ctx) }()
		for _, step := range []struct{ wire, cursor string }{
			{"id: 1\ndata: a\n\n", "1"}, {"id: 2\n\n", "2"}, {"id: 3\n\n: comment\n\n", "3"}, {"data: b\n\n", "3"}, {"id: 4\n\n", "4"},
		} {
			if _, err := io.WriteString(pw, step.wire); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			r.mu.Lock()
			if got := string(log.cursor); got != step.cursor {
				t.Errorf("after %q the cursor is %q, want %q", step.wire, got, step.cursor)
			}
			r.mu.Unlock()
		}
		// A line that is behind another one does not take the cursor back.
		r.mu.Lock()
		other := &line{}
		r.renumber(other)
		r.connected = append(r.connected, other)
		r.splice.Offer(&other.seam, []byte("5"), 5)
		r.head, r.cursor, log.cursor = other.seam.Number, "5", "5"
		r.mu.Unlock()
		if _, err := io.WriteString(pw, "id: 4.5\n\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if log.cursor != "5" {
			t.Errorf("a line behind has moved the cursor to %q", log.cursor)
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
		r.now().Identities.Close()
	})
}

// answers is a transport that answers every request with one event stream.
func answers(body io.ReadCloser) http.RoundTripper { return &stream{body} }

type stream struct{ body io.ReadCloser }

func (s *stream) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: s.body}, nil
}
