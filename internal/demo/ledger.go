package demo

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// ledger is what the data directory keeps: enough to tell the same market on.
type ledger struct {
	Start time.Time `json:"start"`
	Seed  uint64    `json:"seed"`
	Rate  float64   `json:"rate"`
	Key   []byte    `json:"key"` // signs cookies and tokens
}

const (
	ledgerFile  = "exchange.json"
	defaultRate = 20
	// The first accidents of this seed come late, so that a first minute shows
	// one of each kind, one after the other.
	defaultSeed = 16
)

// openLedger reads the market of o.Dir, or opens a new one that starts now.
func openLedger(o Options) (ledger, error) {
	if o.Dir == "" {
		return newLedger(o), nil
	}
	path := filepath.Join(o.Dir, ledgerFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		l := newLedger(o)
		if err := l.write(path); err != nil {
			return ledger{}, fmt.Errorf("demo exchange: keep the market's start: %w", err)
		}
		return l, nil
	}
	if err != nil {
		return ledger{}, fmt.Errorf("demo exchange: %w", err)
	}
	var l ledger
	// The error of encoding/json may quote the key.
	if json.Unmarshal(text, &l) != nil || l.Start.IsZero() || !validRate(l.Rate) || len(l.Key) < 32 {
		return ledger{}, fmt.Errorf("demo exchange: %s is damaged: remove it for a new market", path)
	}
	if o.Seed != 0 && o.Seed != l.Seed {
		return ledger{}, fmt.Errorf("demo exchange: %s holds a market with seed %d, not %d: one directory holds one market: use another (--data), or the same seed", path, l.Seed, o.Seed)
	}
	if o.Rate != 0 && o.Rate != l.Rate {
		return ledger{}, fmt.Errorf("demo exchange: %s holds a market with rate %v, not %v: one directory holds one market: use another (--data), or the same rate", path, l.Rate, o.Rate)
	}
	return l, nil
}

func newLedger(o Options) ledger {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return ledger{
		// Events are told in milliseconds; the wall clock is what survives a restart.
		Start: time.Now().UTC().Truncate(time.Millisecond),
		Seed:  cmp.Or(o.Seed, defaultSeed),
		Rate:  cmp.Or(o.Rate, defaultRate),
		Key:   key,
	}
}

// write leaves either the whole file or none, also after a power cut.
func (l ledger) write(path string) (err error) {
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ledgerFile+".*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
