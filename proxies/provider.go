package proxies

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

// Provider is how one vendor of proxies wants to be asked: where the session, its lifetime and the place go in user name,
// password, address or headers, what a session may be called, how long it may last, and what the vendor's refusals mean. It is
// data: one file for each vendor in the folder providers, which anybody can write for another.
//
// A file is one JSON object:
//
//	source       where the vendor documents this
//	kinds        the kinds of exits it sells; the first is taken when none is asked for
//	address      host and port (template)
//	user         the user name (template)
//	password     the password (template); {password} when it is missing
//	headers      headers of CONNECT (templates)
//	session      alphabet (such as "a-z0-9"), length of those made here, min and max of any
//	ports        first and last, where each port is an exit of its own: {port}
//	lifetime     min, max and default, as "10m"; idle when a session ends by not being used for so long
//	exit_header  the header of a good answer to CONNECT that names the address the exit leaves from
//	by_kind      address, user, lifetime and params that differ for a kind
//	rules        what a refusal means: status, header, contains, strict; layer and remedy
//	own_words    user, password and address are templates themselves: {session}, {country}, {minutes} and so on
//
// In a template {name} stands for a value, and what stands in [brackets] is left out unless each value in it is set. The
// values are user, password, session, port, country, COUNTRY (in capitals), the lifetime as minutes, seconds or span (10m, in
// one unit), strict and loose (marks without text: one of them is set), and any other name, which the user sets with params.
//
// A rule applies when the status is the same and the header, or the body when it names none, contains the text; the first that
// applies counts, and the pool's own judgement when none does. A rule with strict applies to sessions that were asked to fail
// rather than move. Layers are those of DialError.Layer.
type Provider struct {
	name string
	file providerFile
	// Parsed, by kind.
	plans map[Kind]*plan
}

type providerFile struct {
	Source     string            `json:"source"`
	Kinds      []Kind            `json:"kinds"`
	Address    string            `json:"address"`
	User       string            `json:"user"`
	Password   string            `json:"password"`
	Headers    map[string]string `json:"headers"`
	Session    sessionRule       `json:"session"`
	Ports      portRange         `json:"ports"`
	Lifetime   *lifetimeRule     `json:"lifetime"`
	ExitHeader string            `json:"exit_header"`
	ByKind     map[Kind]byKind   `json:"by_kind"`
	Rules      []rule            `json:"rules"`
	OwnWords   bool              `json:"own_words"`
}

type sessionRule struct {
	Alphabet string `json:"alphabet"`
	Length   int    `json:"length"`
	Min      int    `json:"min"`
	Max      int    `json:"max"`
}

type portRange struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

// lifetimeRule is nil where sessions last for ever.
type lifetimeRule struct {
	Min     span `json:"min"`
	Max     span `json:"max"`
	Default span `json:"default"`
	Idle    span `json:"idle"`
}

type byKind struct {
	Address  string            `json:"address"`
	User     string            `json:"user"`
	Lifetime *lifetimeRule     `json:"lifetime"`
	Params   map[string]string `json:"params"`
}

// rule says what a refusal means.
type rule struct {
	Status   int    `json:"status"`
	Header   string `json:"header"`
	Contains string `json:"contains"`
	Strict   bool   `json:"strict"`
	Layer    string `json:"layer"`
	Remedy   string `json:"remedy"`
}

// plan is a provider's file for one kind.
type plan struct {
	address, user, password form
	headers                 map[string]form
	lifetime                lifetimeRule
	params                  map[string]string
	known, required         map[string]bool // values in any of the templates
}

// span is a length of time, written as "10m".
type span time.Duration

// UnmarshalText reads the form that a file holds.
func (s *span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if err != nil || d < 0 {
		return errors.New("want a duration such as 10m")
	}
	*s = span(d)
	return nil
}

//go:embed providers/*.json
var providerFiles embed.FS

// Providers lists the names of the providers that are built in.
func Providers() []string {
	files, err := fs.Glob(providerFiles, "providers/*.json")
	if err != nil {
		panic(err) // the pattern is well-formed
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(path.Base(f), ".json")
	}
	return files
}

// BuiltinProvider returns a provider that is built in. The error lists those that are.
func BuiltinProvider(name string) (*Provider, error) {
	data, err := providerFiles.ReadFile("providers/" + name + ".json")
	if err != nil {
		return nil, fmt.Errorf("there is no provider %q: those built in are %s", name, strings.Join(Providers(), ", "))
	}
	return ParseProvider(name, data)
}

// ParseProvider reads the file of a provider. name labels its exits and its account. Errors name the line.
func ParseProvider(name string, data []byte) (*Provider, error) {
	p := &Provider{name: name, plans: map[Kind]*plan{}}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&p.file)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("provider %s, line %d: %w", name, lineOf(data, d.InputOffset(), err), err)
	}
	if err := p.file.validate(); err != nil {
		return nil, fmt.Errorf("provider %s: %w", name, err)
	}
	for _, kind := range p.file.Kinds {
		if p.plans[kind], err = p.file.plan(kind); err != nil {
			return nil, fmt.Errorf("provider %s: %w", name, err)
		}
	}
	return p, nil
}

// lineOf finds the line of an error, which the decoder knows in three ways.
func lineOf(data []byte, offset int64, err error) int {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	default:
		if _, field, ok := strings.Cut(err.Error(), "unknown field "); ok {
			offset = int64(max(bytes.Index(data, []byte(field)), 0))
		}
	}
	return 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
}

func (f *providerFile) validate() error {
	if len(f.Kinds) == 0 || f.Address == "" || f.User == "" {
		return errors.New("kinds, address and user are needed")
	}
	for _, k := range append(slices.Collect(maps.Keys(f.ByKind)), f.Kinds...) {
		if k != Residential && k != ISP && k != Datacenter {
			return fmt.Errorf("unknown kind %q: use residential, isp or datacenter", string(k))
		}
		if !slices.Contains(f.Kinds, k) {
			return fmt.Errorf("by_kind names %s, which is not in kinds", k)
		}
	}
	for i, r := range f.Rules {
		switch r.Layer {
		case LayerAuth, LayerCapacity, LayerExit, LayerTarget, LayerIdentity:
		default:
			return fmt.Errorf("rule %d has the layer %q: use %s, %s, %s, %s or %s", i+1, r.Layer, LayerAuth, LayerCapacity, LayerExit, LayerTarget, LayerIdentity)
		}
		if r.Status == 0 || r.Status/100 == 2 && r.Header == "" {
			return fmt.Errorf("rule %d needs a status, and with 200 a header", i+1)
		}
	}
	if s := &f.Session; s.Alphabet != "" {
		s.Alphabet = expandAlphabet(s.Alphabet)
		s.Min, s.Max = max(s.Min, 1), max(s.Max, s.Length)
		if s.Length < s.Min || s.Length > s.Max || len(s.Alphabet) < 2 {
			return errors.New("session: length is not between min and max, or the alphabet has fewer than two characters")
		}
	}
	if f.Ports.First < 0 || f.Ports.Last < f.Ports.First || f.Ports.Last > 65535 {
		return errors.New("ports: want first and last, 1 to 65535")
	}
	return nil
}

// plan parses the templates for a kind.
func (f *providerFile) plan(kind Kind) (*plan, error) {
	own := f.ByKind[kind]
	p := &plan{params: own.Params, known: map[string]bool{}, required: map[string]bool{}, headers: map[string]form{}}
	switch {
	case own.Lifetime != nil:
		p.lifetime = *own.Lifetime
	case f.Lifetime != nil:
		p.lifetime = *f.Lifetime
	}
	parse := func(what, text string, into *form) error {
		parsed, err := parseForm(text)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		*into = parsed
		all, required := parsed.names()
		for _, n := range all {
			p.known[n] = true
		}
		for _, n := range required {
			p.required[n] = true
		}
		return nil
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	err := errors.Join(
		parse("address", or(own.Address, f.Address), &p.address),
		parse("user", or(own.User, f.User), &p.user),
		parse("password", or(f.Password, "{password}"), &p.password))
	for name, text := range f.Headers {
		var h form
		err = errors.Join(err, parse("header "+name, text, &h))
		p.headers[http.CanonicalHeaderKey(name)] = h
	}
	if p.known["session"] && f.Session.Alphabet == "" {
		err = errors.Join(err, errors.New("a template has {session} and there is no alphabet for it"))
	}
	if p.known["port"] && f.Ports.First == 0 {
		err = errors.Join(err, errors.New("a template has {port} and there are no ports"))
	}
	return p, err
}

// expandAlphabet writes out ranges such as a-z.
func expandAlphabet(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if i+2 < len(text) && text[i+1] == '-' && text[i] < text[i+2] {
			for c := text[i]; c <= text[i+2]; c++ {
				b.WriteByte(c)
			}
			i += 2
			continue
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// judge finds what the provider's rules say of an answer to CONNECT.
func (p *Provider) judge(strict bool, status int, h http.Header, body string) (layer, remedy string, found bool) {
	for _, r := range p.file.Rules {
		if r.Status != status || r.Strict && !strict {
			continue
		}
		where := []string{body}
		if r.Header != "" {
			where = h.Values(r.Header)
		}
		if !slices.ContainsFunc(where, func(s string) bool { return strings.Contains(strings.ToLower(s), strings.ToLower(r.Contains)) }) {
			continue
		}
		if r.Remedy == "" {
			r.Remedy = remedies[r.Layer]
		}
		return r.Layer, r.Remedy, true
	}
	return "", "", false
}
