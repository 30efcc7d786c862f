package framework

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A replay that is interrupted goes on where the sink is, and delivers each
// event of its period once; what came after its end it leaves alone.
func TestReplayIsDeliveredOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, s := newMemJournal(), &memSink{}
		for _, data := range []string{"1", "2", "3", "4", "5", "6", "7"} {
			j.commit("t/s", data, data+"b")
		}
		ctx, cancel := context.WithCancel(t.Context())
		s.writeErr = func() error {
			if n := len(s.batches); ctx.Err() == nil && n > 0 && len(s.batches[n-1]) > 0 { // after the first records
				cancel()
				return errors.New("interrupted")
			}
			return nil
		}
		r := Replay{
			Journal: j,
			Streams: []*Stream{{Name: "t/s", Target: &site{}}},
			Sink:    SinkConfig{ID: "t/again", New: func() (Sink, error) { return s, nil }, BatchRecords: 2},
			Parts:   []ReplayPart{{After: 1, Last: 6}},
			Only:    func(at Position, _ time.Time) bool { return at != (Position{Journal: j.ID(), Seq: 4, Event: 2}) },
		}
		if _, err := r.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted it says %v", err)
		}
		if got := s.data(); !slices.Equal(got, []string{"2", "2b"}) {
			t.Errorf("before the interruption %q", got)
		}
		sum, err := r.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := s.data(); !slices.Equal(got, []string{"2", "2b", "3", "3b", "4", "5", "5b", "6", "6b"}) || sum.Records != 7 {
			t.Errorf("delivered %q, %+v", got, sum)
		}
		if again, err := r.Run(t.Context()); err != nil || again.Records != 0 {
			t.Errorf("once more: %+v, %v", again, err)
		}
		if len(j.released) != 1 { // its own
			t.Errorf("holds %v", j.released)
		}
	})
}

// A sink that refuses everything ends a replay after a while.
func TestReplayLosesPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, s := newMemJournal(), &memSink{}
		j.commit("t/s", "1")
		s.writeErr = func() error { return errors.New("no") }
		r := Replay{
			Journal: j, Streams: []*Stream{{Name: "t/s", Target: &site{}}}, Parts: []ReplayPart{{Last: 1}}, Patience: time.Minute,
			Sink: SinkConfig{ID: "t/again", New: func() (Sink, error) { return s, nil }},
		}
		began := time.Now()
		if _, err := r.Run(t.Context()); err == nil || err.Error() != "no" || time.Since(began) < time.Minute || time.Since(began) > 2*time.Minute {
			t.Errorf("after %v it says %v", time.Since(began), err)
		}
	})
}

// Where the records are already, a replay ends before it has waited at all, and
// a position that cannot be answers with what a replay can do.
func TestReplayIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, s := newMemJournal(), &memSink{}
		j.commit("t/s", "1")
		r := Replay{
			Journal: j, Streams: []*Stream{{Name: "t/s", Target: &site{}}}, Parts: []ReplayPart{{Last: 1}}, Patience: time.Hour,
			Sink: SinkConfig{ID: "t/again", New: func() (Sink, error) { return s, nil }},
		}
		s.writeErr = func() error { return fmt.Errorf("wrapped: %w", &StoredError{Sink: "t/again"}) }
		began := time.Now()
		var stored *StoredError
		if sum, err := r.Run(t.Context()); !errors.As(err, &stored) || sum.State != "failed" || time.Since(began) > 0 {
			t.Errorf("after %v it says %v: %+v", time.Since(began), err, sum)
		}
		s.pos = Position{Journal: j.ID(), Seq: 9}
		var position *PositionError
		if _, err := r.Run(t.Context()); !errors.As(err, &position) || !strings.Contains(err.Error(), "replay under a name") || strings.Contains(err.Error(), "--restart-sink") {
			t.Errorf("beyond the journal it says %v", err)
		}
	})
}
