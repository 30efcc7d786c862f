package demo

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

const (
	burst        = 32 << 10         // bytes of replayed events written at once
	writeTimeout = 30 * time.Second // a client that reads nothing for so long is dropped
)

// stream serves the events after the client's Last-Event-ID (header, or
// last_event_id in the query, which a fresh EventSource needs), or from the
// oldest in the replay window. From the moment the token is no longer good, or
// a silence takes it, the stream stays open and says nothing more.
func (e *Exchange) stream(w http.ResponseWriter, r *http.Request) {
	token, ok := e.authorize(w, r)
	if !ok {
		return
	}
	now := time.Now()
	s := &stream{address: clientAddr(r), token: token, conn: connOf(r.Context())}
	if full := e.floor.enter(s, e.o, now); full != "" {
		w.Header().Set("Retry-After", "2")
		writeJSON(w, http.StatusTooManyRequests, map[string]any{"error": "too_many_streams", "message": "too many streams for one " + full})
		return
	}
	defer e.floor.leave(s)
	if e.o.Silence > 0 {
		s.silence = now.Add(e.luck.wait(drawSilence, s.number, e.o.Silence))
	}
	e.log.Debug("stream open", "stream", s.number, "address", s.address)
	defer e.log.Debug("stream closed", "stream", s.number)

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	if r.Method == http.MethodHead || out.Flush() != nil {
		return
	}
	e.tell(r.Context(), s, w, out, lastEventID(r))
	// Dead or silent: the connection stays until somebody closes it.
	<-r.Context().Done()
}

func lastEventID(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("last_event_id")
}

// begin is the first event to send to a client that names last, and a comment
// about it, if it is not the one asked for.
func (e *Exchange) begin(last string, now time.Time) (next int64, comment string) {
	newest := e.feed.LastID(now)
	oldest := e.feed.LastID(now.Add(-e.o.ReplayWindow)) + 1
	if last == "" {
		return oldest, ""
	}
	id, err := strconv.ParseInt(last, 10, 64)
	switch {
	case err != nil || id < 0 || id > newest:
		return oldest, fmt.Sprintf(": the last event id is unknown here; beginning at event %d\n\n", oldest)
	case id+1 < oldest:
		return oldest, fmt.Sprintf(": events %d to %d are no longer kept; beginning at event %d\n\n", id+1, oldest-1, oldest)
	}
	return id + 1, ""
}

// tell writes events, heartbeats and comments until the stream must fall
// silent or the client is gone.
func (e *Exchange) tell(ctx context.Context, s *stream, w http.ResponseWriter, out *http.ResponseController, last string) {
	next, comment := e.begin(last, time.Now())
	b := append([]byte(": demo exchange\nretry: 2000\n\n"), comment...)
	beat := time.NewTicker(e.o.Heartbeat)
	defer beat.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	for beats := 0; ; {
		now := time.Now()
		if !e.good(s.token, now) {
			e.log.Debug("stream stops: its token is no longer good", "stream", s.number)
			return
		}
		if e.floor.silent(s, e.o, e.luck, now) {
			e.log.Debug("stream falls silent", "stream", s.number, "address", s.address)
			return
		}
		newest := e.feed.LastID(now)
		for ; next <= newest && len(b) < burst; next++ {
			b = e.feed.Event(next).appendSSE(b)
		}
		if len(b) > 0 {
			out.SetWriteDeadline(now.Add(writeTimeout))
			if _, err := w.Write(b); err != nil || out.Flush() != nil {
				return
			}
			b = b[:0]
		}
		if next <= newest {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		due.Reset(time.Until(e.feed.Time(next)))
		select {
		case <-ctx.Done():
			return
		case <-due.C:
		case now := <-beat.C:
			b = append(b, "event: heartbeat\ndata: {\"time\":\""...)
			b = now.UTC().AppendFormat(b, timeLayout)
			b = append(b, "\"}\n\n"...)
			if beats++; beats%3 == 0 {
				b = append(b, ": still here\n\n"...)
			}
		}
	}
}

// prices answers with the last price of every symbol and the id of the event
// up to which that is the truth.
func (e *Exchange) prices(w http.ResponseWriter, r *http.Request) {
	if _, ok := e.authorize(w, r); !ok {
		return
	}
	type price struct {
		ID        int64   `json:"id"`
		Symbol    string  `json:"symbol"`
		Price     float64 `json:"price"`
		Volume    float64 `json:"volume"`
		Timestamp string  `json:"timestamp"`
	}
	id := e.feed.LastID(time.Now())
	list := []price{}
	for _, ev := range e.feed.State(id) {
		list = append(list, price{ev.ID, ev.Symbol, ev.Price, ev.Volume, ev.Time.UTC().Format(timeLayout)})
	}
	writeJSON(w, http.StatusOK, map[string]any{"id": id, "prices": list})
}
