package proxies

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// homes leases n keys, each alone, and tells where they went.
func homes(t testing.TB, p *Pool, n int) []string {
	names := make([]string, n)
	for i := range names {
		l := lease(t, p, Request{Key: fmt.Sprintf("key-%d", i)})
		names[i] = l.Exit().Name
		l.Release(Unused)
	}
	return names
}

func TestQuarantineMovesOnlyTheKeysOfItsExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wired(t, Config{Exits: nExits(20)}, works)
		const keys = 5000
		before := homes(t, p, keys)
		counts := map[string]int{}
		for _, name := range before {
			counts[name]++
		}
		for name, n := range counts {
			if n < keys/20*8/10 || n > keys/20*12/10 {
				t.Errorf("%s is home to %d of %d keys", name, n, keys)
			}
		}
		lease(t, p, Request{Prefer: "e07"}).Release(ExitFailed)
		moved := 0
		for i, name := range homes(t, p, keys) {
			if name == before[i] {
				continue
			}
			moved++
			if before[i] != "e07" {
				t.Fatalf("key %d moved from %s, which is well", i, before[i])
			}
		}
		if moved != counts["e07"] || moved >= keys/10 {
			t.Errorf("%d keys moved, e07 had %d", moved, counts["e07"])
		}
		time.Sleep(time.Minute)
		probe := lease(t, p, Request{Prefer: "e07"})
		probe.Release(Healthy)
		if after := homes(t, p, keys); !slices.Equal(after, before) {
			t.Error("keys did not come home")
		}
	})
}

// TestHomesOutliveThisProgram holds the hash to what it was: a change would move every key, and cost its login.
func TestHomesOutliveThisProgram(t *testing.T) {
	p := newPool(t, Config{Exits: nExits(20), Seed: "seed"})
	const want = "e00 e10 e18 e19 e19 e13"
	if got := strings.Join(homes(t, p, 6), " "); got != want {
		t.Errorf("homes are %s, were %s", got, want)
	}
	exits := nExits(20)
	rand.Shuffle(len(exits), func(i, j int) { exits[i], exits[j] = exits[j], exits[i] })
	for i := range exits {
		exits[i].URL.User = url.UserPassword("new", "password")
	}
	if got := strings.Join(homes(t, newPool(t, Config{Exits: exits, Seed: "seed"}), 6), " "); got != want {
		t.Errorf("order and password move keys: %s", got)
	}
	if got := strings.Join(homes(t, newPool(t, Config{Exits: nExits(20), Seed: "other"}), 6), " "); got == want {
		t.Error("the seed has no effect")
	}
}

func TestLoadIsBounded(t *testing.T) {
	for _, key := range []string{"key", ""} {
		p := newPool(t, Config{Exits: nExits(10), MaxConnsPerExit: 4})
		for n := 1; n <= 100; n++ {
			r := Request{}
			if key != "" {
				r.Key = fmt.Sprint(key, n)
			}
			lease(t, p, r)
			for _, s := range p.Stats() {
				// Within the cap while there is room anywhere, evenly above it.
				if most := max(4, (n+9)/10); s.Leases > most {
					t.Fatalf("%q: %d leases, %d of them at %s", key, n, s.Leases, s.Name)
				}
			}
		}
	}
}

func TestUnkeyedLeasesSpreadAndShunFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wired(t, Config{Exits: nExits(20), MaxConnsPerExit: 10}, func(proxy string) string {
			if proxy < "10.0.0.12" && rand.IntN(10) < 8 { // 0, 1, 10 and 11
				return dead("")
			}
			return established
		})
		const leases = 4000
		failed := 0
		var live []*Lease
		for range leases {
			l := lease(t, p, Request{})
			if dialOnce(l) != nil {
				failed++
			}
			live = append(live, l)
			if len(live) > 80 {
				i := rand.IntN(len(live))
				live[i].Release(Healthy)
				live = slices.Delete(live, i, i+1)
			}
			time.Sleep(time.Second)
		}
		if failed == 0 || failed > leases*5/100 {
			t.Errorf("%d of %d dials failed, a fifth of the exits being sick", failed, leases)
		}
		most := 0
		for _, s := range p.Stats() {
			most = max(most, s.Leases)
		}
		if most > 8 {
			t.Errorf("%d leases at one exit, the mean is 4", most)
		}
	})
}

func TestKindFallbackPreferAndAvoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := append(nExits(4), Exit{})
		for i, k := range []Kind{ISP, ISP, Residential, Residential} {
			exits[i].Kind = k
		}
		p, _ := wired(t, Config{Exits: exits}, works)
		from := func(r Request) string {
			t.Helper()
			seen := map[string]bool{}
			for i := range 50 {
				r.Key = fmt.Sprint(i)
				l := lease(t, p, r)
				seen[l.Exit().Name] = true
				l.Release(Unused)
			}
			names := []string{}
			for name := range seen {
				names = append(names, name)
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		check := func(r Request, want string) {
			t.Helper()
			if got := from(r); got != want {
				t.Errorf("%+v gives %s, want %s", r, got, want)
			}
		}
		check(Request{}, "direct e00 e01 e02 e03")
		check(Request{Kind: ISP}, "e00 e01")
		check(Request{Kind: ISP, Fallback: Residential}, "e00 e01")
		check(Request{Kind: Direct}, "direct")
		check(Request{Kind: ISP, Prefer: "e01"}, "e01")
		check(Request{Kind: ISP, Prefer: "e03"}, "e00 e01")
		check(Request{Kind: ISP, Avoid: []string{"e00"}}, "e01")
		check(Request{Kind: ISP, Avoid: []string{"e00", "e01"}}, "e00 e01")
		check(Request{Kind: ISP, Fallback: Residential, Avoid: []string{"e00", "e01"}}, "e02 e03")

		if _, err := p.Lease(t.Context(), Request{Kind: Datacenter}); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "none of kind datacenter") {
			t.Errorf("%v", err)
		}
		lease(t, p, Request{Kind: ISP, Prefer: "e00"}).Release(ExitFailed)
		check(Request{Kind: ISP, Fallback: Residential}, "e01")
		check(Request{Kind: ISP, Fallback: Residential, Prefer: "e00"}, "e01")
		time.Sleep(20 * time.Second) // so that the quarantine of e00 ends first
		lease(t, p, Request{Kind: ISP, Prefer: "e01"}).Release(ExitFailed)
		check(Request{Kind: ISP}, "e00")
		check(Request{Kind: ISP, Fallback: Residential}, "e02 e03")
	})
}

func BenchmarkLease(b *testing.B) {
	for _, n := range []int{20, 500} {
		for _, key := range []string{"", "key"} {
			b.Run(fmt.Sprintf("exits=%d/key=%t", n, key != ""), func(b *testing.B) {
				p := newPool(b, Config{Exits: nExits(n)})
				b.ReportAllocs()
				for b.Loop() {
					l, err := p.Lease(b.Context(), Request{Key: key})
					if err != nil {
						b.Fatal(err)
					}
					l.Release(Healthy)
				}
			})
		}
	}
}

// BenchmarkSlot hands a slot on while 10,000 of 1,000 keys wait.
func BenchmarkSlot(b *testing.B) {
	s := newSlots(1)
	holder := s.join("0")
	s.serve(time.Now())
	for i := range 10_000 {
		s.join(fmt.Sprint(i % 1000))
	}
	b.ReportAllocs()
	for b.Loop() {
		next := s.turns.Front().Value.(*line).waiters.Front().Value.(*waiter)
		s.join(holder.key)
		s.put(holder.key)
		s.serve(time.Time{})
		holder = next
	}
}
