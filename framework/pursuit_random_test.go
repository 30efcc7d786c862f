package framework

import (
	"flag"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

var deepSeeds = flag.Int("splice.deep", 2, "how many random feeds TestDeepReplaysOfRandomFeeds makes")

// TestDeepReplaysOfRandomFeeds makes feeds without ids of which each connection
// begins with a replay that is longer than what the splice remembers.
func TestDeepReplaysOfRandomFeeds(t *testing.T) {
	for seed := range uint64(*deepSeeds) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { deepFeed(t, rand.New(rand.NewPCG(seed, 43))) })
		})
	}
}

func deepFeed(t *testing.T, rng *rand.Rand) {
	pick := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
	const events = 25_000
	site := &burst{every: time.Millisecond + pick(20*time.Millisecond), start: time.Now(), last: 1 << 30}
	values := []int{4, 40, 0, 0, 0}[rng.IntN(5)]
	salt := rng.Uint64()
	site.data = func(n int) string {
		if values == 0 {
			return strconv.Itoa(n)
		}
		return strconv.Itoa(rand.New(rand.NewPCG(uint64(n), salt)).IntN(values))
	}
	kind := []string{"none", "same", "stamps"}[rng.IntN(3)]
	switch kind {
	case "same":
		site.id = func(int) string { return "0" }
	case "stamps":
		site.id = func(n int) string { return strconv.Itoa(1e9 + n/3) }
	}
	site.pace = []time.Duration{0, site.every / 20, site.every / 4}[rng.IntN(3)]
	begins, begun := []int{1000, 5000, 9000, 20_000, 1 << 30}[rng.IntN(5)], rng.IntN(5000)
	lines := 1 + rng.IntN(3)
	site.first = func(k, next int) int {
		if k <= lines {
			return next - begun
		}
		return next - begins
	}
	life := events * site.every / time.Duration(2+rng.IntN(6))
	short := rng.IntN(3) == 0 // a replay is often cut
	site.life = func(int) time.Duration {
		if short && rng.IntN(2) == 0 {
			return pick(life / 50)
		}
		return life/2 + pick(life)
	}
	if rng.IntN(3) == 0 {
		site.lacks = func(k, n int) bool { return n%1000 < 3 && (n/1000+k)%5 == 0 }
	}
	s := &Stream{Target: site, Lines: lines}
	if rng.IntN(3) == 0 {
		s.Identities = NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{
			Source: &countingSource{life: life}, RenewBefore: life / 3, AttemptsPerHour: -1})})
	}
	s.Handover = []Handover{HandoverAuto, HandoverOverlap, HandoverBreak}[rng.IntN(3)]
	log := &pastLog{}
	time.Sleep(time.Duration(begun) * site.every)
	runs := 1 + rng.IntN(2)
	for range runs {
		log.hold(t, s, events*site.every/time.Duration(runs))
		if s.Identities != nil {
			s.Identities = nil
		}
	}
	a := log.tally()
	t.Logf("%s ids, %d values, replay %d, every %v, pace %v, %d lines, %d runs, life %v, short %v, lacks %v, handover %v: %+v, %d connections, asked %d times",
		kind, values, begins, site.every, site.pace, lines, runs, life, short, site.lacks != nil, s.Handover, a, site.conns, log.asked)
	switch {
	case site.open > 0:
		t.Errorf("%d connections are left open", site.open)
	case a.delivered < events/2 || site.lacks == nil && a.delivered < a.span:
		t.Errorf("%d events delivered of %d", a.delivered, a.span)
	case values > 0: // equal events cannot be told apart
	case a.twice > 0:
		t.Errorf("%d events are doubled without a word", a.twice)
	case site.lacks == nil && (a.lost > 0 || a.passed > 0 || a.doubled > 0):
		t.Errorf("%d events are lost, %d doubled", a.lost, a.doubled)
	}
}
