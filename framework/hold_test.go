package framework

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A sink is detached when the oldest event has waited for too long, but not
// while it comes closer.
func TestSinkBeyondItsLag(t *testing.T) {
	begin := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	// at, in seconds, is when we look, and what the oldest chunk then waits for.
	type look struct{ at, lag int }
	cases := map[string]struct {
		looks []look
		gone  bool
	}{
		"within":                   {[]look{{0, 100}, {100, 200}, {1000, 299}}, false},
		"down":                     {[]look{{0, 300}, {1, 301}, {30, 330}, {70, 370}}, true},
		"not for long":             {[]look{{0, 300}, {1, 301}, {59, 359}}, false},
		"catching up":              {[]look{{0, 9000}, {50, 8000}, {100, 7000}, {150, 6000}, {200, 5000}, {300, 400}, {310, 10}}, false},
		"falling behind":           {[]look{{0, 350}, {50, 360}, {100, 370}}, true},
		"level in between":         {[]look{{0, 400}, {50, 0}, {100, 400}, {150, 450}}, false},
		"catching up and stopping": {[]look{{0, 9000}, {50, 8000}, {80, 8030}, {120, 8070}}, true},
	}
	for name, c := range cases {
		d := &deliverer{SinkConfig: SinkConfig{MaxLag: 5 * time.Minute}}
		why := ""
		for _, l := range c.looks {
			if why != "" {
				t.Errorf("%s: gone before %d s: %s", name, l.at, why)
			}
			now, since := begin.Add(time.Duration(l.at)*time.Second), time.Time{}
			if l.lag > 0 {
				since = now.Add(-time.Duration(l.lag) * time.Second)
			}
			why = d.lags(since, now)
		}
		if (why != "") != c.gone {
			t.Errorf("%s: %q, want gone %v", name, why, c.gone)
		}
	}
}

// A stream that is held back takes nothing until it may, and leaves with its
// context.
func TestBrake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &brakedLog{StreamLog: &keptLog{limit: -1}}
		if err := l.Append(t.Context(), &Event{}); err != nil {
			t.Fatal(err)
		}
		l.brake.apply("full")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := l.Append(ctx, &Event{}); err != context.DeadlineExceeded {
			t.Errorf("held back it says %v", err)
		}
		time.AfterFunc(time.Minute, l.brake.release)
		began := time.Now()
		if err := l.Append(t.Context(), &Event{}); err != nil || time.Since(began) != time.Minute {
			t.Errorf("it went on after %v: %v", time.Since(began), err)
		}
	})
}

// backlogs is a measure whose sinks all hold as much.
type backlogs struct {
	bytes, used, free int64
}

func (b *backlogs) Behind(int, uint64) int64                                { return b.bytes }
func (b *backlogs) Waiting(context.Context, int, uint64) (time.Time, error) { return time.Time{}, nil }
func (b *backlogs) Reach(int, int64) uint64                                 { return 0 }
func (b *backlogs) Space() (used, free int64)                               { return b.used, b.free }

// A sink whose streams are stopped is detached once others have filled a
// quarter more, and not for what its own streams had brought until then: nobody
// promises that the journal is looked at just when it becomes full. Where the
// disk is the limit, what is there is all there is.
func TestSinkIsDetachedForWhatOthersFill(t *testing.T) {
	for name, c := range map[string]struct {
		most, free   int64 // of the journal, of the disk
		looks        []int64
		stopped, end bool
	}{
		"stopped":                        {1000, 0, []int64{0, 999, 1000, 1200}, true, false},
		"others fill":                    {1000, 0, []int64{1000, 1100, 1249, 1250}, true, true},
		"seen late":                      {1000, 0, []int64{0, 3000, 3001, 3249}, true, false},
		"seen late, and others fill":     {1000, 0, []int64{3000, 3250}, true, true},
		"caught up nearly":               {1000, 0, []int64{3000, 950}, true, false},
		"caught up":                      {1000, 0, []int64{3000, 899}, false, false},
		"caught up, and again":           {1000, 0, []int64{3000, 899, 1000, 1249}, true, false},
		"caught up, and others fill":     {1000, 0, []int64{3000, 899, 1000, 1250}, true, true},
		"the disk, others fill":          {0, 1334, []int64{999, 1248}, true, true},
		"the disk, seen late":            {0, 1334, []int64{1248}, true, false},
		"the disk, seen late, no longer": {0, 1334, []int64{1248, 1248}, true, true},
	} {
		l := &brakedLog{}
		j := newMemJournal()
		d := newDeliverer(j, &memSink{}, SinkConfig{})
		m := &backlogs{free: c.free}
		h := &holds{
			journal: j, measure: m, policy: FullBlock, most: c.most, deliverers: []*deliverer{d}, log: d.log,
			brakes: func() map[string]*brake { return map[string]*brake{"t/s": &l.brake} }, stopped: map[*deliverer]int64{},
		}
		for i, bytes := range c.looks {
			if d.gone() {
				t.Errorf("%s: detached before look %d", name, i+1)
			}
			m.bytes = bytes
			h.check(t.Context(), time.Unix(int64(i), 0))
		}
		if d.gone() != c.end || !c.end && (l.brake.why() != "") != c.stopped {
			t.Errorf("%s: detached %v, stopped %q", name, d.gone(), l.brake.why())
		}
	}
}

// A sink that wants nothing of what comes holds no more of the journal than a
// few seconds, whether it passes over streams or over records.
func TestSinkThatRarelyMatchesDoesNotHoldTheJournal(t *testing.T) {
	for name, c := range map[string]SinkConfig{
		"streams": {Wants: func(stream string) bool { return stream == "t/rare" }},
		"records": {Where: func(*Record) (bool, error) { return false, nil }},
	} {
		synctest.Test(t, func(t *testing.T) {
			j, s := newMemJournal(), &memSink{}
			d := newDeliverer(j, s, c)
			ctx, cancel := context.WithCancel(t.Context())
			over := make(chan error, 1)
			d.BatchRecords, d.BatchEvery = 100, time.Second
			go func() { over <- d.run(ctx) }()
			for n := range 600 {
				time.Sleep(100 * time.Millisecond)
				j.commit("t/often", "x")
				if p, ok := j.hold("t/sink"); n > 100 && (!ok || int(p.Seq) < n-60) {
					t.Fatalf("%s: after %d chunks the sink holds from %v on", name, n, p)
				}
			}
			if len(s.data()) > 0 {
				t.Errorf("%s: it got %q", name, s.data())
			}
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
}

// While the first destination is slow to answer, the next sinks hold what they
// may need.
func TestSinksHoldTheJournalBeforeTheyAreOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newMemJournal()
		j.commit("t/s", "1")
		slow := &memSink{openErr: func() error { time.Sleep(time.Hour); return nil }}
		w, err := NewWorker(Config{
			Journal: j,
			Streams: []*Stream{{Name: "t/s", Target: &site{every: 24 * time.Hour, start: time.Now()}, Limits: quickly(), StaleAfter: -1}},
			Sinks: []SinkConfig{
				{ID: "t/slow", New: func() (Sink, error) { return slow, nil }},
				{ID: "t/next", New: func() (Sink, error) { return &memSink{}, nil }},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- w.Run(ctx) }()
		time.Sleep(time.Minute)
		if p, ok := j.hold("t/next"); !ok || p.Seq != 0 {
			t.Errorf("the second sink holds from %v (%v)", p, ok)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
