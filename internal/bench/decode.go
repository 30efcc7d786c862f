package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	ld "github.com/launchdarkly/eventsource"
	"github.com/openai/openai-go/v3/packages/ssestream"
	r3 "github.com/r3labs/sse/v2"
	gosse "github.com/tmaxmax/go-sse"

	"github.com/holdline/scrape/internal/sse"
)

// maxEvent is what the peers that have a limit are given.
const maxEvent = 4 << 20

// decoders count the events of a body.
var decoders = []struct {
	name   string
	decode func(io.Reader) (int, error)
}{
	{"holdline/scrape", ours},
	{"bufio.Scanner, Text", naive},
	{"openai-go", openai},
	{"go-sse Read", goSSE},
	{"r3labs/sse client", r3labs},
	{"launchdarkly", launchdarkly},
}

func ours(r io.Reader) (events int, err error) {
	d := sse.NewDecoder(r, sse.Options{})
	defer d.Close()
	var ev sse.Event
	for {
		if err := d.Next(&ev); err == io.EOF {
			return events, nil
		} else if err != nil {
			return events, err
		}
		events++
	}
}

// naive is the decoder that everybody writes by hand.
func naive(r io.Reader) (events int, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxEvent)
	var id, typ string
	var data []string
	for s.Scan() {
		line := s.Text()
		switch {
		case line == "":
			if len(data) > 0 {
				_ = strings.Join(data, "\n")
				events++
			}
			typ, data = "", data[:0]
		case strings.HasPrefix(line, "data:"):
			data = append(data, strings.TrimPrefix(line[5:], " "))
		case strings.HasPrefix(line, "event:"):
			typ = strings.TrimPrefix(line[6:], " ")
		case strings.HasPrefix(line, "id:"):
			id = strings.TrimPrefix(line[3:], " ")
		}
	}
	_, _ = id, typ
	return events, s.Err()
}

func goSSE(r io.Reader) (events int, err error) {
	for _, err := range gosse.Read(r, &gosse.ReadConfig{MaxEventSize: maxEvent}) {
		if err != nil {
			return events, err
		}
		events++
	}
	return events, nil
}

func openai(r io.Reader) (events int, err error) {
	d := ssestream.NewDecoder(&http.Response{Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(r)})
	for d.Next() {
		_ = d.Event()
		events++
	}
	return events, d.Err()
}

func launchdarkly(r io.Reader) (events int, err error) {
	d := ld.NewDecoder(r)
	for {
		if _, err := d.Decode(); errors.Is(err, io.EOF) {
			return events, nil
		} else if err != nil {
			return events, err
		}
		events++
	}
}

// body is an answer whose body is a reader.
type body struct{ io.Reader }

func (b body) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Request: req, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(b)}, nil
}

// r3labs runs the whole client, since its decoder cannot be called alone.
func r3labs(r io.Reader) (events int, err error) {
	c := r3.NewClient("http://127.0.0.1/", r3.ClientMaxBufferSize(maxEvent))
	c.Connection.Transport = body{r}
	err = c.SubscribeRawWithContext(context.Background(), func(*r3.Event) { events++ })
	return events, err
}

func decode(rounds int) error {
	p, np := prices(4 << 20)
	t, nt := tokens(4 << 20)
	for _, c := range []struct {
		title       string
		in          []byte
		events, cut int
		passes      int
	}{
		{"Price events, 200 bytes", p, np, 0, 4},
		{"Token deltas, 110 bytes", t, nt, 0, 4},
		{"Events of 1 MiB in reads of 1,400 bytes", huge(4), 4, 1400, 1},
	} {
		var all []contestant
		for _, d := range decoders {
			all = append(all, contestant{d.name, func() (int, error) { return d.decode(cut(c.in, c.cut)) }})
		}
		results, err := contest(rounds, c.passes, c.events, all)
		if err != nil {
			return err
		}
		fmt.Printf("\n### Decoder: %s\n\n| decoder | CPU ns/event | MB/s | × Scanner | allocations/event |\n|---|--:|--:|--:|--:|\n", c.title)
		for i, r := range results {
			ns := median(r.cpu)
			fmt.Printf("| %s | %.0f | %.0f | %.2f | %.1f |\n", all[i].name, ns, float64(len(c.in))/float64(c.events)/ns*1000, ratio(results[1], r), r.allocs)
		}
		fmt.Printf("\nOurs against go-sse: %.1f ×.\n", ratio(results[3], results[0]))
	}
	return nil
}
