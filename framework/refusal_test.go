package framework

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// forgetful is a site that refuses cursors. Those whom it does not ask where to
// go on begin after the event that newcomers names; with "", with the next one.
type forgetful struct {
	*site
	newcomers Cursor
	refuse    func(k int, from Cursor) int // the status of the answer to request k, from 1; 0 for the stream

	mu    sync.Mutex
	asked []string
}

func (s *forgetful) Open(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, string(from))
	if status := s.refuse(len(s.asked), from); status != 0 {
		return nil, &HTTPError{Status: status}
	}
	if s.site.replay = from != "" || s.newcomers != ""; from == "" {
		from = s.newcomers
	}
	return s.site.Open(ctx, sess, from)
}

func logTo(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

const withoutCursor = "the site refuses the cursor"

// TestACursorThatTheSiteRefuses has the first connection cut after event 5.
// What the site then answers goes by the request and by whether it carried the
// cursor.
func TestACursorThatTheSiteRefuses(t *testing.T) {
	with := func(status int) func(int, Cursor) int {
		return func(_ int, from Cursor) int {
			if from != "" {
				return status
			}
			return 0
		}
	}
	until := func(k, status int) func(int, Cursor) int {
		return func(n int, _ Cursor) int {
			if 1 < n && n < k {
				return status
			}
			return 0
		}
	}
	trouble := func(k int, from Cursor) int {
		if from == "" && 1 < k && k < 6 {
			return 503
		}
		return with(410)(k, from)
	}
	times := func(n int, s string) []string { return slices.Repeat([]string{s}, n) }
	for name, c := range map[string]struct {
		newcomers Cursor
		refuse    func(k int, from Cursor) int
		asked     []string // after the first connection
		warned    int
		gaps      []string
	}{
		"gone, and newcomers get all":         {"1", with(410), []string{"5", ""}, 1, []string{"replayed seen_again broken"}},
		"gone, and newcomers get later ones":  {"7", with(410), []string{"5", ""}, 1, []string{"known cursor_refused 6-7 missing 2 filled 0"}},
		"unknown":                             {"7", with(404), []string{"5", "5", "5", "", "5", ""}, 1, []string{"known cursor_refused 6-7 missing 2 filled 0"}},
		"too long":                            {"1", with(431), []string{"5", "5", "5", "", "5", ""}, 1, []string{"replayed seen_again broken"}},
		"a hiccup of two":                     {"7", until(4, 404), []string{"5", "5", "5"}, 0, []string{"replayed numbers broken"}},
		"a hiccup that ends just then":        {"7", until(5, 404), []string{"5", "5", "5", "", "5"}, 0, []string{"replayed numbers broken"}},
		"another trouble":                     {"7", until(12, 418), times(11, "5"), 0, []string{"replayed numbers broken"}},
		"a page that is gone for a while":     {"7", until(8, 410), append([]string{"5", ""}, times(5, "5")...), 0, []string{"replayed numbers broken"}},
		"gone for longer, then the cursor is": {"7", func(k int, from Cursor) int { return max(until(14, 410)(k, from), with(410)(k, from)) }, append(append([]string{"5", ""}, times(9, "5")...), "", "5", "5", "5", "5", "5", "5", "5", "5", "5", "", "5", ""), 1, nil},
		"a page that is missing for a while":  {"7", until(15, 404), append([]string{"5", "5", "5", ""}, times(10, "5")...), 0, []string{"replayed numbers broken"}},
		"gone, and then another trouble":      {"1", trouble, []string{"5", "", "5", "", "5", ""}, 1, []string{"replayed seen_again broken"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := &forgetful{site: &site{every: 10 * time.Minute, start: time.Now()}, newcomers: c.newcomers, refuse: c.refuse}
				s.script = func(n int, _ Cursor) step {
					if n == 1 {
						return step{events: 5, err: errors.New("reset")}
					}
					return step{events: 1 << 60}
				}
				first := s.newcomers
				s.newcomers = "0"
				refuse := s.refuse
				s.refuse = func(k int, from Cursor) int {
					if k > 1 {
						s.newcomers = first
					}
					return refuse(k, from)
				}
				m := &memoryLog{}
				account := holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: -1, Log: logTo(&log)}, m, number(12))
				if got := s.asked[1:]; c.asked != nil && !slices.Equal(got, c.asked) {
					t.Errorf("asked for %q, want %q", got, c.asked)
				}
				if n := strings.Count(log.String(), withoutCursor); n != c.warned {
					t.Errorf("%d warnings, want %d:\n%s", n, c.warned, log.String())
				}
				if c.gaps != nil {
					wantGaps(t, m.ledger(), c.gaps...)
				}
				want := numbers(1, 12)
				if strings.HasPrefix(strings.Join(gaps(m.ledger()), ""), "known") {
					want = slices.Delete(want, 5, 7)
				}
				if got := m.data(); !slices.Equal(got, want) {
					t.Errorf("got %v", got)
				}
				if (account.Reconnects[CauseCursor] > 0) != slices.Contains(s.asked[1:], "") {
					t.Errorf("reconnects %v", account.Reconnects)
				}
			})
		})
	}
}

// Where nothing was asked for, the address is wrong and not the cursor.
func TestARefusalWithoutACursor(t *testing.T) {
	for _, status := range []int{404, 410} {
		for _, o := range []*Outcome{{Layer: LayerTarget, Status: status, Failures: 9, Err: io.EOF}, {Layer: LayerTarget, Status: 418, Refused: 9, Err: io.EOF}} {
			if v := Judge(o); v.Remedy != Reconnect || v.Cause != CauseBadAnswer {
				t.Errorf("%+v: %+v", o, v)
			}
		}
	}
}

// What the target says of cursors holds where there is one.
func TestForgetWithoutACursor(t *testing.T) {
	o := &Outcome{Layer: LayerTarget, Status: 403, Err: &HTTPError{Status: 403, Verdict: Verdict{Remedy: Forget}}}
	plain := &definition{Stream: Stream{Target: &site{}}}
	own := &definition{Stream: Stream{Target: classified{&site{}}}}
	for _, d := range []*definition{plain, own} {
		for refused, want := range []Remedy{Rotate, Forget} {
			o.Refused = refused
			if v := d.verdict(o); v.Remedy != want {
				t.Errorf("%T, refused %d times: %+v", d.Target, refused, v)
			}
		}
	}
}

// The target may know for certain what the engine would have to find out.
func TestATargetSaysThatTheCursorIsRefused(t *testing.T) {
	for name, target := range map[string]func(*forgetful) Target{
		"answers": func(s *forgetful) Target {
			return TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
				c, err := s.Open(ctx, sess, from)
				if e := (*HTTPError)(nil); errors.As(err, &e) {
					e.Verdict.Remedy = Forget
				}
				return c, err
			})
		},
		"classifier": func(s *forgetful) Target { return classified{s} },
		"an error of its own": func(s *forgetful) Target {
			return classified{TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
				c, err := s.Open(ctx, sess, from)
				if err != nil {
					return nil, errors.New("the history does not go back so far")
				}
				return c, nil
			})}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &forgetful{site: &site{every: time.Minute, start: time.Now()}}
				s.refuse = func(_ int, from Cursor) int {
					if from != "" {
						return 403
					}
					return 0
				}
				s.script = func(n int, _ Cursor) step {
					if n == 1 {
						return step{events: 5}
					}
					return step{events: 1 << 60}
				}
				m := &memoryLog{}
				holdUntil(t, &Stream{Name: "t/s", Target: target(s), Limits: quickly(), StaleAfter: -1}, m, number(12))
				if !slices.Equal(s.asked, []string{"", "5", ""}) || !slices.Equal(m.data(), numbers(1, 12)) {
					t.Errorf("asked for %q, got %v", s.asked, m.data())
				}
			})
		})
	}
}

// classified is a target that takes every failure for one of the cursor.
type classified struct{ Target }

func (classified) Classify(*Outcome) Verdict { return Verdict{Remedy: Forget} }

// Ids that do not count prove nothing about what lies between, and the cursor
// that the stream began with is one, too.
func TestAForgottenCursorLeavesAGap(t *testing.T) {
	for name, c := range map[string]struct {
		from Cursor
		want []string
	}{
		"after five events":            {"", []string{"possible cursor_refused"}},
		"of the very first connection": {"77", []string{"possible cursor_refused", "possible cursor_refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &forgetful{site: &site{every: time.Minute, start: time.Now()}}
				s.refuse = func(_ int, from Cursor) int { return 410 * min(1, len(from)) }
				n := 0
				s.script = func(int, Cursor) step {
					if n++; n == 1 {
						return step{events: 5}
					}
					return step{events: 1 << 60}
				}
				opaque := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
					c, err := s.Open(ctx, sess, Cursor(strings.TrimPrefix(string(from), "id-")))
					if err != nil {
						return nil, err
					}
					return &opaqueConn{c}, nil
				})
				m := &memoryLog{}
				holdUntil(t, &Stream{Name: "t/s", Target: opaque, From: c.from, Limits: quickly(), StaleAfter: -1}, m, number(12))
				wantGaps(t, m.ledger(), c.want...)
			})
		})
	}
}

// Until a new event is in the journal the cursor is kept: the next run asks the
// site for it once more, and so does nobody in this one.
func TestAForgottenCursorIsKeptUntilTheFirstNewEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &forgetful{site: &site{every: time.Minute, start: time.Now()}}
		s.refuse = func(_ int, from Cursor) int { return 410 * min(1, len(from)) }
		s.script = func(n int, _ Cursor) step {
			switch n {
			case 1:
				return step{events: 5}
			case 2, 3:
				return step{events: 0, err: errors.New("reset")}
			}
			return step{events: 1 << 60}
		}
		m := &memoryLog{}
		stream := &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: -1}
		r, err := newRunner(t.Context(), stream, m)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+30*time.Second) // before event 6
		defer cancel()
		if err := r.run(ctx); err != nil {
			t.Fatal(err)
		}
		r.now().Identities.Close()
		if !slices.Equal(s.asked, []string{"", "5", "", "", ""}) || m.cursor != "5" {
			t.Errorf("asked for %q, the cursor is %q", s.asked, m.cursor)
		}
		holdUntil(t, stream, m, number(8))
		if !slices.Equal(s.asked[5:], []string{"5", ""}) || m.cursor != "8" || !slices.Equal(m.data(), numbers(1, 8)) {
			t.Errorf("the next run asked for %q, the cursor is %q, got %v", s.asked[5:], m.cursor, m.data())
		}
		wantGaps(t, m.ledger(), "replayed numbers restart")
	})
}

// The cursor of what came since is used again.
func TestTheNextCursorIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &forgetful{site: &site{every: time.Minute, start: time.Now()}}
		s.refuse = func(_ int, from Cursor) int {
			if from == "5" {
				return 410
			}
			return 0
		}
		s.script = func(n int, _ Cursor) step {
			if n <= 3 {
				return step{events: 5}
			}
			return step{events: 1 << 60}
		}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: -1}, m, number(18))
		if !slices.Equal(s.asked, []string{"", "5", "", "10", "15"}) || !slices.Equal(m.data(), numbers(1, 18)) {
			t.Errorf("asked for %q, got %v", s.asked, m.data())
		}
	})
}

// What ends a connection that has brought something is not about its cursor.
func TestAnAnswerAfterNewEventsIsNotAboutTheCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &forgetful{site: &site{every: time.Minute, start: time.Now()}, refuse: func(int, Cursor) int { return 0 }}
		s.script = func(int, Cursor) step { return step{events: 1, err: &HTTPError{Status: 404}} }
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: -1}, m, number(8))
		if want := append([]string{""}, numbers(1, 7)...); !slices.Equal(s.asked, want) {
			t.Errorf("asked for %q", s.asked)
		}
	})
}

// A line that was ahead of another one, which has ended, has it go back for
// what lies in between, once; and not where the site refuses that.
func TestALineGoesBackOnce(t *testing.T) {
	for name, c := range map[string]struct {
		refused Cursor
		want    string // the first gap of the ledger
	}{
		"taken":   {"none", "replayed numbers skipped 35-40 missing 0 filled 6"},
		"refused": {"34", "known skipped 35-40 missing 6 filled 0"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &feedSite{every: 250 * time.Millisecond, start: time.Now().Add(-10 * time.Second), last: 200, id: strconv.Itoa, data: strconv.Itoa}
				conns, back := 0, 0
				s.first = func(from, _ int) int {
					if from > 0 {
						return from + 1
					}
					conns++
					return 11*conns + 19 // 30 and 41
				}
				s.fate = func(k int) fate {
					switch k {
					case 1:
						return fate{lag: 2600 * time.Millisecond, after: 1200 * time.Millisecond}
					case 3:
						return fate{after: 5 * time.Second}
					}
					return fate{}
				}
				target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
					if from == "34" {
						back++
					}
					if from == c.refused {
						return nil, &HTTPError{Status: 410}
					}
					return s.Open(ctx, sess, from)
				})
				m := &memoryLog{}
				holdUntil(t, &Stream{Name: "t/s", Target: target, Limits: quickly(), Lines: 2}, m, number(100))
				if got := gaps(m.ledger()); got[0] != c.want {
					t.Errorf("gaps %q", got)
				}
				if back != 1 || conns != 2 {
					t.Errorf("went back %d times; %d connections without a cursor", back, conns)
				}
			})
		})
	}
}

// A cursor from before the last event may have expired where that of the last
// event has not.
func TestARefusedReplayCheckDoesNotCostTheCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &forgetful{site: &site{every: time.Minute, start: time.Now()}}
		s.refuse = func(_ int, from Cursor) int {
			if from == "2" {
				return 410
			}
			return 0
		}
		s.script = func(n int, _ Cursor) step {
			if n <= 2 {
				return step{events: 5}
			}
			return step{events: 1 << 60}
		}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, ReplayCheck: 3, Limits: quickly(), StaleAfter: -1}, m, number(12))
		if !slices.Equal(s.asked, []string{"", "2", "5", "7"}) || !slices.Equal(m.data(), numbers(1, 12)) {
			t.Errorf("asked for %q, got %v", s.asked, m.data())
		}
		wantGaps(t, m.ledger(), "replayed numbers eof", "replayed seen_again eof")
	})
}

// A line beside another one, and a successor, are opened without the cursor
// that is refused to them; the one that delivers is left alone.
func TestACursorRefusedBesideALineThatDelivers(t *testing.T) {
	for name, c := range map[string]struct {
		status, lines int
		asked         []bool // to go on from a cursor
		reconnects    string
	}{
		"handover":           {410, 1, []bool{false, true, false}, "map[renewal:1]"},
		"handover, doubtful": {404, 1, []bool{false, true, false}, "map[renewal:1]"},
		"two lines":          {410, 2, []bool{false, false, true, false}, "map[cursor_refused:1 eof:1]"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				life := 30 * time.Second
				if c.lines > 1 {
					life = 0
				}
				ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: &countingSource{life: life}, RenewBefore: 10 * time.Second, AttemptsPerHour: -1})})
				defer ids.Close()
				s := &forgetful{site: &site{every: time.Second, start: time.Now()}}
				s.refuse = func(_ int, from Cursor) int { return c.status * min(1, len(from)) }
				s.script = func(n int, _ Cursor) step {
					if n == 1 && c.lines == 2 {
						return step{events: 10}
					}
					return step{events: 1 << 60}
				}
				m := &memoryLog{}
				account := holdUntil(t, &Stream{Name: "t/s", Target: s, Identities: ids, Lines: c.lines, Limits: quickly(), StaleAfter: -1}, m, number(35))
				if !slices.Equal(m.data(), numbers(3, 35)) { // the login takes a while
					t.Errorf("got %v", m.data())
				}
				var asked []bool
				for _, from := range s.asked {
					asked = append(asked, from != "")
				}
				if !slices.Equal(asked, c.asked) {
					t.Errorf("asked for %q", s.asked)
				}
				if got := fmt.Sprint(account.Reconnects); got != c.reconnects || len(account.Gaps) > 0 {
					t.Errorf("reconnects %s, gaps %+v", got, account.Gaps)
				}
				if l := m.ledger(); len(l.Gaps) != 1 || l.Gaps[0].State != GapOverlapped {
					t.Errorf("the ledger has %q", gaps(l))
				}
			})
		})
	}
}

// Two lines find out each for itself, and one of them says so.
func TestBothLinesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &forgetful{site: &site{every: time.Minute, start: time.Now()}, newcomers: "3"}
		s.refuse = func(_ int, from Cursor) int { return 410 * min(1, len(from)) }
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: s, From: "77", Lines: 2, Limits: quickly(), StaleAfter: -1, Log: logTo(&log)}, m, number(12))
		slices.Sort(s.asked)
		if !slices.Equal(s.asked, []string{"", "", "77", "77"}) || !slices.Equal(m.data(), numbers(4, 12)) {
			t.Errorf("asked for %q, got %v", s.asked, m.data())
		}
		if n := strings.Count(log.String(), withoutCursor); n != 1 {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
		wantGaps(t, m.ledger(), "possible cursor_refused")
	})
}

// A cursor that was not sent is not what was refused.
func TestARefusalOfACursorThatWasNotSent(t *testing.T) {
	for name, c := range map[string]struct {
		from    Cursor
		resume  ResumeBy
		preface bool
	}{
		"no header holds it":     {"b\x01", ResumeBy{}, false},
		"the site cannot resume": {"12", ResumeBy{From: "none"}, false},
		"the preface is refused": {"12", ResumeBy{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n++; n > 3 && r.URL.Path == "/preface" {
					fmt.Fprint(w, "{}")
					return
				}
				if n < 4 {
					w.WriteHeader(http.StatusGone)
					return
				}
				eventStream(w, "id: c\ndata: c\n\ndata: [DONE]\n\n")
			}))
			defer s.Close()
			options := SSEOptions{Done: "[DONE]", Resume: c.resume}
			if c.preface {
				options.Preface = &Preface{URL: s.URL + "/preface"}
			}
			got, account, err := hold(t, &Stream{
				From: c.from, MinWait: time.Millisecond, Limits: quickly(), Identities: anonymous(t, s),
				Target: &SSE{Request: Request{URL: s.URL}, Options: options},
			}, 0)
			if got = slices.DeleteFunc(got, func(ev Event) bool { return ev.Aside }); err != nil || fmt.Sprint(data(got)) != "[c]" || account.Reconnects[CauseBadAnswer] != 3 || account.Reconnects[CauseCursor] != 0 {
				t.Errorf("%q, %v, %v", data(got), err, account.Reconnects)
			}
		})
	}
}
