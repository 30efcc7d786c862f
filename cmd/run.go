package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/deadletter"
	"github.com/holdline/scrape/internal/journal"
)

// runFlags are the flags of `scrape run`.
type runFlags struct {
	config    string
	data      string
	duration  time.Duration
	maxEvents uint64
	summary   string
	progress  string
	logLevel  string
	logFormat string
	adopt     []string
	restart   []string
	keyFile   string
}

func (a *app) runCommand() *cobra.Command {
	var o runFlags
	c := &cobra.Command{
		Use:   "run FILE…",
		Short: "Hold the streams of target files and deliver what they bring",
		Long: `run holds the streams of the target files until it is interrupted. The first
interrupt stops reading and delivers what was read; a second one stops at once,
and the next run goes on from there. What was read is in the journal in the data
directory before it counts, so that nothing is lost or doubled either way.
SIGHUP has the files read again: see scrape reload.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, paths []string) error { return a.run(c.Context(), paths, o) },
	}
	configFlag(c, &o.config)
	f := c.Flags()
	f.StringVar(&o.data, "data", "data", "directory for the journal and what else must survive")
	f.DurationVar(&o.duration, "for", 0, "stop after so long")
	f.Uint64Var(&o.maxEvents, "max-events", 0, "stop after so many events")
	f.StringVar(&o.summary, "summary", "", "write the account to this file as JSON when the run ends")
	f.StringVar(&o.progress, "progress", "auto", "auto, live, plain or none")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	keyFlag(c, &o.keyFile)
	f.StringArrayVar(&o.adopt, "adopt", nil, "let this sink (target/name) go on with a destination that knows another journal; repeatable")
	f.StringArrayVar(&o.restart, "restart-sink", nil, "remove what this sink (target/name) has of the events that the journal still holds, and deliver them again; repeatable")
	return c
}

func (a *app) run(ctx context.Context, paths []string, o runFlags) (err error) {
	show, err := a.newProgress(o)
	if err != nil {
		return fail(ExitUsage, err)
	}
	log := show.log
	files, worker, err := a.load(paths, o.config)
	if err != nil {
		return fail(ExitUsage, err)
	}
	if err := usable(o.data); err != nil {
		return fail(ExitSetup, err)
	}
	if o.duration < 0 {
		return fail(ExitUsage, fmt.Errorf("--for %v: a time to run is not negative", o.duration))
	}
	if o.summary != "" {
		// Days later would be too late to tell.
		if dir, err := os.Stat(filepath.Dir(o.summary)); err != nil || !dir.IsDir() {
			return fail(ExitSetup, fmt.Errorf("--summary %s: there is no directory %s: make it, or name another file", o.summary, filepath.Dir(o.summary)))
		}
	}
	w := &wiring{files: files, worker: worker, data: o.data, adopt: o.adopt, restart: o.restart, hooks: a.hooks, log: log}
	w.prompt = w.logPrompt

	j, err := journal.Open(ctx, journal.Config{
		Dir:         journalDir(worker, o.data),
		Retain:      time.Duration(worker.Journal.Retain),
		RetainBytes: int64(worker.Journal.RetainBytes),
		MaxBytes:    int64(worker.Journal.MaxBytes),
		Durability:  durabilities[worker.Journal.Durability],
		Log:         log,
	})
	if err != nil {
		return fail(ExitSetup, fmt.Errorf("journal: %w", err))
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	w.journal = j
	if w.seed, err = exitSeed(o.data, string(j.ID())); err != nil {
		return fail(ExitSetup, err)
	}
	if w.dead, err = deadletter.Open(filepath.Join(o.data, deadFile), 0, log); err != nil {
		return fail(ExitSetup, err)
	}
	defer w.dead.Close()
	if err := settle(w.dead, j); err != nil {
		return fail(ExitSetup, err)
	}

	stopDemos, err := w.startDemos(ctx)
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer stopDemos()

	w.keep(o.keyFile)
	closeBrowser, err := w.startBrowser(ctx)
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer closeBrowser()
	config, err := w.config()
	if err != nil {
		return fail(ExitUsage, err)
	}
	defer w.keepExits(ctx)()
	config.MaxEvents = o.maxEvents
	held, err := framework.NewWorker(config)
	if err != nil {
		return fail(ExitUsage, err)
	}
	again := &reloader{app: a, held: held, paths: paths, config: o.config, keyFile: o.keyFile, log: log, w: w}
	defer w.serveControl(again)()
	defer again.onHangup(ctx)()

	stop := context.AfterFunc(a.drain, func() {
		log.Info("interrupted: reading ends and what was read is delivered; a second interrupt stops at once")
		held.Drain()
	})
	defer stop()
	if o.duration > 0 {
		timer := time.AfterFunc(o.duration, held.Drain)
		defer timer.Stop()
	}
	endAlerts := w.startAlerts(held.Stats)
	endProgress := show.begin(held)
	err = held.Run(ctx)
	endProgress()
	endAlerts()

	account := held.Stats()
	if o.summary != "" {
		if e := writeSummary(o.summary, account); e != nil {
			err = errors.Join(err, fmt.Errorf("--summary: %w", e))
		}
	}
	printAccount(a.stdout, account, w)
	return runError(ctx, err)
}

// durabilities are the words of scrape.yaml.
var durabilities = map[string]journal.Durability{
	"always":       journal.SyncAlways,
	"every_second": journal.SyncEverySecond,
}

// runError gives the worker's error its exit code.
func runError(ctx context.Context, err error) error {
	var position *framework.PositionError
	var streams *framework.StreamError
	switch {
	case context.Cause(ctx) != nil:
		return fail(ExitAborted, context.Cause(ctx))
	case err == nil:
		return nil
	case errors.As(err, &position):
		if position.Foreign() {
			err = fmt.Errorf("%w\nBring back the journal that the destination belongs to, or move the destination away, or start with --adopt %s: its rows stay, and what this journal holds is appended", err, position.Sink)
		}
		return fail(ExitPosition, err)
	case errors.As(err, &streams):
		return fail(ExitStream, err)
	default:
		return fail(ExitError, err)
	}
}

// usable makes the data directory and tries to write into it.
func usable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("the data directory cannot be made: %w: name another with --data", err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return fmt.Errorf("the data directory cannot be written to: %w: mend its permissions, or name another with --data", err)
	}
	probe.Close()
	return os.Remove(probe.Name())
}

func writeSummary(path string, s framework.Stats) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
