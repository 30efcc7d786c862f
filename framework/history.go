package framework

import (
	"context"

	"github.com/holdline/scrape/internal/splice"
)

// maxPast is how many events the journal is asked for, to recognise what a
// site replays from below the window of the splice.
const maxPast = 1 << 16

// history is what was delivered before the window. It is fetched when it is
// needed and forgotten soon after. It is guarded by runner.mu.
type history struct {
	hashes map[string]uint64 // by id; nil when it has not been fetched
	left   int               // how many events may be delivered until it is out of date
}

// find looks for the event in the journal.
func (h *history) find(ctx context.Context, r *runner, id []byte) (content uint64, found bool) {
	if h.hashes == nil {
		tail, err := r.log.History(ctx, maxPast)
		if err != nil {
			// To deliver it twice is better than not at all.
			r.Log.Warn("the journal cannot tell what was delivered before", "error", err)
		}
		h.hashes, h.left = make(map[string]uint64, len(tail)), splice.Window
		for _, e := range tail {
			h.hashes[e.ID] = e.Hash
			r.splice.Forgotten(e.ID)
		}
	}
	content, found = h.hashes[string(id)]
	return content, found
}

// age notes that an event was delivered.
func (h *history) age() {
	if h.hashes == nil {
		return
	}
	if h.left--; h.left == 0 {
		h.hashes = nil
	}
}
