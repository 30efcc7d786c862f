package targets

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdline/scrape/auth"
)

// FuzzLoad feeds the reader any bytes: it ends, with a file or with problems,
// and no problem holds a secret of the environment.
func FuzzLoad(f *testing.F) {
	seeds, _ := filepath.Glob("testdata/*.yaml")
	if len(seeds) < 20 {
		f.Fatalf("only %d seeds", len(seeds))
	}
	for _, path := range append(seeds, "prices.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	o := Options{Registry: testRegistry(), Getenv: func(name string) (string, bool) { v, ok := testEnv[name]; return v, ok }, Worker: NewWorker()}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, into := range []any{&File{}, &Worker{}} {
			d := &decoder{file: "fuzz.yaml", dir: "testdata", options: o, left: maxNodes}
			if body := d.parse(text); body != nil {
				d.document(body, into)
			} else if len(d.problems) == 0 {
				t.Error("neither a file nor a problem")
			}
			for _, p := range d.problems.sorted() {
				if p.Message == "" || p.Line < 0 || strings.ContainsAny(p.Error(), "\n\r\x1b") {
					t.Errorf("the problem is %q", p.Error())
				}
				for _, secret := range testEnv {
					if len(secret) > 3 && !strings.Contains(string(text), secret) && strings.Contains(p.Error(), secret) {
						t.Errorf("a secret is in %q", p.Error())
					}
				}
			}
			// What was read prints without its secrets.
			for _, verb := range []string{"%v", "%+v", "%#v"} {
				if out := fmt.Sprintf(verb, into); strings.Contains(out, "s3cret-env") && !strings.Contains(string(text), "s3cret-env") {
					t.Errorf("a secret is in %s", out)
				}
			}
		}
	})
}

// FuzzUnits holds units to what they print.
func FuzzUnits(f *testing.F) {
	for _, seed := range []string{"4s", "1m30s", "16MiB", "10 GiB", "0", "-1s", "500KB", "1h0m", "9223372036854775807"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var d, again Duration
		if d.UnmarshalText([]byte(text)) == nil {
			if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d || d < 0 {
				t.Errorf("%q is %v and then %v (%v)", text, d, again, err)
			}
		}
		var s, same Size
		if s.UnmarshalText([]byte(text)) == nil {
			if err := same.UnmarshalText([]byte(s.String())); err != nil || same != s || s < 0 {
				t.Errorf("%q is %v and then %v (%v)", text, s, same, err)
			}
		}
	})
}

// TestPrintedFilesHoldNoSecrets prints what was loaded in every way.
func TestPrintedFilesHoldNoSecrets(t *testing.T) {
	f := mustLoad(t, `
streams: [{name: a, url: "http://127.0.0.1/", headers: {A: "${env:PASSWORD}"}, query: {q: s3cret}, body: s3cret, method: POST}]
auth: {stack: [{headers: {B: s3cret}}, {cookies: {c: s3cret}}, {basic: {user: s3cret, password: s3cret}}, {bearer: s3cret}, {login: {url: "http://127.0.0.1/", fields: {p: s3cret}}}]}
proxies:
  exits:
    - http://s3cret-user:s3cret-pass@127.0.0.1:1
    - {url: "${env:PROXY}", name: named}
`)
	if f.Streams[0].Headers["A"].Reveal() != testEnv["PASSWORD"] || len(f.Proxies.Exits.Exits) != 2 {
		t.Fatal("the file was not read")
	}
	for _, v := range []any{f, *f, f.Streams, f.Proxies, *f.Proxies, f.Proxies.Exits.Exits, f.Proxies.List(), f.Auth, *f.Auth, f.Auth.Stack, f.Auth.Stack[4].Login, f.Target} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, "s3cret") {
				t.Errorf("%T printed with %s: %s", v, verb, out)
			}
		}
	}
}

// TestErrorsOfOthersHoldNoSecrets has a sink quote its settings.
func TestErrorsOfOthersHoldNoSecrets(t *testing.T) {
	o := testOptions(t)
	o.Registry.Sinks = map[string]SinkKind{"loud": func(decode func(any) error) (SinkPlan, error) {
		var h struct {
			Key auth.Secret `yaml:"key" required:"true"`
		}
		if err := decode(&h); err != nil {
			return SinkPlan{}, err
		}
		return SinkPlan{}, errors.New("cannot use " + h.Key.Reveal())
	}}
	_, err := load(t, oneStream+"sinks: [{loud: {key: '${env:PASSWORD}'}}]\n", o)
	if err == nil || !strings.HasSuffix(err.Error(), `:2:16: sink loud: cannot use ***`) {
		t.Errorf("error is %v", err)
	}
}
