package main

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/holdline/scrape/framework"
)

// memory measures idle streams, each way of holding them in a process of its
// own. The server is another one.
func memory(streams int) error {
	s, err := serveApart()
	if err != nil {
		return err
	}
	defer s.stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Printf("\n### Memory of an idle stream: %d streams, after a collection\n\n| how it is held | RSS KiB | of it heap | of it stacks | goroutines |\n|---|--:|--:|--:|--:|\n", streams)
	for _, m := range []struct{ name, mode, url string }{
		{"net/http, body read", "bare", s.plain},
		{"go-sse client", "go-sse", s.plain},
		{"ours, one identity, HTTP/1.1", "shared", s.plain},
		{"ours, one identity, HTTP/1.1 with TLS", "shared", s.h1},
		{"ours, one identity, HTTP/2", "shared", s.h2},
		{"ours, an identity each, HTTP/1.1", "own", s.plain},
		{"ours, an identity each, HTTP/1.1 with TLS", "own", s.h1},
	} {
		c := exec.Command(self, "-streams", fmt.Sprint(streams), "idle", m.mode, m.url+"/idle")
		c.Env = append(os.Environ(), "SSL_CERT_FILE="+s.roots)
		c.Stderr = os.Stderr
		out, err := c.Output()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Printf("| %s | %s |\n", m.name, strings.TrimSpace(string(out)))
	}
	return nil
}

// idle is the process that holds idle streams. It prints what one takes.
func idle(mode, url string, streams int) error {
	hold, ok := map[string]func(context.Context, string, int, *atomic.Int64) error{
		"bare": bare, "go-sse": goSSEIdle, "shared": shared, "own": own,
	}[mode]
	if !ok {
		return fmt.Errorf("there is no mode %q", mode)
	}
	var live atomic.Int64
	before, _, _ := usage()
	goroutines := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- hold(ctx, url, streams, &live) }()
	deadline := time.After(3 * time.Minute)
	for live.Load() < int64(streams) {
		select {
		case err := <-failed:
			if err != nil {
				return err
			}
		case <-deadline:
			return fmt.Errorf("only %d of %d streams are open", live.Load(), streams)
		case <-time.After(100 * time.Millisecond):
		}
	}
	time.Sleep(time.Second) // what opened them is done
	rss, heap, stack := usage()
	each := func(bytes uint64) float64 { return float64(bytes) / 1024 / float64(streams) }
	fmt.Printf("%.1f | %.1f | %.1f | %.1f\n", each(rss-before), each(heap), each(stack), float64(runtime.NumGoroutine()-goroutines)/float64(streams))
	return nil
}

// usage is what the process holds after everything that can go has gone.
func usage() (rss, heap, stack uint64) {
	for range 4 {
		runtime.GC() // each halves the stacks that have become too large
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var size, pages uint64
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		_, _ = fmt.Sscan(string(b), &size, &pages) // zeros show up in the table
	}
	return pages * uint64(os.Getpagesize()), m.HeapInuse, m.StackInuse
}

// pace keeps the server from meeting all streams at once.
const pace = 2 * time.Millisecond

func bare(ctx context.Context, url string, streams int, live *atomic.Int64) error {
	for range streams {
		time.Sleep(pace)
		go func() {
			resp, err := http.Get(url)
			if err != nil {
				return // the count stays short
			}
			defer resp.Body.Close()
			buf := make([]byte, 512)
			for first := true; ; first = false {
				if _, err := resp.Body.Read(buf); err != nil {
					return
				}
				if first {
					live.Add(1)
				}
			}
		}()
	}
	return nil
}

func goSSEIdle(ctx context.Context, url string, streams int, live *atomic.Int64) error {
	for range streams {
		time.Sleep(pace)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		c := (&gosse.Client{}).NewConnection(req)
		c.SubscribeToAll(func(gosse.Event) { live.Add(1) })
		go func() { _ = c.Connect() }()
	}
	return nil
}

func shared(ctx context.Context, url string, streams int, live *atomic.Int64) error {
	return work(ctx, url, streams, live, framework.NewIdentities(framework.IdentityConfig{Key: "bench"}))
}

func own(ctx context.Context, url string, streams int, live *atomic.Int64) error {
	return work(ctx, url, streams, live, nil)
}

// work runs a worker, with everything on but a journal on disk.
func work(ctx context.Context, url string, streams int, live *atomic.Int64, identities *framework.Identities) error {
	limits := &framework.Limits{ConnectsPerSecond: float64(time.Second / pace), Burst: 1}
	target := &framework.SSE{Request: framework.Request{URL: url}}
	c := framework.Config{Journal: &nowhere{live: live}}
	for i := range streams {
		c.Streams = append(c.Streams, &framework.Stream{
			Name: fmt.Sprintf("bench/%d", i), Target: target, Host: target.Request.Host(), Identities: identities, Limits: limits,
		})
	}
	w, err := framework.NewWorker(c)
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

// nowhere is a journal that forgets everything but how many events came.
type nowhere struct{ live *atomic.Int64 }

func (*nowhere) ID() framework.JournalID                                       { return "bench" }
func (n *nowhere) Stream(context.Context, string) (framework.StreamLog, error) { return n, nil }
func (*nowhere) Partition(string) int                                          { return 0 }
func (*nowhere) Bounds(int) (first, last uint64)                               { return 1, 0 }
func (*nowhere) Release(string, framework.Position)                            {}
func (*nowhere) Forget(string)                                                 {}
func (*nowhere) Sync(context.Context) error                                    { return nil }
func (*nowhere) Resume(context.Context) (framework.Resume, error)              { return framework.Resume{}, nil }
func (*nowhere) History(context.Context, int) ([]framework.TailEvent, error)   { return nil, nil }
func (n *nowhere) Append(context.Context, *framework.Event) error              { n.live.Add(1); return nil }
func (*nowhere) Move(context.Context, framework.Cursor) error                  { return nil }
func (*nowhere) Note(context.Context, framework.Note) error                    { return nil }
func (*nowhere) Committed() uint64                                             { return 0 }
func (*nowhere) Read(ctx context.Context, _ framework.Position, _ func(string) bool) iter.Seq2[*framework.Chunk, error] {
	return func(func(*framework.Chunk, error) bool) { <-ctx.Done() }
}
