//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdline/scrape/framework"
)

// The custom build runs two targets on one demo exchange: that of prices.yaml,
// and one that takes everything. What the plugin chose in the first can so be
// told from the second. It goes on until the site has revoked a token and the
// plugin has understood the answer.
func TestCustomBuild(t *testing.T) {
	dir := t.TempDir()
	b := build{t: t, program: filepath.Join(dir, "exchange")}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", b.program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	base := freePorts(t)
	demo := strings.NewReplacer(
		":8700", ":"+strconv.Itoa(base), ":8701", ":"+strconv.Itoa(base+1),
		"first_revoke: 6s", "first_revoke: 2s\n  revoke_chance: 0\n  heartbeat: 1s",
		"stale_after: 4s", "stale_after: 2s",
	)
	all := strings.NewReplacer(
		"name: trades", "name: all",
		"  symbols: [BTC-USD, ETH-USD]\n  min_volume: 1\n", "  symbols: []\n",
		"[price_update]", "[price_update, heartbeat]",
		"table: trades", "table: everything",
	)
	text, err := os.ReadFile("prices.yaml")
	if err != nil {
		t.Fatal(err)
	}
	chosenFile := b.write(filepath.Join(dir, "prices.yaml"), demo.Replace(string(text)))
	allFile := b.write(filepath.Join(dir, "all.yaml"), all.Replace(demo.Replace(string(text))))
	b.output("check", "prices.yaml")
	b.output("check", chosenFile, allFile)
	bad := b.write(filepath.Join(dir, "bad.yaml"), strings.Replace(string(text), "BTC-USD,", "BTC-USDT,", 1))
	out, err := exec.CommandContext(t.Context(), b.program, "check", bad).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `"symbols[0]" is "BTC-USDT"`) {
		t.Errorf("check of a misspelt symbol: %v\n%s", err, out)
	}

	data, summary := filepath.Join(dir, "data"), filepath.Join(dir, "summary.json")
	b.runUntil("token_revoked", "run", chosenFile, allFile, "--data", data, "--summary", summary,
		"--for", "5m", "--progress", "none", "--log-format", "json")

	var account framework.Stats
	if b, err := os.ReadFile(summary); err != nil || json.Unmarshal(b, &account) != nil {
		t.Fatalf("summary: %v\n%s", err, b)
	}
	stats := map[string]framework.StreamStats{}
	revoked := uint64(0)
	for _, s := range account.Streams {
		stats[s.Name] = s
		revoked += s.Reconnects["token_revoked"]
		if len(s.Gaps) > 0 || s.FirstID != "1" || s.Delivered != s.Records {
			t.Errorf("%s begins at %q, has the gaps %v, and delivered %d of %d records", s.Name, s.FirstID, s.Gaps, s.Delivered, s.Records)
		}
	}
	if revoked != 1 {
		t.Errorf("%d reconnects because of a revoked token, want the one that the site revoked", revoked)
	}

	everything := b.trades(filepath.Join(data, "all.db"), "everything")
	for i, r := range everything {
		if r.id != i+1 {
			t.Fatalf("record %d is of event %d: a hole or a double", i+1, r.id)
		}
	}
	// Heartbeats are no trades: the plugin refuses them, and they are kept.
	letters := strings.Count(b.output("dead", "export", "--target", "all", "--data", data), `"type":"heartbeat"`)
	st := stats["all/market"]
	if letters == 0 || st.DeadLetters != uint64(letters) || st.Events != uint64(len(everything)+letters) || st.LastID != strconv.Itoa(len(everything)) {
		t.Errorf("%d records and %d dead letters in the end; the account: %d events up to id %s, %d dead letters",
			len(everything), letters, st.Events, st.LastID, st.DeadLetters)
	}

	chosen := b.trades(filepath.Join(data, "trades.db"), "trades")
	last, err := strconv.Atoi(stats["trades/market"].LastID)
	if err != nil {
		t.Fatal(err)
	}
	both := min(last, len(everything)) // the streams do not stop at the same event
	want := []record{}
	for _, r := range everything[:both] {
		if (r.Symbol == "BTC-USD" || r.Symbol == "ETH-USD") && r.Volume >= 1 {
			want = append(want, r)
		}
	}
	chosen = slices.DeleteFunc(chosen, func(r record) bool { return r.id > both })
	if len(want) == 0 || !slices.Equal(chosen, want) {
		t.Errorf("recorded %v\nof the events 1 to %d, want %v", chosen, both, want)
	}
}

// build is the program under test.
type build struct {
	t       *testing.T
	program string
}

func (b build) output(args ...string) string {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), b.program, args...)
	cmd.Stderr = b.t.Output()
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// runUntil runs the program until a stream has resumed after a connection that
// ended with the cause, and interrupts it then.
func (b build) runUntil(cause string, args ...string) {
	b.t.Helper()
	cmd := exec.Command(b.program, args...)
	logs, err := cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	cmd.Stdout = b.t.Output()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended, resumed := "", false
	lines := bufio.NewScanner(logs) // read to the end: the run ends by itself at the latest
	for lines.Scan() {
		b.t.Log(lines.Text())
		var line struct{ Msg, Stream, Cause string }
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		switch {
		case line.Msg == "connection ended" && line.Cause == cause:
			ended = line.Stream
		case line.Msg == "resumed" && line.Stream == ended && !resumed:
			resumed = true
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				b.t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		b.t.Fatalf("%v: %v", args, err)
	}
	if !resumed {
		b.t.Fatalf("no stream resumed after its connection had ended with %s", cause)
	}
}

// record is a row of a sink.
type record struct {
	id     int
	Symbol string  `json:"s"`
	Price  float64 `json:"p"`
	Volume float64 `json:"v"`
}

// trades reads a sink's table by the program's own query command.
func (b build) trades(file, table string) (records []record) {
	b.t.Helper()
	out := b.output("query", file, fmt.Sprintf(`SELECT id, data FROM "%s" WHERE type = 'trade' ORDER BY CAST(id AS INTEGER), _key`, table))
	_, rows, _ := strings.Cut(out, "\n") // the names of the columns
	for row := range strings.Lines(rows) {
		id, data, _ := strings.Cut(strings.TrimSpace(row), "|")
		var r record
		n, err := strconv.Atoi(id)
		if err != nil || json.Unmarshal([]byte(data), &r) != nil {
			b.t.Fatalf("%s: the row is %q", file, row)
		}
		r.id = n
		records = append(records, r)
	}
	return records
}

func (b build) write(file, text string) string {
	b.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return file
}

// freePorts finds the four ports in a row that the exchange and its proxies
// need, below those that the system hands out, and keeps others from them until
// the test is over.
func freePorts(t *testing.T) (base int) {
	t.Helper()
	for range 100 {
		base = 12_000 + 4*rand.IntN(2_000)
		// The exchange leaves out this address of its second port. Whoever
		// listens there has all four.
		held, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(base+1)))
		if err != nil {
			continue
		}
		free := true
		for i, hosts := range [][]string{
			{"127.0.0.1"}, {"127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"}, {"127.0.0.15", "127.0.0.16"}, {"127.0.0.1"},
		} {
			for _, host := range hosts {
				l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(base+i)))
				if err != nil {
					free = false
					continue
				}
				l.Close()
			}
		}
		if free {
			t.Cleanup(func() { held.Close() })
			return base
		}
		held.Close()
	}
	t.Fatal("no four free ports in a row")
	return 0
}
