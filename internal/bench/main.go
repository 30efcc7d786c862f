// Bench measures the project beside its peers and prints Markdown tables.
//
// CPU time is that of all threads of the process (getrusage), and what is
// compared runs in turns: numbers of one run on a busy machine can be compared
// with each other, and ratios with those of other runs.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 15, "how often each measurement is repeated")
	streams := flag.Int("streams", 5000, "how many streams idle in the measurement of memory")
	days := flag.Int("days", 7, "simulated days of each rhythm")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: bench [flags] decode|client|memory|watch|deliver|latency|outage ...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := run(flag.Args(), *rounds, *streams, *days); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(what []string, rounds, streams, days int) error {
	if len(what) == 3 && what[0] == "idle" { // a process of its own
		return idle(what[1], what[2], streams)
	}
	if len(what) == 1 && what[0] == "serve" { // another one
		return serve()
	}
	if len(what) == 5 && what[0] == "byhand" { // a peer
		return byHand(what[1], what[2], what[3], what[4])
	}
	if len(what) == 0 {
		what = []string{"decode", "client", "memory", "watch", "deliver", "latency", "outage"}
	}
	fmt.Printf("%s, %s/%s, %d cores, load %s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), load())
	for _, w := range what {
		measure, ok := map[string]func() error{
			"decode":  func() error { return decode(rounds) },
			"client":  func() error { return client(rounds) },
			"memory":  func() error { return memory(streams) },
			"watch":   func() error { return rhythms(days) },
			"deliver": func() error { return deliver(rounds) },
			"latency": latency,
			"outage":  outage,
		}[w]
		if !ok {
			return fmt.Errorf("there is no measurement %q", w)
		}
		if err := measure(); err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
	}
	return nil
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil || len(b) < 4 {
		return "unknown"
	}
	return string(b[:4])
}

// cpu is the CPU time of all threads so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// contestant is one of several ways to do the same.
type contestant struct {
	name string
	// run does it once and tells how many events it saw.
	run func() (events int, err error)
}

// result is what a contestant took an event, round by round.
type result struct {
	cpu    []float64 // ns
	allocs float64
}

// contest has all contestants run in turns.
func contest(rounds, passes, events int, all []contestant) ([]result, error) {
	results := make([]result, len(all))
	for round := range rounds + 1 {
		for i, c := range all {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := cpu()
			for range passes {
				n, err := c.run()
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c.name, err)
				}
				if n != events {
					return nil, fmt.Errorf("%s saw %d events of %d", c.name, n, events)
				}
			}
			took := cpu() - began
			runtime.ReadMemStats(&after)
			if round == 0 {
				continue // warming up
			}
			n := float64(passes * events)
			results[i].cpu = append(results[i].cpu, float64(took.Nanoseconds())/n)
			results[i].allocs = float64(after.Mallocs-before.Mallocs) / n
		}
	}
	return results, nil
}

func median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	return s[len(s)/2]
}

// ratio is the median of what a took for each unit that b took in the same
// round.
func ratio(a, b result) float64 {
	r := make([]float64, len(a.cpu))
	for i := range r {
		r[i] = a.cpu[i] / b.cpu[i]
	}
	return median(r)
}
