package faults

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/holdline/scrape/framework"
)

// asScrape in the environment has the test binary act as scrape: what the tests
// start is a process of its own, race detector included.
const asScrape = "FAULTS_SCRAPE"

const feedFile = `
name: faults
streams:
  - name: feed
    url: http://{{.Site}}/stream
    lines: {{.Lines}}
    {{- if .Stale}}
    stale_after: {{.Stale}}
    {{- end}}
    quiet_after: {{.Quiet}}
    {{- if .Min}}
    reconnect: {min: {{.Min}}, max: {{.Max}}}
    {{- end}}
auth:
  bound_to: exit
  attempts_per_hour: 3600
  oauth2: {grant: client_credentials, token_url: "http://{{.Site}}/token", client_id: scrape, client_secret: secret}
limits: {connects_per_second: 100, burst: 100}
proxies:
  exits:
    {{- range .Exits}}
    - http://{{.}}
    {{- end}}
sinks:
  - jsonl: {}
    batch: {every: 5ms}
`

// program is a scrape at work.
type program struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	began  time.Time
	stderr written
	over   chan struct{}
}

// start starts scrape; out takes what it prints.
func start(t *testing.T, dir string, out io.Writer, args ...string) *program {
	t.Helper()
	p := &program{t: t, dir: dir, cmd: exec.Command("/proc/self/exe", args...), over: make(chan struct{})}
	p.began = time.Now()
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, &p.stderr
	p.cmd.Env = append(os.Environ(), asScrape+"=1", "XDG_CONFIG_HOME="+filepath.Join(dir, "config"))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.over)
		p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		if <-p.over; t.Failed() {
			t.Logf("%s\n%.8000s", strings.Join(args, " "), p.stderr.String())
		}
	})
	return p
}

func (p *program) ended() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// said is when the program logged the message. Its log names the time of the
// day.
func (p *program) said(message string) (times []time.Time) {
	p.t.Helper()
	for line := range strings.Lines(p.stderr.String()) {
		clock, rest, whole := strings.Cut(line, " ")
		if !whole || !strings.Contains(rest, fmt.Sprintf("msg=%q", message)) {
			continue
		}
		at, err := time.Parse("time=15:04:05.000", clock)
		if err != nil {
			p.t.Fatal(err)
		}
		then := p.began
		at = time.Date(then.Year(), then.Month(), then.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), time.Local)
		if at.Before(then.Truncate(time.Millisecond)) {
			at = at.AddDate(0, 0, 1) // past midnight
		}
		times = append(times, at.Add(time.Millisecond)) // its digits are cut off
	}
	return times
}

// written gathers what a program prints while somebody reads it.
type written struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *written) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// end interrupts it, if it has not ended by itself, and wants it to end well.
func (p *program) end() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	select {
	case <-p.over:
	case <-time.After(time.Minute):
		p.t.Fatal("scrape does not end")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Fatalf("scrape ended with %v", p.cmd.ProcessState)
	}
}

// run holds a stream through a fault with scrape run.
func run(t *testing.T, f fault, source source, lines int, p pace) row {
	s := newStage(t, source, p, 2)
	dir := t.TempDir()
	var exits []string
	for i, x := range s.exits {
		exits = append(exits, fmt.Sprintf("user%d:password@%s", i, x.addr))
	}
	var file bytes.Buffer
	err := template.Must(template.New("").Parse(feedFile)).Execute(&file, map[string]any{
		"Site": s.site.addr, "Lines": lines, "Stale": p.stale, "Quiet": p.quiet, "Min": p.min, "Max": p.max, "Exits": exits,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "feed.yaml"), file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	scrape := start(t, dir, io.Discard, "run", "feed.yaml", "--progress", "none", "--log-level", "debug")
	seen := &collector{}
	read := follow(t, filepath.Join(dir, "data", "jsonl"), seen, scrape.over)
	s.strike(f, lines, held{t: t, seen: seen, ended: scrape.ended, news: func() []time.Time { return scrape.said(brought) }})
	scrape.end()
	read()
	r := s.judge(seen.seen, coverage(t, dir))
	r.noticed = next(scrape.said(ended), s.from.Truncate(time.Millisecond))
	return r
}

// coverage is what scrape coverage says of the one stream.
func coverage(t *testing.T, dir string) []framework.Gap {
	t.Helper()
	var out bytes.Buffer
	p := start(t, dir, &out, "coverage", "--json")
	<-p.over
	var list []struct {
		Ledger struct{ Gaps []framework.Gap }
	}
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 1 {
		t.Fatalf("scrape coverage: %v\n%s", err, out.String())
	}
	known := false
	for _, g := range list[0].Ledger.Gaps {
		known = known || g.State == framework.GapKnown
	}
	want := 0
	if known {
		want = 1
	}
	if code := p.cmd.ProcessState.ExitCode(); code != want {
		t.Errorf("scrape coverage ended with %d, want %d", code, want)
	}
	return list[0].Ledger.Gaps
}

// follow reads the one file of a jsonl sink as it grows. The function that it
// returns waits until the whole of it has been read, after the end of who
// writes it.
func follow(t *testing.T, dir string, seen *collector, over <-chan struct{}) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		var part []byte
		var file *os.File
		for last := false; ; {
			if file == nil {
				if names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl")); len(names) > 0 {
					var err error
					if file, err = os.Open(names[0]); err != nil {
						t.Error(err)
						return
					}
					defer file.Close()
				}
			}
			if file != nil {
				more, err := io.ReadAll(file)
				if err != nil {
					t.Error(err)
					return
				}
				part = append(part, more...)
				for {
					line, rest, ok := bytes.Cut(part, []byte("\n"))
					if !ok {
						break
					}
					part = rest
					var r struct {
						Time time.Time
						Data struct{ N int }
					}
					if err := json.Unmarshal(line, &r); err != nil {
						t.Errorf("%s: %v", line, err)
						return
					}
					seen.add(r.Data.N, r.Time)
				}
			}
			if last {
				return
			}
			select {
			case <-over:
				last = true
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() { <-done }
}

// tail holds a stream through a fault with scrape tail. It has no ledger: what
// it warns of stands in its place.
func tail(t *testing.T, f fault, source source, p pace) row {
	s := newStage(t, source, p, 1)
	args := []string{"tail", "http://" + s.site.addr + "/stream", "-H", "Authorization: Bearer fixed",
		"--proxy", "http://user:password@" + s.exits[0].addr, "--quiet-after", p.quiet.String()}
	if p.stale != 0 {
		args = append(args, "--stale-after", p.stale.String())
	}
	out, in := io.Pipe()
	scrape := start(t, t.TempDir(), in, args...)
	seen := &collector{}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r struct {
				Data string
				Time time.Time
			}
			var body struct{ N int }
			err := json.Unmarshal(lines.Bytes(), &r)
			if err = errors.Join(err, json.Unmarshal([]byte(r.Data), &body)); err != nil {
				t.Errorf("%s: %v", lines.Bytes(), err)
				return
			}
			seen.add(body.N, r.Time)
		}
	})
	s.strike(f, 1, held{t: t, seen: seen, ended: scrape.ended})
	scrape.end()
	in.Close()
	reading.Wait()
	r := s.judge(seen.seen, warned(t, scrape.stderr.String(), s.from))
	r.noticed = next(scrape.said(ended), s.from.Truncate(time.Millisecond))
	return r
}

// warned reads the gaps that tail warns of.
func warned(t *testing.T, log string, from time.Time) (gaps []framework.Gap) {
	t.Helper()
	for line := range strings.Lines(log) {
		g := framework.Gap{From: from, To: time.Now()}
		if _, rest, ok := strings.Cut(line, `msg="events are missing" `); ok {
			g.State = framework.GapKnown
			if at := strings.Index(rest, "from_id="); at < 0 {
				t.Errorf("%q names no ids", line)
			} else if _, err := fmt.Sscanf(rest[at:], "from_id=%d to_id=%d missing=%d", &g.FirstID, &g.LastID, &g.Missing); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			gaps = append(gaps, g)
		} else if strings.Contains(line, "events may be missing") {
			g.State = framework.GapPossible
			gaps = append(gaps, g)
		}
	}
	return gaps
}

// telling are the faults and sources that the programs are held through in
// every run of the tests: one for each layer, and each way to be told of a loss.
var telling = map[string]bool{
	"mute: bytes stop, the socket stays": true, "dropped: nftables drops the packets": true, "RST": true,
	"EOF inside an event": true, "stall under heartbeats": true, "204: there is no more": true, "401: the token is dead": true,
	"500 for a while": true, "token dead without a word": true,
}

// TestPrograms holds the faults against the programs: scrape run by one line
// and by two, and scrape tail.
func TestPrograms(t *testing.T) {
	for name, program := range map[string]struct {
		lines int
		hold  func(t *testing.T, f fault, s source, p pace) row
	}{
		"scrape run":          {1, func(t *testing.T, f fault, s source, p pace) row { return run(t, f, s, 1, p) }},
		"scrape run, 2 lines": {2, func(t *testing.T, f fault, s source, p pace) row { return run(t, f, s, 2, p) }},
		"scrape tail":         {1, tail},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tb := &table{}
			t.Cleanup(func() { tb.write(t, "**`"+name+"`**") })
			for _, f := range faults {
				for _, s := range sources {
					if f.here || f.other && name == "scrape tail" || !*inEarnest && (!telling[f.name] || program.lines > 1 && (!f.single || s.replay)) {
						continue
					}
					t.Run(f.name+"/"+s.String(), func(t *testing.T) {
						t.Parallel()
						tb.put(f, s, paceFor(program.lines).fill(t, s, program.lines, f, func(p pace) row { return program.hold(t, f, s, p) }))
					})
				}
			}
		})
	}
}
