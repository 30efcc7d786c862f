package cmd

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
	"github.com/holdline/scrape/auth/oauth"
	"github.com/holdline/scrape/auth/store"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/deadletter"
	"github.com/holdline/scrape/internal/journal"
	"github.com/holdline/scrape/internal/sse"
	"github.com/holdline/scrape/proxies"
	"github.com/holdline/scrape/targets"
)

// unfinishedBytes bounds the unfinished events of all streams together.
const unfinishedBytes = 256 << 20

// wiring makes a worker's configuration of target files.
type wiring struct {
	files   []*targets.File
	worker  *targets.Worker
	journal *journal.Journal  // nil outside of a run
	dead    *deadletter.Store // nil where none are kept
	seed    string            // of the choice of exits, the same after a restart
	runtime *browser.Runtime  // nil when no target needs a browser
	kept    *store.Store      // nil when no credentials are kept
	logins  map[*targets.File][]*browser.Source
	hooks   map[string]browser.Hook
	prompt  func(oauth.Prompt) // shows a person what to do
	byHand  bool               // a person logs in
	headed  bool               // in a browser's window
	data    string
	adopt   []string
	restart []string // sinks that are to begin anew
	log     *slog.Logger

	wired    map[string]*wired // by target
	commons  *proxies.Commons  // what all pools share
	followed []followed
	named    []namedPool                  // all pools, for `scrape proxies list`
	pools    map[string]*proxies.Pool     // by name in scrape.yaml
	limits   map[string]*framework.Limits // by host
	budget   *sse.Budget
}

// wired is what a target has.
type wired struct {
	pool       *proxies.Pool // nil where it leaves directly
	keeper     *auth.Keeper  // nil where it is anonymous
	logins     []*browser.Source
	identities *framework.Identities
	streams    map[string]*framework.Stream // by their names in the file
}

// reset has nothing shared yet, but what an earlier run has kept of the exits.
func (w *wiring) reset() {
	w.recallExits()
	w.wired, w.logins = map[string]*wired{}, map[*targets.File][]*browser.Source{}
	w.pools, w.limits, w.budget = map[string]*proxies.Pool{}, map[string]*framework.Limits{}, sse.NewBudget(unfinishedBytes)
}

func (w *wiring) config() (framework.Config, error) {
	w.reset()
	c := framework.Config{Log: w.log}
	if w.journal != nil {
		c.Journal = w.journal
	}
	if w.worker != nil {
		c.MaxBytes, c.WhenFull = int64(w.worker.Journal.MaxBytes), framework.FullPolicy(w.worker.Journal.WhenFull)
	}
	w.setLimits()
	known := []string{}
	for _, f := range w.files {
		t, err := w.wire(f, wired{})
		if err != nil {
			return c, fmt.Errorf("%s: %w", f.Path, err)
		}
		for i := range f.Streams {
			st := &f.Streams[i]
			t.streams[st.Name] = w.stream(f, st, t.identities)
			c.Streams = append(c.Streams, t.streams[st.Name])
		}
		for i := range f.Sinks {
			sink := w.sink(f, &f.Sinks[i])
			known = append(known, sink.ID)
			c.Sinks = append(c.Sinks, sink)
		}
		if w.dead != nil {
			c.Sinks = append(c.Sinks, framework.SinkConfig{
				ID:      deadSink(f.Name),
				New:     func() (framework.Sink, error) { return w.dead.Consumer(), nil },
				Wants:   func(stream string) bool { return strings.HasPrefix(stream, f.Name+"/") },
				Refused: true,
			})
			c.DeadLetters = w.dead.Keep
		}
	}
	for _, flag := range []struct {
		name string
		ids  []string
	}{{"--adopt", w.adopt}, {"--restart-sink", w.restart}} {
		for _, id := range flag.ids {
			if !slices.Contains(known, id) {
				return c, fmt.Errorf("%s %s: there is no such sink; the sinks are %s", flag.name, id, strings.Join(known, ", "))
			}
		}
	}
	return c, nil
}

// paces are how hard each host may be knocked at. Two targets may name one: the
// stricter wish counts.
func (w *wiring) paces() map[string]*framework.Limits {
	paces := map[string]*framework.Limits{}
	for _, f := range w.files {
		for i := range f.Streams {
			host := framework.Request{URL: f.Streams[i].URL}.Host()
			p := paces[host]
			if p == nil {
				p = &framework.Limits{ConnectsPerSecond: f.Limits.ConnectsPerSecond, Burst: f.Limits.Burst, StreamsPerHost: f.Limits.StreamsPerHost}
				paces[host] = p
			}
			p.ConnectsPerSecond = min(p.ConnectsPerSecond, f.Limits.ConnectsPerSecond)
			p.Burst = min(p.Burst, f.Limits.Burst)
			p.StreamsPerHost = min(p.StreamsPerHost, f.Limits.StreamsPerHost)
		}
	}
	return paces
}

// setLimits gives hosts limits that have none yet.
func (w *wiring) setLimits() {
	for host, pace := range w.paces() {
		if w.limits[host] == nil {
			w.limits[host] = pace
		}
	}
}

func (w *wiring) stream(f *targets.File, st *targets.Stream, identities *framework.Identities) *framework.Stream {
	host := framework.Request{URL: st.URL}.Host()
	held := &framework.Stream{
		Name:         f.Name + "/" + st.Name,
		Target:       f.Target,
		Host:         host,
		Identities:   identities,
		Page:         st.InPage(),
		Types:        st.Types,
		Decoder:      f.Decoder(st),
		StaleAfter:   staleAfter(time.Duration(st.StaleAfter), st.Done != "" || st.OnEnd == "stop"),
		QuietAfter:   time.Duration(st.QuietAfter),
		MinWait:      time.Duration(st.Reconnect.Min),
		MaxWait:      time.Duration(st.Reconnect.Max),
		HealthyAfter: time.Duration(st.Reconnect.HealthyAfter),
		Handover:     st.Handover,
		Lines:        st.Lines,
		ReplayCheck:  st.ReplayCheck,
		From:         framework.Cursor(st.From),
		Limits:       w.limits[host],
		Budget:       w.budget,
		Log:          w.log,
	}
	if st.Sequence != "" {
		held.Sequence = framework.JSONSequence(st.Sequence)
	}
	if st.Backfill != nil {
		held.Backfill = backfill(st.Backfill)
	}
	return held
}

func backfill(b *targets.Backfill) *framework.Backfill {
	return &framework.Backfill{
		Host: framework.Request{URL: b.URL}.Host(),
		Fetch: func(ctx context.Context, s *framework.Session, first, last uint64) ([]framework.Event, error) {
			h := framework.History{URL: b.URL, Each: b.Each, ID: b.ID, Type: b.Type, Data: b.Data, Header: map[string]string{}}
			for name, value := range b.Headers {
				h.Header[name] = value.Reveal()
			}
			return h.Fetch(ctx, s, first, last)
		},
	}
}

// staleAfter is how long a stream may be silent; 0 learns it. A finite stream
// teaches no rhythm: it may think for a while between two bursts, and what is
// cut off does not come again.
func staleAfter(d time.Duration, finite bool) time.Duration {
	if d == 0 && finite {
		return 45 * time.Second
	}
	return d
}

func (w *wiring) sink(f *targets.File, s *targets.Sink) framework.SinkConfig {
	id, prefix := f.Name+"/"+s.Name, f.Name+"/"
	return framework.SinkConfig{
		ID: id,
		New: func() (framework.Sink, error) {
			return s.Plan.New(targets.SinkPlace{Target: f.Name, Name: s.Name, Data: w.data, Log: w.log})
		},
		Wants:        func(stream string) bool { return strings.HasPrefix(stream, prefix) },
		Where:        s.Wanted,
		BatchRecords: s.Batch.Records,
		BatchEvery:   time.Duration(s.Batch.Every),
		Latest:       s.Start == "latest",
		MaxLag:       time.Duration(s.MaxLag.Time),
		MaxLagBytes:  int64(s.MaxLag.Bytes),
		Adopt:        slices.Contains(w.adopt, id),
		Restart:      slices.Contains(w.restart, id),
	}
}

// wire makes what the streams of a target share, but for what is kept.
func (w *wiring) wire(f *targets.File, kept wired) (*wired, error) {
	t := &kept
	t.streams, w.wired[f.Name] = map[string]*framework.Stream{}, t
	if t.identities != nil {
		return t, nil
	}
	c := framework.IdentityConfig{Key: f.Name, Hosts: credentialHosts(f), MaxStreams: f.Limits.StreamsPerCredential, Log: w.log.With("target", f.Name)}
	var err error
	if p := f.Proxies; p != nil {
		c.Kind, c.Fallback = p.Kind, p.Fallback
		if t.pool == nil {
			if t.pool, err = w.pool(f); err != nil {
				return nil, err
			}
		}
		c.Pool = t.pool
	}
	if f.Auth != nil {
		if t.keeper == nil {
			if t.keeper, err = w.keeper(f); err != nil {
				return nil, err
			}
			t.logins = w.logins[f]
		}
		c.Keeper = t.keeper
	}
	if readsInside(f) && !w.byHand {
		c.Browser = &browser.Reader{Runtime: w.runtime, Logins: t.logins, Log: w.log.With("target", f.Name)}
	}
	t.identities = framework.NewIdentities(c)
	return t, nil
}

// credentialHosts are those that may see the target's credential. The first one
// is the target's.
func credentialHosts(f *targets.File) (hosts []string) {
	addresses := []string{}
	for i := range f.Streams {
		addresses = append(addresses, f.Streams[i].URL)
	}
	for i := range f.Streams {
		if b := f.Streams[i].Backfill; b != nil {
			addresses = append(addresses, b.URL)
		}
	}
	for _, address := range addresses {
		if u, err := url.Parse(address); err == nil && u.Host != "" && !slices.Contains(hosts, u.Host) {
			hosts = append(hosts, u.Host)
		}
	}
	if h, ok := f.Target.(framework.Hoster); ok {
		hosts = append(hosts, h.Hosts()...)
	}
	return hosts
}

// readsInside tells whether a stream is read inside the browser.
func readsInside(f *targets.File) bool {
	return slices.ContainsFunc(f.Streams, func(st targets.Stream) bool { return st.InPage() != nil })
}

// demoDir is where a demo site keeps what it must remember: one directory for
// each listen address, so that two of them do not share a market.
func (w *wiring) demoDir(kind string, n int) string {
	if n == 0 {
		return filepath.Join(w.data, kind)
	}
	return filepath.Join(w.data, fmt.Sprintf("%s-%d", kind, n+1))
}

// startDemos serves the demo sites that the files ask for, each once.
func (w *wiring) startDemos(ctx context.Context) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	var seen []any
	for _, f := range w.files {
		if f.Demo == nil || slices.Contains(seen, f.Demo.Plan.Settings) {
			continue
		}
		site, err := f.Demo.Plan.New(w.demoDir("demo", len(seen)), w.log.With("demo", f.Demo.Kind))
		if err == nil {
			var s func()
			if s, err = serve(ctx, site, w.log); err == nil {
				stops = append(stops, s)
			}
		}
		if err != nil {
			stop()
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		seen = append(seen, f.Demo.Plan.Settings)
	}
	return stop, nil
}

// queries are the lines that tell how to look at what the sinks hold.
func (w *wiring) queries() (lines []string) {
	for _, f := range w.files {
		for i := range f.Sinks {
			sink, err := w.sink(f, &f.Sinks[i]).New()
			if err != nil {
				continue
			}
			if q, ok := sink.(interface {
				Query() (file, statement string)
			}); ok {
				file, statement := q.Query()
				lines = append(lines, fmt.Sprintf("Look at it with\n  %s query %s '%s'", os.Args[0], file, statement))
			}
		}
	}
	return lines
}
