package framework

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/sethvargo/go-retry"
)

// Backfill is where the events are fetched that a stream is known to lack.
type Backfill struct {
	// Host is whose pace of connection attempts the requests keep; empty means
	// that of the stream.
	Host string
	// Fetch asks the site's history for the events with the numbers from first
	// to last, inclusive, and returns those that it has, in any order; the
	// engine takes what it needs of them. A part is enough: the engine asks
	// again for what follows the highest number it got. It is called with one
	// request at a time for a stream, and tried again with backoff after an
	// error, except that 404 and 410 say that the history has none of them.
	// The session is the one that the stream is read with; its Watch is not
	// for this.
	Fetch func(ctx context.Context, s *Session, first, last uint64) ([]Event, error)
}

const (
	// fetchTimeout bounds one request to the history.
	fetchTimeout = time.Minute
	// fetchTries is how often a history that has nothing of a gap is asked,
	// lackWait the pause in between: it may lag behind the stream.
	fetchTries, lackWait = 3, 30 * time.Second
	// maxFetchWait is the longest pause after a request that failed.
	maxFetchWait = 10 * time.Minute
	// fillBatch is how many fetched events are appended before the ledger says
	// so: fewer than the tail that the journal gives back, so that a program
	// that is killed in between finds them there and does not double them.
	fillBatch = 512
)

// backfill fills one hole after the other until ctx ends.
func (r *runner) backfill(ctx context.Context, cancel context.CancelFunc) {
	fresh := func() retry.Backoff {
		return retry.WithCappedDuration(maxFetchWait, retry.WithJitterPercent(25, retry.NewExponential(r.now().MinWait)))
	}
	backoff := fresh()
	for {
		h := r.nextHole()
		if h == nil {
			select {
			case <-r.missing.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		n, err := r.fill(ctx, h)
		journal := (*journalError)(nil)
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &journal):
			r.stats.failed(journal)
			r.end(cancel, journal)
			return
		case errors.Is(err, errEnough):
			r.end(cancel, nil)
			return
		case err == nil && n > 0:
			backoff = fresh()
			continue
		}
		wait := lackWait
		if err != nil {
			wait, _ = backoff.Next()
			wait = max(wait, retryAfter(outcomeOf(err)))
			r.Log.Warn("missing events could not be fetched", "from_id", h.gap.FirstID, "to_id", h.gap.LastID, "wait", wait.Round(time.Millisecond), "error", err)
		} else if r.fruitless(h) {
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// nextHole returns a hole that the history may know; nil when there is none.
func (r *runner) nextHole() *hole {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.missing.holes {
		if h.tries < fetchTries {
			return h
		}
	}
	return nil
}

// fruitless counts an attempt that brought nothing, and tells whether it was
// the last one.
func (r *runner) fruitless(h *hole) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(h.left) == 0 {
		return true // the numbers came late meanwhile
	}
	if h.tries++; h.tries < fetchTries {
		return false
	}
	r.Log.Warn("the site's history lacks events that are missing", "from_id", h.gap.FirstID, "to_id", h.gap.LastID, "missing", h.gap.Missing)
	return true
}

// fill asks once for everything that is left of the hole. It returns how many
// of the missing numbers that has accounted for.
func (r *runner) fill(ctx context.Context, h *hole) (accounted int, err error) {
	r.mu.Lock()
	left := slices.Clone(h.left)
	r.mu.Unlock()
	for _, span := range left {
		for {
			events, err := r.fetch(ctx, span)
			if err != nil {
				return accounted, err
			}
			if len(events) == 0 {
				break
			}
			highest := events[len(events)-1].Sequence
			n, err := r.fillIn(ctx, h, events)
			accounted += n
			if err != nil {
				return accounted, err
			}
			if highest == span.Last {
				break
			}
			span.First = highest + 1
		}
	}
	return accounted, nil
}

// fetch asks the history for a stretch of numbers and returns the events that
// lie in it, numbered and in their order.
func (r *runner) fetch(ctx context.Context, span Range) ([]Event, error) {
	def := r.now()
	if err := def.Limits.Wait(ctx, cmp.Or(r.Backfill.Host, def.Host)); err != nil {
		return nil, err
	}
	id, err := def.Identities.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer id.release()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	events, err := r.Backfill.Fetch(ctx, &Session{Client: id.clientFor(def.Page), Stream: r.Name, Exit: id.lease.exit(), Log: r.Log}, span.First, span.Last)
	if answer, ok := errors.AsType[*HTTPError](err); ok && (answer.Status == http.StatusNotFound || answer.Status == http.StatusGone) {
		return nil, nil
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // the URL may hold a secret
	}
	if err != nil {
		return nil, err
	}
	kept := events[:0]
	for _, ev := range events {
		ok := false
		if r.Sequence != nil {
			ev.Sequence, ok = r.Sequence(&ev)
			ev.Sequenced = ok
		} else {
			ev.Sequence, ok = decimal(ev.ID)
		}
		if ok && span.First <= ev.Sequence && ev.Sequence <= span.Last {
			kept = append(kept, ev)
		}
	}
	slices.SortStableFunc(kept, func(a, b Event) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return kept, nil
}

// fillIn appends those of the fetched events that are missing still, and writes
// into the ledger what that has filled.
func (r *runner) fillIn(ctx context.Context, h *hole, events []Event) (accounted int, err error) {
	for batch := range slices.Chunk(events, fillBatch) {
		n, err := r.fillBatch(ctx, h, batch)
		accounted += n
		if err != nil {
			return accounted, err
		}
	}
	return accounted, nil
}

func (r *runner) fillBatch(ctx context.Context, h *hole, events []Event) (accounted int, err error) {
	r.mu.Lock()
	defer r.unlock()
	appended, enough := uint64(0), false
	for i := 0; i < len(events) && !enough; i++ {
		ev := &events[i]
		n := ev.Sequence
		if r.missing.lacks(n, true) != h || r.missing.unsure(n) {
			continue
		}
		if ev.Type == "" {
			ev.Type = "message"
		}
		if types := r.now().types; types == nil || types[ev.Type] { // others are not missed
			if enough = !r.share.take(); enough {
				break
			}
			if len(ev.ID) == 0 {
				ev.ID = strconv.AppendUint(nil, n, 10)
			}
			if !ev.Sequenced {
				ev.Sequence = 0
			}
			// The stream goes on from where it was, not from here.
			ev.Cursor, ev.Time, ev.Filled = r.cursor, time.Now(), true
			if err := r.put(ctx, ev); err != nil {
				return accounted, err
			}
			appended++
			enough = r.share.done()
			r.missing.fetchedOne(n)
		}
		r.missing.came(h, n)
		h.fetched = true
		accounted++
	}
	if accounted > 0 {
		r.stats.fetched(appended)
		r.Log.Info("missing events were fetched", "events", appended, "still_missing", h.gap.Missing)
		err = r.account(ctx, h)
	}
	if err == nil && enough {
		err = errEnough
	}
	return accounted, err
}
