package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/proxies"
	"github.com/holdline/scrape/targets"
)

func (a *app) proxiesCommand() *cobra.Command {
	c := &cobra.Command{Use: "proxies", Short: "Look at the ways out of target files"}
	var config string
	test := &cobra.Command{
		Use: "test FILE…", Short: "Connect to the target's host through each exit", Args: cobra.MinimumNArgs(1),
		Long: `test connects to the host of the target's first stream through each of its
exits, once, and prints a table: the address the exit leaves from (where the
provider tells it, or echo: names a page that does), the time it took, and where
it failed, the layer that did and what to do about it. Sessions of providers are
new ones: those of a running worker are left alone.

Exit codes: 0 every exit works, 1 some do not.`,
		RunE: func(c *cobra.Command, paths []string) error { return a.testProxies(c.Context(), paths, config) },
	}
	configFlag(test, &config)
	var data string
	list := &cobra.Command{
		Use: "list", Short: "Show the exits of the worker that is running", Args: cobra.NoArgs,
		Long: `list asks the worker that runs with this data directory for its exits, and
prints their state, what they carry, and why they are out where they are.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.listProxies(c.Context(), data) },
	}
	list.Flags().StringVar(&data, "data", "data", "the data directory of the worker")
	c.AddCommand(test, list)
	return c
}

// exitRow is a row of the table.
type exitRow struct {
	name   string
	kind   proxies.Kind
	state  string
	from   string
	took   time.Duration
	layer  string
	remedy string
}

func (a *app) testProxies(ctx context.Context, paths []string, config string) error {
	files, worker, err := a.load(paths, config)
	if err != nil {
		return fail(ExitUsage, err)
	}
	dir, err := os.MkdirTemp("", "scrape-proxies-")
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer os.RemoveAll(dir)
	w := &wiring{files: files, worker: worker, data: dir, log: slog.New(slog.DiscardHandler), seed: dir}
	w.pools, w.commons = map[string]*proxies.Pool{}, &proxies.Commons{}
	stopDemos, err := w.startDemos(ctx)
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer stopDemos()

	good := true
	for _, f := range files {
		if f.Proxies == nil {
			fmt.Fprintf(a.stdout, "%s: %s leaves directly: it has no proxies\n", f.Path, f.Name)
			continue
		}
		to := firstHost(f)
		if to == "" {
			return fail(ExitUsage, fmt.Errorf("%s: no stream has an address to connect to", f.Path))
		}
		pool, err := w.pool(f)
		if err != nil {
			return fail(ExitUsage, fmt.Errorf("%s: %w", f.Path, err))
		}
		fmt.Fprintf(a.stdout, "%s: %s, connecting to %s\n", f.Path, f.Name, to)
		rows := testPool(ctx, pool, to)
		printExits(a.stdout, rows)
		for _, r := range rows {
			good = good && r.layer == ""
		}
	}
	if !good {
		return fail(ExitError, nil)
	}
	return nil
}

func firstHost(f *targets.File) string {
	for i := range f.Streams {
		if host := (framework.Request{URL: f.Streams[i].URL}).Host(); host != "" {
			return host
		}
	}
	return ""
}

// testPool tries each exit of the pool, a few at once.
func testPool(ctx context.Context, pool *proxies.Pool, to string) []exitRow {
	rows := make([]exitRow, 0, len(pool.Stats()))
	for _, s := range pool.Stats() {
		rows = append(rows, exitRow{name: s.Name, kind: s.Kind})
	}
	const atOnce = 8
	turns := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range rows {
		if i == 1 {
			wg.Wait() // so that a wrong password is sent once, and not for every exit of the account
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			rows[i].try(ctx, pool, to)
		})
	}
	wg.Wait()
	for i, s := range pool.Stats() {
		rows[i].from = s.Address
	}
	return rows
}

// try connects through the exit.
func (r *exitRow) try(ctx context.Context, pool *proxies.Pool, to string) {
	l, err := pool.Lease(ctx, proxies.Request{Prefer: r.name})
	if err == nil {
		defer l.Release(proxies.Unused)
		if l.Exit().Name != r.name {
			r.state, r.layer, r.remedy = "not tried", proxies.LayerAuth, "its account was refused through another exit, see there"
			return
		}
		began := time.Now()
		c, dialErr := l.DialContext(ctx, "tcp", to)
		r.took, err = time.Since(began), dialErr
		if err == nil {
			c.Close()
			r.state = "ok"
			return
		}
	}
	r.state, r.layer, r.remedy = "failed", "exit", err.Error()
	var layer interface{ Layer() string }
	if errors.As(err, &layer) {
		r.layer = layer.Layer()
	}
	var dial *proxies.DialError
	if errors.As(err, &dial) {
		r.remedy = fmt.Sprintf("%v: %s", dial.Err, dial.Remedy())
	}
}

func printExits(to io.Writer, rows []exitRow) {
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "EXIT\tKIND\tSTATE\tLEAVES FROM\tCONNECT\tLAYER\tWHAT TO DO")
	for _, r := range rows {
		took := "-"
		if r.took > 0 {
			took = fmt.Sprintf("%d ms", max(r.took.Milliseconds(), 1))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.name, cmp.Or(string(r.kind), "-"), r.state, cmp.Or(r.from, "-"), took, cmp.Or(r.layer, "-"), strings.ReplaceAll(cmp.Or(r.remedy, "-"), "\n", " "))
	}
	t.Flush()
}
