package cmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/auth/browser"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/proxies"
	"github.com/holdline/scrape/targets"
)

func (a *app) reloadCommand() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use: "reload", Short: "Have the worker that is running read its files again", Args: cobra.NoArgs,
		Long: `reload has the worker that runs with this data directory read its target files
and scrape.yaml again, as SIGHUP does. Where something is wrong with them, or has
changed that needs a restart, nothing is changed and the reason is told. Else a
stream whose definition has become another one is handed over to it, as before
the end of a lease: the new connection delivers before the old one is closed,
where handover and the site allow that. All others keep their connections. New
streams begin, those that are gone end, and what they brought is delivered.
Other records are for what each sink takes from then on.

A restart is needed for other sinks, alerts, demos, journals and names of
targets, and for other sequence, replay_check and backfill.

Exit codes: 0 done, 1 no worker answers, 2 nothing was changed.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.reload(c.Context(), data) },
	}
	c.Flags().StringVar(&data, "data", "data", "the data directory of the worker")
	return c
}

func (a *app) reload(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var done reloaded
	if err := askWorker(ctx, data, http.MethodPost, "/reload", nil, &done); err != nil {
		return err
	}
	rows := done.rows()
	for _, row := range rows {
		fmt.Fprintf(a.stdout, "%s: %s\n", row.name, row.what)
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.stdout, "nothing has changed")
	}
	return nil
}

// reloaded is the answer to /reload: names of streams, of targets whose limits
// are others, and of pools or targets whose exits are.
type reloaded struct {
	Added, Removed, Changed, Decoded []string
	Limits, Exits                    []string
}

type reloadedRow struct{ name, what string }

func (d *reloaded) rows() (rows []reloadedRow) {
	for _, part := range []struct {
		names []string
		what  string
	}{
		{d.Added, "added"},
		{d.Removed, "removed"},
		{d.Changed, "changed, and is being handed over"},
		{d.Decoded, "changed in its records; its connections stay"},
		{d.Limits, "other limits from now on"},
		{d.Exits, "other exits from now on"},
	} {
		for _, name := range part.names {
			rows = append(rows, reloadedRow{name, part.what})
		}
	}
	return rows
}

// reloader changes what a worker holds while it runs.
type reloader struct {
	app     *app
	held    *framework.Worker
	paths   []string
	config  string
	keyFile string
	log     *slog.Logger

	mu sync.Mutex // of the wiring, too, from here on
	w  *wiring
}

// reload reads the files again and takes up what has changed. An error of
// ExitUsage says that nothing was changed.
func (r *reloader) reload(ctx context.Context) (done reloaded, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		if exit := (*exitError)(nil); errors.As(err, &exit) && exit.code == ExitUsage {
			r.log.Error("the files were not taken up, and everything goes on as it was", "error", err)
			return
		} else if err != nil {
			r.log.Error("the files were taken up in part: start again", "error", err)
		}
		for _, row := range done.rows() {
			r.log.Info("reloaded", "of", row.name, "what", row.what)
		}
		r.log.Info("the files were read again", "changes", len(done.rows()))
	}()
	files, worker, err := r.app.load(r.paths, r.config)
	if err != nil {
		return done, fail(ExitUsage, err)
	}
	next := r.w.follow(files, worker)
	if next.kept == nil {
		next.keep(r.keyFile)
	}
	if fixed := next.fixed(r.w); len(fixed) > 0 {
		return done, fail(ExitUsage, errors.New(strings.Join(fixed, "\n")))
	}
	streams, err := next.goOn(r.w)
	if err == nil {
		var updated framework.Updated
		updated, err = r.held.Update(ctx, streams)
		done.Added, done.Removed, done.Changed, done.Decoded = updated.Added, updated.Removed, updated.Changed, updated.Decoded
	}
	if err != nil {
		for name, t := range next.wired {
			if was := r.w.wired[name]; t.identities != nil && t.identities != was.identities {
				t.identities.Close()
			}
		}
		next.closePools(r.w)
		switch rows := done.rows(); {
		case len(rows) > 0: // the journal failed: the worker is about to end
			return done, fail(ExitError, err)
		case errors.Is(err, framework.ErrNotHeld):
			return done, fail(ExitUsage, fmt.Errorf("%w: it is about to begin or to end; try again", err))
		}
		return done, fail(ExitUsage, fmt.Errorf("%w: restart to apply", err))
	}
	done.Limits, done.Exits, err = next.settle(r.w)
	r.w.closePools(next)
	next.dropPools()
	r.w = next
	return done, err
}

// closePools closes the pools that a target of w has and none of others: what
// they ask for of exits counts no more. What leaves by them is being handed over.
func (w *wiring) closePools(others *wiring) {
	for _, t := range w.wired {
		if t.pool != nil && !others.has(t.pool) {
			t.pool.Close()
		}
	}
}

// dropPools forgets the pools that no target has any more.
func (w *wiring) dropPools() {
	maps.DeleteFunc(w.pools, func(_ string, p *proxies.Pool) bool { return !w.has(p) })
	w.named = slices.DeleteFunc(w.named, func(p namedPool) bool { return !w.has(p.pool) })
}

// has tells whether a target has the pool.
func (w *wiring) has(p *proxies.Pool) bool {
	for _, t := range w.wired {
		if t.pool == p {
			return true
		}
	}
	return false
}

// takenUp is the answer to /login: whether the worker holds the target, and how
// many of its streams begin again.
type takenUp struct {
	Held    bool
	Revived int
}

// takeUp has a target go on with what somebody else has logged in for: streams
// that wait for a login do it, and those begin again that were given up.
func (r *reloader) takeUp(ctx context.Context, target string) (done takenUp, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.w.wired[target]
	if t == nil || t.keeper == nil {
		return done, nil
	}
	done.Held = true
	t.keeper.Look()
	done.Revived, err = r.held.Revive(ctx, func(stream string) bool { return strings.HasPrefix(stream, target+"/") })
	if done.Revived > 0 {
		r.log.Info("begins again with a login made by hand", "target", target, "streams", done.Revived)
	}
	return done, err
}

// pools are those of the worker.
func (r *reloader) pools() []namedPool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.w.named
}

// onHangup reloads whenever the process gets a SIGHUP, until the function it
// returns is called. One that tells of the end of the terminal drains.
func (r *reloader) onHangup(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	hangups, over := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	shown := isTerminal(r.app.stderr)
	go func() {
		defer close(over)
		for {
			select {
			case <-hangups:
				if shown && !isTerminal(r.app.stderr) {
					r.held.Drain()
					continue
				}
				_, _ = r.reload(ctx) // the log tells
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { signal.Stop(hangups); cancel(); <-over }
}

// follow is a wiring of other readings of the same files, which shares with w
// what outlasts them.
func (w *wiring) follow(files []*targets.File, worker *targets.Worker) *wiring {
	next := *w
	next.files, next.worker = files, worker
	next.pools, next.limits, next.logins = maps.Clone(w.pools), maps.Clone(w.limits), map[*targets.File][]*browser.Source{}
	next.named, next.wired = slices.Clone(w.named), map[string]*wired{}
	return &next
}

// fixed tells what has changed since was and cannot be while a worker runs.
func (w *wiring) fixed(was *wiring) (reasons []string) {
	other := func(what string, same bool) {
		if !same {
			reasons = append(reasons, what+" changed: restart to apply")
		}
	}
	other("the journal in scrape.yaml", targets.Same(was.worker.Journal, w.worker.Journal))
	other("the alerts in scrape.yaml", targets.Same(was.worker.Alerts, w.worker.Alerts))
	for i, f := range w.files {
		old := was.files[i]
		if f.Name != old.Name {
			reasons = append(reasons, fmt.Sprintf("%s: the name of the target changed from %s to %s: restart to apply", f.Path, old.Name, f.Name))
			continue
		}
		other("sinks of "+f.Name, targets.Same(old.Sinks, f.Sinks))
		other("alerts of "+f.Name, targets.Same(old.Alerts, f.Alerts))
		other("demo of "+f.Name, (f.Demo == nil) == (old.Demo == nil) && (f.Demo == nil || f.Demo.Kind == old.Demo.Kind && f.Demo.Plan.Settings == old.Demo.Plan.Settings))
		if needsBrowser(f) && w.runtime == nil {
			reasons = append(reasons, f.Name+" needs a browser now: restart to apply")
		}
		if p, q := w.exits(f), was.exits(old); p != nil && q != nil {
			other("what is watched of the exits of "+f.Name, p.Echo == q.Echo && p.AccountConns == q.AccountConns)
			other("the file with the exits of "+f.Name, p.File == q.File && (p.File == "" || targets.Same(p, q)))
		} else if p != nil && p.File != "" {
			other("the file with the exits of "+f.Name, false)
		}
		for i := range f.Streams {
			st := &f.Streams[i]
			if its := streamOf(old, st.Name); its != nil {
				name := f.Name + "/" + st.Name
				other("sequence of "+name, its.Sequence == st.Sequence)
				other("replay_check of "+name, its.ReplayCheck == st.ReplayCheck)
				other("backfill of "+name, targets.Same(its.Backfill, st.Backfill))
				if !f.SameRecords(st, old, its) && slices.ContainsFunc(f.Sinks, func(s targets.Sink) bool { return s.Where != "" }) {
					other("records of "+name+", of which a sink has where,", false)
				}
			}
		}
	}
	return reasons
}

func needsBrowser(f *targets.File) bool {
	return readsInside(f) || f.Auth != nil && slices.ContainsFunc(f.Auth.Parts(), func(c *targets.Credential) bool { return c.Browser != nil })
}

func streamOf(f *targets.File, name string) *targets.Stream {
	for i := range f.Streams {
		if f.Streams[i].Name == name {
			return &f.Streams[i]
		}
	}
	return nil
}

// goOn wires the streams. What the files say as before stays what it was: the
// same *Stream, Identities, Keeper and Pool.
func (w *wiring) goOn(was *wiring) (streams []*framework.Stream, err error) {
	w.setLimits()
	for i, f := range w.files {
		old, before := was.files[i], was.wired[f.Name]
		t, err := w.wire(f, before.kept(old, f))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		for i := range f.Streams {
			st := &f.Streams[i]
			its, held := streamOf(old, st.Name), before.streams[st.Name]
			var s *framework.Stream
			switch {
			case its == nil || t.identities != before.identities || !f.SamePlugin(old) || !targets.Same(asRead(its), asRead(st)):
				s = w.stream(f, st, t.identities)
			case f.SameRecords(st, old, its):
				s = held
			default:
				s = held.WithDecoder(f.Decoder(st))
			}
			t.streams[st.Name] = s
			streams = append(streams, s)
		}
	}
	return streams, nil
}

// asRead is what matters for how a stream is read once it is held.
func asRead(st *targets.Stream) *targets.Stream {
	c := *st
	c.Records, c.From = nil, ""
	return &c
}

// kept is what is left of t for a target whose file was old and is f.
func (t *wired) kept(old, f *targets.File) wired {
	var kept wired
	mode := func(p *targets.Proxies) (pool string, wants [2]string) {
		if p == nil {
			return "\x00", wants
		}
		return p.Pool, [2]string{string(p.Kind), string(p.Fallback)}
	}
	pool, wants := mode(old.Proxies)
	nowPool, nowWants := mode(f.Proxies)
	if pool == nowPool {
		kept.pool = t.pool
	}
	hosts, inside := slices.Equal(credentialHosts(old), credentialHosts(f)), readsInside(old) == readsInside(f)
	bound := func(c *targets.Credential) bool { return c.Cookies != nil || c.CookieFile != nil }
	if targets.Same(old.Auth, f.Auth) && inside && (hosts || f.Auth == nil || !slices.ContainsFunc(f.Auth.Parts(), bound)) {
		kept.keeper, kept.logins = t.keeper, t.logins
		if hosts && pool == nowPool && wants == nowWants {
			kept.identities = t.identities
		}
	}
	return kept
}

// settle applies what needs no other connection: limits and lists of exits. It
// tells whose they are.
func (w *wiring) settle(was *wiring) (limits, exits []string, err error) {
	for host, pace := range w.paces() {
		w.limits[host].Change(pace)
	}
	for i, f := range w.files {
		old, t := was.files[i], w.wired[f.Name]
		if !targets.Same(old.Limits, f.Limits) {
			limits = append(limits, f.Name)
			t.identities.SetMaxStreams(f.Limits.StreamsPerCredential)
		}
		p, q := w.exits(f), was.exits(old)
		if p == nil || q == nil || t.pool != was.wired[f.Name].pool || targets.Same(p, q) {
			continue
		}
		name := poolName(f)
		if slices.Contains(exits, name) {
			continue
		}
		if err := t.pool.Update(p.List()); err != nil {
			return limits, exits, fail(ExitError, fmt.Errorf("the exits of %s stay as they were: %w", name, err))
		}
		exits = append(exits, name)
	}
	return limits, exits, nil
}
