package targets

import (
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/proxies"
)

// Proxies says which ways out the target's requests take: those of a `pool`
// that several targets share, or `exits` of its own.
type Proxies struct {
	// The name of a pool in scrape.yaml.
	Pool string `yaml:"pool"`
	// The kind to take when no exit of `kind` is in good health. Without this
	// key: none.
	Fallback proxies.Kind `yaml:"fallback" enum:"isp,datacenter,residential,direct"`

	Exits `yaml:",inline"`
}

// Exits is a list of ways out with what they have in common.
type Exits struct {
	// The kind of exit that the target asks for, and the kind of those in
	// `exits` that name none. Without this key: any kind.
	Kind proxies.Kind `yaml:"kind" enum:"isp,datacenter,residential,direct"`
	// How many connections may be open through one exit at once, counted over
	// all targets.
	MaxConns int `yaml:"max_conns" default:"8" min:"1"`
	// How long the provider keeps an exit for one user. The stream moves on
	// before that. 0s: for ever.
	Lifetime Duration `yaml:"lifetime" default:"0s"`
	// The exits: each the URL of a proxy, the word direct, or a mapping.
	Exits []Exit `yaml:"exits"`
}

// List returns the exits as a pool takes them.
func (e *Exits) List() []proxies.Exit {
	list := make([]proxies.Exit, len(e.Exits))
	for i, x := range e.Exits {
		to := x.parsed
		to.Name, to.Account = x.Name, x.Account
		if to.Kind == "" {
			if to.Kind = x.Kind; to.Kind == "" {
				to.Kind = e.Kind
			}
		}
		if to.MaxConns = x.MaxConns; to.MaxConns == 0 {
			to.MaxConns = e.MaxConns
		}
		if to.Lifetime = time.Duration(x.Lifetime); to.Lifetime == 0 {
			to.Lifetime = time.Duration(e.Lifetime)
		}
		list[i] = to
	}
	return list
}

func (p *Proxies) check(s *section) {
	if !s.has("pool") {
		if !s.has("exits") {
			s.wrong("", "there is neither a pool nor a list of exits"+in(s.path), "write pool: and a name from scrape.yaml, or exits:")
			return
		}
		p.Exits.checkExits(s)
		p.checkKinds(s, p.Exits.List())
		return
	}
	for _, key := range []string{"exits", "max_conns", "lifetime"} {
		if s.has(key) {
			s.wrong(key, fmt.Sprintf("%q belongs to the pool", key), "write it into scrape.yaml, or remove pool and list the exits here")
		}
	}
	if p.Pool == "" {
		return // a problem of its own
	}
	var pools map[string]*Pool
	if w := s.d.options.Worker; w != nil {
		pools = w.Pools
	}
	pool, ok := pools[p.Pool]
	if !ok {
		s.wrong("pool", "there is no pool "+show(p.Pool), didYouMean("pools in scrape.yaml", p.Pool, keysOf(pools)))
		return
	}
	p.checkKinds(s, pool.List())
}

// checkKinds finds wishes that no exit can fulfil.
func (p *Proxies) checkKinds(s *section, exits []proxies.Exit) {
	if s.has("fallback") && !s.has("kind") {
		s.wrong("fallback", "\"fallback\" without \"kind\" says nothing", "name the kind that is wanted first")
		return
	}
	for key, kind := range map[string]proxies.Kind{"kind": p.Kind, "fallback": p.Fallback} {
		if kind != "" && !slices.ContainsFunc(exits, func(e proxies.Exit) bool { return e.Kind == kind }) {
			s.wrong(key, fmt.Sprintf("no exit is of the kind %s", kind), "give an exit this kind, or ask for another")
		}
	}
}

func (e *Exits) checkExits(s *section) {
	if s.good("exits") && len(e.Exits) == 0 {
		s.wrong("exits", "there are no exits", "list at least one")
	}
	seen := map[string]bool{}
	for i, x := range e.List() {
		if !e.Exits[i].valid {
			continue
		}
		if e.Exits[i].Kind == "" && e.Kind == proxies.Direct && x.URL != nil {
			s.wrong("kind", "an exit of the kind direct has a proxy", "change the kind, or write direct instead of the URLs")
		}
		name := x.Name
		if name == "" {
			name = "direct"
			if x.URL != nil {
				name = x.URL.Host
			}
		}
		if seen[name] {
			s.d.problem(e.Exits[i].at, fmt.Sprintf("%s[%d]", join(s.path, "exits"), i), "another exit has the name "+show(name), "give each a name; without one it is host and port")
		}
		seen[name] = true
	}
}

// Exit is one way out: a URL by itself, the word direct, or this mapping.
type Exit struct {
	// The proxy: `http`, `https`, `socks5` or `socks5h`, with user name and
	// password, host and port, as in http://user:password@host:8000. Special
	// characters of the user name and the password are percent-encoded;
	// those of a `${env:…}` or `${file:…}` inside the URL are encoded for you.
	URL auth.Secret `yaml:"url" required:"true"`
	// The name of the exit in logs and tables, without secrets. What is bound
	// to an exit is bound to its name. Without this key: host and port.
	Name string `yaml:"name"`
	// What sort of address the exit leaves from. Without this key: the `kind`
	// of the list.
	Kind proxies.Kind `yaml:"kind" enum:"isp,datacenter,residential,direct"`
	// The provider account that pays for the exit: when the proxy refuses a
	// password, all exits of the account stop. Without this key, exits with
	// the same user name and password are one account.
	Account string `yaml:"account"`
	// Connections at once through this exit. Without this key: `max_conns` of
	// the list.
	MaxConns int `yaml:"max_conns" min:"1"`
	// How long the provider keeps this exit. Without this key: `lifetime` of
	// the list.
	Lifetime Duration `yaml:"lifetime" min:"1s"`

	parsed proxies.Exit
	valid  bool // parsed is what url says
	at     ast.Node
}

// String names the exit without its secrets.
func (e Exit) String() string {
	p := e.parsed
	p.Name = e.Name
	return p.String()
}

// plainExit is Exit without its methods: the mapping.
type plainExit Exit

func (e *Exit) decodeNode(d *decoder, n ast.Node, path string) {
	e.at = n
	if _, isText := scalarText(n); isText {
		e.parse(d, n, path)
		return
	}
	list, ok := d.entries(n, path)
	if !ok {
		d.problem(n, path, "an exit is "+found(n), "want the URL of a proxy, the word direct, or a mapping with url")
		return
	}
	d.decodeStruct(n, reflect.ValueOf((*plainExit)(e)).Elem(), path)
	for _, x := range list {
		if x.name != "url" {
			continue
		}
		at := d.resolve(x.value, path)
		if at == nil {
			return
		}
		if _, isText := scalarText(at); isText {
			e.parse(d, at, join(path, "url"))
		}
	}
	if e.valid && e.Kind == proxies.Direct && e.parsed.URL != nil {
		d.problem(n, path, "an exit of the kind direct has a proxy", "write direct instead of the URL, or change the kind")
	}
	if e.valid && e.parsed.URL == nil && e.Kind != "" && e.Kind != proxies.Direct {
		d.problem(n, path, fmt.Sprintf("an exit of the kind %s has no proxy", e.Kind), "give it the URL of a proxy, or remove the kind")
	}
}

// parse reads the proxy's URL. Nothing of it is quoted: any part of a mistyped
// one may be the password.
func (e *Exit) parse(d *decoder, n ast.Node, path string) {
	text, _ := scalarText(n)
	raw, ok := d.expand(n, text, path, nil, escapeUserinfo)
	if !ok {
		return
	}
	e.URL = auth.NewSecret(raw)
	x, err := proxies.ParseExit(raw)
	if err != nil {
		d.problem(n, path, fmt.Sprintf("%s: %v", base(path), err), "")
		return
	}
	if x.URL != nil && x.URL.User != nil {
		password, _ := x.URL.User.Password()
		d.secrets = append(d.secrets, x.URL.User.Username(), password)
	}
	e.parsed, e.valid = x, true
}

// escapeUserinfo encodes a secret that is the user name or the password in a
// URL, as the @ after it tells.
func escapeUserinfo(secret, rest string) string {
	if !strings.Contains(rest, "@") {
		return secret
	}
	return strings.ReplaceAll(url.QueryEscape(secret), "+", "%20")
}
