package framework

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

const benchEvents = 100_000

var benchFeed = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	for n := range benchEvents {
		fmt.Fprintf(&b, "id: %d\nevent: price_update\ndata: {\"symbol\":\"BTCUSDT\",\"price\":\"60000.%06d\",\"v\":\"%0110d\"}\n\n", 1_000_000+n, n, n)
	}
	return b.Bytes()
})

// BenchmarkEvents ranges over a stream of 200-byte events, with everything on
// but the network.
func BenchmarkEvents(b *testing.B) {
	target := TargetFunc(func(ctx context.Context, s *Session, from Cursor) (Connection, error) {
		own := *s
		own.Client = &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(bytes.NewReader(benchFeed())), Request: req}, nil
		})}
		req, err := http.NewRequest(http.MethodGet, "http://example.com/", nil)
		if err != nil {
			return nil, err
		}
		return OpenSSE(ctx, &own, req, from, SSEOptions{})
	})
	benchFeed()
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; {
		n := min(left, benchEvents)
		left -= n
		for _, err := range (&Stream{Name: "t/s", Target: target}).Events(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
			if n--; n == 0 {
				break
			}
		}
	}
}

// BenchmarkRefused is what the reader that looks for dead letters costs an
// event of a stream that has no decoder: 18 ns where it looks at each.
func BenchmarkRefused(b *testing.B) {
	const events = 4096
	d := &deliverer{SinkConfig: SinkConfig{ID: "t/dead letters", Refused: true}}
	d.defaults()
	c := &Chunk{Journal: "journal", Seq: 1, Streams: []string{"t/s"}, Count: events, NoneAgain: true}
	for range events {
		c.Events = append(c.Events, StoredEvent{Type: "price", Time: time.Now(), Data: make([]byte, 200)})
	}
	b.ReportAllocs()
	for b.Loop() {
		d.next(Position{Journal: c.Journal})
		if _, err := d.take(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
}
