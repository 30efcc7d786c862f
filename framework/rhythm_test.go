package framework

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// silences holds the stream to event number last and returns how long the
// watch took to notice each silence, and the connections made.
func silences(t *testing.T, s *site, last int) (noticed []time.Duration, connections int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s.start, s.replay = time.Now(), true
		log := newFeed()
		r, err := newRunner(t.Context(), &Stream{Name: "t/s", Target: s, Limits: quickly()}, log)
		if err != nil {
			t.Fatal(err)
		}
		defer r.now().Identities.Close()
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- r.run(ctx) }()
		var got []string
		for len(got) < last {
			<-log.ready
			log.drain(func(ev *Event, _ error) bool {
				got = append(got, string(ev.Data))
				return true
			})
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
		if !slices.Equal(got[:last], numbers(1, last)) {
			t.Error("lost or doubled")
		}
		noticed, connections = r.stats.detect.kept, len(s.times)
	})
	return noticed, connections
}

func TestAFastFeedIsFoundDeadWithinASecondOnceItIsKnown(t *testing.T) {
	s := &site{every: 20 * time.Millisecond, script: func(n int, _ Cursor) step {
		return step{after: time.Minute, mute: n <= 5}
	}}
	noticed, _ := silences(t, s, 50*60*6)
	if len(noticed) != 5 {
		t.Fatalf("noticed %d silences of 5: %v", len(noticed), noticed)
	}
	for _, d := range noticed { // what the first connection taught holds for the others
		if d > 1100*time.Millisecond {
			t.Errorf("noticed after %v", noticed)
		}
	}
}

func TestASlowFeedIsNotTornDown(t *testing.T) {
	s := &site{every: time.Minute}
	noticed, connections := silences(t, s, 24*60)
	if connections > 2 {
		t.Errorf("%d connections in a day without faults; silences %v", connections, noticed)
	}
}

func TestAnUnannouncedNightCostsOneRotationAtMost(t *testing.T) {
	s := &site{every: 200 * time.Millisecond}
	s.script = func(n int, _ Cursor) step {
		switch at := time.Since(s.start); {
		case n == 1:
			return step{after: 20 * time.Minute, mute: true}
		case at < 3*time.Hour:
			return step{mute: true}
		default:
			return step{events: 1 << 60}
		}
	}
	// The first connection of the morning comes at most ten minutes late.
	noticed, connections := silences(t, s, 5*3600*4)
	if connections > 25 {
		t.Errorf("%d connections in three quiet hours", connections)
	}
	if noticed[0] > 1100*time.Millisecond || noticed[1] < 20*time.Second {
		t.Errorf("silences were noticed after %v", noticed[:5])
	}
}

// gathered4K is a connection whose feed is sent on whenever 4 KiB are full.
type gathered4K struct {
	body io.ReadCloser
	left int // bytes of the event being read
}

func (c *gathered4K) Next(ev *Event) error {
	const size = 100
	var buf [size]byte
	for c.left = size; c.left > 0; {
		n, err := c.body.Read(buf[:c.left])
		if err != nil {
			return err
		}
		c.left -= n
	}
	*ev = Event{Type: "message", Data: []byte("x"), Time: time.Now()}
	return nil
}

func (c *gathered4K) Close() error { return c.body.Close() }

func TestABufferOnTheWayIsCountedOnceAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := TargetFunc(func(_ context.Context, sess *Session, _ Cursor) (Connection, error) {
			pr, pw := io.Pipe()
			go func() {
				for range 30 {
					time.Sleep(2 * time.Second)
					if _, err := pw.Write(bytes.Repeat([]byte("x"), 4<<10)); err != nil {
						return
					}
				}
				pw.Close()
			}()
			return &gathered4K{body: sess.Watch(pr)}, nil
		})
		log := newFeed()
		r, err := newRunner(t.Context(), &Stream{Name: "t/s", Target: target, Limits: quickly()}, log)
		if err != nil {
			t.Fatal(err)
		}
		defer r.now().Identities.Close()
		go func() {
			for range log.ready {
				log.drain(func(*Event, error) bool { return true })
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		if err := r.run(ctx); err != nil {
			t.Error(err)
		}
		close(log.ready)
		time.Sleep(5 * time.Second) // the last writer notices
		// A minute a connection, and a second between them.
		if n := r.stats.snapshot(time.Now()).Buffered; n != 3 && n != 2 {
			t.Errorf("counted %d connections in three minutes", n)
		}
	})
}
