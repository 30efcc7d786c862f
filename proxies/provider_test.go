package proxies

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// documented has each provider's own example, with the session called as there: the host and port, the user name, the password.
var documented = []struct {
	provider string
	is       Subscription
	want     string
}{
	{"brightdata", Subscription{User: "C123", Password: "pw", Country: "us", Params: map[string]string{"zone": "isp1"}, Names: []string{"rand39484"}},
		"brd.superproxy.io:33335 brd-customer-C123-zone-isp1-country-us-session-rand39484 pw"},
	{"oxylabs", Subscription{User: "USERNAME", Password: "PASSWORD", Country: "de", Names: []string{"abcd1234"}, Lifetime: 30 * time.Minute, Loose: true},
		"pr.oxylabs.io:7777 customer-USERNAME-cc-DE-sessid-abcd1234-sesstime-30 PASSWORD"},
	{"oxylabs", Subscription{User: "USERNAME", Password: "PASSWORD", Params: map[string]string{"city": "london"}, Country: "GB", Names: []string{"abcd1234"}},
		"pr.oxylabs.io:7777 customer-USERNAME-cc-GB-city-london-sessid_oneip-abcd1234-sesstime-10 PASSWORD"},
	{"oxylabs-isp", Subscription{User: "USERNAME", Password: "PASSWORD"},
		"disp.oxylabs.io:8001 user-USERNAME PASSWORD"},
	{"decodo", Subscription{User: "NAME", Password: "pw", Country: "us", Names: []string{"abc1"}, Lifetime: time.Hour},
		"gate.decodo.com:7000 user-NAME-country-us-session-abc1-sessionduration-60 pw"},
	{"iproyal", Subscription{User: "u", Password: "PASS", Country: "BR", Names: []string{"sgn34f3e"}},
		"geo.iproyal.com:12321 u PASS_country-br_session-sgn34f3e_lifetime-10m"},
	{"iproyal", Subscription{User: "u", Password: "PASS", Names: []string{"sgn34f3e"}, Lifetime: 7 * 24 * time.Hour},
		"geo.iproyal.com:12321 u PASS_session-sgn34f3e_lifetime-7d"},
	{"apify", Subscription{Password: "pw", Country: "us", Names: []string{"my_session.1~"}},
		"proxy.apify.com:8000 groups-RESIDENTIAL,session-my_session.1~,country-US pw"},
	{"apify", Subscription{Password: "pw", Kind: Datacenter, Names: []string{"a"}},
		"proxy.apify.com:8000 session-a pw"},
	{"soax", Subscription{User: "12345", Password: "key", Country: "us", Names: []string{"abc"}, Lifetime: 300 * time.Second, Params: map[string]string{"city": "new_york", "idlettl": "60"}},
		"proxy.soax.com:5000 package-12345-country-us-city-new_york-sessionid-abc-sessionlength-300-idlettl-60 key"},
	{"geonode", Subscription{User: "geonode_user123", Password: "secret-pass55", Names: []string{"someRandomString"}, Lifetime: 3 * time.Minute},
		"proxy.geonode.io:10000 geonode_user123-session-someRandomString-lifetime-3 secret-pass55"},
	{"massive", Subscription{User: "U", Password: "key", Names: []string{"abc"}, Lifetime: 20 * time.Minute},
		"network.joinmassive.com:65534 U-session-abc-sessionttl-20-sessionmode-norotate key"},
	{"massive", Subscription{User: "U", Password: "key", Names: []string{"abc"}, Loose: true},
		"network.joinmassive.com:65534 U-session-abc-sessionttl-15-sessionmode-flex key"},
	{"massive", Subscription{User: "U", Password: "key", Kind: ISP, Names: []string{"abc"}},
		"isp.joinmassive.com:8000 U-session-abc key"},
	{"dataimpulse", Subscription{User: "LOGIN", Password: "pw", Country: "FR", Names: []string{"12"}},
		"gw.dataimpulse.com:823 LOGIN__cr.fr;sessid.12;sessttl.30 pw"},
	{"custom", Subscription{Address: "gw.example.com:1080", User: "me-{country}-sid-{session}", Password: "p{w}[x]", Country: "US", Names: []string{"s1"}},
		"gw.example.com:1080 me-us-sid-s1 p{w}[x]"},
	{"custom", Subscription{Address: "socks5://gw.example.com:1080", User: "me", Password: "pw+{session}+{minutes}m", Names: []string{"s1"}, Lifetime: 5 * time.Minute},
		"gw.example.com:1080 me pw+s1+5m"},
}

func TestProvidersSpeakAsDocumented(t *testing.T) {
	tested := map[string]bool{}
	for _, c := range documented {
		tested[c.provider] = true
		exits, err := builtinExits(t, c.provider, c.is)
		if err != nil {
			t.Errorf("%s: %v", c.provider, err)
			continue
		}
		p := newPool(t, Config{Exits: exits, Seed: "journal"})
		u := lease(t, p, Request{}).Exit().URL
		password, _ := u.User.Password()
		if got := u.Host + " " + u.User.Username() + " " + password; got != c.want {
			t.Errorf("%s:\n%s, documented is\n%s", c.provider, got, c.want)
		}
	}
	if names := Providers(); len(names) != 11 || len(tested) != 11 {
		t.Errorf("%d providers, %d tested: %v", len(names), len(tested), names)
	}
}

func builtinExits(t testing.TB, provider string, s Subscription) ([]Exit, error) {
	t.Helper()
	p, err := BuiltinProvider(provider)
	if err != nil {
		t.Fatal(err)
	}
	return p.Exits(s)
}

func TestSessionNamesKeepToTheProvidersRules(t *testing.T) {
	for _, name := range Providers() {
		p, err := BuiltinProvider(name)
		if err != nil {
			t.Fatal(err)
		}
		rule := p.file.Session
		if rule.Alphabet == "" {
			continue
		}
		seen := map[string]bool{}
		used := map[rune]bool{}
		for exit := range 40 {
			for generation := range 25 {
				s := sessionName("secret", "x-"+string(rune('0'+exit)), generation, rule.Alphabet, rule.Length)
				if len(s) != rule.Length || len(s) > rule.Max || len(s) < rule.Min || !onlyOf(s, rule.Alphabet) || seen[s] {
					t.Fatalf("%s: %q", name, s)
				}
				seen[s] = true
				for _, r := range s {
					used[r] = true
				}
			}
		}
		if len(used) != len(rule.Alphabet) {
			t.Errorf("%s: %d of %d characters are ever used", name, len(used), len(rule.Alphabet))
		}
	}
	// Sessions must be found again after an update of the program.
	if got := sessionName("secret", "decodo-1", 3, "abcdefghijklmnopqrstuvwxyz0123456789", 12); got != "gizwootfbghn" {
		t.Errorf("%q: sessions have moved", got)
	}
}

func TestBrokenRulesOfProviders(t *testing.T) {
	good := Subscription{User: "u", Password: "s3cret"}
	with := func(change func(*Subscription)) Subscription { s := good; change(&s); return s }
	for _, c := range []struct {
		provider      string
		is            Subscription
		setting, want string
	}{
		{"decodo", with(func(s *Subscription) { s.Lifetime = 25 * time.Hour }), "lifetime", "decodo keeps no session for 25h: want 1m to 1d"},
		{"decodo", with(func(s *Subscription) { s.Lifetime = 90 * time.Second }), "lifetime", "whole minutes"},
		{"decodo", with(func(s *Subscription) { s.Password = "" }), "password", "wants to know the password"},
		{"decodo", with(func(s *Subscription) { s.Kind = ISP }), "kind", "want one of residential"},
		{"decodo", with(func(s *Subscription) { s.Params = map[string]string{"zone": "a"} }), "params", "it knows city"},
		{"decodo", with(func(s *Subscription) { s.Params = map[string]string{"city": "new-york"} }), "params", "underscores"},
		{"decodo", with(func(s *Subscription) { s.Country = "usa" }), "country", "two letters"},
		{"decodo", with(func(s *Subscription) { s.Address = "a:1" }), "address", "knows its own"},
		{"decodo", with(func(s *Subscription) { s.Sessions = -1 }), "sessions", "fewer"},
		{"decodo", with(func(s *Subscription) { s.User = "a:b" }), "user", "colon"},
		{"iproyal", with(func(s *Subscription) { s.Names = []string{"toolong12"} }), "sessions", "exactly 8 characters"},
		{"geonode", with(func(s *Subscription) { s.Names = []string{"a-b"} }), "sessions", "use A-Z a-z 0-9 _"},
		{"geonode", with(func(s *Subscription) { s.Names = []string{strings.Repeat("a", 26)} }), "sessions", "1 to 25"},
		{"geonode", with(func(s *Subscription) { s.Names = []string{"a", "a"} }), "sessions", "of another"},
		{"brightdata", good, "params", "zone"},
		{"oxylabs-isp", with(func(s *Subscription) { s.Sessions = 1001 }), "sessions", "the most is 1000"},
		{"oxylabs-isp", with(func(s *Subscription) { s.Names = []string{"a"} }), "sessions", "no names"},
		{"oxylabs-isp", with(func(s *Subscription) { s.Country = "us" }), "country", "not told"},
		{"custom", with(func(s *Subscription) { s.Address, s.Sessions = "a:1", 2 }), "sessions", "put {session} into"},
		{"custom", with(func(s *Subscription) { s.Address, s.User = "a:1", "u-{minutes}" }), "lifetime", "write lifetime:"},
		{"custom", good, "address", "wants to know the address"},
	} {
		_, err := builtinExits(t, c.provider, c.is)
		var serr *SettingError
		if !errors.As(err, &serr) || serr.Setting != c.setting || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v; want %s: %s", c.provider, err, c.setting, c.want)
		}
	}
}

func TestBrokenProviderFiles(t *testing.T) {
	for file, want := range map[string]string{
		"{\n\"kinds\": [\"isp\"],\n\"adress\": \"a\"}":                                                            `line 3: json: unknown field "adress"`,
		`{"kinds": ["isp"], "address": "a"}`:                                                                      "kinds, address and user are needed",
		`{"kinds": ["mobile"], "address": "a", "user": "u"}`:                                                      `unknown kind "mobile"`,
		`{"kinds": ["isp"], "address": "a", "user": "u[-{x}"}`:                                                    "a [ has no ]",
		`{"kinds": ["isp"], "address": "a", "user": "u{"}`:                                                        "a { has no name",
		`{"kinds": ["isp"], "address": "a", "user": "u]"}`:                                                        "do not nest",
		`{"kinds": ["isp"], "address": "a", "user": "u{session}"}`:                                                "no alphabet",
		`{"kinds": ["isp"], "address": "a:{port}", "user": "u"}`:                                                  "no ports",
		`{"kinds": ["isp"], "address": "a", "user": "u", "rules": [{"status": 502, "layer": "exti"}]}`:            `the layer "exti"`,
		`{"kinds": ["isp"], "address": "a", "user": "u", "session": {"alphabet": "a-z", "length": 9, "min": 10}}`: "not between",
		`{"kinds": ["isp"], "address": "a", "user": "u", "lifetime": {"min": "soon"}}`:                            "want a duration",
		`{"kinds": ["isp"], "address": "a", "user": "u"} x`:                                                       "something follows",
		`{"kinds": ["isp"], "address": "a", "user": "u", "by_kind": {"datacenter": {}}}`:                          "not in kinds",
		`{"kinds": ["isp"], "address": "a", "user": "u", "headers": {"x": "{"}}`:                                  "header x",
		`{"kinds": ["isp"], "address": "a", "user": "u", "ports": {"first": 9, "last": 8}}`:                       "ports",
		`{"kinds": ["isp"], "address": "a", "user": "u", "rules": [{"status": 200, "layer": "exit"}]}`:            "with 200 a header",
	} {
		if _, err := ParseProvider("mine", []byte(file)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "mine") {
			t.Errorf("%s:\n%v, want %s", file, err, want)
		}
	}
}

func FuzzParseProvider(f *testing.F) {
	for _, name := range Providers() {
		data, _ := providerFiles.ReadFile("providers/" + name + ".json")
		f.Add(data)
	}
	f.Add([]byte(`{"kinds": ["isp"], "address": "a:1", "user": "[u{x}]"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProvider("p", data)
		if err != nil {
			return
		}
		exits, err := p.Exits(Subscription{User: "u", Password: "p", Sessions: 3})
		if err != nil {
			return
		}
		for _, e := range exits {
			if e.URL == nil || e.validate() != nil {
				t.Errorf("%s gave an exit that is none", data)
			}
		}
	})
}

// TestRules shows each provider's refusals to the pool and reads its judgement.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		provider string
		status   int
		header   http.Header
		loose    bool
		layer    string
		remedy   string
	}{
		{"brightdata", 407, nil, false, LayerAuth, "zone"},
		{"brightdata", 403, http.Header{"X-Brd-Err-Code": {"policy_20050"}}, false, LayerTarget, "policy"},
		{"brightdata", 403, nil, false, LayerTarget, ""},
		{"brightdata", 429, nil, false, LayerCapacity, ""},
		{"brightdata", 502, http.Header{"X-Brd-Err-Msg": {"No peers available"}}, false, LayerExit, "no peer"},
		{"brightdata", 200, http.Header{"X-Brd-Err-Code": {"client_10100"}}, false, LayerExit, ""},
		{"oxylabs", 407, nil, false, LayerAuth, "traffic"},
		{"oxylabs", 400, http.Header{"X-Error-Description": {"bad cc"}}, false, LayerAuth, "params"},
		{"oxylabs", 502, nil, false, LayerIdentity, "new identity"},
		{"oxylabs", 502, nil, true, LayerExit, ""},
		{"oxylabs", 525, nil, false, LayerExit, ""},
		{"oxylabs", 522, nil, false, LayerExit, ""},
		{"oxylabs-isp", 429, nil, false, LayerCapacity, "account_conns"},
		{"massive", 502, nil, false, LayerIdentity, ""},
		{"massive", 502, nil, true, LayerExit, ""},
		{"apify", 593, nil, false, LayerTarget, ""},
		{"apify", 594, nil, false, LayerTarget, ""},
		{"apify", 595, nil, false, LayerExit, ""},
		{"apify", 597, nil, false, LayerAuth, ""},
		{"iproyal", 407, nil, false, LayerAuth, "behind the password"},
		{"soax", 407, nil, false, LayerAuth, "package"},
		{"decodo", 407, nil, false, LayerAuth, "dashboard"},
		{"geonode", 407, nil, false, LayerAuth, ""},
		{"dataimpulse", 502, nil, false, LayerExit, ""},
		{"custom", 407, nil, false, LayerAuth, "correct `user` and `password` beside the provider"},
	} {
		s := Subscription{User: "u", Password: "p", Loose: c.loose}
		switch c.provider {
		case "brightdata":
			s.Params = map[string]string{"zone": "z"}
		case "apify":
			s.User = ""
		case "custom":
			s.Address = "gw.example.com:1"
		}
		exits, err := builtinExits(t, c.provider, s)
		if err != nil {
			t.Fatal(c.provider, err)
		}
		h := c.header
		if h == nil {
			h = http.Header{}
		}
		layer, remedy := exits[0].judge(&connectAnswer{Status: c.status, Header: h}, "")
		if layer != c.layer || remedy == "" || !strings.Contains(remedy, c.remedy) {
			t.Errorf("%s %d %v: %s: %s; want %s: %s", c.provider, c.status, c.header, layer, remedy, c.layer, c.remedy)
		}
	}
}

func TestProviderHeadersAndSecrets(t *testing.T) {
	p, err := ParseProvider("acme", []byte(`{"kinds": ["isp"], "address": "127.0.0.1:1", "user": "{user}", "headers": {"x-session": "{session}"},
		"session": {"alphabet": "ab", "length": 4}}`))
	if err != nil {
		t.Fatal(err)
	}
	exits, err := p.Exits(Subscription{User: "s3cret-user", Password: "s3cret-pass", Names: []string{"abab"}})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan http.Header, 1)
	srv := connectProxy(t, &proxyServer{user: "s3cret-user", password: "another", heard: func(h http.Header) { heard <- h }}, nil)
	exits[0].session.plan.address = form{{parts: []part{{text: srv.addr}}}}
	derr := dialOnce(lease(t, newPool(t, Config{Exits: exits}), Request{}))
	if s := fmt.Sprintf("%v %+v %#v", Subscription{User: "s3cret", Password: "s3cret"}, exits, exits[0]); strings.Contains(s, "s3cret") {
		t.Errorf("printed: %s", s)
	}
	if h := <-heard; h.Get("X-Session") != "abab" {
		t.Errorf("CONNECT had the headers %v", h)
	}
	var d *DialError
	if !errors.As(derr, &d) || d.Layer() != LayerAuth || strings.Contains(derr.Error(), "s3cret") || strings.Contains(string(d.Body), "s3cret") {
		t.Errorf("%v", derr)
	}
	if s := lease(t, newPool(t, Config{Exits: exits}), Request{}).Exit().String(); s != "acme-1 (http://"+srv.addr+")" {
		t.Errorf("%s", s)
	}
}
