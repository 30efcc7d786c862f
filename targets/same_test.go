package targets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a file says decides, with what it refers to; how and where it says so
// does not. Nothing of a secret is needed to see that it is another.
func TestSame(t *testing.T) {
	const text = `
plugin: acme
options: {zone: z, parts: [{size: 1MiB}]}
streams:
  - name: s
    url: https://example.com/s
    query: {key: "${file:secret}"}
auth: {basic: {user: u, password: "${env:PASSWORD}"}}
records: {map: {price: {value: price, type: number}}}
sinks: [{sqlite: {table: t}}]
`
	load := func(text, secret, password string) *File {
		t.Helper()
		dir := t.TempDir()
		for name, text := range map[string]string{"t.yaml": text, "secret": secret} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := Load(filepath.Join(dir, "t.yaml"), Options{Registry: testRegistry(), Getenv: func(string) (string, bool) { return password, true }})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	parts := func(a, b *File) string {
		var other []string
		for _, p := range []struct {
			name string
			same bool
		}{
			{"plugin", a.SamePlugin(b)}, {"streams", Same(a.Streams, b.Streams)}, {"auth", Same(a.Auth, b.Auth)},
			{"records", a.SameRecords(&a.Streams[0], b, &b.Streams[0])}, {"sinks", Same(a.Sinks, b.Sinks)}, {"limits", Same(a.Limits, b.Limits)},
		} {
			if !p.same {
				other = append(other, p.name)
			}
		}
		return strings.Join(other, " ")
	}
	was := load(text, "one", "p")
	for _, c := range []struct{ from, to, secret, password, want string }{
		{"\nplugin", "\n# again\nplugin", "one", "p", ""},
		{"{zone: z, ", "{depth: 3, zone: \"z\", ", "one", "p", ""},
		{"1MiB", "1024KiB", "one", "p", ""},
		{"1MiB", "2MiB", "one", "p", "plugin"},
		{"zone: z", "zone: y", "one", "p", "plugin"},
		{"key:", "kex:", "one", "p", "streams"},
		{"", "", "two", "p", "streams"},
		{"", "", "one", "q", "auth"},
		{"basic: {", "renew_before: 1m, basic: {", "one", "p", "auth"},
		{"type: number", "type: text", "one", "p", "records"},
		{"{price: ", "{cost: ", "one", "p", "records"},
		{"table: t", "table: u", "one", "p", "sinks"},
		{"sinks:", "limits: {burst: 4}\nsinks:", "one", "p", ""},
		{"sinks:", "limits: {burst: 5}\nsinks:", "one", "p", "limits"},
	} {
		if got := parts(was, load(strings.Replace(text, c.from, c.to, 1), c.secret, c.password)); got != c.want {
			t.Errorf("%q for %q, %s %s: %q differ, want %q", c.to, c.from, c.secret, c.password, got, c.want)
		}
	}
}
