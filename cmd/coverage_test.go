package cmd

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func minute(m float64) time.Time { return noon.Add(time.Duration(m * float64(time.Minute))) }

// hourOfStreams is the ledger of three streams, by stream.
func hourOfStreams() map[string][]any {
	return map[string][]any{
		"shop/prices": {
			framework.Total{From: minute(-60), To: minute(0), Held: 3590, Connections: 4, Events: 70_000, Gaps: map[framework.GapState]framework.GapTotal{
				framework.GapReplayed: {Count: 3, Seconds: 9}, framework.GapPossible: {Count: 1, Seconds: 2}}},
			framework.Held{From: minute(0), To: minute(20), Exit: "isp-1", Identity: 1, Events: 9000, Cause: framework.CauseSilence},
			framework.Gap{State: framework.GapReplayed, Proof: framework.ProofNumbers, From: minute(19.9), To: minute(20.1), Cause: framework.CauseSilence},
			framework.Held{From: minute(20.1), To: minute(30), Exit: "isp-2", Identity: 2, Events: 9000, Cause: framework.CauseBroken},
			framework.Gap{State: framework.GapKnown, From: minute(29.9), To: minute(35), FirstID: 812, LastID: 911, Missing: 40, Filled: 60,
				Left: []framework.Range{{First: 812, Last: 850}, {First: 911, Last: 911}}, Cause: framework.CauseBroken},
			framework.Held{From: minute(35), To: minute(60), Exit: "isp-2", Identity: 3, Events: 9000},
			framework.Gap{State: framework.GapOverlapped, Proof: framework.ProofSeenAgain, From: minute(40), To: minute(40.001), Cause: framework.CauseRenewal},
			framework.Lost{At: minute(45), Sink: "shop/sqlite", FromChunk: 7, ToChunk: 9, Why: "no longer kept"},
			framework.Gap{State: framework.GapFilled, From: minute(49), To: minute(50), FirstID: 1000, LastID: 1000, Filled: 1, Cause: framework.CauseSkipped},
		},
		"shop/trades": {
			framework.Held{From: minute(0), To: minute(60), Exit: "direct", Events: 100},
		},
		"news/all": {
			framework.Gap{State: framework.GapPossible, To: minute(1), Cause: framework.CauseRestart},
			framework.Held{From: minute(1), To: minute(30), Exit: "direct", Events: 100, Cause: framework.CauseEOF},
			framework.Gap{State: framework.GapPossible, From: minute(29), To: minute(29).Add(1234 * time.Millisecond), Cause: framework.CauseEOF},
			framework.Held{From: minute(40), Exit: "direct"}, // killed; its last event came at minute 58
		},
	}
}

// journalOf makes a data directory whose journal holds the ledgers.
func journalOf(t *testing.T, ledgers map[string][]any) (data string) {
	t.Helper()
	data = t.TempDir()
	j, err := journal.Open(t.Context(), journal.Config{Dir: filepath.Join(data, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	for name, entries := range ledgers {
		l, err := j.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			kind := framework.NoteGap
			switch e.(type) {
			case framework.Held:
				kind = framework.NoteHeld
			case framework.Total:
				kind = framework.NoteTotal
			case framework.Lost:
				kind = framework.NoteLost
			}
			body, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Note(t.Context(), framework.Note{Kind: kind, Body: body}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Append(t.Context(), &framework.Event{ID: []byte("9"), Type: "x", Time: minute(58), Cursor: "9"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is another:\n%s\nwant\n%s", name, got, want)
	}
}

func TestCoverageTable(t *testing.T) {
	data := journalOf(t, hourOfStreams())
	a := &app{stderr: t.Output()}
	for file, since := range map[string]time.Time{"coverage.txt": {}, "coverage-since.txt": minute(38)} {
		list, err := a.readCoverage(t.Context(), filepath.Join(data, "journal"), coverageOf{From: since})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := printCoverage(&out, list, time.UTC); err != nil {
			t.Fatal(err)
		}
		golden(t, file, out.String())
	}
	list, err := a.readCoverage(t.Context(), filepath.Join(data, "journal"), coverageOf{Names: []string{"shop/prices"}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := writeCoverageJSON(&out, list); err != nil {
		t.Fatal(err)
	}
	golden(t, "coverage.json", out.String())
}

func coverage(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(append([]string{"coverage"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCoverageTellsByItsExitCodeWhetherEventsAreMissing(t *testing.T) {
	data := journalOf(t, hourOfStreams())
	for _, c := range []struct {
		args []string
		want int
		says string // on one of both outputs
	}{
		{nil, ExitError, "shop/prices, open gaps:"},
		{[]string{"shop"}, ExitError, "40 events are missing: ids 812 to 850, 911 (broken) "},
		{[]string{"news"}, ExitOK, "news/all, open gaps:"}, // only possible ones
		{[]string{"shop/trades", "news"}, ExitOK, "shop/trades"},
		{[]string{"shop", "--since", "2026-03-01T12:36:00Z"}, ExitOK, "shop/prices"},
		{[]string{"shop", "--since", "2026-03-01T12:34:00Z"}, ExitError, "shop/prices"},
		{[]string{"shop", "--json"}, ExitError, `"missing": 40`},
		{[]string{"sho"}, ExitUsage, "holds no stream of sho; it holds news/all, shop/prices, shop/trades"},
		{[]string{"--since", "yesterday"}, ExitUsage, "--since yesterday: want a length of time such as 24h"},
		{[]string{"--config", "missing.yaml"}, ExitUsage, "missing.yaml"},
	} {
		code, stdout, stderr := coverage(t, append(c.args, "--data", data)...)
		if code != c.want || !strings.Contains(stdout+stderr, c.says) {
			t.Errorf("coverage %q: exit code %d, want %d and %q\n%s%s", c.args, code, c.want, c.says, stdout, stderr)
		}
	}
}

// TestCoverageOfAStreamThatNeverHadAnEvent has a connection that is held and
// brings nothing: nothing shows that anything was covered.
func TestCoverageOfAStreamThatNeverHadAnEvent(t *testing.T) {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, ": welcome\n\n")
	}))
	defer site.Close()
	dir := t.TempDir()
	file, summary := filepath.Join(dir, "still.yaml"), filepath.Join(dir, "summary.json")
	target := fmt.Sprintf("streams:\n  - name: feed\n    url: %s\n    on_end: stop\nsinks:\n  - sqlite: {table: t}\n", site.URL)
	if err := os.WriteFile(file, []byte(target), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := Run([]string{"run", file, "--data", dir, "--progress", "none", "--summary", summary}, &out, &errs); code != ExitOK {
		t.Fatalf("exit code %d\n%s%s", code, out.String(), errs.String())
	}
	var account framework.Stats
	if b, err := os.ReadFile(summary); err != nil || json.Unmarshal(b, &account) != nil {
		t.Fatal(err)
	}
	if account.Streams[0].Coverage != 0 || !strings.Contains(out.String(), "coverage unknown (no event has come)") {
		t.Errorf("the account says %v and\n%s", account.Streams[0].Coverage, out.String())
	}
	if code, stdout, stderr := coverage(t, "--data", dir); code != ExitOK || !strings.Contains(stdout, "100.00 %  no event") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	var list []streamCoverage
	if _, stdout, _ := coverage(t, "--data", dir, "--json"); json.Unmarshal([]byte(stdout), &list) != nil || len(list) != 1 || !list[0].Empty || list[0].Coverage != 0 {
		t.Error(stdout)
	}
}

func TestCoverageNeedsAJournalThatNobodyHolds(t *testing.T) {
	empty := t.TempDir()
	if code, _, stderr := coverage(t, "--data", empty); code != ExitSetup || !strings.Contains(stderr, "there is no journal in") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if list, err := os.ReadDir(empty); err != nil || len(list) > 0 {
		t.Errorf("coverage made %v (%v)", list, err)
	}
	data := t.TempDir()
	j, err := journal.Open(t.Context(), journal.Config{Dir: filepath.Join(data, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := coverage(t, "--data", data); code != ExitSetup || !strings.Contains(stderr, "in use by another run") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := coverage(t, "--data", data); code != ExitOK || !strings.Contains(stdout, "no stream yet") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
}

// TestRunFillsWhatItCanAndCoverageTellsTheRest goes the whole way: a site that
// cannot replay, whose events are numbered, and a history that lacks one.
func TestRunFillsWhatItCanAndCoverageTellsTheRest(t *testing.T) {
	var opened atomic.Int32
	filled := make(chan struct{})
	took := sync.OnceFunc(func() { close(filled) })
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Key") != "k" {
			t.Errorf("%s was asked without its header", r.URL)
		}
		if r.URL.Path == "/history" {
			fmt.Fprint(w, `{"rows": [{"m": {"seq": 7}}, {"m": {"seq": 6}}]}`)
			if r.URL.Query().Get("from") == "8" {
				took() // what it had
			}
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		numbers := []int{1, 2, 3, 4, 5}
		first := opened.Add(1) == 1
		if !first {
			numbers = []int{9, 10, 11, 12}
		}
		for _, n := range numbers {
			fmt.Fprintf(w, "data: {\"m\":{\"seq\":%d}}\n\n", n)
		}
		if !first {
			w.(http.Flusher).Flush()
			select {
			case <-filled:
			case <-r.Context().Done():
				return
			}
			fmt.Fprint(w, "data: {\"m\":{\"seq\":13}}\n\n") // one too many: it ends the run
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	defer site.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "shop.yaml")
	target := fmt.Sprintf(`
streams:
  - name: prices
    url: %[1]s/stream
    headers: {X-Key: k}
    sequence: m.seq
    reconnect: {min: 1ms}
    backfill: {url: "%[1]s/history?from={from}&to={to}", each: rows, headers: {X-Key: k}}
sinks:
  - sqlite: {table: t}
`, site.URL)
	if err := os.WriteFile(file, []byte(target), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	summary := filepath.Join(dir, "summary.json")
	if code := Run([]string{"run", file, "--data", dir, "--max-events", "11", "--for", "1m", "--progress", "none", "--summary", summary}, &out, &errs); code != ExitOK {
		t.Fatalf("exit code %d\n%s%s", code, out.String(), errs.String())
	}
	var account framework.Stats
	if b, err := os.ReadFile(summary); err != nil || json.Unmarshal(b, &account) != nil {
		t.Fatal(err)
	}
	if s := account.Streams[0]; s.Events != 11 || s.Filled != 2 || len(s.Gaps) != 1 || s.Gaps[0].Missing != 1 || s.Delivered != 11 {
		t.Errorf("account %+v", s)
	}
	if !strings.Contains(out.String(), "1 event is missing: id 8 (") {
		t.Errorf("the account says\n%s", out.String())
	}
	code, stdout, stderr := coverage(t, "shop", "--data", dir)
	if code != ExitError || !strings.Contains(stdout, "1 event is missing: id 8 (") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	rows := bytes.Buffer{}
	if code := Run([]string{"query", filepath.Join(dir, "shop.db"), "select data from t order by rowid"}, &rows, &errs); code != ExitOK || strings.Count(rows.String(), "\n") != 12 || !strings.Contains(rows.String(), `{"m": {"seq": 6}}`) {
		t.Errorf("exit code %d, rows\n%s", code, rows.String())
	}
}
