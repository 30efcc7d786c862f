package proxies

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Subscription is what a user has with a provider, and what he wants of it.
type Subscription struct {
	// User and Password are the account's. Address is asked for by providers that do not know it (custom).
	User, Password, Address string
	// Kind is the kind of exit, empty for the provider's first.
	Kind Kind
	// Country is two letters, empty for any. Params are the other values that the provider's templates know, such as zone.
	Country string
	Params  map[string]string
	// Sessions is how many sessions are held, which is how many exits there are; 0 means 1. Names calls them by name instead.
	Sessions int
	Names    []string
	// Lifetime is how long a session is to last; 0 means the provider's default.
	Lifetime time.Duration
	// Loose has the provider replace an address that died without a word, also where it could fail instead.
	Loose bool
	// Account labels the account in errors and tables, and the exits; empty means the provider's name.
	Account string
	// MaxConns, AccountConns and AccountBudget are those of Exit.
	MaxConns, AccountConns int
	AccountBudget          int64
}

// String names the account, without its secrets.
func (s Subscription) String() string { return "subscription " + s.Account }

// GoString is String, so that %#v shows no secrets.
func (s Subscription) GoString() string { return s.String() }

// LogValue is String, so that a logged subscription shows no secrets.
func (s Subscription) LogValue() slog.Value { return slog.StringValue(s.String()) }

// SettingError is a wish that the provider does not grant. Its text never holds a secret.
type SettingError struct {
	// Setting is the wish: kind, user, password, address, country, params, sessions or lifetime.
	Setting string
	// Message says what is wrong, Remedy what to do.
	Message, Remedy string
}

func (e *SettingError) Error() string { return e.Message + ": " + e.Remedy }

// session is an exit that is rendered by a provider's templates. It is not changed once made.
type session struct {
	provider *Provider
	plan     *plan
	values   map[string]string // all but the session's name
	named    string            // the name that was given for generation 0
	account  string            // what the sessions of one account have in common
	strict   bool
}

// Exits renders the subscription: one exit for each session. Pools give the sessions their names, which follow from
// Config.Seed, Config.Name, the exit's name and its generation, so that a restart finds the same sessions again. The error joins
// *SettingError values.
func (p *Provider) Exits(s Subscription) ([]Exit, error) {
	if s.Account == "" {
		s.Account = p.name
	}
	if s.Kind == "" {
		s.Kind = p.file.Kinds[0]
	}
	plan := p.plans[s.Kind]
	if plan == nil {
		return nil, &SettingError{"kind", fmt.Sprintf("%s has no exits of the kind %s here", p.name, s.Kind), "want one of " + joinKinds(p.file.Kinds)}
	}
	var errs []error
	wrong := func(setting, remedy, format string, args ...any) {
		errs = append(errs, &SettingError{setting, fmt.Sprintf(format, args...), remedy})
	}
	lifetime := plan.fill(p, &s, wrong)
	values := plan.values(p, s, lifetime, wrong)
	n := p.count(plan, s, wrong)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	exits := make([]Exit, n)
	for i := range exits {
		own := maps.Clone(values)
		if plan.known["port"] {
			own["port"] = strconv.Itoa(p.file.Ports.First + i)
		}
		x := &session{
			provider: p, plan: plan, values: own, strict: !s.Loose && plan.known["strict"],
			account: strings.Join([]string{"provider", p.name, s.User, s.Password}, "\x00"),
		}
		if len(s.Names) > 0 {
			x.named = s.Names[i]
		}
		exits[i] = Exit{
			Name: fmt.Sprintf("%s-%d", s.Account, i+1), Kind: s.Kind, Account: s.Account, Lifetime: lifetime,
			MaxConns: s.MaxConns, AccountConns: s.AccountConns, AccountBudget: s.AccountBudget, session: x,
		}
		exits[i].render("", 0)
		if err := exits[i].validate(); err != nil {
			// The settings are at fault where a template made no good URL of them.
			return nil, &SettingError{"user", err.Error(), "check user, password and address"}
		}
	}
	return exits, nil
}

// fill checks the lifetime and gives it its default.
func (pl *plan) fill(p *Provider, s *Subscription, wrong func(setting, remedy, format string, args ...any)) time.Duration {
	rule, d := pl.lifetime, s.Lifetime
	if d == 0 {
		d = time.Duration(rule.Default)
	}
	low, high := time.Duration(rule.Min), time.Duration(rule.Max)
	switch {
	case s.Lifetime != 0 && (d < low || high > 0 && d > high):
		wrong("lifetime", fmt.Sprintf("want %s to %s", brief(low), brief(high)), "%s keeps no session for %s", p.name, brief(s.Lifetime))
	case pl.known["minutes"] && d%time.Minute != 0:
		wrong("lifetime", "write whole minutes, such as 10m", "%s counts lifetimes in minutes, not in parts of one", p.name)
	case d%time.Second != 0:
		wrong("lifetime", "write whole seconds, such as 90s", "a lifetime has parts of a second")
	}
	return d
}

// values gathers what the templates are filled with, but for the session's name and the port.
func (pl *plan) values(p *Provider, s Subscription, lifetime time.Duration, wrong func(setting, remedy, format string, args ...any)) map[string]string {
	values := maps.Clone(pl.params)
	if values == nil {
		values = map[string]string{}
	}
	for _, one := range []struct{ name, value string }{{"user", s.User}, {"password", s.Password}, {"address", s.Address}} {
		if one.value != "" {
			values[one.name] = one.value
		}
		switch {
		case one.value == "" && pl.required[one.name] && !(one.name == "password" && p.file.OwnWords):
			wrong(one.name, "write "+one.name+":", "%s wants to know the %s", p.name, one.name)
		case one.value != "" && !pl.known[one.name] && !p.file.OwnWords:
			wrong(one.name, "remove it, or use the provider custom", "%s knows its own %s", p.name, one.name)
		}
	}
	if p.file.OwnWords {
		pl = ownWords(pl, s)
	}
	if lifetime > 0 {
		values["minutes"] = strconv.FormatInt(int64(lifetime/time.Minute), 10)
		values["seconds"] = strconv.FormatInt(int64(lifetime/time.Second), 10)
		values["span"] = brief(lifetime)
	}
	for _, unit := range []string{"minutes", "seconds", "span"} {
		if pl.required[unit] && lifetime == 0 {
			wrong("lifetime", "write lifetime:", "the session's lifetime is part of what %s is told", p.name)
		}
	}
	values["strict"] = ""
	if s.Loose {
		delete(values, "strict")
		values["loose"] = ""
	}
	switch {
	case s.Country == "":
		if pl.required["country"] || pl.required["COUNTRY"] {
			wrong("country", "write country: and its two letters", "%s wants to know the country", p.name)
		}
	case !pl.known["country"] && !pl.known["COUNTRY"]:
		wrong("country", "remove it; the country goes with what was ordered", "%s is not told the country", p.name)
	case len(s.Country) != 2 || !onlyOf(s.Country, letters):
		wrong("country", "want the two letters of ISO 3166, such as us", "that is no country")
	default:
		values["country"], values["COUNTRY"] = strings.ToLower(s.Country), strings.ToUpper(s.Country)
	}
	var can []string
	for name := range pl.known {
		if !builtinValues[name] && pl.params[name] == "" {
			can = append(can, name)
			if pl.required[name] && s.Params[name] == "" {
				wrong("params", "write params: {"+name+": …}", "%s wants to know the %s", p.name, name)
			}
		}
	}
	slices.Sort(can)
	for _, name := range slices.Sorted(maps.Keys(s.Params)) {
		switch {
		case !slices.Contains(can, name):
			wrong("params", "it knows "+strings.Join(append(can, "nothing else")[:max(len(can), 1)], ", "), "%s knows no %q", p.name, name)
		case s.Params[name] == "" || !onlyOf(s.Params[name], letters+digits+"_.~"):
			// A dash or a semicolon would end the value and begin another.
			wrong("params", "use letters, digits, dots and underscores, as the provider's dashboard writes it", "the value of %q is empty or has other characters", name)
		}
		values[name] = s.Params[name]
	}
	return values
}

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

// builtinValues are those that params cannot set.
var builtinValues = map[string]bool{
	"user": true, "password": true, "address": true, "session": true, "port": true, "country": true, "COUNTRY": true,
	"minutes": true, "seconds": true, "span": true, "strict": true, "loose": true,
}

// ownWords is the plan of a provider whose user writes the templates: what they name is known and asked for.
func ownWords(pl *plan, s Subscription) *plan {
	own := *pl
	own.known, own.required = maps.Clone(pl.known), maps.Clone(pl.required)
	for name := range builtinValues {
		if strings.Contains(s.User+s.Password+s.Address, "{"+name+"}") {
			own.known[name], own.required[name] = true, true
		}
	}
	return &own
}

// count checks the sessions and says how many there are.
func (p *Provider) count(pl *plan, s Subscription, wrong func(setting, remedy, format string, args ...any)) int {
	n := max(s.Sessions, len(s.Names), 1)
	rule := p.file.Session
	hasSession := pl.known["session"] || p.file.OwnWords && strings.Contains(s.User+s.Password+s.Address, "{session}")
	switch {
	case s.Sessions < 0:
		wrong("sessions", "want a number such as 5, or a list of names", "there cannot be fewer than one session")
	case pl.known["port"] && p.file.Ports.First+n-1 > p.file.Ports.Last:
		wrong("sessions", fmt.Sprintf("the most is %d", p.file.Ports.Last-p.file.Ports.First+1), "%s has no port for so many", p.name)
	case !hasSession && len(s.Names) > 0:
		wrong("sessions", "write how many there are", "sessions of %s have no names", p.name)
	case !hasSession && !pl.known["port"] && n > 1:
		wrong("sessions", "put {session} into user or password", "nothing tells these sessions apart")
	}
	seen := map[string]bool{}
	for i, name := range s.Names {
		switch {
		case len(name) < rule.Min || len(name) > rule.Max:
			want := fmt.Sprintf("%d to %d characters", rule.Min, rule.Max)
			if rule.Min == rule.Max {
				want = fmt.Sprintf("exactly %d characters", rule.Max)
			}
			wrong("sessions", p.name+" wants "+want, "session %d has %d characters", i+1, len(name))
		case !onlyOf(name, rule.Alphabet):
			wrong("sessions", "use "+shrinkAlphabet(rule.Alphabet), "session %d has a character that %s does not take", i+1, p.name)
		case seen[name]:
			wrong("sessions", "give each a name of its own", "session %d has the name of another", i+1)
		}
		seen[name] = true
	}
	return n
}

func onlyOf(text, alphabet string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(alphabet, r) })
}

// shrinkAlphabet writes an alphabet with its ranges, for people.
func shrinkAlphabet(a string) string {
	for _, r := range []struct{ long, short string }{{letters[:26], "a-z"}, {letters[26:], "A-Z"}, {digits, "0-9"}} {
		a = strings.Replace(a, r.long, r.short+" ", 1)
	}
	return strings.TrimSpace(a)
}

func joinKinds(kinds []Kind) string {
	words := make([]string, len(kinds))
	for i, k := range kinds {
		words[i] = string(k)
	}
	return strings.Join(words, ", ")
}

// brief writes a length of time in the largest unit that leaves no rest: 10m, 90s, 7d.
func brief(d time.Duration) string {
	for _, u := range []struct {
		name string
		d    time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if d >= u.d && d%u.d == 0 {
			return fmt.Sprintf("%d%s", d/u.d, u.name)
		}
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// rotates tells whether another generation of the session has another address.
func (s *session) rotates() bool {
	if s == nil {
		return false
	}
	own := s.values["user"] + s.values["password"] + s.values["address"]
	return s.plan.known["session"] || s.provider.file.OwnWords && strings.Contains(own, "{session}")
}

// idle is how long the session lasts unused, where nothing but the clock would show that it has ended; 0 means for ever.
func (s *session) idle() time.Duration {
	if s == nil || s.provider.file.ExitHeader != "" {
		return 0
	}
	return time.Duration(s.plan.lifetime.Idle)
}

// render gives an exit of a provider the URL and the headers of one generation of its session. secret keeps the names of
// sessions from being guessed, and workers with one account from meeting in one session.
func (e *Exit) render(secret string, generation int) {
	s := e.session
	if s == nil {
		return
	}
	values := s.values
	if rule := s.provider.file.Session; rule.Alphabet != "" {
		values = maps.Clone(values)
		values["session"] = sessionName(secret, e.Name, generation, rule.Alphabet, rule.Length)
		if generation == 0 && s.named != "" {
			values["session"] = s.named
		}
	}
	if s.provider.file.OwnWords {
		var pairs []string
		for name, value := range values {
			if name != "user" && name != "password" && name != "address" {
				pairs = append(pairs, "{"+name+"}", value)
			}
		}
		own := strings.NewReplacer(pairs...)
		values = maps.Clone(values)
		for _, name := range []string{"user", "password", "address"} {
			values[name] = own.Replace(values[name])
		}
	}
	e.URL = &url.URL{Scheme: "http", Host: s.plan.address.render(values)}
	if scheme, host, ok := strings.Cut(e.URL.Host, "://"); ok {
		e.URL.Scheme, e.URL.Host = scheme, host
	}
	e.URL.User = url.UserPassword(s.plan.user.render(values), s.plan.password.render(values))
	e.Header = nil
	for name, f := range s.plan.headers {
		if e.Header == nil {
			e.Header = http.Header{}
		}
		e.Header[name] = []string{f.render(values)}
	}
}

// sessionName derives the name of a session. It must never change, or sticky exits would move with an update.
func sessionName(secret, exit string, generation int, alphabet string, length int) string {
	name := make([]byte, 0, length)
	for block := uint64(0); ; block++ {
		h := hmac.New(sha256.New, []byte(secret))
		var n [16]byte
		binary.BigEndian.PutUint64(n[:8], uint64(generation))
		binary.BigEndian.PutUint64(n[8:], block)
		h.Write(n[:])
		h.Write([]byte(exit))
		for _, b := range h.Sum(nil) {
			// Bytes above the last multiple would make the first characters likelier than others.
			if int(b) >= 256-256%len(alphabet) {
				continue
			}
			if name = append(name, alphabet[int(b)%len(alphabet)]); len(name) == length {
				return string(name)
			}
		}
	}
}
