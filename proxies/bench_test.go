package proxies

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// BenchmarkAcquire is one lease and one slot of it, taken and given back, where there is room.
func BenchmarkAcquire(b *testing.B) {
	p := newPool(b, Config{Exits: nExits(20), MaxConnsPerExit: 1000})
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		key := fmt.Sprint(n.Add(1))
		for pb.Next() {
			l, err := p.Lease(b.Context(), Request{Key: key})
			if err != nil {
				b.Error(err)
				return
			}
			if err := l.wait(b.Context(), l.exit.slots, ""); err != nil {
				b.Error(err)
				return
			}
			l.free(l.exit.slots)
			l.Release(Unused)
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "acquires/s")
}

// BenchmarkWaiters has 10,000 streams of 100 keys share 200 slots: each takes one, gives it back at once and waits again. The
// time of a wait, and how much longer than the mean key the worst one waits: at one exit the queue is fair; with many, keys that
// share an exit with others wait longer than those that have one for themselves.
func BenchmarkWaiters(b *testing.B) {
	for _, exits := range []int{1, 20} {
		b.Run(fmt.Sprintf("exits=%d", exits), func(b *testing.B) { benchmarkWaiters(b, exits) })
	}
}

func benchmarkWaiters(b *testing.B, exits int) {
	const waiters, keys, slots = 10000, 100, 200
	p := newPool(b, Config{Exits: nExits(exits), MaxConnsPerExit: slots / exits, WaitTimeout: time.Hour})
	var left atomic.Int64
	left.Store(int64(b.N) + waiters)
	waits := make([][]time.Duration, waiters)
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range waiters {
		wg.Go(func() {
			l, err := p.Lease(b.Context(), Request{Key: fmt.Sprint(i % keys)})
			if err != nil {
				b.Error(err)
				return
			}
			defer l.Release(Unused)
			for left.Add(-1) >= 0 {
				began := time.Now()
				if err := l.wait(b.Context(), l.exit.slots, ""); err != nil {
					b.Error(err)
					return
				}
				waits[i] = append(waits[i], time.Since(began))
				l.free(l.exit.slots)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	var all []time.Duration
	sums, counts := make([]time.Duration, keys), make([]int, keys)
	for i, ws := range waits {
		all = append(all, ws...)
		for _, w := range ws {
			sums[i%keys] += w
			counts[i%keys]++
		}
	}
	slices.Sort(all)
	worst, total := 0.0, 0.0
	for k := range keys {
		mean := sums[k].Seconds() / float64(max(counts[k], 1))
		worst, total = max(worst, mean), total+mean
	}
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "acquires/s")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(worst/(total/keys), "max/mean-wait")
}

// TestFewKeysMoveWithAQuarantine measures how many keys lose their exit, and so their login, when one of 20 is out.
func TestFewKeysMoveWithAQuarantine(t *testing.T) {
	const keys = 10000
	p := newPool(t, Config{Exits: nExits(20), MaxConnsPerExit: 2 * keys})
	where := func() []string {
		at := make([]string, keys)
		for i := range at {
			l := lease(t, p, Request{Key: fmt.Sprint(i)})
			at[i] = l.Exit().Name
			l.Release(Unused)
		}
		return at
	}
	before := where()
	lease(t, p, Request{Prefer: "e07"}).Release(ExitFailed)
	moved, needless := 0, 0
	for i, name := range where() {
		if name != before[i] {
			moved++
			if before[i] != "e07" {
				needless++
			}
		}
	}
	t.Logf("%.1f %% of the keys moved; with hash modulo the healthy ones it would be about 95 %%", 100*float64(moved)/keys)
	if share := float64(moved) / keys; needless > 0 || share < 0.03 || share > 0.07 {
		t.Errorf("%d of %d keys moved, %d of them without need", moved, keys, needless)
	}
}

// A simulation of choices: 20 exits of 10 slots, three of which fail four of five connects, and streams whose lengths have a
// heavy tail.
const (
	simExits, simCap, simSick = 20, 10, 3
	simArrivals, simSeeds     = 4000, 3
)

// chooser is a way to choose an exit.
type chooser interface {
	// choose returns an exit, or -1 when it finds none with room. load is what each carries.
	choose(r *rand.Rand, load []int) int
	// result tells how the connect went.
	result(exit int, good bool)
	// end tells that a stream ended.
	end(exit int)
}

// TestChoiceAgainstOthers prints failed connects and the spread of load of this pool's choice beside those of simpler ones,
// and fails when one of them is better at failed connects, or as good at them and spreads better.
func TestChoiceAgainstOthers(t *testing.T) {
	type score struct{ failed, spread, full float64 }
	names := []string{"round robin, no health", "random with quarantine", "least in flight, no health", "this pool"}
	scores := map[string]score{}
	for _, name := range names {
		var sum score
		for seed := range simSeeds {
			synctest.Test(t, func(t *testing.T) {
				var c chooser
				switch name {
				case "round robin, no health":
					c = &roundRobin{}
				case "random with quarantine":
					c = &randomOut{}
				case "least in flight, no health":
					c = leastInFlight{}
				default:
					c = &thisPool{t: t, p: newPool(t, Config{Exits: nExits(simExits), MaxConnsPerExit: simCap}), held: map[int][]*Lease{}}
				}
				failed, spread, full := simulate(c, rand.New(rand.NewPCG(uint64(seed), 7)))
				sum.failed += failed / simSeeds
				sum.spread += spread / simSeeds
				sum.full += full / simSeeds
			})
		}
		scores[name] = sum
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-28s %16s %10s %8s\n", "choice", "failed connects", "max/mean", "no slot")
	ours := scores["this pool"]
	for _, name := range names {
		s := scores[name]
		fmt.Fprintf(&table, "%-28s %14.1f %% %10.2f %6.1f %%\n", name, 100*s.failed, s.spread, 100*s.full)
		if s.failed < ours.failed-0.01 || name != "least in flight, no health" && name != "this pool" && s.spread < ours.spread {
			t.Errorf("%s is better", name)
		}
	}
	t.Logf("%d exits of %d slots, %d of them failing 80 %% of connects:\n%s", simExits, simCap, simSick, &table)
}

func simulate(c chooser, r *rand.Rand) (failed, spread, full float64) {
	load := make([]int, simExits)
	var ends endings
	tries, bad, noSlot := 0, 0, 0
	for range simArrivals {
		time.Sleep(time.Duration(r.ExpFloat64() * float64(time.Second)))
		for len(ends) > 0 && !time.Now().Before(ends[0].at) {
			e := heap.Pop(&ends).(ending)
			load[e.exit]--
			c.end(e.exit)
		}
		i := c.choose(r, load)
		if i < 0 {
			noSlot++
			continue
		}
		tries++
		good := i >= simSick || r.Float64() >= 0.8
		c.result(i, good)
		if !good {
			bad++
			continue
		}
		load[i]++
		most, sum := 0, 0
		for _, n := range load {
			most, sum = max(most, n), sum+n
		}
		spread += float64(most) * simExits / float64(sum)
		length := 35 * math.Pow(1-r.Float64(), -1/1.5) // Pareto, mean 105 s
		heap.Push(&ends, ending{time.Now().Add(time.Duration(length * float64(time.Second))), i})
	}
	for _, e := range ends {
		c.end(e.exit)
	}
	return float64(bad) / float64(tries), spread / float64(tries-bad), float64(noSlot) / simArrivals
}

type ending struct {
	at   time.Time
	exit int
}

type endings []ending

func (e endings) Len() int           { return len(e) }
func (e endings) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e endings) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *endings) Push(x any)        { *e = append(*e, x.(ending)) }
func (e *endings) Pop() any          { old := *e; x := old[len(old)-1]; *e = old[:len(old)-1]; return x }

type roundRobin struct{ next int }

func (c *roundRobin) choose(_ *rand.Rand, load []int) int {
	c.next = (c.next + 1) % simExits
	if load[c.next] >= simCap {
		return -1
	}
	return c.next
}
func (*roundRobin) result(int, bool) {}
func (*roundRobin) end(int)          {}

// randomOut chooses by chance among exits that are not out after three failures.
type randomOut struct {
	failed, level [simExits]int
	until         [simExits]time.Time
}

func (c *randomOut) choose(r *rand.Rand, load []int) int {
	var in []int
	for i := range load {
		if !time.Now().Before(c.until[i]) {
			in = append(in, i)
		}
	}
	if i := in[r.IntN(len(in))]; load[i] < simCap {
		return i
	}
	return -1
}

func (c *randomOut) result(i int, good bool) {
	if good {
		c.failed[i], c.level[i] = 0, 0
		return
	}
	if c.failed[i]++; c.failed[i] >= strikes || c.level[i] > 0 {
		c.until[i] = time.Now().Add(min(30*time.Second<<c.level[i], 30*time.Minute))
		c.failed[i] = 0
		c.level[i]++
	}
}
func (*randomOut) end(int) {}

type leastInFlight struct{}

func (leastInFlight) choose(_ *rand.Rand, load []int) int {
	best := 0
	for i := range load {
		if load[i] < load[best] {
			best = i
		}
	}
	if load[best] >= simCap {
		return -1
	}
	return best
}
func (leastInFlight) result(int, bool) {}
func (leastInFlight) end(int)          {}

// thisPool is the pool itself, with dials that are played.
type thisPool struct {
	t    *testing.T
	p    *Pool
	now  *Lease
	held map[int][]*Lease
}

func (c *thisPool) choose(_ *rand.Rand, load []int) int {
	c.now = lease(c.t, c.p, Request{})
	i := slices.Index(c.p.exits, c.now.exit)
	if load[i] >= simCap {
		c.now.Release(Unused)
		return -1
	}
	if err := c.now.wait(c.t.Context(), c.now.exit.slots, ""); err != nil {
		c.t.Fatal(err)
	}
	return i
}

func (c *thisPool) result(i int, good bool) {
	var derr *DialError
	if !good {
		derr = refusal(c.now.exit.Exit, &connectAnswer{Status: 502, Header: http.Header{}}, nil, time.Minute)
	}
	c.p.mu.Lock()
	c.p.dialled(c.now, derr, time.Now(), time.Now())
	c.p.unlock()
	c.held[i] = append(c.held[i], c.now)
	if !good {
		c.end(i)
	}
}

func (c *thisPool) end(i int) {
	l := c.held[i][len(c.held[i])-1]
	c.held[i] = c.held[i][:len(c.held[i])-1]
	l.free(l.exit.slots)
	l.Release(Unused)
}
