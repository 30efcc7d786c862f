package journal

import "testing"

// TestHistoryOfAFeedThatFillsNoChunk has each event in a chunk of its own, as
// those of a feed have that brings a hundred a second.
func TestHistoryOfAFeedThatFillsNoChunk(t *testing.T) {
	const events = tailChunks + 200
	j := open(t, Config{})
	l := stream(t, j, "a/s")
	for n := 1; n <= events; n++ {
		appendEvents(t, l, n, n)
		if err := l.(*streamLog).p.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := l.History(t.Context(), events)
	if err != nil || len(got) != events {
		t.Errorf("%d events: %v; want %d", len(got), err, events)
	}
}
