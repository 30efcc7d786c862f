package watch

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// said lets write write to a watched connection whose stream has had the
// rhythm so far, and returns how often the watch said that it is buffered.
func said(t *testing.T, r *Rhythm, write func(w io.Writer)) (times int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		w := New(Config{Rhythm: r, Stale: time.Hour, Buffered: func(time.Duration) { times++ }, Fire: func(Kind, time.Duration) { t.Error("fired") }})
		defer w.Stop()
		go func() { write(pw); pw.Close() }()
		in, buf, rest := w.Reader(pr), make([]byte, 1<<10), 0
		for {
			n, err := in.Read(buf)
			if err != nil {
				return
			}
			for rest += n; rest >= len(oneEvent); rest -= len(oneEvent) {
				w.Events(1)
			}
		}
	})
	return times
}

var oneEvent = "id: 1\ndata: " + strings.Repeat("x", 100) + "\n\n"

func even() *Rhythm {
	r := &Rhythm{}
	live(r, time.Hour, every(50*time.Millisecond))
	return r
}

func TestAFullBufferIsRecognised(t *testing.T) {
	for _, size := range []int{4 << 10, 8 << 10, 64 << 10} {
		n := said(t, &Rhythm{}, func(w io.Writer) {
			feed := strings.Repeat(oneEvent, 20*size/len(oneEvent))
			for len(feed) >= size {
				time.Sleep(3 * time.Second)
				_, _ = io.WriteString(w, feed[:size])
				feed = feed[size:]
			}
		})
		if n != 1 {
			t.Errorf("a buffer of %d bytes: said %d times, want once", size, n)
		}
	}
}

func TestATimerIsRecognisedWhereTheFeedWasEven(t *testing.T) {
	ticks := func(w io.Writer) {
		for range 20 {
			time.Sleep(2 * time.Second)
			_, _ = io.WriteString(w, strings.Repeat(oneEvent, 40))
		}
	}
	if n := said(t, even(), ticks); n != 1 {
		t.Errorf("after an even feed: said %d times, want once", n)
	}
	if n := said(t, &Rhythm{}, ticks); n != 0 {
		t.Error("said of a feed that may be sent in bursts")
	}
	bursts := &Rhythm{}
	live(bursts, time.Hour, bursty(5*time.Second, time.Second))
	if n := said(t, bursts, ticks); n != 0 {
		t.Error("said of a feed that was never even")
	}
}

func TestOtherPausesAreNoBuffer(t *testing.T) {
	for name, write := range map[string]func(w io.Writer){
		"bursts of any size at any time": func(w io.Writer) {
			pause := random(2 * time.Second)
			for i := range 500 {
				time.Sleep(pause())
				_, _ = io.WriteString(w, strings.Repeat(oneEvent, 1+i*7%40))
			}
		},
		"slower than before": func(w io.Writer) {
			for range 100 {
				time.Sleep(2 * time.Second)
				_, _ = io.WriteString(w, oneEvent)
			}
		},
		"a byte at a time": func(w io.Writer) {
			for _, c := range []byte(strings.Repeat(oneEvent, 10)) {
				time.Sleep(time.Second)
				_, _ = w.Write([]byte{c})
			}
		},
		"a network that falters": func(w io.Writer) {
			for range 50 {
				_, _ = io.WriteString(w, strings.Repeat(oneEvent, 10)+oneEvent[:50])
				time.Sleep(400 * time.Millisecond)
				_, _ = io.WriteString(w, oneEvent[50:]+strings.Repeat(oneEvent, 10))
				time.Sleep(600 * time.Millisecond)
			}
		},
	} {
		if n := said(t, even(), write); n != 0 {
			t.Errorf("%s: taken for a buffer", name)
		}
	}
}
