package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdline/scrape/proxies"
	"github.com/holdline/scrape/targets"
)

// namedPool is a pool and what people call it.
type namedPool struct {
	name string
	pool *proxies.Pool
}

// followed is a pool whose exits stand in a file.
type followed struct {
	pool  *proxies.Pool
	exits *targets.Exits
}

// exits are the ways out of a target, its own or those of a pool; nil where it
// leaves directly.
func (w *wiring) exits(f *targets.File) *targets.Exits {
	switch {
	case f.Proxies == nil:
		return nil
	case f.Proxies.Pool != "":
		return &w.worker.Pools[f.Proxies.Pool].Exits
	}
	return &f.Proxies.Exits
}

// poolName is what people call the pool of a target.
func poolName(f *targets.File) string {
	if f.Proxies.Pool != "" {
		return "pool/" + f.Proxies.Pool
	}
	return "target/" + f.Name
}

// pool makes the pool of a target, or takes the one that targets share.
func (w *wiring) pool(f *targets.File) (*proxies.Pool, error) {
	exits, name := w.exits(f), poolName(f)
	if shared := w.pools[f.Proxies.Pool]; shared != nil {
		return shared, nil
	}
	pool, err := proxies.New(proxies.Config{
		Exits:           exits.List(),
		MaxConnsPerExit: exits.MaxConns,
		Seed:            w.seed,
		Name:            name,
		Commons:         w.commons,
		Echo:            exits.Echo,
		Log:             w.log,
	})
	if err != nil {
		return nil, err
	}
	if f.Proxies.Pool != "" {
		w.pools[f.Proxies.Pool] = pool
	}
	w.named = append(slices.DeleteFunc(w.named, func(p namedPool) bool { return p.name == name }), namedPool{name, pool})
	if exits.File != "" {
		w.followed = append(w.followed, followed{pool, exits})
	}
	return pool, nil
}

// seedFile holds what the choice of exits and the names of providers' sessions
// follow from, so that everything that works with a data directory leaves by
// the same exits: a login by hand before a run as well as the run.
const seedFile = "seed"

// exitSeed reads the seed of a data directory. Where there is none it is given
// one, which lasts.
func exitSeed(data, given string) (string, error) {
	path := filepath.Join(data, seedFile)
	for range 2 {
		text, err := os.ReadFile(path)
		if seed := strings.TrimSpace(string(text)); err == nil && seed != "" {
			return seed, nil
		}
		if err == nil {
			return "", fmt.Errorf("%s is empty: delete it; sessions of providers begin anew then", path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		part, err := os.CreateTemp(data, ".seed-*")
		if err != nil {
			return "", err
		}
		_, err = part.WriteString(given + "\n")
		err = errors.Join(err, part.Close())
		if err == nil {
			err = os.Link(part.Name(), path) // unlike a rename it replaces nothing: another program may be first
			if err != nil && !errors.Is(err, fs.ErrExist) {
				err = os.Rename(part.Name(), path) // a file system without links
			}
		}
		os.Remove(part.Name())
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s comes and goes", path)
}

// exitsFile is what is kept of exits between runs: which generation sessions
// are of, and the bytes of the day.
const exitsFile = "exits.json"

// recallExits reads what an earlier run has kept. A damaged file costs sticky
// sessions and no more, so it is only told.
func (w *wiring) recallExits() {
	w.commons = &proxies.Commons{}
	data, err := os.ReadFile(filepath.Join(w.data, exitsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(data, w.commons)
	}
	if err != nil {
		w.log.Warn("what was kept of the exits cannot be read: sessions of providers begin anew", "error", err)
		w.commons = &proxies.Commons{}
	}
}

// keepExits follows list files and keeps what must survive a restart, until
// the function it returns is called.
func (w *wiring) keepExits(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, f := range w.followed {
		wg.Go(func() { f.pool.Follow(ctx, string(f.exits.File), f.exits.Like(), 0) })
	}
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		var kept []byte
		for over := false; !over; {
			select {
			case <-ctx.Done():
				over = true
			case <-tick.C:
			}
			kept = w.saveExits(kept)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// saveExits keeps the state of the exits unless it is what was kept last, which
// it returns.
func (w *wiring) saveExits(kept []byte) []byte {
	data, err := json.Marshal(w.commons)
	if err == nil && (bytes.Equal(data, kept) || string(data) == "null") {
		return kept
	}
	if err == nil {
		err = writeWhole(filepath.Join(w.data, exitsFile), data)
	}
	if err != nil {
		w.log.Warn("the state of the exits cannot be kept", "error", err)
		return kept
	}
	return data
}

// writeWhole replaces a file in one step.
func writeWhole(path string, data []byte) error {
	part := path + ".part"
	if err := os.WriteFile(part, data, 0o600); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return os.Rename(part, path)
}
