package targets

import (
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/proxies"
)

var update = flag.Bool("update", false, "write the golden files anew")

// acmeOptions are those of a plugin that a custom build brings.
type acmeOptions struct {
	Depth int    `yaml:"depth" default:"3" min:"1"`
	Zone  string `yaml:"zone" required:"true"`
	Parts []struct {
		Size Size `yaml:"size"`
	} `yaml:"parts"`
}

func testRegistry() Registry {
	return Registry{
		Hooks: []string{"solve"},
		Plugins: map[string]Plugin{
			"sse": SSE,
			"acme": func(_ *File, decode func(any) error) (framework.Target, error) {
				var o acmeOptions
				if err := decode(&o); err != nil {
					return nil, err
				}
				if o.Zone == "" {
					panic("decode said nothing of a missing key")
				}
				if o.Zone == "nowhere" {
					return nil, errors.New("zone nowhere is closed")
				}
				return framework.TargetFunc(nil), nil
			},
			"table": func(*File, func(any) error) (framework.Target, error) { return timetable{}, nil },
		},
		Sinks: map[string]SinkKind{
			"sqlite": func(decode func(any) error) (SinkPlan, error) {
				var o SQLite
				if err := decode(&o); err != nil {
					return SinkPlan{}, err
				}
				return SinkPlan{Destination: string(o.File) + "\x00" + o.Table, Columns: noTimes}, nil
			},
			"postgres": func(decode func(any) error) (SinkPlan, error) {
				var o Postgres
				return SinkPlan{}, decode(&o)
			},
			"jsonl": func(decode func(any) error) (SinkPlan, error) {
				var o JSONL
				return SinkPlan{}, decode(&o)
			},
		},
		Demos: map[string]DemoKind{
			"exchange": func(decode func(any) error) (DemoPlan, error) {
				var o Exchange
				if err := decode(&o); err != nil {
					return DemoPlan{}, err
				}
				return DemoPlan{Settings: o, New: func(string, *slog.Logger) (DemoSite, error) { return nil, nil }}, nil
			},
		},
	}
}

// timetable is a target whose stream "b" has records with a column "time".
type timetable struct{ framework.TargetFunc }

func (timetable) Decode(string, *framework.Event, func(framework.Record)) error { return nil }

func (timetable) Columns(stream string) []framework.Column {
	if stream == "columns/b" {
		return []framework.Column{{Name: "time", Type: framework.ColumnTime}}
	}
	return []framework.Column{{Name: "price", Type: framework.ColumnNumber}}
}

func noTimes(columns []framework.Column) error {
	for _, c := range columns {
		if c.Name == "time" {
			return errors.New("the column \"time\" has the name of another: give it another")
		}
	}
	return nil
}

// testEnv is the environment of all tests; its values are the secrets that no
// message may hold.
var testEnv = map[string]string{
	"PASSWORD":  "s3cret-env/with@odd:chars",
	"PROXY":     "http://s3cret-user:s3cret-proxy@127.0.0.1:8701",
	"BAD_PROXY": "gopher://s3cret-user:s3cret-proxy@127.0.0.1:8701",
	"PG_URL":    "postgres://s3cret-user:s3cret-pg@127.0.0.1/db",
	"NEWLINE":   "s3cret\nnewline",
	"DOLLAR":    "s3cret${x}",
	"EMPTY":     "",
}

func testOptions(t *testing.T) Options {
	t.Helper()
	o := Options{
		Registry: testRegistry(),
		Getenv:   func(name string) (string, bool) { v, ok := testEnv[name]; return v, ok },
	}
	w, err := LoadWorker("testdata/scrape.yaml", o)
	if err != nil {
		t.Fatal(err)
	}
	o.Worker = w
	return o
}

func TestGoodFiles(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.good.yaml")
	if len(files) < 4 {
		t.Fatalf("only %d good files", len(files))
	}
	for _, path := range append(files, "prices.yaml") {
		if _, err := Load(path, testOptions(t)); err != nil {
			t.Errorf("%s:\n%v", path, err)
		}
	}
}

func TestBadFiles(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.bad.yaml")
	if len(files) < 10 {
		t.Fatalf("only %d bad files", len(files))
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var err error
			if strings.HasPrefix(filepath.Base(path), "scrape-") {
				_, err = LoadWorker(path, testOptions(t))
			} else {
				_, err = Load(path, testOptions(t))
			}
			if err == nil {
				t.Fatal("no problem was found")
			}
			got := err.Error() + "\n"
			if strings.Contains(got, "s3cret") {
				t.Errorf("a secret is in\n%s", got)
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// load reads text as a target file named t.yaml.
func load(t *testing.T, text string, o Options) (*File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "t.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, o)
}

const oneStream = "streams: [{name: a, url: 'http://127.0.0.1:1/'}]\n"

func mustLoad(t *testing.T, text string) *File {
	t.Helper()
	f, err := load(t, text, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDefaultsWithoutKeys(t *testing.T) {
	f := mustLoad(t, oneStream)
	s := f.Streams[0]
	if f.Name != "t" || f.Plugin != "sse" || f.Auth != nil || f.Proxies != nil || f.Target == nil {
		t.Errorf("file is %+v", f)
	}
	if s.Method != "GET" || s.StaleAfter.String() != "auto" || s.MaxEvent != 16<<20 || s.OnEnd != "reconnect" ||
		s.Handover != framework.HandoverAuto || s.Lines != 1 || s.QuietAfter != 0 {
		t.Errorf("stream is %+v", s)
	}
	if want := (Reconnect{Duration(time.Second), Duration(time.Minute), Duration(10 * time.Second)}); s.Reconnect != want {
		t.Errorf("reconnect is %+v", s.Reconnect)
	}
	if want := (Limits{2, 4, 1000, 1000}); f.Limits != want {
		t.Errorf("limits are %+v", f.Limits)
	}
}

func TestZeroIsNotTheDefault(t *testing.T) {
	f := mustLoad(t, oneStream+"demo: {kind: exchange, silence: 0s, token_life: 25s}\n")
	x := f.Demo.Plan.Settings.(Exchange)
	if x.Silence != 0 || time.Duration(x.TokenLife) != 25*time.Second || x.Rate != 20 {
		t.Errorf("exchange is %+v", x)
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("s3cret-file\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.yaml")
	text := `
streams:
  - name: a
    url: http://127.0.0.1/
    headers: {A: "${env:PASSWORD}", B: "Bearer ${file:key}!", C: "$${env:PASSWORD} ${file:key}", D: 0123, E: true}
auth:
  browser:
    steps: [{open: http://127.0.0.1/}]
    headers: {Authorization: "${env:PASSWORD} ${storage:token} ${cookie:c}!"}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(path, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"A": testEnv["PASSWORD"], "B": "Bearer s3cret-file!", "C": "${env:PASSWORD} s3cret-file", "D": "0123", "E": "true",
	}
	for name, value := range want {
		if got := f.Streams[0].Headers[name].Reveal(); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	if got := f.Auth.Browser.Headers["Authorization"].Reveal(); got != testEnv["PASSWORD"]+" ${storage:token} ${cookie:c}!" {
		t.Errorf("Authorization is %q", got)
	}
	if f.Auth.BoundTo != "exit" {
		t.Errorf("a browser's credential is bound to %s", f.Auth.BoundTo)
	}
}

func TestExits(t *testing.T) {
	f := mustLoad(t, oneStream+`
proxies:
  kind: isp
  fallback: residential
  max_conns: 5
  lifetime: 10m
  exits:
    - http://u:p@127.0.0.1:1
    - url: socks5://u:${env:PASSWORD}@127.0.0.1:2
      name: socks
      kind: residential
      max_conns: 2
      lifetime: 1m
      account: gw
    - direct
    - ${env:PROXY}
`)
	list := f.Proxies.List()
	if len(list) != 4 {
		t.Fatalf("%d exits", len(list))
	}
	if password, _ := list[1].URL.User.Password(); password != testEnv["PASSWORD"] {
		t.Errorf("the password in the URL is %q", password)
	}
	for i, want := range []proxies.Exit{
		{Kind: proxies.ISP, MaxConns: 5, Lifetime: 10 * time.Minute},
		{Name: "socks", Kind: proxies.Residential, Account: "gw", MaxConns: 2, Lifetime: time.Minute},
		{Kind: proxies.Direct, MaxConns: 5, Lifetime: 10 * time.Minute},
		{Kind: proxies.ISP, MaxConns: 5, Lifetime: 10 * time.Minute},
	} {
		got := list[i]
		got.URL = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("exit %d is %#v, want %#v", i, got, want)
		}
	}
}

func TestByteOrderMarkAndCRLF(t *testing.T) {
	if f := mustLoad(t, "\ufeffname: a\r\n"+oneStream); f.Name != "a" {
		t.Errorf("the name is %q", f.Name)
	}
}

func TestDidYouMean(t *testing.T) {
	valid := []string{"name", "stale_after", "max_conns", "headers"}
	for word, want := range map[string]string{
		"naem": "name", "Name": "name", "stale-after": "stale_after", "staleAfter": "stale_after", "max_con": "max_conns",
		"header": "headers", "maxconns": "max_conns", "x": "", "password": "", "": "",
	} {
		if got := nearest(word, valid); got != want {
			t.Errorf("%q means %q, want %q", word, got, want)
		}
	}
}

func TestSinksOfTheWorker(t *testing.T) {
	f := mustLoad(t, oneStream+`
sinks:
  - use: warehouse
  - use: warehouse
    name: other
    batch: {every: 5s}
  - sqlite: {file: sub/x.db}
`)
	if len(f.Sinks) != 3 || f.Sinks[0].Name != "warehouse" || f.Sinks[0].Kind != "postgres" || f.Sinks[0].Batch.Records != 42 {
		t.Errorf("sinks are %+v", f.Sinks)
	}
	if b := f.Sinks[1].Batch; f.Sinks[1].Name != "other" || b.Records != 42 || time.Duration(b.Every) != 5*time.Second {
		t.Errorf("the second sink is %+v", f.Sinks[1])
	}
	if want := filepath.Join(filepath.Dir(f.Path), "sub/x.db") + "\x00records"; f.Sinks[2].Plan.Destination != want {
		t.Errorf("destination is %q, want %q", f.Sinks[2].Plan.Destination, want)
	}
}

func TestAnchorsAndMergeKeys(t *testing.T) {
	f := mustLoad(t, `
streams:
  - &first
    name: a
    url: &url http://127.0.0.1/a
    reconnect: &fast {min: 2s, max: 3s}
  - <<: *first
    name: b
    stale_after: 9s
  - name: c
    url: *url
    reconnect:
      <<: [{max: 7s}, *fast]
`)
	b, c := f.Streams[1], f.Streams[2]
	if b.Name != "b" || b.URL != "http://127.0.0.1/a" || time.Duration(b.StaleAfter) != 9*time.Second || b.Reconnect != f.Streams[0].Reconnect {
		t.Errorf("b is %+v", b)
	}
	if time.Duration(c.Reconnect.Max) != 7*time.Second || time.Duration(c.Reconnect.Min) != 2*time.Second {
		t.Errorf("c's reconnect is %+v", c.Reconnect)
	}
}

func TestWorkerFile(t *testing.T) {
	w := testOptions(t).Worker
	if w.Pools["shared-isp"].List()[0].Kind != proxies.ISP || w.Journal.Dir != "testdata/journal" || time.Duration(w.Journal.Retain) != 48*time.Hour {
		t.Errorf("worker is %+v", w)
	}
	if got := NewWorker().Journal; got.RetainBytes != 10<<30 || time.Duration(got.Retain) != 24*time.Hour {
		t.Errorf("the default journal is %+v", got)
	}
	if _, err := LoadWorker("testdata/nothing.yaml", Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	huge := write("huge.yaml", "")
	if err := os.Truncate(huge, 100<<20); err != nil {
		t.Fatal(err)
	}
	deep, full := strings.Repeat("[", 100), int(maxFile)
	bomb := "a: &a {x: y}\n"
	for c := 'b'; c < 'j'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " {<<: [" + strings.Repeat("*"+p+", ", 9) + "*" + p + "]}\n"
	}
	bomb += "streams: [*i]\n"
	for path, want := range map[string]string{
		dir:                                 ": cannot be read: it is a directory",
		filepath.Join(dir, "none.yaml"):     ": cannot be read: no such file or directory",
		huge:                                ": cannot be read: it is longer than 256KiB",
		write("empty.yaml", ""):             ": is empty",
		write("comment.yaml", "# x\n"):      ": is empty",
		write("latin.yaml", "name: \xe4\n"): ": is not text in UTF-8",
		write("list.yaml", "- a\n"):         ":1:1: the file is a list; want a mapping with keys such as name, ",
		write("text.yaml", "hello"):         ":1:1: the file is text; want a mapping",
		write("two.yaml", oneStream+"---\nname: b\n"):             ":3:1: a second document begins here; write one file for each",
		write("broken.yaml", "name: [s3cret\n"):                   ":1:7: is not YAML: ",
		write("header.yaml", "name: |s3cret\n"):                   ":1:7: is not YAML: ",
		write("tag.yaml", oneStream+"name: !s3cret\n"):            ":2:7: this tag is not known; put the value in quotes",
		write("alias.yaml", oneStream+"name: *s3cret\n"):          ":2:7: this alias has no anchor before it; put the value in quotes",
		write("anchor.yaml", oneStream+"name: &s3cret\n"):         ":2:7: is not YAML: ",
		write("deep.yaml", deep+strings.Repeat("]", len(deep))):   "nested more than 64 deep",
		write("brackets.yaml", strings.Repeat("[", full)):         ":1:1: lists and mappings are nested too deep here",
		write("braces.yaml", "\n"+strings.Repeat("{a: ", full/8)): ":2:1: lists and mappings are nested too deep here",
		write("dashes.yaml", strings.Repeat("- ", full/2)):        ":1:1: lists and mappings are nested too deep here",
		write("questions.yaml", strings.Repeat("?\t", full/2)):    ":1:1: lists and mappings are nested too deep here",
		write("self.yaml", "streams: &s [*s]\n"):                  "this alias has no anchor before it",
		write("bomb.yaml", bomb):                                  "aliases make this file longer than",
	} {
		_, err := Load(path, testOptions(t))
		problems, ok := errors.AsType[Problems](err)
		if !ok {
			t.Errorf("%s: error is %v", path, err)
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), path+":") {
			t.Errorf("%s: error is\n%v\nwant %q", path, err, want)
		}
		if want[0] == ':' && len(problems) != 1 {
			t.Errorf("%s: %d problems:\n%v", path, len(problems), err)
		}
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: error quotes the file: %v", path, err)
		}
	}
}

func TestFilesTogether(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	for path, text := range map[string]string{a: oneStream + "nme: x\n", b: "name: a\n" + oneStream} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := LoadAll([]string{a, b, dir + "/./a.yaml"}, testOptions(t))
	want := a + `:2:1: unknown key "nme"; did you mean "name"?
` + b + `:1:7: the target "a" has the name of the one in ` + a + `; every target needs a name of its own: change name
` + dir + `/./a.yaml: is given twice; name each target file once`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}
