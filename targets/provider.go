package targets

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/proxies"
)

// Subscription says what is wanted of a provider of proxies.
type Subscription struct {
	// The provider: apify, brightdata, custom, dataimpulse, decodo, geonode,
	// iproyal, massive, oxylabs (residential), oxylabs-isp or soax; or the path
	// of a JSON file of your own that describes one, such as ./mine.json. With
	// custom, `user`, `password` and `address` may hold {session}, {country},
	// {minutes}, {seconds} and {span}.
	Provider string `yaml:"provider"`
	// What the account is called in logs and tables, and its exits with it.
	// Without this key: the provider's name.
	Account string `yaml:"account"`
	// The user name of the account, without the parts that say what is wanted.
	User auth.Secret `yaml:"user"`
	// The password of the account.
	Password auth.Secret `yaml:"password"`
	// Host and port of the provider, with socks5:// or https:// in front where
	// that is not HTTP; custom only.
	Address string `yaml:"address"`
	// Two letters; without this key any country.
	Country string `yaml:"country"`
	// What else the provider can be told, such as zone, city or state. A wrong
	// name is answered with the right ones.
	Params map[string]string `yaml:"params"`
	// How many sessions are held at once, each an exit of its own; or a list of
	// their names, where these matter. Without this key: 1.
	Sessions Sessions `yaml:"sessions"`
	// Have the provider fail rather than move a session to another address, so
	// that no login is used from an address that it was not made at. Where the
	// provider can.
	Strict bool `yaml:"strict" default:"true"`
}

// sources are the keys of which exactly one says where exits come from.
var sources = []string{"exits", "file", "provider"}

// ofProvider are the keys that only a provider has.
var ofProvider = []string{"account", "user", "password", "address", "country", "params", "sessions", "strict"}

// Sessions is a number of sessions, or a list of their names.
type Sessions struct {
	Count int
	Names []string
}

func (x *Sessions) decodeNode(d *decoder, n ast.Node, path string) {
	const want = "want a number such as 5, or a list of names"
	switch n := n.(type) {
	case *ast.IntegerNode:
		text, _ := scalarText(n)
		if _, err := fmt.Sscan(text, &x.Count); err != nil || x.Count < 1 {
			d.problem(n, path, base(path)+" is "+show(text), want)
		}
	case *ast.SequenceNode:
		for i, one := range n.Values {
			at := fmt.Sprintf("%s[%d]", path, i)
			if one = d.resolve(one, at); one == nil {
				continue
			}
			text, ok := scalarText(one)
			if !ok {
				d.wrongType(one, at, "the name of a session; put it in quotes if it looks like something else")
				continue
			}
			x.Names = append(x.Names, text)
		}
		if len(n.Values) == 0 {
			d.problem(n, path, "there are no sessions", want)
		}
	default:
		d.problem(n, path, base(path)+" is "+found(n), want)
	}
}

// checkProvider has the provider make the exits.
func (e *Exits) checkProvider(s *section) {
	for _, key := range append([]string{"kind", "lifetime", "max_conns"}, ofProvider...) {
		if s.bad[key] {
			return // it would say the same again, in other words
		}
	}
	if !s.good("provider") {
		return
	}
	if s.has("account") && !nameForm.MatchString(e.Account) {
		s.wrong("account", `"account" is `+show(e.Account), nameRemedy)
		return
	}
	p, err := e.provider(s.d)
	if err != nil {
		message, remedy, _ := strings.Cut(err.Error(), ": those built in are ")
		if remedy != "" {
			remedy = didYouMean("those built in", e.Provider, proxies.Providers())
		}
		s.wrong("provider", message, remedy)
		return
	}
	e.made, err = p.Exits(proxies.Subscription{
		User: e.User.Reveal(), Password: e.Password.Reveal(), Address: e.Address,
		Kind: e.Kind, Country: e.Country, Params: e.Params,
		Sessions: e.Sessions.Count, Names: e.Sessions.Names,
		Lifetime: time.Duration(e.Lifetime), Loose: !e.Strict, Account: e.Account,
		MaxConns: e.MaxConns, AccountConns: e.AccountConns, AccountBudget: int64(e.Budget),
	})
	for _, one := range unjoined(err) {
		var setting *proxies.SettingError
		if errors.As(one, &setting) {
			s.wrong(setting.Setting, setting.Message, setting.Remedy)
		}
	}
}

func unjoined(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// provider finds the provider, built in or in a file of the user's.
func (e *Exits) provider(d *decoder) (*proxies.Provider, error) {
	if !strings.HasSuffix(e.Provider, ".json") {
		return proxies.BuiltinProvider(e.Provider)
	}
	path := d.path(e.Provider)
	data, err := readLimited(path, maxSecret)
	if err != nil {
		return nil, fmt.Errorf("the provider's file %s cannot be read: %s", path, reason(err))
	}
	return proxies.ParseProvider(strings.TrimSuffix(filepath.Base(path), ".json"), data)
}

// Like is what the exits of a list file have in common.
func (e *Exits) Like() proxies.Exit {
	return proxies.Exit{
		Kind: e.Kind, MaxConns: e.MaxConns, Lifetime: time.Duration(e.Lifetime),
		AccountConns: e.AccountConns, Budget: int64(e.Budget),
	}
}

// checkFile reads the list file. What is wrong in it is a problem of that file.
func (e *Exits) checkFile(s *section) {
	if !s.good("file") {
		return
	}
	made, err := proxies.ReadList(string(e.File), e.Like())
	var line *proxies.ListError
	switch {
	case errors.As(err, &line):
		s.d.problems = append(s.d.problems, &Problem{File: string(e.File), Line: line.Line, Column: 1, Key: join(s.path, "file"), Message: line.Err.Error()})
		s.bad["file"] = true
	case err != nil:
		s.wrong("file", fmt.Sprintf("the list of exits %s cannot be used: %s", e.File, reason(err)), "relative paths are relative to "+s.d.file)
	}
	e.made = made
	for _, x := range made {
		if x.URL == nil || x.URL.User == nil {
			continue
		}
		password, _ := x.URL.User.Password()
		s.d.secrets = append(s.d.secrets, x.URL.User.Username(), password)
	}
}
