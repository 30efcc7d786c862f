package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	ld "github.com/launchdarkly/eventsource"
	r3 "github.com/r3labs/sse/v2"
	gosse "github.com/tmaxmax/go-sse"

	"github.com/holdline/scrape/framework"
)

// client measures whole clients that read a feed from another process.
func client(rounds int) error {
	s, err := serveApart()
	if err != nil {
		return err
	}
	defer s.stop()
	url := s.plain + "/corpus"
	_, events := prices(corpusSize)

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
	all := []contestant{
		{"net/http, body thrown away", get(func(r io.Reader) (int, error) {
			_, err := io.Copy(io.Discard, r)
			return events, err
		})},
		{"net/http and our decoder", get(ours)},
		{"net/http and bufio.Scanner, Text", get(naive)},
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
	results, err := contest(rounds, 1, events, all)
	if err != nil {
		return err
	}
	fmt.Printf("\n### Client over loopback: price events, 200 bytes, no journal\n\n| client | CPU ns/event | × net/http | allocations/event |\n|---|--:|--:|--:|\n")
	for i, r := range results {
		fmt.Printf("| %s | %.0f | %.1f | %.1f |\n", all[i].name, median(r.cpu), ratio(r, results[0]), r.allocs)
	}
	return nil
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
