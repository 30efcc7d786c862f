package cmd

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/demo"
	"github.com/holdline/scrape/internal/sink/jsonl"
	"github.com/holdline/scrape/internal/sink/postgres"
	"github.com/holdline/scrape/internal/sink/sqlite"
	"github.com/holdline/scrape/targets"
)

// builtin is what target files can name in every build.
func builtin() targets.Registry {
	return targets.Registry{
		Plugins: map[string]targets.Plugin{"sse": targets.SSE},
		Sinks:   map[string]targets.SinkKind{"sqlite": sqliteKind, "postgres": postgresKind, "jsonl": jsonlKind},
		Demos:   map[string]targets.DemoKind{"exchange": exchangeKind},
	}
}

func sqliteKind(decode func(into any) error) (targets.SinkPlan, error) {
	var c targets.SQLite
	if err := decode(&c); err != nil {
		return targets.SinkPlan{}, err
	}
	// The table's name is checked here, so that a wrong one is a problem of
	// the file.
	if _, err := sqlite.New(sqlite.Config{File: "unused", Table: c.Table}); err != nil {
		return targets.SinkPlan{}, err
	}
	return targets.SinkPlan{
		Destination: string(c.File) + "\x00" + c.Table,
		Columns:     sqlite.CheckColumns,
		New: func(p targets.SinkPlace) (framework.Sink, error) {
			return sqlite.New(sqlite.Config{File: sqliteFile(c, p), Table: c.Table, Log: p.Log})
		},
	}, nil
}

func sqliteFile(c targets.SQLite, p targets.SinkPlace) string {
	if c.File != "" {
		return string(c.File)
	}
	return filepath.Join(p.Data, p.Target+".db")
}

func postgresKind(decode func(into any) error) (targets.SinkPlan, error) {
	var c targets.Postgres
	if err := decode(&c); err != nil {
		return targets.SinkPlan{}, err
	}
	// Made once here, so that a wrong URL or table is a problem of the file.
	s, err := postgres.New(postgres.Config{URL: c.URL, Table: c.Table})
	if err != nil {
		return targets.SinkPlan{}, err
	}
	return targets.SinkPlan{
		Destination: s.Destination(),
		Columns:     postgres.CheckColumns,
		New: func(p targets.SinkPlace) (framework.Sink, error) {
			return postgres.New(postgres.Config{URL: c.URL, Table: c.Table, Log: p.Log})
		},
	}, nil
}

// jsonlKind leaves the destination empty: any number of sinks may share a
// directory.
func jsonlKind(decode func(into any) error) (targets.SinkPlan, error) {
	var c targets.JSONL
	if err := decode(&c); err != nil {
		return targets.SinkPlan{}, err
	}
	return targets.SinkPlan{
		New: func(p targets.SinkPlace) (framework.Sink, error) {
			dir := string(c.Dir)
			if dir == "" {
				dir = filepath.Join(p.Data, "jsonl")
			}
			return jsonl.New(jsonl.Config{
				Dir: dir, MaxSize: int64(c.Rotate.Size), MaxAge: time.Duration(c.Rotate.Every), Compress: c.Compress == "zstd", Log: p.Log,
			})
		},
	}, nil
}

func exchangeKind(decode func(into any) error) (targets.DemoPlan, error) {
	var c targets.Exchange
	if err := decode(&c); err != nil {
		return targets.DemoPlan{}, err
	}
	options := exchangeOptions(c)
	if _, err := demo.New(options); err != nil {
		return targets.DemoPlan{}, err
	}
	return targets.DemoPlan{
		Settings: c,
		New: func(dir string, log *slog.Logger) (targets.DemoSite, error) {
			o := options
			o.Dir, o.Log = dir, log
			return demo.New(o)
		},
	}, nil
}

// exchangeOptions translates what "0s" means in a target file: not at all.
func exchangeOptions(c targets.Exchange) demo.Options {
	orNever := func(d targets.Duration) time.Duration {
		if d == 0 {
			return -1
		}
		return time.Duration(d)
	}
	chance := func(p float64) float64 {
		if p == 0 {
			return -1
		}
		return p
	}
	return demo.Options{
		Listen: c.Listen, Seed: c.Seed, Rate: c.Rate,
		SessionLife: time.Duration(c.SessionLife), TokenLife: time.Duration(c.TokenLife), ClearanceLife: time.Duration(c.ClearanceLife),
		ReplayWindow: time.Duration(c.ReplayWindow), Heartbeat: time.Duration(c.Heartbeat),
		MaxPerAddress: c.MaxPerAddress, MaxPerToken: c.MaxPerToken,
		FirstSilence: orNever(c.FirstSilence), Silence: orNever(c.Silence), MuteChance: chance(c.MuteChance), Mute: time.Duration(c.Mute),
		RevokeChance: chance(c.RevokeChance), FirstRevoke: time.Duration(c.FirstRevoke), ProxyLife: orNever(c.ProxyLife), GatewayLife: time.Duration(c.GatewayLife),
	}
}

// load reads target files and the worker's file that they may refer to.
func (a *app) load(paths []string, config string) ([]*targets.File, *targets.Worker, error) {
	worker, err := a.loadWorker(config)
	if err != nil {
		return nil, nil, err
	}
	files, err := targets.LoadAll(paths, targets.Options{Registry: a.registry, Worker: worker})
	return files, worker, err
}

// loadWorker reads the worker's file, or returns the defaults where there is
// none and none was named.
func (a *app) loadWorker(config string) (*targets.Worker, error) {
	path := config
	if path == "" {
		path = "scrape.yaml"
	}
	worker, err := targets.LoadWorker(path, targets.Options{Registry: a.registry})
	if errors.Is(err, fs.ErrNotExist) && config == "" {
		return targets.NewWorker(), nil
	}
	return worker, err
}

// journalDir is where the journal lies.
func journalDir(worker *targets.Worker, data string) string {
	if dir := string(worker.Journal.Dir); dir != "" {
		return dir
	}
	return filepath.Join(data, "journal")
}

// serve starts a demo site and returns what stops it.
func serve(ctx context.Context, site targets.DemoSite, log *slog.Logger) (stop func(), err error) {
	if err := site.Listen(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := site.Run(ctx); err != nil {
			log.Error("demo site", "error", err)
		}
	}()
	return func() { cancel(); <-over }, nil
}
