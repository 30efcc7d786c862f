package cmd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
	"github.com/holdline/scrape/framework"
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
	journal framework.Journal
	runtime *browser.Runtime // nil when no target needs a browser
	data    string
	adopt   []string
	log     *slog.Logger

	pools  map[string]*proxies.Pool     // by name in scrape.yaml
	limits map[string]*framework.Limits // by host
	budget *sse.Budget
}

func (w *wiring) config() (framework.Config, error) {
	w.pools, w.limits, w.budget = map[string]*proxies.Pool{}, map[string]*framework.Limits{}, sse.NewBudget(unfinishedBytes)
	c := framework.Config{Journal: w.journal, Log: w.log}
	known := []string{}
	for _, f := range w.files {
		identities, err := w.identities(f)
		if err != nil {
			return c, fmt.Errorf("%s: %w", f.Path, err)
		}
		for i := range f.Streams {
			c.Streams = append(c.Streams, w.stream(f, &f.Streams[i], identities))
		}
		for i := range f.Sinks {
			sink := w.sink(f, &f.Sinks[i])
			known = append(known, sink.ID)
			c.Sinks = append(c.Sinks, sink)
		}
	}
	for _, id := range w.adopt {
		if !slices.Contains(known, id) {
			return c, fmt.Errorf("--adopt %s: there is no such sink; the sinks are %s", id, strings.Join(known, ", "))
		}
	}
	return c, nil
}

func (w *wiring) stream(f *targets.File, st *targets.Stream, identities *framework.Identities) *framework.Stream {
	host := framework.Request{URL: st.URL}.Host()
	limits := w.limits[host]
	if limits == nil {
		limits = &framework.Limits{ConnectsPerSecond: f.Limits.ConnectsPerSecond, Burst: f.Limits.Burst}
		w.limits[host] = limits
	}
	// Two targets may name one host: the stricter wish counts.
	limits.ConnectsPerSecond = min(limits.ConnectsPerSecond, f.Limits.ConnectsPerSecond)
	limits.Burst = min(limits.Burst, f.Limits.Burst)
	held := &framework.Stream{
		Name:         f.Name + "/" + st.Name,
		Target:       f.Target,
		Host:         host,
		Identities:   identities,
		Types:        st.Types,
		StaleAfter:   staleAfter(time.Duration(st.StaleAfter), st.Done != "" || st.OnEnd == "stop"),
		QuietAfter:   time.Duration(st.QuietAfter),
		MinWait:      time.Duration(st.Reconnect.Min),
		MaxWait:      time.Duration(st.Reconnect.Max),
		HealthyAfter: time.Duration(st.Reconnect.HealthyAfter),
		Handover:     st.Handover,
		Lines:        st.Lines,
		ReplayCheck:  st.ReplayCheck,
		From:         framework.Cursor(st.From),
		Limits:       limits,
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
		BatchRecords: s.Batch.Records,
		BatchEvery:   time.Duration(s.Batch.Every),
		Adopt:        slices.Contains(w.adopt, id),
	}
}

func (w *wiring) identities(f *targets.File) (*framework.Identities, error) {
	c := framework.IdentityConfig{Key: f.Name, Log: w.log.With("target", f.Name)}
	addresses := []string{}
	for i := range f.Streams {
		addresses = append(addresses, f.Streams[i].URL)
	}
	for i := range f.Streams { // after the streams': the first host is the target's
		if b := f.Streams[i].Backfill; b != nil {
			addresses = append(addresses, b.URL)
		}
	}
	for _, address := range addresses {
		if u, err := url.Parse(address); err == nil && u.Host != "" && !slices.Contains(c.Hosts, u.Host) {
			c.Hosts = append(c.Hosts, u.Host)
		}
	}
	if h, ok := f.Target.(framework.Hoster); ok {
		c.Hosts = append(c.Hosts, h.Hosts()...)
	}
	var err error
	if p := f.Proxies; p != nil {
		c.Kind, c.Fallback = p.Kind, p.Fallback
		if c.Pool, err = w.pool(p); err != nil {
			return nil, err
		}
	}
	if f.Auth != nil {
		source, err := w.source(f)
		if err != nil {
			return nil, err
		}
		c.Keeper = auth.NewKeeper(auth.Config{
			Name:            f.Name,
			Source:          source,
			RenewBefore:     time.Duration(f.Auth.RenewBefore),
			AttemptsPerHour: f.Auth.AttemptsPerHour,
			Log:             w.log, // the Name is in every line
		})
	}
	return framework.NewIdentities(c), nil
}

// pool makes the pool of a target, or takes the one that targets share.
func (w *wiring) pool(p *targets.Proxies) (*proxies.Pool, error) {
	exits := &p.Exits
	if p.Pool != "" {
		if shared := w.pools[p.Pool]; shared != nil {
			return shared, nil
		}
		exits = &w.worker.Pools[p.Pool].Exits
	}
	pool, err := proxies.New(proxies.Config{
		Exits:           exits.List(),
		MaxConnsPerExit: exits.MaxConns,
		Seed:            string(w.journal.ID()), // the same choice after a restart
		Log:             w.log,
	})
	if err == nil && p.Pool != "" {
		w.pools[p.Pool] = pool
	}
	return pool, err
}

func (w *wiring) source(f *targets.File) (auth.Source, error) {
	if f.Auth.Static != nil {
		return static(f), nil
	}
	b := f.Auth.Browser
	header := map[string]string{}
	for name, template := range b.Headers {
		header[name] = lateReferences.Replace(template.Reveal())
	}
	c := browser.SourceConfig{
		Runtime:      w.runtime,
		Header:       header,
		ArtifactsDir: filepath.Join(w.data, "artifacts", f.Name),
		Log:          w.log.With("target", f.Name),
	}
	field := "body" // where a key is pressed: the field of the step before
	for _, s := range b.Steps {
		if s.Fill != "" {
			field = s.Fill
		}
		c.Steps = append(c.Steps, browserStep(s, field))
	}
	source, err := browser.NewSource(c)
	if err != nil || f.Auth.BoundTo == "exit" {
		return source, err
	}
	return unbound{source}, nil
}

// unbound is a login whose credential works through every exit, as its target
// file says.
type unbound struct{ auth.Source }

func (unbound) Bound() auth.Binding { return auth.BoundToNone }

// static is the source of headers and cookies that do not change. Its cookies
// are for the hosts of the target's streams.
func static(f *targets.File) auth.Source {
	header := http.Header{}
	for name, value := range f.Auth.Static.Headers {
		header.Set(name, value.Reveal())
	}
	var cookies []*http.Cookie
	for i := range f.Streams {
		u, err := url.Parse(f.Streams[i].URL)
		if err != nil {
			continue // Load has said so
		}
		for name, value := range f.Auth.Static.Cookies {
			cookies = append(cookies, &http.Cookie{Name: name, Value: value.Reveal(), Domain: u.Hostname(), Path: "/"})
		}
	}
	return auth.Static(header, cookies)
}

// lateReferences turns the references of target files into those of
// auth/browser.
var lateReferences = strings.NewReplacer("${storage:", "${storage.", "${cookie:", "${cookie.")

func browserStep(s targets.Step, field string) browser.Step {
	to := browser.Step{Timeout: time.Duration(s.Timeout), ErrorSelector: s.FailOn}
	switch {
	case s.Open != "":
		to.Do, to.Target = browser.Open, s.Open
	case s.Fill != "":
		to.Do, to.Target, to.Value = browser.Fill, s.Fill, s.Value
	case s.Click != "":
		to.Do, to.Target = browser.Click, s.Click
	case s.Press != "":
		to.Do, to.Target, to.Value = browser.Press, field, auth.NewSecret(s.Press)
	case s.Wait.Cookie != "":
		to.Do, to.Target = browser.WaitCookie, s.Wait.Cookie
	case s.Wait.Selector != "":
		to.Do, to.Target = browser.WaitSelector, s.Wait.Selector
	case s.Wait.URL != "":
		to.Do, to.Target = browser.WaitURL, s.Wait.URL
	case s.Wait.Storage != "":
		to.Do, to.Target = browser.WaitStorage, s.Wait.Storage
	}
	return to
}

// deadLetters keeps dead letters as JSON lines.
type deadLetters struct {
	path string
	mu   sync.Mutex
	file *os.File
}

// deadLine is one line of the file.
type deadLine struct {
	Key    string    `json:"key"`
	Stream string    `json:"stream"`
	Sink   string    `json:"sink"`
	Reason string    `json:"reason"`
	ID     string    `json:"id"`
	Type   string    `json:"event"`
	Time   time.Time `json:"time"`
	Data   []byte    `json:"data"` // base64: it may not be text
}

func (d *deadLetters) keep(l framework.DeadLetter) error {
	line, err := json.Marshal(deadLine{l.Key.String(), l.Stream, l.Sink, l.Reason, l.Event.ID, l.Event.Type, l.Event.Time, l.Event.Data})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		if d.file, err = os.OpenFile(d.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return err
		}
	}
	if _, err := d.file.Write(append(line, '\n')); err != nil {
		return err
	}
	return d.file.Sync()
}

func (d *deadLetters) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file != nil {
		d.file.Close()
	}
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

// needsBrowser tells whether any target logs in through a browser.
func (w *wiring) needsBrowser() bool {
	return slices.ContainsFunc(w.files, func(f *targets.File) bool { return f.Auth != nil && f.Auth.Browser != nil })
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
