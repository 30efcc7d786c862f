package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdline/scrape/internal/watch"
)

// feeds are the rhythms of a healthy line. Each returns the pauses of a feed,
// one after the other, in seconds; now is the time of the day.
var feeds = []struct {
	name string
	feed func(r *rand.Rand) func(now float64) float64
}{
	{"Poisson, 0.01 a second", poisson(0.01)},
	{"Poisson, 0.1 a second", poisson(0.1)},
	{"Poisson, 1 a second", poisson(1)},
	{"Poisson, 10 a second", poisson(10)},
	{"Poisson, 50 a second", poisson(50)},
	{"Poisson, 200 a second", poisson(200)},
	{"Poisson, 1,000 a second", poisson(1000)},
	{"bursts: 50 a second for 5 s, none for 30 s", onOff(50, 5, 30)},
	{"bursts: 50 a second for 1 min, none for 10 s", onOff(50, 60, 10)},
	{"bursts: 50 a second for 10 min, none for 30 s", onOff(50, 600, 30)},
	{"heavy tail: Pareto, from 10 ms, exponent 1.5", pareto(0.01, 1.5)},
	{"heavy tail: Pareto, from 100 ms, exponent 1.2", pareto(0.1, 1.2)},
	{"day and night: 50 a second falling to 0.05, heartbeats each 15 s", tide(15)},
	{"market: 50 a second by day, heartbeats each 15 s by night", market(15)},
	{"market: 50 a second by day, nothing by night", market(math.Inf(1))},
	{"heartbeats each 15 s", heartbeats(15)},
	{"heartbeats each 60 s", heartbeats(60)},
}

func poisson(rate float64) func(*rand.Rand) func(float64) float64 {
	return func(r *rand.Rand) func(float64) float64 {
		return func(float64) float64 { return r.ExpFloat64() / rate }
	}
}

// onOff is a Poisson feed that falls silent now and then; the lengths of both
// are exponential.
func onOff(rate, on, off float64) func(*rand.Rand) func(float64) float64 {
	return func(r *rand.Rand) func(float64) float64 {
		left := 0.0
		return func(float64) float64 {
			pause := r.ExpFloat64() / rate
			if left -= pause; left < 0 {
				left = r.ExpFloat64() * on
				pause += r.ExpFloat64() * off
			}
			return pause
		}
	}
}

func pareto(least, exponent float64) func(*rand.Rand) func(float64) float64 {
	return func(r *rand.Rand) func(float64) float64 {
		return func(float64) float64 { return least * math.Pow(1-r.Float64(), -1/exponent) }
	}
}

// tide rises and falls with the day, exponentially.
func tide(heartbeat float64) func(*rand.Rand) func(float64) float64 {
	return func(r *rand.Rand) func(float64) float64 {
		return func(now float64) float64 {
			height := math.Sin(now/86400*2*math.Pi)/2 + 0.5
			return min(r.ExpFloat64()/(0.05*math.Pow(50/0.05, height)), heartbeat)
		}
	}
}

// market is closed for eight hours a day.
func market(heartbeat float64) func(*rand.Rand) func(float64) float64 {
	return func(r *rand.Rand) func(float64) float64 {
		return func(now float64) float64 {
			if now < 16*3600 {
				return r.ExpFloat64() / 50
			}
			return min(86400-now, heartbeat)
		}
	}
}

func heartbeats(every float64) func(*rand.Rand) func(float64) float64 {
	return func(r *rand.Rand) func(float64) float64 {
		return func(float64) float64 { return every + 0.05*r.NormFloat64() }
	}
}

// rhythms simulates what the learnt limit of the byte clock does to healthy
// lines, and how soon it would notice that one has died.
func rhythms(days int) error {
	fmt.Printf("\n### Silence: `stale_after: auto`, %d simulated days of each rhythm\n\nDetection is the limit in force at a moment taken at random after the first hour.\n\n| feed | detection, median | 95 %% | most | false alarms a day | of them rotations |\n|---|--:|--:|--:|--:|--:|\n", days)
	for _, f := range feeds {
		limits, alarms, rotations := simulate(f.feed(rand.New(rand.NewPCG(1, 2))), float64(days)*86400)
		at := func(share float64) string {
			return duration(limits[int(share*float64(len(limits)-1))]).Round(100 * time.Millisecond).String()
		}
		fmt.Printf("| %s | %s | %s | %s | %.1f | %.1f |\n", f.name, at(0.5), at(0.95), at(1), float64(alarms)/float64(days), float64(rotations)/float64(days))
	}
	return nil
}

// simulate plays a healthy feed to a rhythm as the engine does: after an alarm
// a fresh line waits longer, and from the third on twice as long each time.
func simulate(feed func(now float64) float64, length float64) (limits []float64, alarms, rotations int) {
	const patience, ceiling = 20.0, 600.0
	var r watch.Rhythm
	next := 3600.0
	for now := 0.0; now < length; {
		rest := feed(math.Mod(now, 86400))
		now += rest
		learnt := r.Limit().Seconds()
		for ; next < now; next += 60 {
			limits = append(limits, learnt)
		}
		for limit, silences := learnt, 0; rest > limit; {
			r.Alarm(duration(limit))
			rest -= limit
			alarms++
			if silences++; silences == 2 {
				rotations++
			}
			least := max(patience, r.Limit().Seconds())
			limit = min(least*math.Pow(2, float64(max(silences-2, 0))), max(ceiling, least))
		}
		r.Add(duration(rest))
	}
	slices.Sort(limits)
	return limits, alarms, rotations
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
