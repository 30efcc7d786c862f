package sqlite

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

func BenchmarkWrite(b *testing.B) {
	const rows = 5000
	s, err := New(Config{File: filepath.Join(b.TempDir(), "bench.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	pos, err := s.Open(b.Context(), framework.SinkInfo{ID: "demo/bench", Journal: "aaaabbbbccccdddd"})
	if err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 200)
	records := make([]framework.Record, rows)
	b.SetBytes(rows * 200)
	for b.Loop() {
		to := pos
		to.Seq++
		to.Event = rows
		for i := range records {
			at := to
			at.Event = i + 1
			records[i] = framework.Record{Key: framework.Key{Position: at, Record: 1}, Stream: "demo/market", ID: "1234567", Type: "price_update", Time: time.Now(), Data: data}
		}
		if err := s.Write(b.Context(), &framework.Batch{From: pos, To: to, Records: records}); err != nil {
			b.Fatal(err)
		}
		pos = to
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
