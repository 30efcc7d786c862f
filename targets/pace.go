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

// checkPace finds streams that could not all be open at once, or could not move
// from exit to exit as fast as these end.
func (f *File) checkPace(s *section) {
	if s.bad["limits"] || s.bad["streams"] {
		return
	}
	hosts, streams := map[string]int{}, map[string]int{}
	all := 0
	for _, st := range f.Streams {
		if u, err := url.Parse(st.URL); err == nil && u.Host != "" {
			hosts[u.Host] += st.Lines
			streams[u.Host]++
			all += st.Lines
		}
	}
	for _, host := range keysOf(hosts) {
		if n := hosts[host]; n > f.Limits.StreamsPerHost {
			s.wrong("limits", fmt.Sprintf("%d connections are to be held to %s at once, and limits.streams_per_host is %d", n, show(host), f.Limits.StreamsPerHost),
				"raise streams_per_host if the site allows it, or hold fewer streams")
			return
		}
	}
	if f.Auth != nil && all > f.Limits.StreamsPerCredential {
		s.wrong("limits", fmt.Sprintf("%d connections are to be held with one credential at once, and limits.streams_per_credential is %d", all, f.Limits.StreamsPerCredential),
			"raise streams_per_credential if the site allows it, or hold fewer streams")
		return
	}
	if f.Proxies == nil || s.bad["proxies"] {
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
	for _, host := range keysOf(hosts) {
		// What the burst does not cover takes turns, for which there is half of
		// the exit's time: the next exit's runs from the first who takes it.
		moves := max(hosts[host], 2*(hosts[host]-f.Limits.Burst))
		need := float64(moves) / usable.Seconds()
		if need <= f.Limits.ConnectsPerSecond {
			continue
		}
		enough := time.Duration(float64(moves) / f.Limits.ConnectsPerSecond * float64(time.Second) * 8 / 7)
		s.wrong("proxies", fmt.Sprintf("%d streams of %s that leave their exit every %v need %.2g connects a second, and limits.connects_per_second is %.2g",
			streams[host], show(host), Duration(life), need, f.Limits.ConnectsPerSecond),
			fmt.Sprintf("raise lifetime to about %v, or connects_per_second, or hold fewer streams", Duration((enough+10*time.Second).Round(time.Second))))
		return
	}
}
