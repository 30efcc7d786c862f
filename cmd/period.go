package cmd

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/holdline/scrape/framework"
)

// period is a stretch of a journal: by the time of receipt, or by position.
type period struct {
	begin, end edge
}

// edge is one end of a period; the zero value is the journal's own.
type edge struct {
	time time.Time
	pos  framework.Position
}

func parsePeriod(from, to string, now time.Time) (period, error) {
	var p period
	var err error
	if p.begin, err = parseEdge("--from", from, now); err != nil {
		return p, err
	}
	if p.end, err = parseEdge("--to", to, now); err != nil {
		return p, err
	}
	if !p.begin.time.IsZero() && !p.end.time.IsZero() && !p.begin.time.Before(p.end.time) {
		return p, fmt.Errorf("--from %s is not before --to %s", from, to)
	}
	return p, nil
}

func parseEdge(flag, text string, now time.Time) (edge, error) {
	if text == "" {
		return edge{}, nil
	}
	if strings.Count(text, "/") == 3 {
		pos, err := parsePosition(text)
		if err != nil {
			return edge{}, fmt.Errorf("%s %s: %w", flag, text, err)
		}
		return edge{pos: pos}, nil
	}
	t, ok := parseMoment(text, now)
	if !ok {
		return edge{}, fmt.Errorf("%s %s: want a moment such as 2026-03-01 or 2026-03-01T12:00:00Z, a length of time before now such as 24h, or a position as journal/partition/chunk/event", flag, text)
	}
	return edge{time: t}, nil
}

// parseMoment reads a day, a moment, or a length of time before now.
func parseMoment(text string, now time.Time) (time.Time, bool) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), true
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, time.DateOnly} {
		if at, err := time.ParseInLocation(form, text, now.Location()); err == nil {
			return at, true
		}
	}
	return time.Time{}, false
}

// parsePosition reads the form of framework.Position.String.
func parsePosition(text string) (framework.Position, error) {
	part := strings.Split(text, "/")
	partition, err1 := strconv.ParseUint(part[1], 10, 31)
	seq, err2 := strconv.ParseUint(part[2], 10, 64)
	event, err3 := strconv.ParseUint(part[3], 10, 31)
	if err1 != nil || err2 != nil || err3 != nil || part[0] == "" {
		return framework.Position{}, fmt.Errorf("a position is journal/partition/chunk/event, as a run's account and exports show it")
	}
	return framework.Position{Journal: framework.JournalID(part[0]), Partition: int(partition), Seq: seq, Event: int(event)}, nil
}

// holds tells whether an event just before the place, received then, is in the
// period.
func (p period) holds(at framework.Position, received time.Time) bool {
	switch {
	case !p.begin.time.IsZero() && received.Before(p.begin.time),
		!p.end.time.IsZero() && !received.Before(p.end.time),
		p.begin.pos.Seq > 0 && p.begin.pos.Partition == at.Partition && !p.begin.pos.Before(at),
		p.end.pos.Seq > 0 && p.end.pos.Partition == at.Partition && p.end.pos.Before(at):
		return false
	}
	return true
}

// start returns the place at which reading for the period begins.
func (p period) start(ctx context.Context, j journalReader, partition int) (framework.Position, error) {
	for _, e := range []edge{p.begin, p.end} {
		if e.pos.Seq > 0 && e.pos.Journal != j.ID() {
			return e.pos, fmt.Errorf("position %v is not of this journal, which is %s", e.pos, j.ID())
		}
	}
	switch {
	case p.begin.pos.Seq > 0 && p.begin.pos.Partition == partition:
		return p.begin.pos, nil
	case !p.begin.time.IsZero():
		return j.Since(ctx, partition, p.begin.time)
	}
	return framework.Position{Journal: j.ID(), Partition: partition}, nil
}

// last returns the newest chunk that may hold something of the period. Events
// that waited for the disk were committed long after they were received, so
// an end by time does not end it.
func (p period) last(j journalReader, partition int) uint64 {
	_, last := j.Bounds(partition)
	if p.end.pos.Seq > 0 && p.end.pos.Partition == partition {
		last = min(last, p.end.pos.Seq)
	}
	return last
}

// chunks yields the chunks of the partition that may hold something of the
// period, as far as the journal goes by now.
func (p period) chunks(ctx context.Context, j journalReader, partition int, want func(string) bool) iter.Seq2[*framework.Chunk, error] {
	return func(yield func(*framework.Chunk, error) bool) {
		after, err := p.start(ctx, j, partition)
		if err != nil {
			yield(nil, err)
			return
		}
		last := p.last(j, partition)
		if first, _ := j.Bounds(partition); last < first || after.Seq > last || after.Seq == last && after.Event >= 1<<31-1 {
			return // reading would wait for what comes next
		}
		for c, err := range j.Read(ctx, after, want) {
			if err == nil && c.Seq > last && c.Err == nil || !yield(c, err) || err != nil || c.Seq >= last {
				return
			}
		}
	}
}
