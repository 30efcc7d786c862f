package journal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// payload is an event of 200 bytes, which compresses about as prices do.
func payload() *framework.Event {
	data := fmt.Appendf(nil, `{"symbol":"BTC-%03d","price":%.4f,"volume":%.6f,"bid":%.4f,"ask":%.4f,"id":"%016x","t":%d`,
		rand.IntN(500), rand.Float64()*1e5, rand.Float64(), rand.Float64()*1e5, rand.Float64()*1e5, rand.Uint64(), time.Now().UnixNano())
	for len(data) < 199 {
		data = append(data, ' ')
	}
	data = append(data[:199], '}')
	return &framework.Event{ID: []byte("1"), Type: "price_update", Cursor: "1", Time: time.Now(), Data: data}
}

func payloads() []*framework.Event {
	events := make([]*framework.Event, 4096)
	for i := range events {
		events[i] = payload()
	}
	return events
}

// BenchmarkRawFile is the yardstick: a buffered file with a sync per group of
// up to 8,192 events or 5 ms.
func BenchmarkRawFile(b *testing.B) {
	events := payloads()
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var buf []byte
	group, since := 0, time.Now()
	flush := func() {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		buf, group, since = buf[:0], 0, time.Now()
	}
	n := 0
	for b.Loop() {
		buf = append(append(buf, events[n%len(events)].Data...), '\n')
		n++
		if group++; group == 8192 || group%64 == 0 && time.Since(since) > 5*time.Millisecond {
			flush()
		}
	}
	flush()
}

// BenchmarkAppend appends and makes durable at full speed.
func BenchmarkAppend(b *testing.B) {
	for _, readers := range []int{0, 1, 100} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			j := open(b, Config{Dir: b.TempDir()})
			l := stream(b, j, "a/s")
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			for range readers {
				go func() {
					for c, err := range j.Read(ctx, framework.Position{}, nil) {
						if err != nil || c.Err != nil {
							return
						}
					}
				}()
			}
			events := payloads()
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Append(ctx, events[n%len(events)]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			syncJournal(b, j)
		})
	}
}

// BenchmarkReadBack reads from the disk what was written.
func BenchmarkReadBack(b *testing.B) {
	j := open(b, Config{Dir: b.TempDir()})
	l := stream(b, j, "a/s")
	events := payloads()
	const total = 500_000
	for n := range total {
		if err := l.Append(b.Context(), events[n%len(events)]); err != nil {
			b.Fatal(err)
		}
	}
	syncJournal(b, j)
	for b.Loop() {
		n := 0
		for _, c := range readAll(b, j) {
			n += len(c.Events)
		}
		if n != total {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/total, "ns/event")
}
