package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	gosse "github.com/tmaxmax/go-sse"
)

// deliver measures whole programs that bring a feed to a destination: ours, and
// what is usually written by hand in Python and in Go. Ours is durable and
// exactly once, the others are neither.
func deliver(rounds int) error {
	const rows = 500_000
	d, err := newDelivery()
	if err != nil {
		return err
	}
	defer d.close()
	for _, to := range []string{"jsonl", "postgres"} {
		all := []program{
			{"holdline/scrape", rows, func(n int) ([]string, error) { return d.ours(to, n, "") }},
			{"holdline/scrape, 5 columns mapped", rows, func(n int) ([]string, error) { return d.ours(to, n, columns) }},
			{"by hand in Go (go-sse, channel, encoding/json, " + batches[to] + ")", rows, func(n int) ([]string, error) { return d.byHand(to, n) }},
			{"by hand in Python (httpx, asyncio.Queue, json, " + pythonBatches[to] + ")", rows / 5, func(n int) ([]string, error) { return d.inPython(to, n) }},
		}
		results := make([]outcome, len(all))
		for range min(rounds, 3) {
			for i, p := range all {
				if err := p.measure(d, &results[i]); err != nil {
					return fmt.Errorf("%s to %s: %w", p.name, to, err)
				}
			}
		}
		fmt.Printf("\n### Feed to %s: price events, 200 bytes\n\n| program | rows/s | CPU µs/row | × ours |\n|---|--:|--:|--:|\n", to)
		for i, p := range all {
			own := median(results[i].cpu)
			fmt.Printf("| %s | %.0f | %.2f | %.1f |\n", p.name, median(results[i].speed), own/1000, own/median(results[0].cpu))
		}
		if to == "postgres" {
			speed, err := d.copyAlone(rows)
			if err != nil {
				return err
			}
			fmt.Printf("| COPY of the same rows by pgx, 500 in a transaction, and nothing else | %.0f | | |\n", speed)
		}
	}
	return nil
}

var (
	batches       = map[string]string{"jsonl": "a write each 500", "postgres": "CopyFrom each 500"}
	pythonBatches = map[string]string{"jsonl": "a write each 500", "postgres": "COPY each 500"}
)

// columns is the mapping of the second row.
const columns = `    records:
      format: json
      map: {symbol: symbol, price: {value: price, type: number}, volume: {value: volume, type: number}, timestamp: {value: timestamp, type: time}, v: v}
`

// program is a way to bring rows to a destination.
type program struct {
	name string
	rows int
	make func(rows int) (argv []string, err error)
}

// outcome is what it took, round by round.
type outcome struct{ cpu, speed []float64 } // ns a row, rows a second

// measure runs the program with few and with many rows: the difference is the
// rows', without the start.
func (p *program) measure(d *delivery, o *outcome) error {
	const few = 1000
	type took struct{ cpu, wall time.Duration }
	run := func(rows int) (t took, err error) {
		argv, err := p.make(rows)
		if err != nil {
			return t, err
		}
		c := exec.Command(argv[0], argv[1:]...)
		c.Dir = d.dir
		began := time.Now()
		out, err := c.CombinedOutput()
		t.wall = time.Since(began)
		if err != nil {
			return t, fmt.Errorf("%w\n%s", err, out)
		}
		t.cpu = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
		return t, d.check(rows)
	}
	small, err := run(few)
	if err != nil {
		return err
	}
	large, err := run(p.rows)
	if err != nil {
		return err
	}
	n := float64(p.rows - few)
	o.cpu = append(o.cpu, float64((large.cpu-small.cpu).Nanoseconds())/n)
	o.speed = append(o.speed, n/(large.wall-small.wall).Seconds())
	return nil
}

// delivery is what the programs share.
type delivery struct {
	dir    string
	feed   *servers
	db     *database
	scrape string
	python string
	runs   int
	// of the run at hand
	lines string // where the JSON lines are
	table string
}

func newDelivery() (d *delivery, err error) {
	d = &delivery{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, err
	}
	d.scrape = filepath.Join(d.dir, "scrape")
	if out, err := exec.Command("go", "build", "-C", "../..", "-o", d.scrape, "./cmd/scrape").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	d.python = filepath.Join(d.dir, "python", "bin", "python")
	if out, err := exec.Command("python3", "-m", "venv", filepath.Join(d.dir, "python")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("python3 -m venv: %w\n%s", err, out)
	}
	if out, err := exec.Command(d.python, "-m", "pip", "-q", "install", "httpx==0.28.1", "psycopg[binary]==3.3.*").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pip install: %w\n%s", err, out)
	}
	if d.feed, err = serveApart(); err != nil {
		return nil, err
	}
	d.db, err = startDatabase(filepath.Join(d.dir, "pg"))
	return d, err
}

func (d *delivery) close() {
	if d.db != nil {
		d.db.stop()
	}
	if d.feed != nil {
		d.feed.stop()
	}
	os.RemoveAll(d.dir)
}

// begin names what the next run makes.
func (d *delivery) begin(to string) {
	d.runs++
	d.lines, d.table = "", ""
	if to == "jsonl" {
		d.lines = filepath.Join(d.dir, fmt.Sprintf("lines%d", d.runs))
	} else {
		d.table = fmt.Sprintf("rows%d", d.runs)
	}
}

// check counts what the run has delivered, and throws it away.
func (d *delivery) check(rows int) error {
	var n int
	if d.table != "" {
		if err := d.db.query("SELECT count(DISTINCT id) FROM "+d.table, &n); err != nil {
			return err
		}
		if err := d.db.exec("DROP TABLE " + d.table); err != nil {
			return err
		}
	} else {
		files, err := filepath.Glob(d.lines + "*/*.jsonl")
		if err != nil || len(files) == 0 {
			files = []string{d.lines}
		}
		for _, file := range files {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			s := bufio.NewScanner(f)
			for s.Scan() {
				n++
			}
			f.Close()
			os.RemoveAll(file)
		}
	}
	if n != rows {
		return fmt.Errorf("%d rows were delivered, want %d", n, rows)
	}
	return nil
}

func (d *delivery) url(rows int) string {
	return fmt.Sprintf("%s/prices?n=%d", d.feed.plain, rows)
}

func (d *delivery) ours(to string, rows int, mapping string) ([]string, error) {
	d.begin(to)
	sink := "postgres: {url: '" + d.db.url + "', table: " + d.table + "}"
	if to == "jsonl" {
		sink = "jsonl: {dir: " + d.lines + "}"
	}
	file, data := filepath.Join(d.dir, fmt.Sprintf("t%d.yaml", d.runs)), filepath.Join(d.dir, fmt.Sprintf("data%d", d.runs))
	text := fmt.Sprintf("name: bench%d\nstreams:\n  - name: feed\n    url: %s\n    on_end: stop\n%ssinks:\n  - %s\n", d.runs, d.url(rows), mapping, sink)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return []string{d.scrape, "run", file, "--data", data, "--progress", "none"}, nil
}

func (d *delivery) byHand(to string, rows int) ([]string, error) {
	d.begin(to)
	self, err := os.Executable()
	return []string{self, "byhand", to, d.url(rows), d.destination(to), strconv.Itoa(rows)}, err
}

func (d *delivery) inPython(to string, rows int) ([]string, error) {
	d.begin(to)
	script, err := filepath.Abs("byhand.py")
	return []string{d.python, script, to, d.url(rows), d.destination(to)}, err
}

// destination is a file, or a database and a table.
func (d *delivery) destination(to string) string {
	if to == "jsonl" {
		return d.lines
	}
	return d.db.url + " " + d.table
}

// copyAlone brings as many rows into a table as fast as COPY goes.
func (d *delivery) copyAlone(rows int) (perSecond float64, err error) {
	d.begin("postgres")
	w, err := newTable(d.destination("postgres"))
	if err != nil {
		return 0, err
	}
	defer w.close()
	batch := make([]row, 500)
	for i := range batch {
		batch[i] = row{ID: strconv.Itoa(i), Type: "price_update", Data: []byte(`{"symbol":"BTCUSDT","price":"60000.00","volume":"0.00001","timestamp":"2026-01-02T03:04:05.000001Z","v":"` + strings.Repeat("x", 40) + `"}`)}
	}
	began := time.Now()
	for range rows / len(batch) {
		if err := w.write(batch); err != nil {
			return 0, err
		}
	}
	return float64(rows) / time.Since(began).Seconds(), d.db.exec("DROP TABLE " + d.table)
}

// row is what the program written by hand makes of an event.
type row struct {
	ID   string          `json:"id"`
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// byHand is the program as it is usually written in Go: read, decode, queue,
// write in batches.
func byHand(to, url, destination, rows string) error {
	want, err := strconv.Atoi(rows)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	queue := make(chan row, 10_000)
	failed := make(chan error, 1)
	go func() {
		defer close(queue)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			failed <- err
			return
		}
		c := (&gosse.Client{}).NewConnection(req)
		n := 0
		c.SubscribeToAll(func(e gosse.Event) {
			var v struct {
				Symbol, Price, Volume, Timestamp, V string
			}
			if err := json.Unmarshal([]byte(e.Data), &v); err != nil {
				return
			}
			data, _ := json.Marshal(v) // five strings
			queue <- row{e.LastEventID, e.Type, data}
			if n++; n == want {
				cancel()
			}
		})
		if err := c.Connect(); !errors.Is(err, context.Canceled) {
			failed <- err
		}
	}()
	var w writer
	if to == "jsonl" {
		w, err = newLines(destination)
	} else {
		w, err = newTable(destination)
	}
	if err != nil {
		return err
	}
	batch := make([]row, 0, 500)
	for r := range queue {
		if batch = append(batch, r); len(batch) == cap(batch) {
			if err := w.write(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if err := w.write(batch); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
		return w.close()
	}
}

type writer interface {
	write([]row) error
	close() error
}

type lines struct {
	file *os.File
	buf  *bufio.Writer
	enc  *json.Encoder
}

func newLines(file string) (*lines, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	buf := bufio.NewWriterSize(f, 64<<10)
	return &lines{f, buf, json.NewEncoder(buf)}, nil
}

func (l *lines) write(rows []row) error {
	for i := range rows {
		if err := l.enc.Encode(&rows[i]); err != nil {
			return err
		}
	}
	return l.buf.Flush()
}

func (l *lines) close() error { return l.file.Close() }

type table struct {
	conn *pgx.Conn
	name string
}

func newTable(destination string) (*table, error) {
	url, name, _ := strings.Cut(destination, " ")
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(context.Background(), "CREATE TABLE "+name+" (id text, type text, data text)")
	return &table{conn, name}, err
}

func (t *table) write(rows []row) error {
	_, err := t.conn.CopyFrom(context.Background(), pgx.Identifier{t.name}, []string{"id", "type", "data"},
		pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
			return []any{rows[i].ID, rows[i].Type, string(rows[i].Data)}, nil
		}))
	return err
}

func (t *table) close() error { return t.conn.Close(context.Background()) }
