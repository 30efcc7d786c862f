package demo

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

var opening = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

func TestTimesAndIDsAgreeBothWays(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{minRate, 1, 3, 20, 7777, maxRate} {
		f := newFeed(5, opening, rate)
		if got := f.LastID(opening.Add(-1)); got != 0 {
			t.Errorf("rate %v: event %d before the start", rate, got)
		}
		for _, from := range []int64{1, 1000, 5_000_000} {
			last := f.Time(from).Add(-1)
			for n := from; n < from+2000; n++ {
				at := f.Time(n)
				if !at.After(last) {
					t.Fatalf("rate %v: event %d is not after the one before it", rate, n)
				}
				if got := f.LastID(at); got != n {
					t.Fatalf("rate %v: at the time of event %d the last is %d", rate, n, got)
				}
				if got := f.LastID(at.Add(-1)); got != n-1 {
					t.Fatalf("rate %v: just before event %d the last is %d", rate, n, got)
				}
				last = at
			}
		}
		// No drift: after n slots there are n events.
		n := int64(1_000_000)
		if got := f.LastID(opening.Add(time.Duration(n) * f.period)); got != n {
			t.Errorf("rate %v: %d events in %d slots", rate, got, n)
		}
	}
}

// What the feed tells is written into destinations: it must not change.
func TestTheFeedStaysWhatItIs(t *testing.T) {
	t.Parallel()
	f := newFeed(1, opening, 20)
	for n, want := range map[int64]string{
		1:         `{"symbol":"SOL-USD","price":155.49,"volume":0.314,"timestamp":"2026-03-01T09:00:00.042Z"}`,
		2:         `{"symbol":"USD-JPY","price":154.680,"volume":2.000,"timestamp":"2026-03-01T09:00:00.095Z"}`,
		1_000_000: `{"symbol":"TSLA","price":179.01,"volume":5.497,"timestamp":"2026-03-01T22:53:19.978Z"}`,
	} {
		if got := f.Event(n).Data(); got != want {
			t.Errorf("event %d is\n%s\nwas\n%s", n, got, want)
		}
	}
	if other := newFeed(2, opening, 20).Event(1).Data(); other == f.Event(1).Data() {
		t.Error("another seed tells the same")
	}
}

func TestPricesAreBoundedAndDataIsJSON(t *testing.T) {
	t.Parallel()
	f := newFeed(1, opening, 20)
	seen := make(map[string]int)
	lines := 0
	for n := int64(1); n <= 20_000; n++ {
		ev := f.Event(n)
		seen[ev.Symbol]++
		base := symbols[f.symbol(n)].base
		if off := math.Abs(ev.Price/base - 1); !(off < 0.06) || !(ev.Volume > 0) {
			t.Fatalf("event %d: price %v of %s at base %v, volume %v", n, ev.Price, ev.Symbol, base, ev.Volume)
		}
		var got struct {
			Symbol    string
			Price     float64
			Volume    float64
			Timestamp time.Time
		}
		if err := json.Unmarshal([]byte(ev.Data()), &got); err != nil {
			t.Fatalf("event %d: %v", n, err)
		}
		if got.Symbol != ev.Symbol || got.Price != ev.Price || got.Volume != ev.Volume || !got.Timestamp.Equal(ev.Time.Truncate(time.Millisecond)) {
			t.Fatalf("event %d: %+v is written as %s", n, ev, ev.Data())
		}
		if strings.Contains(ev.Data(), "\n") {
			lines++
		}
	}
	if len(seen) != len(symbols) {
		t.Errorf("%d of %d symbols trade", len(seen), len(symbols))
	}
	if lines < 1000 || lines > 1500 {
		t.Errorf("%d of 20,000 events have several lines", lines)
	}
}

func TestStateIsTheLastOfEachSymbol(t *testing.T) {
	t.Parallel()
	f := newFeed(3, opening, 20)
	last := make(map[string]Event)
	for n := int64(1); n <= 500; n++ {
		ev := f.Event(n)
		last[ev.Symbol] = ev
		state := f.State(n)
		if len(state) != len(last) {
			t.Fatalf("after event %d: %d symbols, want %d", n, len(state), len(last))
		}
		for _, ev := range state {
			if last[ev.Symbol] != ev {
				t.Fatalf("after event %d: %s is %+v, want %+v", n, ev.Symbol, ev, last[ev.Symbol])
			}
		}
	}
	if got := f.State(0); len(got) != 0 {
		t.Errorf("before the first event: %v", got)
	}
}

func TestWireFormatKeepsTheData(t *testing.T) {
	t.Parallel()
	f := newFeed(1, opening, 20)
	for n := int64(1); n <= 200; n++ {
		ev := f.Event(n)
		var data []string
		for line := range strings.SplitSeq(string(ev.appendSSE(nil)), "\n") {
			if value, ok := strings.CutPrefix(line, "data: "); ok {
				data = append(data, value)
			}
		}
		if got := strings.Join(data, "\n"); got != ev.Data() {
			t.Fatalf("event %d reads %q, want %q", n, got, ev.Data())
		}
	}
}
