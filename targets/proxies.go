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
// that several targets share, or ways of its own: `exits`, a `file` of them, or
// sessions of a `provider`.
type Proxies struct {
	// The name of a pool in scrape.yaml.
	Pool string `yaml:"pool"`
	// The kind to take when no exit of `kind` is in good health. Without this
	// key: none.
	Fallback proxies.Kind `yaml:"fallback" enum:"isp,datacenter,residential,direct"`

	Exits `yaml:",inline"`

	shared *Exits // those of the pool
}

// Exits is a list of ways out with what they have in common: `exits`, a `file`,
// or sessions of a `provider`.
type Exits struct {
	// The kind of exit that the target asks for, and the kind of those in
	// `exits` that name none. Without this key: any kind, and of a provider the
	// first that it sells.
	Kind proxies.Kind `yaml:"kind" enum:"isp,datacenter,residential,direct"`
	// How many connections may be open through one exit at once, counted over
	// all targets; `direct` is one exit for all of them.
	MaxConns int `yaml:"max_conns" default:"8" min:"1"`
	// How long the provider keeps an exit for one user, or is asked to keep a
	// session. The stream moves on before that. 0s: for ever, and with
	// `provider` what is usual there.
	Lifetime Duration `yaml:"lifetime" default:"0s"`
	// How many connections the provider's account may have open at once, over
	// all its exits and all targets. 0: any number.
	AccountConns int `yaml:"account_conns" default:"0" min:"0"`
	// How many bytes may pass in a day (UTC): of a provider all together, of
	// `exits` and `file` through each. What has used them up is out until
	// midnight. 0: any number.
	Budget Size `yaml:"budget" default:"0"`
	// The address of a page that answers with its visitor's address. It is
	// asked through an exit, at most once a minute, to notice when its address
	// has changed under a login. Without this key only providers that tell the
	// address by themselves are believed.
	Echo string `yaml:"echo"`
	// The exits: each the URL of a proxy, the word direct, or a mapping.
	Exits []Exit `yaml:"exits"`
	// A file with the URL of a proxy on each line; empty lines and those that
	// begin with # are passed over. A change is taken up while running.
	File Path `yaml:"file"`

	Subscription `yaml:",inline"`

	made []proxies.Exit // of the file or the provider
}

// List returns the exits as a pool takes them.
func (e *Exits) List() []proxies.Exit {
	if e.Provider != "" || e.File != "" {
		return e.made
	}
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
		to.AccountConns, to.Budget = e.AccountConns, int64(e.Budget)
		list[i] = to
	}
	return list
}

func (p *Proxies) check(s *section) {
	if !s.has("pool") {
		if !slices.ContainsFunc(sources, s.has) {
			s.wrong("", "there is neither a pool nor a list of exits"+in(s.path), "write pool: and a name from scrape.yaml, or exits:, file: or provider:")
			return
		}
		p.Exits.checkExits(s)
		p.checkKinds(s, p.Exits.List())
		return
	}
	for _, key := range append(slices.Concat(sources, ofProvider), "max_conns", "lifetime", "account_conns", "budget", "echo") {
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
	p.shared = &pool.Exits
	p.checkKinds(s, pool.List())
}

// used are the exits that the target may leave by.
func (p *Proxies) used() []proxies.Exit {
	list := p.List()
	if p.shared != nil {
		list = p.shared.List()
	}
	return slices.DeleteFunc(slices.Clone(list), func(e proxies.Exit) bool {
		return p.Kind != "" && e.Kind != p.Kind && e.Kind != p.Fallback
	})
}

// checkKinds finds wishes that no exit can fulfil.
func (p *Proxies) checkKinds(s *section, exits []proxies.Exit) {
	if s.has("fallback") && !s.has("kind") {
		s.wrong("fallback", "\"fallback\" without \"kind\" says nothing", "name the kind that is wanted first")
		return
	}
	if len(exits) == 0 {
		return // a problem of its own
	}
	for key, kind := range map[string]proxies.Kind{"kind": p.Kind, "fallback": p.Fallback} {
		if kind != "" && !slices.ContainsFunc(exits, func(e proxies.Exit) bool { return e.Kind == kind }) {
			s.wrong(key, fmt.Sprintf("no exit is of the kind %s", kind), "give an exit this kind, or ask for another")
		}
	}
}

func (e *Exits) checkExits(s *section) {
	s.oneOf("a list of exits", sources...)
	if s.good("echo") {
		if message, remedy := checkURL("echo", e.Echo); message != "" {
			s.wrong("echo", message, remedy)
		}
	}
	if !s.has("provider") {
		for _, key := range ofProvider {
			if s.has(key) {
				s.wrong(key, fmt.Sprintf("%q is for a provider", key), "write provider:, or remove it")
			}
		}
	}
	switch {
	case s.has("provider"):
		e.checkProvider(s)
		return
	case s.has("file"):
		e.checkFile(s)
		return
	}
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
