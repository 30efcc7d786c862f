package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/proxies"
)

// logsJournal is a memJournal whose streams have logs of their own.
type logsJournal struct {
	*memJournal
	mu   sync.Mutex
	logs map[string]*memoryLog
}

func newLogsJournal() *logsJournal {
	return &logsJournal{memJournal: newMemJournal(), logs: map[string]*memoryLog{}}
}

func (j *logsJournal) log(name string) *memoryLog {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.logs[name] == nil {
		j.logs[name] = &memoryLog{}
	}
	return j.logs[name]
}

func (j *logsJournal) Stream(_ context.Context, name string) (StreamLog, error) {
	return j.log(name), nil
}

// holding runs a worker with the streams until the function it returns is
// called, which returns Run's error.
func holding(t *testing.T, c Config) (w *Worker, end func() error) {
	t.Helper()
	w, err := NewWorker(c)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- w.Run(t.Context()) }()
	time.Sleep(time.Millisecond)
	synctest.Wait()
	return w, func() error { w.Drain(); return <-over }
}

func statsOf(t *testing.T, w *Worker, name string) StreamStats {
	t.Helper()
	for _, s := range w.Stats().Streams {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no stream %s", name)
	return StreamStats{}
}

func (s *site) connections() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.froms) }
func (s *site) opened() int      { s.mu.Lock(); defer s.mu.Unlock(); return s.open }
func (s *site) atMost() int      { s.mu.Lock(); defer s.mu.Unlock(); return s.most }

func twoExits(t *testing.T, names ...string) *proxies.Pool {
	t.Helper()
	var exits []proxies.Exit
	for _, name := range names {
		x, err := proxies.ParseExit("http://" + name + ":1")
		if err != nil {
			t.Fatal(err)
		}
		x.Name = name
		exits = append(exits, x)
	}
	pool, err := proxies.New(proxies.Config{Exits: exits})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func leases(p *proxies.Pool) (n int) {
	for _, s := range p.Stats() {
		n += s.Leases
	}
	return n
}

var sources = []struct {
	name          string
	replay, noIDs bool
}{
	{"replays, ids", true, false}, {"replays, no ids", true, true},
	{"never replays, ids", false, false}, {"never replays, no ids", false, true},
}

// wantNumbers holds what the log has against 1, 2, 3 and so on.
func wantNumbers(t *testing.T, m *memoryLog, least int) {
	t.Helper()
	got := m.data()
	if len(got) < least || !slices.Equal(got, numbers(1, len(got))) {
		t.Errorf("want at least %d events, each once, got %v", least, got)
	}
	if gaps := m.ledger().Gaps; slices.ContainsFunc(gaps, func(g Gap) bool { return g.State.Open() }) {
		t.Errorf("the ledger has gaps: %+v", gaps)
	}
}

func TestRotationLosesNothing(t *testing.T) {
	for _, k := range sources {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &site{every: time.Second, start: time.Now(), replay: k.replay, noIDs: k.noIDs}
				pool := twoExits(t, "one", "two")
				ids := NewIdentities(IdentityConfig{Key: "t", Pool: pool})
				j := newLogsJournal()
				w, end := holding(t, Config{Journal: j, Streams: []*Stream{{Name: "t/s", Target: s, Limits: quickly(), Identities: ids, StaleAfter: -1}}})
				if n := w.Rotate(func(string) bool { return false }); n != 0 {
					t.Errorf("%d streams change that were not asked to", n)
				}
				time.Sleep(5500 * time.Millisecond)
				before := statsOf(t, w, "t/s").Exit
				if n := w.Rotate(func(name string) bool { return name == "t/s" }); n != 1 {
					t.Errorf("%d streams change", n)
				}
				time.Sleep(20 * time.Second)
				after := statsOf(t, w, "t/s")
				if after.Exit == before || after.Reconnects[CausePlanned] != 1 || after.Rotations != 1 || s.atMost() != 2 || s.opened() != 1 || leases(pool) != 1 {
					t.Errorf("from %s to %+v, %d connections at once, %d now, %d leases", before, after, s.atMost(), s.opened(), leases(pool))
				}
				if err := end(); err != nil {
					t.Error(err)
				}
				wantNumbers(t, j.log("t/s"), 24)
				if n := leases(pool); n != 0 {
					t.Errorf("%d leases are left", n)
				}
			})
		})
	}
}

// Streams with one identity move together, and by a break where they are to.
func TestRotationOfStreamsThatShareAnIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		ids := NewIdentities(IdentityConfig{Key: "t", Pool: twoExits(t, "one", "two", "three", "four", "five")})
		j := newLogsJournal()
		var streams []*Stream
		limits := &Limits{ConnectsPerSecond: 1, Burst: 1}
		for i := range 5 {
			streams = append(streams, &Stream{Name: fmt.Sprint("t/", i), Target: s, Host: "site", Limits: limits, Identities: ids, StaleAfter: -1, Handover: HandoverBreak})
		}
		w, end := holding(t, Config{Journal: j, Streams: streams})
		time.Sleep(10 * time.Second)
		if n := w.Rotate(func(string) bool { return true }); n != 5 {
			t.Errorf("%d streams change", n)
		}
		time.Sleep(time.Millisecond)
		if n := s.opened(); n < 4 {
			t.Errorf("only %d connections are left of 5, long before their turn", n)
		}
		time.Sleep(15 * time.Second)
		exits := map[string]bool{}
		for _, st := range w.Stats().Streams {
			exits[st.Exit] = true
		}
		s.mu.Lock()
		if n := ids.Rotations(); n != 1 || len(exits) != 1 || s.most != 5 || len(s.times) != 10 {
			t.Errorf("%d rotations to %v, %d connections, at most %d at once", n, exits, len(s.times), s.most)
		}
		for i := range s.times {
			if i > 0 && s.times[i]-s.times[i-1] < 990*time.Millisecond {
				t.Errorf("connections at %v: one a second is allowed", s.times)
			}
		}
		s.mu.Unlock()
		if err := end(); err != nil {
			t.Error(err)
		}
		for _, st := range streams {
			wantNumbers(t, j.log(st.Name), 20)
		}
	})
}

// Without another exit a rotation is a fresh connection, and no login.
func TestRotationWithoutAnotherExit(t *testing.T) {
	for name, pool := range map[string]func(*testing.T) *proxies.Pool{
		"direct": func(*testing.T) *proxies.Pool { return nil },
		"one":    func(t *testing.T) *proxies.Pool { return twoExits(t, "one") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &site{every: time.Second, start: time.Now()}
				source := &countingSource{}
				clients := map[any]bool{}
				target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
					clients[sess.Client] = true
					return s.Open(ctx, sess, from)
				})
				ids := NewIdentities(IdentityConfig{Key: "t", Pool: pool(t), Keeper: auth.NewKeeper(auth.Config{Source: source})})
				j := newLogsJournal()
				w, end := holding(t, Config{Journal: j, Streams: []*Stream{{Name: "t/s", Target: target, Limits: quickly(), Identities: ids, StaleAfter: -1}}})
				time.Sleep(10 * time.Second)
				for range 3 {
					w.Rotate(func(string) bool { return true })
					time.Sleep(10 * time.Second)
				}
				if n := source.count(); s.connections() != 4 || s.atMost() != 2 || s.opened() != 1 || len(clients) != 4 || n != 1 {
					t.Errorf("%d connections of %d identities, at most %d at once, %d now, %d logins", s.connections(), len(clients), s.atMost(), s.opened(), n)
				}
				if err := end(); err != nil {
					t.Error(err)
				}
				if got := j.log("t/s").data(); !slices.Equal(got, numbers(3, 2+len(got))) || len(got) < 35 {
					t.Errorf("got %v", got)
				}
			})
		})
	}
}

// A changed stream goes over to what it is now without losing an event, and the
// others see nothing of it.
func TestUpdateLosesNothing(t *testing.T) {
	for _, k := range sources {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				newSite := func() *site {
					return &site{every: time.Second, start: time.Now(), replay: k.replay, noIDs: k.noIDs}
				}
				old, other, still, goes, comes := newSite(), newSite(), newSite(), newSite(), newSite()
				stream := func(name string, s *site) *Stream {
					return &Stream{Name: name, Target: s, Limits: quickly(), StaleAfter: -1}
				}
				unchanged := stream("t/unchanged", still)
				j := newLogsJournal()
				w, end := holding(t, Config{Journal: j, Streams: []*Stream{stream("t/changed", old), unchanged, stream("t/gone", goes)}})
				time.Sleep(5500 * time.Millisecond)
				done, err := w.Update(t.Context(), []*Stream{unchanged, stream("t/changed", other), stream("t/new", comes)})
				if err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprint(done); got != "{[t/new] [t/gone] [t/changed] []}" {
					t.Errorf("done: %s", got)
				}
				if old.opened() != 1 {
					t.Error("the old connection is closed before the new one is open")
				}
				time.Sleep(20 * time.Second)
				for what, n := range map[string]int{
					"old connections open": old.opened(), "removed ones": goes.opened(), "reconnects of the unchanged": still.connections() - 1,
					"connections of the changed, but one": other.connections() - 1, "of the added, but one": comes.connections() - 1,
				} {
					if n != 0 {
						t.Errorf("%d %s", n, what)
					}
				}
				if s := statsOf(t, w, "t/gone"); s.State != "stopped" {
					t.Errorf("the removed one is %s", s.State)
				}
				if s := statsOf(t, w, "t/changed"); s.Reconnects[CausePlanned] != 1 {
					t.Errorf("the changed one: %+v", s)
				}
				if err := end(); err != nil {
					t.Error(err)
				}
				wantNumbers(t, j.log("t/changed"), 24)
				wantNumbers(t, j.log("t/unchanged"), 24)
				wantNumbers(t, j.log("t/gone"), 5)
				if got := j.log("t/new").data(); len(got) < 18 {
					t.Errorf("the added one: %v", got)
				}
			})
		})
	}
}

func TestAnUpdateThatIsWrongChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		held := &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: -1}
		sink := &memSink{}
		w, end := holding(t, Config{Journal: newLogsJournal(), Streams: []*Stream{held},
			Sinks: []SinkConfig{{ID: "t/sink", New: func() (Sink, error) { return sink, nil }}}})
		time.Sleep(5 * time.Second)
		other := &Stream{Name: "t/s", Target: s}
		for want, streams := range map[string][]*Stream{
			"no stream":        {},
			"two streams":      {other, other},
			"name and a":       {other, {Name: "t/new"}},
			"inside a browser": {other, {Name: "t/new", Target: s, Page: &auth.Page{}}},
			"sink t/sink: its columns would become others": {other, {Name: "t/new", Target: s, Decoder: fields{columns: []Column{{Name: "price", Type: ColumnText}}}}},
		} {
			if _, err := w.Update(t.Context(), streams); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want %q, got %v", want, err)
			}
		}
		time.Sleep(20 * time.Second)
		if n := len(w.Stats().Streams); s.connections() != 1 || n != 1 {
			t.Errorf("%d connections, %d streams", s.connections(), n)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if _, err := w.Update(t.Context(), []*Stream{held}); !errors.Is(err, ErrNotHeld) {
			t.Errorf("after the end: %v", err)
		}
		if n := w.Rotate(func(string) bool { return true }); n != 0 {
			t.Errorf("%d streams change after the end", n)
		}
	})
}

// Other Identities take over without a break, and the old ones are given up
// when nobody uses them any more.
func TestUpdateOfIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		one, two := twoExits(t, "one"), twoExits(t, "two")
		was, is := NewIdentities(IdentityConfig{Key: "t", Pool: one}), NewIdentities(IdentityConfig{Key: "t", Pool: two})
		stream := func(name string, ids *Identities) *Stream {
			return &Stream{Name: name, Target: s, Limits: quickly(), StaleAfter: -1, Identities: ids}
		}
		a, b := stream("t/a", was), stream("t/b", was)
		j := newLogsJournal()
		w, end := holding(t, Config{Journal: j, Streams: []*Stream{a, b}})
		time.Sleep(5500 * time.Millisecond)
		for i, streams := range [][]*Stream{{stream("t/a", is), b}, {stream("t/a", is), stream("t/b", is)}} {
			if _, err := w.Update(t.Context(), streams); err != nil {
				t.Fatal(err)
			}
			time.Sleep(15 * time.Second)
			if got, want := [2]int{leases(one), leases(two)}, [][2]int{{1, 1}, {0, 1}}[i]; got != want {
				t.Errorf("update %d: leases %v, want %v", i, got, want)
			}
		}
		if got := statsOf(t, w, "t/b"); got.Exit != "two" {
			t.Errorf("t/b leaves by %s", got.Exit)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		wantNumbers(t, j.log("t/a"), 30)
		wantNumbers(t, j.log("t/b"), 30)
		if leases(one)+leases(two) != 0 {
			t.Error("leases are left")
		}
	})
}

// A login with what is not used any more leaves nothing behind, and a stream
// without room for two connections changes over by a break, without waiting.
func TestUpdateDuringALogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		one, two := twoExits(t, "one"), twoExits(t, "two")
		limits := &Limits{ConnectsPerSecond: 1000, Burst: 1000, StreamsPerHost: 1}
		stream := func(pool *proxies.Pool) []*Stream {
			ids := NewIdentities(IdentityConfig{Key: "t", Pool: pool, Keeper: auth.NewKeeper(auth.Config{Source: &countingSource{}})})
			return []*Stream{{Name: "t/s", Target: s, Limits: limits, StaleAfter: -1, Identities: ids}}
		}
		j := newLogsJournal()
		w, end := holding(t, Config{Journal: j, Streams: stream(one)})
		time.Sleep(time.Second) // a login takes two
		if _, err := w.Update(t.Context(), stream(two)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		if got := statsOf(t, w, "t/s").Exit; got != "two" || leases(one) != 0 || leases(two) != 1 || s.connections() != 2 || s.atMost() != 1 {
			t.Errorf("through %s, leases %d and %d, %d connections, at most %d at once", got, leases(one), leases(two), s.connections(), s.atMost())
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		// After so few events the ledger cannot know that ids count by one.
		if got := j.log("t/s").data(); len(got) < 9 || !slices.Equal(got, numbers(1, len(got))) {
			t.Errorf("got %v", got)
		}
	})
}

func TestUpdateOfTheNumberOfLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		limits := quickly()
		stream := func(lines int) []*Stream {
			return []*Stream{{Name: "t/s", Target: s, Limits: limits, Host: "site", StaleAfter: -1, Lines: lines}}
		}
		j := newLogsJournal()
		w, end := holding(t, Config{Journal: j, Streams: stream(1)})
		time.Sleep(5500 * time.Millisecond)
		for _, lines := range []int{3, 1, 2, 4, 1} {
			if _, err := w.Update(t.Context(), stream(lines)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if n := s.opened(); n != lines || limits.lines["site"] != lines {
				t.Errorf("%d connections are open, and %d lines counted, of %d", n, limits.lines["site"], lines)
			}
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		wantNumbers(t, j.log("t/s"), 300)
	})
}

// A line that is one too many stays while those that are to stay bring nothing.
func TestTheLastLineThatDeliversStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		var mu sync.Mutex
		down, conns := false, map[string]*siteConn{}
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			mu.Lock()
			defer mu.Unlock()
			if down {
				return nil, errors.New("down")
			}
			c, err := s.Open(ctx, sess, from)
			conns[sess.Exit] = c.(*siteConn)
			return c, err
		})
		ids := NewIdentities(IdentityConfig{Key: "t", Pool: twoExits(t, "one", "two", "three")})
		stream := func(lines int) []*Stream {
			return []*Stream{{Name: "t/s", Target: target, Limits: quickly(), Identities: ids, StaleAfter: -1, Lines: lines}}
		}
		j := newLogsJournal()
		w, end := holding(t, Config{Journal: j, Streams: stream(3)})
		time.Sleep(5500 * time.Millisecond)
		first := ids.latest(nil)
		mu.Lock()
		down = true
		conns[first.lease.exit()].feed.CloseWithError(io.EOF)
		mu.Unlock()
		first.release()
		time.Sleep(time.Second)
		if _, err := w.Update(t.Context(), stream(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if n := s.opened(); n != 2 {
			t.Errorf("%d connections are open while the first line has none", n)
		}
		mu.Lock()
		down = false
		mu.Unlock()
		time.Sleep(2 * time.Minute)
		if n := s.opened(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		wantNumbers(t, j.log("t/s"), 140)
	})
}

// A stream that was given up, or waits long before it tries again, is held
// again as soon as it says something else; the cure needs no restart.
func TestUpdateCuresAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		still := &Stream{Name: "t/still", Target: s, Limits: quickly(), StaleAfter: -1}
		refused := &site{every: time.Second, start: time.Now(), script: func(int, Cursor) step { return step{refuse: &HTTPError{Status: 404}} }}
		j := newLogsJournal()
		w, end := holding(t, Config{Journal: j, Streams: []*Stream{still,
			{Name: "t/waits", Target: refused, Limits: quickly(), MinWait: time.Hour, MaxWait: time.Hour},
			{Name: "t/failed", Target: &judging{errors.New("no")}, Limits: quickly()},
		}})
		time.Sleep(10 * time.Second)
		if got := statsOf(t, w, "t/failed").State + " " + statsOf(t, w, "t/waits").State; got != "failed waiting" {
			t.Fatalf("they are %s", got)
		}
		if _, err := w.Update(t.Context(), []*Stream{still,
			{Name: "t/waits", Target: s, Limits: quickly(), StaleAfter: -1}, {Name: "t/failed", Target: s, Limits: quickly(), StaleAfter: -1},
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if got := statsOf(t, w, "t/failed").State + " " + statsOf(t, w, "t/waits").State; got != "live live" || len(w.Stats().Streams) != 3 {
			t.Errorf("they are %s: %+v", got, w.Stats().Streams)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// A stream that was given up begins again when what it lacked is there, with
// what it is; nothing else changes.
func TestAStreamThatWasGivenUpBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mended := false
		s := &site{every: time.Second, start: time.Now(), script: func(int, Cursor) step {
			if !mended {
				return step{refuse: errors.New("no")}
			}
			return step{events: 1 << 60}
		}}
		still := &site{every: time.Second, start: time.Now()}
		w, end := holding(t, Config{Journal: newLogsJournal(), Streams: []*Stream{
			{Name: "t/still", Target: still, Limits: quickly(), StaleAfter: -1},
			{Name: "t/failed", Target: &hopeless{s}, Limits: quickly(), StaleAfter: -1},
		}})
		time.Sleep(5 * time.Second)
		all := func(string) bool { return true }
		if n, err := w.Revive(t.Context(), func(name string) bool { return name == "t/still" }); n != 0 || err != nil {
			t.Errorf("%d streams begin again, %v", n, err)
		}
		mended = true
		if n, err := w.Revive(t.Context(), all); n != 1 || err != nil {
			t.Errorf("%d streams begin again, %v", n, err)
		}
		time.Sleep(5 * time.Second)
		if n, err := w.Revive(t.Context(), all); n != 0 || err != nil {
			t.Errorf("%d streams begin once more, %v", n, err)
		}
		if got := statsOf(t, w, "t/failed"); got.State != "live" || got.Events < 4 || still.connections() != 1 || len(w.Stats().Streams) != 2 {
			t.Errorf("%d connections of the other, %+v", still.connections(), got)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if _, err := w.Revive(t.Context(), all); !errors.Is(err, ErrNotHeld) {
			t.Errorf("after its end: %v", err)
		}
	})
}

// hopeless gives a stream up that is refused.
type hopeless struct{ *site }

func (*hopeless) Classify(o *Outcome) Verdict {
	if o.Err.Error() == "no" {
		return Verdict{Remedy: Fail}
	}
	return Verdict{}
}

// While the site refuses what the stream has become, the old connection goes
// on; and where a successor dies before it could take over, another one is
// opened.
func TestAPlannedChangeIsTriedUntilItSucceeds(t *testing.T) {
	for name, bad := range map[string]step{
		"refused": {refuse: &HTTPError{Status: 404}},
		"dies":    {events: 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old := &site{every: 10 * time.Second, start: time.Now()}
				other := &site{every: 10 * time.Second, start: time.Now(), script: func(n int, _ Cursor) step {
					if n <= 3 {
						return bad
					}
					return step{events: 1 << 60}
				}}
				j := newLogsJournal()
				w, end := holding(t, Config{Journal: j, Streams: []*Stream{{Name: "t/s", Target: old, Limits: quickly(), StaleAfter: -1}}})
				time.Sleep(35 * time.Second)
				if _, err := w.Update(t.Context(), []*Stream{{Name: "t/s", Target: other, Limits: quickly(), StaleAfter: -1}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				if old.connections() != 1 || old.opened() != 0 || other.connections() != 4 || other.opened() != 1 {
					t.Errorf("%d old connections, %d open; %d new ones, %d open", old.connections(), old.opened(), other.connections(), other.opened())
				}
				if err := end(); err != nil {
					t.Error(err)
				}
				wantNumbers(t, j.log("t/s"), 33)
			})
		})
	}
}

// Another decoder makes the records from each sink's position on, and no
// connection is touched. The stream that went stays known to the sinks.
func TestUpdateOfADecoder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		says := func(word string) Decoder {
			return decoderFunc(func(ev *Event, emit func(Record)) error {
				emit(Record{Data: []byte(word + string(ev.Data))})
				return nil
			})
		}
		stream := &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: -1, Decoder: says("old ")}
		gone := &Stream{Name: "t/gone", Target: s, Limits: quickly(), StaleAfter: -1, Decoder: says("gone ")}
		sink, j := &memSink{}, newLogsJournal()
		w, end := holding(t, Config{Journal: j, Streams: []*Stream{stream, gone},
			Sinks: []SinkConfig{{ID: "t/sink", New: func() (Sink, error) { return sink, nil }}}})
		j.commit("t/s", "1")
		time.Sleep(time.Second)
		for range 2 { // also of one that has another decoder already
			stream = stream.WithDecoder(says("new "))
			done, err := w.Update(t.Context(), []*Stream{stream})
			if err != nil || !slices.Equal(done.Decoded, []string{"t/s"}) || done.Changed != nil {
				t.Errorf("%+v, %v", done, err)
			}
		}
		j.commit("t/s", "2")
		j.commit("t/gone", "3")
		time.Sleep(time.Second)
		if got := strings.Join(sink.data(), ", "); got != "old 1, new 2, gone 3" {
			t.Errorf("the sink has %s", got)
		}
		if n := s.connections(); n != 2 {
			t.Errorf("%d connections", n)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// Other limits hold at once, also for those who wait.
func TestLimitsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Limits{ConnectsPerSecond: 1, Burst: 1, StreamsPerHost: 1}
		ids := NewIdentities(IdentityConfig{Key: "t", MaxStreams: 1, Keeper: auth.NewKeeper(auth.Config{Source: &countingSource{}})})
		for _, g := range []*gate{l.gate("site"), &ids.gate} {
			if _, err := g.enter(t.Context(), "first", true); err != nil {
				t.Fatal(err)
			}
			entered := make(chan error)
			go func() { _, err := g.enter(t.Context(), "second", true); entered <- err }()
			synctest.Wait()
			began := time.Now()
			l.Change(&Limits{ConnectsPerSecond: 10, Burst: 2, StreamsPerHost: 2})
			ids.SetMaxStreams(2)
			if err := <-entered; err != nil || !time.Now().Equal(began) {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			if _, err := g.enter(t.Context(), "third", false); err == nil {
				t.Error("three are in")
			}
		}
		began := time.Now()
		for range 12 {
			if err := l.Wait(t.Context(), "site"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("twelve attempts took %v, want two at once and ten a second", took)
		}
		l.Change(&Limits{})
		began = time.Now()
		for range 4 {
			if err := l.Wait(t.Context(), "site"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began).Round(time.Millisecond); took != 2*time.Second {
			t.Errorf("four attempts took %v, want two a second", took)
		}
	})
}
