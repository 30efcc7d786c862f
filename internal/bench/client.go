package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	ld "github.com/launchdarkly/eventsource"
	r3 "github.com/r3labs/sse/v2"
	gosse "github.com/tmaxmax/go-sse"

	"github.com/holdline/scrape/framework"
)

// client measures whole clients that read a feed from another process. What an
// answer costs those who throw it away depends on how the site sends it.
func client(rounds int) error {
	s, err := serveApart()
	if err != nil {
		return err
	}
	defer s.stop()
	_, events := prices(corpusSize)
	ways := []struct{ path, name string }{
		{"/whole", "written 64 KiB at a time"},
		{"/chunked", "so, each event an HTTP chunk"},
		{"/flushed", "each event flushed by itself"},
	}
	var names []string
	cells := map[string]string{}
	for _, way := range ways {
		all := clients(s.plain+way.path, events)
		results, err := contest(rounds, 1, events, all)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		names = names[:0]
		for i, r := range results {
			names = append(names, all[i].name)
			cells[all[i].name] += fmt.Sprintf(" %.0f, %.1f × | %.1f |", median(r.cpu), ratio(r, results[0]), r.allocs)
		}
	}
	fmt.Printf("\n### Client over loopback: price events, 200 bytes, no journal: CPU ns/event, × net/http, allocations/event\n\n| client |")
	for _, way := range ways {
		fmt.Printf(" %s | |", way.name)
	}
	fmt.Println("\n|---|" + strings.Repeat("--:|--:|", len(ways)))
	for _, name := range names {
		fmt.Printf("| %s |%s\n", name, cells[name])
	}
	return nil
}

func clients(url string, events int) []contestant {
	get := func(read func(io.Reader) (int, error)) func() (int, error) {
		return func() (int, error) {
			resp, err := http.Get(url)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			return read(resp.Body)
		}
	}
	return []contestant{
		{"net/http, body thrown away", get(func(r io.Reader) (int, error) {
			_, err := io.Copy(io.Discard, r)
			return events, err
		})},
		{"net/http and our decoder", get(ours)},
		{"net/http and bufio.Scanner, Text", get(naive)},
		{"holdline/scrape, decoder and watch", func() (int, error) { return connection(url, events) }},
		{"holdline/scrape, Stream.Events", func() (int, error) { return engine(url, events) }},
		{"go-sse client", func() (n int, err error) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return 0, err
			}
			c := (&gosse.Client{}).NewConnection(req)
			c.SubscribeToAll(func(gosse.Event) {
				if n++; n == events {
					cancel()
				}
			})
			if err := c.Connect(); !errors.Is(err, context.Canceled) {
				return n, err
			}
			return n, nil
		}},
		{"r3labs/sse client", func() (n int, err error) {
			return n, r3.NewClient(url).SubscribeRaw(func(*r3.Event) { n++ })
		}},
		{"launchdarkly client", func() (int, error) {
			stream, err := ld.Subscribe(url, "")
			if err != nil {
				return 0, err
			}
			defer stream.Close()
			for n := range events {
				select {
				case <-stream.Events:
				case err := <-stream.Errors:
					return n, err
				}
			}
			return events, nil
		}},
	}
}

// connection reads the feed as the engine's own target does, without the engine:
// decoder and watch.
func connection(url string, events int) (n int, err error) {
	target := framework.TargetFunc(func(ctx context.Context, s *framework.Session, from framework.Cursor) (framework.Connection, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		c, err := framework.OpenSSE(ctx, s, req, from, framework.SSEOptions{})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		var ev framework.Event
		for ; n < events; n++ {
			if err := c.Next(&ev); err != nil {
				return nil, err
			}
		}
		return nil, framework.ErrDone
	})
	for _, err := range (&framework.Stream{Name: "bench/prices", Target: target}).Events(context.Background()) {
		return n, err
	}
	return n, nil
}

// engine reads the feed with everything on: identity, watch, splice.
func engine(url string, events int) (n int, err error) {
	s := &framework.Stream{Name: "bench/prices", Target: &framework.SSE{Request: framework.Request{URL: url}}}
	for _, err := range s.Events(context.Background()) {
		if err != nil {
			return n, err
		}
		if n++; n == events {
			break
		}
	}
	return n, nil
}
