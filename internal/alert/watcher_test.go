package alert

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// story is what a watcher sees and says, second by second.
type story struct {
	t   *testing.T
	w   *Watcher
	now time.Time
	v   View
	got []string
}

func tell(t *testing.T, r Rules) *story {
	return &story{t: t, w: NewWatcher(r, "box"), now: time.Unix(1_700_000_000, 0), v: View{Dir: "data", Stats: framework.Stats{
		Streams: []framework.StreamStats{{Name: "t/s", State: "live"}},
		Sinks:   []framework.SinkStats{{ID: "t/k", State: "delivering"}},
	}}}
}

func (s *story) stream() *framework.StreamStats { return &s.v.Stats.Streams[0] }
func (s *story) sink() *framework.SinkStats     { return &s.v.Stats.Sinks[0] }

// pass looks every two seconds for so long.
func (s *story) pass(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(2 * time.Second) {
		for _, a := range s.w.Look(s.now, s.v) {
			word := string(a.Kind) + " " + a.Of
			if a.Over {
				word = "over: " + word
			}
			s.got = append(s.got, word)
			if a.Worker != "box" || !a.Time.Equal(s.now) || a.Text == "" {
				s.t.Errorf("alert %+v", a)
			}
		}
	}
}

func (s *story) want(words ...string) {
	s.t.Helper()
	if !slices.Equal(s.got, words) {
		s.t.Errorf("alerts %q, want %q", s.got, words)
	}
	s.got = nil
}

func TestALoginThatGoesOnFailing(t *testing.T) {
	s := tell(t, Rules{})
	s.stream().State, s.stream().Detail, s.stream().Error = "waiting", "login_failed, 2s", "login failed at step 3"
	s.pass(20 * time.Second)
	s.stream().State, s.stream().Detail = "logging in", ""
	s.pass(8 * time.Second)
	s.want() // the next try may mend it
	s.stream().State, s.stream().Detail = "waiting", "login_failed, 1m"
	s.pass(time.Minute)
	s.want("login_impossible t/s")
	s.stream().State, s.stream().Detail = "live", ""
	s.pass(time.Minute)
	s.want("over: login_impossible t/s")
}

func TestAProxyThatRefusesThePassword(t *testing.T) {
	s := tell(t, Rules{})
	s.stream().State, s.stream().Detail, s.stream().Error = "waiting", "proxy_auth", "407"
	s.pass(40 * time.Second)
	s.want("proxy_password t/s")
	s.stream().Detail = "unreachable, 5s"
	s.pass(4 * time.Second)
	s.want("over: proxy_password t/s")
}

func TestStreamsAndSinksThatAreDown(t *testing.T) {
	s := tell(t, Rules{DownAfter: time.Minute})
	s.stream().State, s.stream().Error = "waiting", "refused"
	s.sink().State, s.sink().Error = "waiting", "refused"
	s.pass(58 * time.Second)
	s.want()
	s.pass(10 * time.Second)
	s.want("stream_down t/s", "sink_down t/k")
	s.stream().State, s.sink().State = "live", "delivering"
	s.pass(2 * time.Second)
	s.want("over: stream_down t/s", "over: sink_down t/k")
	s.stream().State, s.sink().State = "failed", "detached"
	s.pass(2 * time.Minute)
	s.want("stream_failed t/s", "sink_detached t/k")
}

func TestGapsAreToldOnceAMinute(t *testing.T) {
	s := tell(t, Rules{})
	gap := func(state framework.GapState) {
		s.stream().Gaps = append(s.stream().Gaps, framework.Gap{State: state, FirstID: 7, LastID: 9, Missing: 3})
	}
	gap(framework.GapPossible)
	s.pass(time.Minute)
	s.want()
	gap(framework.GapKnown)
	s.pass(2 * time.Second)
	s.want("gap t/s")
	gap(framework.GapKnown)
	gap(framework.GapKnown)
	s.pass(30 * time.Second)
	s.want()
	s.pass(time.Minute)
	s.want("gap t/s")
	s.stream().Gaps = s.stream().Gaps[:2] // the others were filled
	s.pass(time.Minute)
	gap(framework.GapKnown)
	s.pass(time.Minute)
	s.want("gap t/s")
	s.stream().Gaps = nil
	s.stream().GapsOmitted = 5
	s.pass(time.Minute)
	s.want("gap t/s")
}

func TestShareOfDeadLetters(t *testing.T) {
	s := tell(t, Rules{DeadShare: 0.1})
	s.stream().Events, s.stream().DeadLetters = 9, 9
	s.pass(10 * time.Second)
	s.want() // too few to tell
	for range 60 {
		s.stream().Events += 10
		s.pass(10 * time.Second)
	}
	s.want()
	for range 18 {
		s.stream().Events += 10
		s.stream().DeadLetters += 2
		s.pass(10 * time.Second)
	}
	s.want("dead_letters t/s")
	for range 60 {
		s.stream().Events += 10
		s.pass(10 * time.Second)
	}
	s.want("over: dead_letters t/s")
}

func TestADiskThatFills(t *testing.T) {
	s := tell(t, Rules{DiskFree: 1000})
	s.pass(2 * time.Second) // nothing is known
	s.v.FreeKnown = true
	for _, free := range []uint64{5000, 999, 1001, 998, 1101} {
		s.v.Free = free
		s.pass(4 * time.Second)
		s.got = append(s.got, fmt.Sprint(free))
	}
	s.want("5000", "disk_nearly_full data", "999", "1001", "998", "over: disk_nearly_full data", "1101")
}

func TestAPartOfTheJournalThatDidNotReachASink(t *testing.T) {
	s := tell(t, Rules{})
	s.pass(10 * time.Second)
	s.want()
	s.sink().Lost = 12
	s.pass(time.Minute)
	s.want("sink_lost t/k") // once, and never over
	s.sink().Lost = 13
	s.pass(time.Minute)
	s.want("sink_lost t/k")
}
