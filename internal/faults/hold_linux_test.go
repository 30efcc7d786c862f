package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
	"github.com/holdline/scrape/proxies"
)

// tokens is a site's tokens: opaque, without an expiry that could be known.
type tokens struct {
	mu sync.Mutex
	n  int
}

func (k *tokens) Bound() auth.Binding { return auth.BoundToExit }

func (k *tokens) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.n++
	return &auth.Credential{Header: http.Header{"Authorization": {fmt.Sprintf("token-%d", k.n)}}}, nil
}

// hold holds one stream through one fault, by so many lines, with a worker of
// this process: a pool, a keeper, a journal and a sink, all real.
func hold(t *testing.T, f fault, source source, lines int, p pace) row {
	s := newStage(t, source, p, 2)
	var exits []proxies.Exit
	for i, x := range s.exits {
		e, err := proxies.ParseExit(fmt.Sprintf("http://user%d:password@%s", i, x.addr))
		if err != nil {
			t.Fatal(err)
		}
		exits = append(exits, e)
	}
	pool, err := proxies.New(proxies.Config{Exits: exits, Quarantine: p.refused / 2, MaxQuarantine: p.refused})
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(t.Context(), journal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	sink := &sink{}
	keeper := auth.NewKeeper(auth.Config{Name: "site", Source: &tokens{}, AttemptsPerHour: -1})
	diary := &diary{}
	stream := &framework.Stream{
		Name:   "faults/feed",
		Target: &framework.SSE{Request: framework.Request{URL: "http://" + s.site.addr + "/stream"}},
		Host:   s.site.addr,
		Identities: framework.NewIdentities(framework.IdentityConfig{
			Key: "faults", Pool: pool, Keeper: keeper, Hosts: []string{s.site.addr},
		}),
		Lines:      lines,
		StaleAfter: p.stale,
		QuietAfter: p.quiet,
		MinWait:    p.min,
		MaxWait:    p.max,
		Limits:     &framework.Limits{ConnectsPerSecond: 100, Burst: 100},
		Log:        slog.New(diary),
	}
	w, err := framework.NewWorker(framework.Config{
		Journal: j, Streams: []*framework.Stream{stream},
		Sinks: []framework.SinkConfig{{ID: "faults/memory", New: func() (framework.Sink, error) { return sink, nil }, BatchEvery: 5 * time.Millisecond}},
	})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	var failed error
	go func() { failed = w.Run(t.Context()); close(over) }()
	s.strike(f, lines, held{t: t, seen: &sink.collector, news: func() []time.Time { return diary.of(brought) }, ended: func() bool {
		select {
		case <-over:
			return true
		default:
			return false
		}
	}})
	w.Drain()
	if <-over; failed != nil {
		t.Fatal(failed)
	}
	r := s.judge(sink.seen, w.Stats().Streams[0].Gaps)
	r.noticed = next(diary.of(ended), s.from)
	return r
}

// What the program logs when a connection has ended, and when one has brought
// the first event that is no replay: its place in the stream is found then.
const ended, brought = "connection ended", "brings news"

// diary is a log that remembers when what was said.
type diary struct {
	mu sync.Mutex
	at map[string][]time.Time
}

func (d *diary) Handle(_ context.Context, r slog.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at == nil {
		d.at = map[string][]time.Time{}
	}
	d.at[r.Message] = append(d.at[r.Message], r.Time)
	return nil
}

func (d *diary) Enabled(context.Context, slog.Level) bool { return true }
func (d *diary) WithAttrs([]slog.Attr) slog.Handler       { return d }
func (d *diary) WithGroup(string) slog.Handler            { return d }

// of is when that was said.
func (d *diary) of(message string) []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.at[message])
}

// next is how long after then the next of the times is; 0 without one.
func next(times []time.Time, then time.Time) time.Duration {
	for _, at := range times {
		if at.After(then) {
			return at.Sub(then)
		}
	}
	return 0
}

// sink collects what a worker delivers.
type sink struct {
	collector
	pos framework.Position
}

func (c *sink) Open(_ context.Context, info framework.SinkInfo) (framework.Position, error) {
	if c.pos.Journal == "" {
		c.pos = framework.Position{Journal: info.Journal, Partition: info.Partition}
	}
	return c.pos, nil
}

func (c *sink) Write(_ context.Context, b *framework.Batch) error {
	for _, r := range b.Records {
		var body struct{ N int }
		if err := json.Unmarshal(r.Data, &body); err != nil {
			return fmt.Errorf("record %v: %w", r.Key, err)
		}
		c.add(body.N, r.Time)
	}
	c.pos = b.To
	return nil
}

func (c *sink) Close() error { return nil }
