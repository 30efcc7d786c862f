package cmd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdline/scrape/proxies"
)

// controlFile is the socket in the data directory at which a running worker
// answers. Who may use the directory may ask.
const controlFile = "control.sock"

// poolState is the answer to /exits, one for each pool.
type poolState struct {
	Pool  string
	Exits []proxies.ExitStats
}

// serveControl answers at the control socket until the function it returns is
// called. A worker that cannot have one runs without.
func (w *wiring) serveControl(r *reloader) (stop func()) {
	path := filepath.Join(w.data, controlFile)
	// A worker that was killed has left it behind; the journal's lock says that
	// there is no other one.
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		w.log.Warn("scrape proxies list will not find this worker", "error", err)
		return func() {}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /exits", func(rw http.ResponseWriter, _ *http.Request) {
		states := []poolState{}
		for _, k := range r.pools() {
			states = append(states, poolState{k.name, k.pool.Stats()})
		}
		answer(rw, states, nil)
	})
	mux.HandleFunc("GET /accounts", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, w.commons.Accounts(), nil)
	})
	mux.HandleFunc("POST /coverage", func(rw http.ResponseWriter, r *http.Request) {
		var ask coverageOf
		err := json.NewDecoder(r.Body).Decode(&ask)
		var list []streamCoverage
		if err == nil {
			list, err = ask.read(r.Context(), w.data, w.journal)
		}
		answer(rw, list, err)
	})
	mux.HandleFunc("POST /reload", func(rw http.ResponseWriter, req *http.Request) {
		done, err := r.reload(req.Context())
		answer(rw, done, err)
	})
	mux.HandleFunc("POST /login", func(rw http.ResponseWriter, req *http.Request) {
		var target string
		err := json.NewDecoder(req.Body).Decode(&target)
		var done takenUp
		if err == nil {
			done, err = r.takeUp(req.Context(), target)
		}
		answer(rw, done, err)
	})
	mux.HandleFunc("POST /rotate", func(rw http.ResponseWriter, req *http.Request) {
		var names []string
		err := json.NewDecoder(req.Body).Decode(&names)
		n := 0
		if err == nil {
			n, err = r.rotate(names)
		}
		answer(rw, n, err)
	})
	mux.HandleFunc("POST /dead/retry", func(rw http.ResponseWriter, r *http.Request) {
		done, err := w.sendDead(r.Context(), r.Body)
		answer(rw, done, err)
	})
	serveJournal(mux, w.journal)
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	over := make(chan struct{})
	go func() { defer close(over); srv.Serve(l) }()
	return func() {
		cancel()
		// What is being answered ends with its context; nobody waits longer.
		late, done := context.WithTimeout(context.Background(), 2*time.Second)
		defer done()
		if srv.Shutdown(late) != nil {
			srv.Close()
		}
		<-over
	}
}

// workerRuns tells whether a worker answers at the control socket.
func workerRuns(ctx context.Context, data string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(data, controlFile))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// errNoWorker says that no worker answers in the data directory.
var errNoWorker = errors.New("no worker runs with the data directory")

// askWorker has the worker of the data directory answer, and reads its answer.
func askWorker(ctx context.Context, data, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://worker"+path, body)
	if err != nil {
		return fail(ExitError, err)
	}
	resp, err := controlClient(data).RoundTrip(req)
	if err != nil {
		return fail(ExitError, fmt.Errorf("%w: name another with --data", err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		code, err := strconv.Atoi(resp.Header.Get(exitHeader))
		if err != nil {
			code = ExitError
		}
		return fail(code, errors.New(string(bytes.TrimSpace(text))))
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fail(ExitError, fmt.Errorf("the worker's answer cannot be read: %w", err))
	}
	return nil
}

// exitHeader is the exit code that an error of the worker means.
const exitHeader = "Scrape-Exit-Code"

// answer writes the worker's answer.
func answer(rw http.ResponseWriter, value any, err error) {
	if err != nil {
		var exit *exitError
		if errors.As(err, &exit) {
			rw.Header().Set(exitHeader, strconv.Itoa(exit.code))
		}
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	// A reader that has gone needs no answer.
	_ = json.NewEncoder(rw).Encode(value)
}

func (a *app) listProxies(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var states []poolState
	var accounts []proxies.AccountStats
	if err := askWorker(ctx, data, http.MethodGet, "/exits", nil, &states); err != nil {
		return err
	}
	if err := askWorker(ctx, data, http.MethodGet, "/accounts", nil, &accounts); err != nil {
		return err
	}
	if len(states) == 0 {
		fmt.Fprintln(a.stdout, "the worker has no exits: its targets leave directly")
		return nil
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POOL\tEXIT\tKIND\tSTATE\tLEAVES FROM\tCONNS\tWAITING\tTODAY\tLAST ERROR")
	for _, s := range states {
		for _, e := range s.Exits {
			state := lasts(e.State, e.Until)
			if len(e.Resting) > 0 {
				state += ", rests for " + strings.Join(e.Resting, " ")
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d/%d\t%d\t%s\t%s\n", s.Pool, e.Name, cmp.Or(string(e.Kind), "-"), state, cmp.Or(e.Address, "-"),
				e.Conns, e.Cap, e.Waiting, megabytes(e.BytesToday), cmp.Or(e.LastError, "-"))
		}
	}
	t.Flush() // the columns of the next table are others
	fmt.Fprintln(t, "\nACCOUNT\tEXITS\tSTATE\tCONNS\tWAITING\tTODAY\tBUDGET")
	for _, e := range accounts {
		conns, budget := fmt.Sprint(e.Conns), "-"
		if e.Cap > 0 {
			conns += fmt.Sprintf("/%d", e.Cap)
		}
		if e.Budget > 0 {
			budget = megabytes(e.Budget)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%d\t%s\t%s\n", e.Name, e.Exits, lasts(e.State, e.Until), conns, e.Waiting, megabytes(e.BytesToday), budget)
	}
	t.Flush()
	return nil
}

func lasts(s proxies.State, until time.Time) string {
	if until.IsZero() {
		return string(s)
	}
	return string(s) + " until " + until.Local().Format("15:04:05")
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
