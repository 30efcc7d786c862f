// Package alert tells a person what a worker cannot mend by itself.
//
// A [Watcher] looks at the worker's account and says what has come to need a
// person, and what no longer does; a [Sender] brings that to a webhook or a
// command. Neither can hold the worker up.
package alert

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdline/scrape/framework"
)

// Kind is what an alert is about.
type Kind string

const (
	// Login: a stream waits because nobody can log in.
	Login Kind = "login_impossible"
	// ProxyPassword: a stream waits because the proxy refuses the password.
	ProxyPassword Kind = "proxy_password"
	// Down: a stream has not been live for long.
	Down Kind = "stream_down"
	// Failed: a stream was given up.
	Failed Kind = "stream_failed"
	// Gap: events are known to be missing.
	Gap Kind = "gap"
	// SinkDown: a sink has not taken anything for long.
	SinkDown Kind = "sink_down"
	// SinkDetached: a sink was let go, or does not belong to the journal.
	SinkDetached Kind = "sink_detached"
	// SinkLost: a part of the journal has not reached a sink, and will not.
	SinkLost Kind = "sink_lost"
	// DiskFull: the disk of the data directory is nearly full.
	DiskFull Kind = "disk_nearly_full"
	// DeadLetters: too large a share of a stream's events become dead letters.
	DeadLetters Kind = "dead_letters"
)

// Alert is one message.
type Alert struct {
	Kind Kind `json:"kind"`
	// Of is what it is about: a stream, a sink ("target/name") or a directory.
	Of   string `json:"of"`
	Text string `json:"text"`
	// Over says that what an earlier alert of this kind told is no longer so.
	// A gap or a loss is never over.
	Over bool      `json:"over"`
	Time time.Time `json:"time"`
	// Worker is the name of the machine.
	Worker string `json:"worker"`
}

// Rules say when there is something to tell. Zero fields mean the defaults.
type Rules struct {
	// DownAfter is how long a stream or a sink may be down; 0 means 10 min.
	DownAfter time.Duration
	// DeadShare is the share of a stream's events, over DeadWindow, that may
	// become dead letters; 0 means 0.01. Fewer than ten are never too many.
	DeadShare float64
	// DiskFree is how many bytes must be free; 0 means 1 GiB.
	DiskFree uint64
}

const (
	// loginAfter is how long a login may fail: a single failure is mended by
	// the next try.
	loginAfter = 30 * time.Second
	deadWindow = 5 * time.Minute
	deadLeast  = 10
	// gapsEvery bounds how often the gaps of one stream are told.
	gapsEvery = time.Minute
)

// View is what a Watcher looks at.
type View struct {
	Stats framework.Stats
	// Dir is the data directory, Free the bytes free on its disk; FreeKnown
	// tells whether that is known.
	Dir       string
	Free      uint64
	FreeKnown bool
}

// Watcher turns accounts into alerts. It is used by one goroutine.
type Watcher struct {
	rules   Rules
	worker  string
	raised  map[subject]time.Time // since when
	streams map[string]*streamView
	sinks   map[string]time.Time // since when they do not deliver
	lost    map[string]uint64    // chunks that did not reach a sink, as they were told
}

type subject struct {
	kind Kind
	of   string
}

type streamView struct {
	down     time.Time // since when; zero while live
	refused  time.Time // since when the login, or the proxy, refuses us
	gaps     int       // known ones that were told
	gapsTold time.Time
	counts   []count // over the window, oldest first
}

type count struct {
	at           time.Time
	events, dead uint64
}

// NewWatcher returns a watcher for the machine.
func NewWatcher(r Rules, machine string) *Watcher {
	if r.DownAfter <= 0 {
		r.DownAfter = 10 * time.Minute
	}
	if r.DeadShare <= 0 {
		r.DeadShare = 0.01
	}
	if r.DiskFree == 0 {
		r.DiskFree = 1 << 30
	}
	return &Watcher{rules: r, worker: machine, raised: map[subject]time.Time{}, streams: map[string]*streamView{}, sinks: map[string]time.Time{}, lost: map[string]uint64{}}
}

// Look compares the view with those before and returns what is new. It is
// called every few seconds.
func (w *Watcher) Look(now time.Time, v View) (alerts []Alert) {
	tell := func(kind Kind, of string, is bool, text string) {
		key := subject{kind, of}
		since, was := w.raised[key]
		switch {
		case is && !was:
			w.raised[key] = now
			alerts = append(alerts, Alert{Kind: kind, Of: of, Text: text, Time: now, Worker: w.worker})
		case !is && was:
			delete(w.raised, key)
			alerts = append(alerts, Alert{Kind: kind, Of: of, Over: true, Time: now, Worker: w.worker,
				Text: fmt.Sprintf("over after %v", now.Sub(since).Round(time.Second))})
		}
	}
	for i := range v.Stats.Streams {
		alerts = append(alerts, w.stream(now, &v.Stats.Streams[i], tell)...)
	}
	for i := range v.Stats.Sinks {
		s := &v.Stats.Sinks[i]
		w.sink(now, s, tell)
		if n := s.Lost - min(s.Lost, w.lost[s.ID]); n > 0 {
			w.lost[s.ID] = s.Lost
			alerts = append(alerts, Alert{Kind: SinkLost, Of: s.ID, Time: now, Worker: w.worker,
				Text: fmt.Sprintf("%d chunks of the journal were damaged or dropped before the sink had read them: scrape coverage tells which", n)})
		}
	}
	if v.FreeKnown {
		low := v.Free < w.rules.DiskFree
		if _, was := w.raised[subject{DiskFull, v.Dir}]; was {
			low = v.Free < w.rules.DiskFree+w.rules.DiskFree/10 // not up and down at the limit
		}
		tell(DiskFull, v.Dir, low, fmt.Sprintf("%d MiB are free, less than %d MiB: when nothing is left, reading stops", v.Free>>20, w.rules.DiskFree>>20))
	}
	return alerts
}

func (w *Watcher) stream(now time.Time, s *framework.StreamStats, tell func(Kind, string, bool, string)) (alerts []Alert) {
	v := w.streams[s.Name]
	if v == nil {
		v = &streamView{}
		w.streams[s.Name] = v
	}
	over := s.State == "live" || s.State == "done" || s.State == "stopped"
	switch {
	case over:
		v.down = time.Time{}
	case v.down.IsZero():
		v.down = now
	}
	cause, _, _ := strings.Cut(s.Detail, ",")
	login, proxy := cause == string(framework.CauseLogin), cause == string(framework.CauseProxyAuth)
	switch {
	case over:
		v.refused = time.Time{}
	case s.State == "waiting" && (login || proxy):
		if v.refused.IsZero() {
			v.refused = now
		}
	case s.State == "waiting":
		v.refused = time.Time{} // something else is in the way now
	}
	refused := !v.refused.IsZero() && now.Sub(v.refused) >= loginAfter
	_, wasLogin := w.raised[subject{Login, s.Name}]
	_, wasProxy := w.raised[subject{ProxyPassword, s.Name}]
	tell(Login, s.Name, refused && (login || wasLogin), s.Error)
	tell(ProxyPassword, s.Name, refused && (proxy || wasProxy), s.Error)
	tell(Failed, s.Name, s.State == "failed", s.Error)
	tell(Down, s.Name, s.State != "failed" && !v.down.IsZero() && now.Sub(v.down) >= w.rules.DownAfter,
		fmt.Sprintf("not live for %v: %s", w.rules.DownAfter, s.Error))

	var known []framework.Gap
	for _, g := range s.Gaps {
		if g.State == framework.GapKnown {
			known = append(known, g)
		}
	}
	if n := len(known) + int(s.GapsOmitted); n < v.gaps {
		v.gaps = n // some were filled
	} else if n > v.gaps && now.Sub(v.gapsTold) >= gapsEvery {
		alerts = append(alerts, Alert{Kind: Gap, Of: s.Name, Time: now, Worker: w.worker, Text: gapText(known, n-v.gaps)})
		v.gaps, v.gapsTold = n, now
	}

	if n := len(v.counts); n > 0 && (s.Events < v.counts[n-1].events || s.DeadLetters < v.counts[n-1].dead) {
		v.counts = nil // it was taken out and put back
	}
	if n := len(v.counts); n == 0 {
		v.counts = append(v.counts, count{at: now}) // the run has just begun
	} else if now.Sub(v.counts[n-1].at) >= deadWindow/10 {
		v.counts = append(v.counts, count{now, s.Events, s.DeadLetters})
	}
	for len(v.counts) > 1 && now.Sub(v.counts[1].at) >= deadWindow {
		v.counts = v.counts[1:]
	}
	events, dead := s.Events-v.counts[0].events, s.DeadLetters-v.counts[0].dead
	tell(DeadLetters, s.Name, dead >= deadLeast && float64(dead) > w.rules.DeadShare*float64(events),
		fmt.Sprintf("%d dead letters in the last %d events: scrape dead list says why", dead, events))
	return alerts
}

// gapText tells of the last n gaps.
func gapText(known []framework.Gap, n int) string {
	if n != 1 || len(known) == 0 {
		return fmt.Sprintf("%d gaps are known to have come up: scrape coverage tells them", n)
	}
	g := known[len(known)-1]
	if g.Missing == 0 {
		return fmt.Sprintf("events are missing from %s to %s: scrape coverage tells more", g.From.Format(time.RFC3339), g.To.Format(time.RFC3339))
	}
	return fmt.Sprintf("%d events are missing, numbers %d to %d: scrape coverage tells more", g.Missing, g.FirstID, g.LastID)
}

func (w *Watcher) sink(now time.Time, s *framework.SinkStats, tell func(Kind, string, bool, string)) {
	gone := s.State == "failed" || s.State == "detached"
	if s.State != "waiting" {
		delete(w.sinks, s.ID)
	} else if _, ok := w.sinks[s.ID]; !ok {
		w.sinks[s.ID] = now
	}
	since, waits := w.sinks[s.ID]
	tell(SinkDetached, s.ID, gone, s.Error)
	tell(SinkDown, s.ID, waits && now.Sub(since) >= w.rules.DownAfter, s.Error)
}
