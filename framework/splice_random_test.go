package framework

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

var seeds = flag.Int("splice.seeds", 150, "how many random feeds TestSpliceOfRandomFeeds makes")

// TestSpliceOfRandomFeeds makes feeds, cuts, lags and replays at random and
// holds what was delivered against the truth. Nothing may be lost or doubled
// without a note at its place, nothing at all where the site replays.
func TestSpliceOfRandomFeeds(t *testing.T) {
	// Those beyond the first have found faults that are rare: lines that join
	// while others do, or after an outage that lasted longer for some.
	hard := []uint64{986, 1148, 1525, 1923, 1962, 1999, 2006, 2064, 2365, 2438, 2443, 4101}
	for i := range uint64(*seeds) + uint64(3*len(hard)) {
		seed := i
		if i >= uint64(*seeds) { // more than once: the waits between attempts have jitter of their own
			seed = hard[(i-uint64(*seeds))%uint64(len(hard))]
		}
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomFeed(t, rand.New(rand.NewPCG(seed, 42))) })
		})
	}
}

func randomFeed(t *testing.T, rng *rand.Rand) {
	pick := func(d time.Duration) time.Duration {
		return time.Duration(rng.Int64N(int64(d))).Round(time.Millisecond)
	}
	const last = 500
	site := &feedSite{every: 20*time.Millisecond + pick(500*time.Millisecond), start: time.Now(), last: last}

	// What tells events apart: unique data, ids, or neither quite.
	values, each := []int{2, 5, 40, last, last, last}[rng.IntN(6)], 1+rng.IntN(4)
	data := make([]string, last+1)
	for n := range data {
		if data[n] = strconv.Itoa(n); values < last {
			data[n] = strconv.Itoa(rng.IntN(values))
		}
	}
	site.data = func(n int) string { return data[n] }
	kind := []string{"none", "numbers", "opaque", "stamps"}[rng.IntN(4)]
	site.id = map[string]func(int) string{
		"none":    func(int) string { return "" },
		"numbers": strconv.Itoa,
		"opaque":  func(n int) string { return fmt.Sprintf("x%x", n*7919) },
		"stamps":  func(n int) string { return strconv.Itoa(1e9 + n/each) },
	}[kind]
	unique := values == last || kind == "numbers" || kind == "opaque"

	replay := []string{"exact", "before", "after", "ignores", "none"}[rng.IntN(5)]
	back := rng.IntN(50)
	site.first = func(from, next int) int {
		switch replay {
		case "exact":
			return from + 1
		case "before":
			return from + 1 - back
		case "after":
			return min(from+1+back, next)
		case "ignores":
			return 1
		}
		return next
	}
	replays := replay == "exact" || replay == "before" || replay == "ignores"

	life := 5*time.Second + pick(time.Minute)
	lag := []time.Duration{1, time.Second, 3 * time.Second}[rng.IntN(3)]
	site.fate = func(int) fate { return fate{after: life/2 + pick(life), mute: rng.IntN(2) == 0, lag: pick(lag)} }

	s := &Stream{Target: site, Lines: rng.IntN(4), StaleAfter: time.Second + pick(5*time.Second)}
	if rng.IntN(2) == 0 {
		s.Identities = NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{
			Source: &countingSource{life: 20*time.Second + pick(time.Minute)}, RenewBefore: 9 * time.Second, AttemptsPerHour: -1})})
	}
	s.Handover = []Handover{HandoverAuto, HandoverOverlap, HandoverBreak}[rng.IntN(3)]

	log := holdFor(t, s, last*site.every+time.Minute+77*time.Millisecond)
	a := log.account(site.id)
	defer func() {
		t.Logf("%s ids, %d values, replay %s, %d lines, lag %v, every %v: %d delivered, %d lost, %d doubled, %d gaps",
			kind, values, replay, max(s.Lines, 1), lag, site.every, a.delivered, a.lost, a.doubled, a.gaps)
	}()
	if site.open != 0 {
		t.Errorf("%d connections are left open", site.open)
	}
	if replays && a.lost > 0 && unique {
		t.Errorf("%d events are lost", a.lost)
	}
	if unique {
		if len(a.silently) > 0 {
			t.Errorf("without a word in the ledger: %v", a.silently)
		}
		if kind != "none" && kind != "stamps" && a.doubled > 0 {
			t.Errorf("%d events with ids are doubled", a.doubled)
		}
		return
	}
	// Equal events cannot be told apart: only their values count.
	var got []string
	first := 0
	for _, e := range log.entries {
		if e.gap == nil && e.epoch == nil {
			if first == 0 {
				first = e.n
			}
			got = append(got, e.value)
		}
	}
	switch want := data[first:]; {
	case a.gaps == 0 && !slices.Equal(got, want[:min(len(want), len(got))]):
		t.Errorf("without a word in the ledger: %d values delivered differ from those sent", len(got))
	case replays && len(got) < len(want):
		t.Errorf("%d of %d values were delivered", len(got), len(want))
	}
}
