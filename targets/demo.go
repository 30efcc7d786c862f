package targets

import (
	"fmt"

	"github.com/goccy/go-yaml/ast"
)

// Demo is a demo site to start for the run.
type Demo struct {
	// The kind of demo site.
	Kind string `yaml:"kind" required:"true"`

	// Plan is what the kind understood.
	Plan DemoPlan `yaml:"-"`
}

// Exchange holds the keys of the demo site `exchange`: a price exchange that
// behaves as hard real sites do, with proxies of its own, all on this machine.
type Exchange struct {
	// The site's address. Its proxies take the three ports after it, HTTP on
	// 127.0.0.11 to 127.0.0.14, then SOCKS5 on 127.0.0.15 and 127.0.0.16, then
	// a gateway on 127.0.0.1.
	Listen string `yaml:"listen" default:"127.0.0.1:8700"`
	// What decides everything that happens by chance. The data directory
	// remembers it.
	Seed uint64 `yaml:"seed" default:"1" min:"1"`
	// Events a second. The data directory remembers it.
	Rate float64 `yaml:"rate" default:"20" min:"0.001"`
	// How long a login lasts.
	SessionLife Duration `yaml:"session_life" default:"1h" min:"1s"`
	// How long an access token lasts. After that the stream stays open and
	// says nothing more.
	TokenLife Duration `yaml:"token_life" default:"20s" min:"1s"`
	// How long the clearance lasts that the script of the interstitial earns.
	ClearanceLife Duration `yaml:"clearance_life" default:"30m" min:"1s"`
	// How far back a stream can begin.
	ReplayWindow Duration `yaml:"replay_window" default:"30m" min:"1s"`
	// The time between two heartbeats.
	Heartbeat Duration `yaml:"heartbeat" default:"5s" min:"1ms"`
	// Streams that one address may hold open.
	MaxPerAddress int `yaml:"max_per_address" default:"6" min:"1"`
	// Streams that one access token may hold open.
	MaxPerToken int `yaml:"max_per_token" default:"4" min:"1"`
	// When the line first falls silent, counted from the first stream; a
	// silence of the whole address. 0s: not at all.
	FirstSilence Duration `yaml:"first_silence" default:"24s"`
	// The mean time until a stream falls silent for no reason. 0s: no silences
	// at all.
	Silence Duration `yaml:"silence" default:"2m"`
	// The chance, up to 1, that a silence holds the client's whole address.
	MuteChance float64 `yaml:"mute_chance" default:"0.5" min:"0" max:"1"`
	// How long a silence holds an address.
	Mute Duration `yaml:"mute" default:"20s" min:"1ms"`
	// The chance, up to 1, that a token is revoked before it expires.
	RevokeChance float64 `yaml:"revoke_chance" default:"0.05" min:"0" max:"1"`
	// When the access token that opened the first stream is revoked, long
	// before its end, counted from that opening. 0s: left to chance.
	FirstRevoke Duration `yaml:"first_revoke" default:"0s"`
	// How long a proxy keeps one tunnel before it closes it. 0s: for ever.
	ProxyLife Duration `yaml:"proxy_life" default:"3m"`
	// How long the gateway keeps the exit of a session whose user name names
	// no lifetime.
	GatewayLife Duration `yaml:"gateway_life" default:"10m" min:"1s"`
}

func (x *Demo) decodeNode(d *decoder, n ast.Node, path string) {
	if text, isText := scalarText(n); isText {
		x.Kind = text
		x.call(d, n, path, func(into any) error { return d.defaults(into, n, path) })
		return
	}
	entries, ok := d.entries(n, path)
	if !ok {
		d.wrongType(n, path, "the name of a demo site, or a mapping with kind")
		return
	}
	s := d.section(n, path, entries)
	kind, ok := s.keys["kind"]
	if !ok {
		s.wrong("", `"kind" is missing`+in(path), didYouMean("demo sites of this build", "", keysOf(d.options.Registry.Demos)))
		return
	}
	at := d.resolve(kind.value, join(path, "kind"))
	if at == nil {
		return
	}
	if x.Kind, ok = scalarText(at); !ok {
		d.wrongType(at, join(path, "kind"), "the name of a demo site")
		return
	}
	x.call(d, at, path, func(into any) error { return d.decodeInto(n, into, path, "kind") })
}

// call has the kind read its settings.
func (x *Demo) call(d *decoder, at ast.Node, path string, decode func(into any) error) {
	kind, ok := d.options.Registry.Demos[x.Kind]
	if !ok {
		d.problem(at, path, "there is no demo site "+show(x.Kind), didYouMean("demo sites of this build", x.Kind, keysOf(d.options.Registry.Demos)))
		return
	}
	before := len(d.problems)
	plan, err := kind(decode)
	x.Plan = plan
	if err != nil && len(d.problems) == before {
		d.problem(at, path, fmt.Sprintf("demo %s: %s", x.Kind, d.hide(err.Error())), "")
	}
}
