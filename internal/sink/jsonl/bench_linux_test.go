package jsonl

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// BenchmarkWrite writes payloads of 200 bytes, each batch durable.
func BenchmarkWrite(b *testing.B) {
	for _, compress := range []bool{false, true} {
		for _, size := range []int{500, 5000} {
			b.Run(fmt.Sprintf("zstd=%v/batch=%d", compress, size), func(b *testing.B) {
				s := newSink(b, Config{Dir: b.TempDir(), Compress: compress})
				pos, err := s.Open(b.Context(), info)
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				records := make([]framework.Record, size)
				for i := range records {
					records[i] = record(i + 1)
					records[i].Data = fmt.Appendf(nil, `{"n":%d,"symbol":"ACME","price":%d.50,"note":"%s"}`, 1e6+i, i*i%997, strings.Repeat("x", 145))
				}
				b.SetBytes(int64(size * len(records[0].Data)))
				before := cpu(b)
				for b.Loop() {
					to := pos
					to.Seq, to.Event = pos.Seq+1, size
					now := time.Now()
					for i := range records {
						records[i].Key.Seq, records[i].Time = to.Seq, now
					}
					if err := s.Write(b.Context(), &framework.Batch{From: pos, To: to, Records: records}); err != nil {
						b.Fatal(err)
					}
					pos = to
				}
				rows := float64(size) * float64(b.N)
				b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(cpu(b)-before)/rows, "cpu-ns/row")
			})
		}
	}
}

// cpu is the time that this process has had of the processors.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
