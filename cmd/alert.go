package cmd

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/alert"
	"github.com/holdline/scrape/internal/disk"
	"github.com/holdline/scrape/targets"
)

const (
	lookEvery = 2 * time.Second
	// sendLast is how long the end of a run waits for alerts on their way.
	sendLast = 10 * time.Second
)

// startAlerts tells what needs a person as long as the run lasts, and at its
// end.
func (w *wiring) startAlerts(stats func() framework.Stats) (stop func()) {
	machine, _ := os.Hostname() // it may be nameless
	var all []*told
	add := func(a *targets.Alerts, target string) {
		if a == nil {
			return
		}
		all = append(all, &told{
			target: target,
			watcher: alert.NewWatcher(alert.Rules{
				DownAfter: time.Duration(a.DownAfter), DeadShare: a.DeadLetterShare, DiskFree: uint64(a.DiskFree),
			}, machine),
			sender: alert.NewSender(alert.Way{Webhook: a.Webhook, Header: a.Headers, Command: a.Command}, w.log),
		})
	}
	if w.worker != nil {
		add(w.worker.Alerts, "")
	}
	for _, f := range w.files {
		add(f.Alerts, f.Name)
	}
	if len(all) == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var senders, looking sync.WaitGroup
	done, over := make(chan struct{}), make(chan struct{})
	for _, t := range all {
		senders.Go(func() { t.sender.Run(ctx, done) })
	}
	look := func() {
		v := alert.View{Stats: stats(), Dir: w.data}
		free, err := disk.Free(w.data)
		v.Free, v.FreeKnown = free, err == nil
		for _, t := range all {
			for _, a := range t.watcher.Look(time.Now(), t.of(v)) {
				t.sender.Send(a)
			}
		}
	}
	looking.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				look()
			case <-over:
				look()
				return
			}
		}
	})
	return func() {
		close(over)
		looking.Wait()
		close(done)
		last := time.AfterFunc(sendLast, cancel)
		senders.Wait()
		last.Stop()
		cancel()
	}
}

// told is somebody who is told of one target, or of all.
type told struct {
	target  string // empty: all
	watcher *alert.Watcher
	sender  *alert.Sender
}

// of leaves in the view what concerns the target.
func (t *told) of(v alert.View) alert.View {
	if t.target == "" {
		return v
	}
	prefix := t.target + "/"
	var s framework.Stats
	for _, st := range v.Stats.Streams {
		if strings.HasPrefix(st.Name, prefix) {
			s.Streams = append(s.Streams, st)
		}
	}
	for _, k := range v.Stats.Sinks {
		if strings.HasPrefix(k.ID, prefix) {
			s.Sinks = append(s.Sinks, k)
		}
	}
	v.Stats = s
	return v
}
