package targets

import (
	"fmt"
	"math"
	"net/url"
	"time"
)

// usableLife is how long a stream stays with an exit that is kept for life:
// the pool ends its lease up to a tenth earlier, and the engine begins to move
// before that.
func usableLife(life time.Duration) time.Duration {
	const before = 5 * time.Second
	return life - min(life/8, 37500*time.Millisecond) - before
}

// checkPace finds streams that could not move from exit to exit as fast as
// these end.
func (f *File) checkPace(s *section) {
	if f.Proxies == nil || s.bad["proxies"] || s.bad["limits"] {
		return
	}
	life := time.Duration(math.MaxInt64)
	for _, e := range f.Proxies.used() {
		if e.Lifetime > 0 {
			life = min(life, e.Lifetime)
		}
	}
	if life == math.MaxInt64 {
		return
	}
	usable := usableLife(life)
	if usable <= 0 {
		s.wrong("proxies", fmt.Sprintf("an exit is kept for %v, and is left before it could be used", Duration(life)), "raise lifetime to 10s at least")
		return
	}
	hosts := map[string]int{}
	for _, st := range f.Streams {
		if u, err := url.Parse(st.URL); err == nil {
			hosts[u.Host]++
		}
	}
	for _, host := range keysOf(hosts) {
		need := float64(hosts[host]) / usable.Seconds()
		if need <= f.Limits.ConnectsPerSecond {
			continue
		}
		enough := time.Duration(float64(hosts[host]) / f.Limits.ConnectsPerSecond * float64(time.Second) * 8 / 7)
		s.wrong("proxies", fmt.Sprintf("%d streams of %s that leave their exit every %v need %.2g connects a second, and limits.connects_per_second is %.2g",
			hosts[host], show(host), Duration(life), need, f.Limits.ConnectsPerSecond),
			fmt.Sprintf("raise lifetime to about %v, or connects_per_second, or hold fewer streams", Duration((enough+10*time.Second).Round(time.Second))))
		return
	}
}
