package journal

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// usedSoFar is the processor time of this process and what it has written.
func usedSoFar(b *testing.B) (cpu time.Duration, written int64) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if v, ok := bytes.CutPrefix(line, []byte("write_bytes: ")); ok {
			if written, err = strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64); err != nil {
				b.Fatal(err)
			}
		}
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), written
}

// durable is what events are made durable in: the journal, or a raw file.
type durable interface {
	append(ev *framework.Event) error
	// done calls with the number of events that are durable, whenever it has
	// grown, until close.
	done(func(events int))
	close()
}

type journalLog struct {
	b    *testing.B
	j    *Journal
	l    framework.StreamLog
	over chan struct{}
	wg   sync.WaitGroup
}

// newJournalLog opens a journal, each sync of which takes that much longer.
func newJournalLog(b *testing.B, slower time.Duration) durable {
	j := open(b, Config{Dir: b.TempDir()})
	syncJournal(b, j)
	real := j.send
	j.send = func(ctx context.Context, s *store, p int, last uint64, msg []byte) (uint64, error) {
		time.Sleep(slower)
		return real(ctx, s, p, last, msg)
	}
	return &journalLog{b: b, j: j, l: stream(b, j, "a/s"), over: make(chan struct{})}
}

func (d *journalLog) append(ev *framework.Event) error { return d.l.Append(d.b.Context(), ev) }

func (d *journalLog) done(f func(int)) {
	p := d.j.parts[0]
	d.wg.Go(func() {
		for {
			p.mu.Lock()
			changed := p.changed
			p.mu.Unlock()
			f(int(d.l.Committed()))
			select {
			case <-changed:
			case <-d.over:
				return
			}
		}
	})
}

func (d *journalLog) close() {
	syncJournal(d.b, d.j)
	close(d.over)
	d.wg.Wait()
}

// rawLog syncs a file whenever the sync before is over and 5 ms have passed.
type rawLog struct {
	b      *testing.B
	file   *os.File
	slower time.Duration
	mu     sync.Mutex
	buf    []byte
	events int
	over   chan struct{}
	wg     sync.WaitGroup
}

func newRawLog(b *testing.B, slower time.Duration) durable {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	return &rawLog{b: b, file: f, slower: slower, over: make(chan struct{})}
}

func (d *rawLog) append(ev *framework.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.buf = append(append(d.buf, ev.Data...), '\n')
	d.events++
	return nil
}

func (d *rawLog) done(f func(int)) {
	d.wg.Go(func() {
		t := time.NewTicker(5 * time.Millisecond)
		defer t.Stop()
		var buf []byte
		for {
			select {
			case <-t.C:
			case <-d.over:
				return
			}
			d.mu.Lock()
			buf, d.buf = d.buf, buf[:0]
			n := d.events
			d.mu.Unlock()
			if len(buf) == 0 {
				continue
			}
			time.Sleep(d.slower)
			if _, err := d.file.Write(buf); err != nil {
				d.b.Error(err)
			}
			if err := d.file.Sync(); err != nil {
				d.b.Error(err)
			}
			f(n)
		}
	})
}

func (d *rawLog) close() {
	close(d.over)
	d.wg.Wait()
	d.file.Close()
}

// BenchmarkDurable paces events of 200 bytes and measures until they are
// durable, the journal and a raw file that is synced every 5 ms side by side,
// also with 2 ms added to every sync. An iteration is a tick: use -benchtime
// 20s or so.
func BenchmarkDurable(b *testing.B) {
	for _, pace := range []struct {
		group int
		every time.Duration
	}{{20, time.Millisecond}, {1, 100 * time.Millisecond}} {
		for _, slower := range []time.Duration{0, 2 * time.Millisecond} {
			for _, kind := range []string{"raw", "journal"} {
				rate := pace.group * int(time.Second/pace.every)
				b.Run(fmt.Sprintf("%s/rate=%d/slower=%v", kind, rate, slower), func(b *testing.B) {
					var log durable
					if kind == "raw" {
						log = newRawLog(b, slower)
					} else {
						log = newJournalLog(b, slower)
					}
					events := payloads()
					var mu sync.Mutex
					var sent []time.Time // of each group
					var took []time.Duration
					log.done(func(n int) {
						now := time.Now()
						mu.Lock()
						defer mu.Unlock()
						for len(took) < min(n/pace.group, len(sent)) {
							took = append(took, now.Sub(sent[len(took)]))
						}
					})
					cpu, written := usedSoFar(b)
					next, n := time.Now(), 0
					for b.Loop() {
						next = next.Add(pace.every)
						time.Sleep(time.Until(next))
						mu.Lock()
						sent = append(sent, time.Now())
						mu.Unlock()
						for range pace.group {
							if err := log.append(events[n%len(events)]); err != nil {
								b.Fatal(err)
							}
							n++
						}
					}
					log.close()
					cpu2, written2 := usedSoFar(b)
					slices.Sort(took)
					if len(took) == 0 {
						b.Fatal("nothing became durable")
					}
					ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
					b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
					b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
					b.ReportMetric(100*(cpu2-cpu).Seconds()/b.Elapsed().Seconds(), "%cpu")
					b.ReportMetric(float64(written2-written)/float64(n), "B-written/event")
				})
			}
		}
	}
}

// BenchmarkRawReadBack is the yardstick of BenchmarkReadBack: lines of a file.
func BenchmarkRawReadBack(b *testing.B) {
	path := filepath.Join(b.TempDir(), "raw")
	events := payloads()
	const total = 500_000
	var buf []byte
	for n := range total {
		buf = append(append(buf, events[n%len(events)].Data...), '\n')
	}
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for sc := bufio.NewScanner(f); sc.Scan(); n++ {
		}
		if f.Close(); n != total {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/total, "ns/event")
}

// BenchmarkTargets has a reader for each target, as sinks are, of a journal
// that takes 20,000 events a second altogether: what it reads from the disk and
// what it costs must not grow with the number of targets.
func BenchmarkTargets(b *testing.B) {
	for _, targets := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("targets=%d", targets), func(b *testing.B) {
			j := open(b, Config{Dir: b.TempDir()})
			ctx, cancel := context.WithCancel(b.Context())
			var got atomic.Int64
			var wg sync.WaitGroup
			logs := make([]framework.StreamLog, targets)
			for i := range logs {
				name := fmt.Sprintf("t%d/s", i)
				logs[i] = stream(b, j, name)
				wg.Go(func() {
					for c, err := range j.Read(ctx, framework.Position{}, func(s string) bool { return s == name }) {
						if err != nil {
							return
						}
						for k := range c.Events {
							if c.Streams[c.Events[k].Stream] == name {
								got.Add(1)
							}
						}
					}
				})
			}
			events := payloads()
			before := j.reading().reader.Stats().InMsgs
			cpu, _ := usedSoFar(b)
			next, n := time.Now(), 0
			for b.Loop() {
				next = next.Add(time.Millisecond)
				time.Sleep(time.Until(next))
				for range 20 {
					if err := logs[n%targets].Append(ctx, events[n%len(events)]); err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			syncJournal(b, j)
			for deadline := time.Now().Add(time.Minute); got.Load() < int64(n); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					b.Fatalf("%d of %d events were read", got.Load(), n)
				}
			}
			cpu2, _ := usedSoFar(b)
			b.ReportMetric(float64(j.reading().reader.Stats().InMsgs-before), "messages-from-disk")
			b.ReportMetric(100*(cpu2-cpu).Seconds()/b.Elapsed().Seconds(), "%cpu")
			cancel()
			wg.Wait()
		})
	}
}
