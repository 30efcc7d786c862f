package demo

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"
)

// Options says how the exchange behaves. The zero value of a field stands for
// the default in its comment; where a fault or limit can be switched off, a
// negative value does it.
type Options struct {
	// Listen is the site's address, default "127.0.0.1:8700". The proxies
	// listen on loopback addresses of their own at the ports that follow: HTTP
	// at port+1, SOCKS5 at port+2, the gateway at port+3. Port 0 gives every
	// listener a free port; [Exchange.URL] and [Exchange.Exits] tell them.
	Listen string
	// Dir is the data directory: a small file in it keeps the market's start,
	// seed and rate and the site's signing key, so that ids, sessions and
	// clearances go on across restarts. Empty: a new market every time.
	Dir string
	// Seed decides everything that happens by chance, default 16. Dir remembers
	// it; another seed for a used Dir is an error.
	Seed uint64
	// Rate is events a second, 0.001 to 100,000, default 20. Dir remembers it;
	// another rate for a used Dir is an error.
	Rate float64

	// User and Password log in to the site, default "trader" and
	// "correct-horse".
	User, Password string
	// ProxyUser and ProxyPassword open the HTTP and SOCKS5 proxies, default
	// "isp-user" and "isp-pass".
	ProxyUser, ProxyPassword string
	// GatewayUser and GatewayPassword open the gateway, default "gw-user" and
	// "gw-pass". Session and lifetime are appended to the user name, as in
	// "gw-user-session-a1b2-lifetime-10".
	GatewayUser, GatewayPassword string

	// SessionLife is how long a login lasts, default 1 hour.
	SessionLife time.Duration
	// TokenLife is how long an access token lasts, default 20 seconds, rounded
	// up so that its expiry is a whole second.
	TokenLife time.Duration
	// ClearanceLife is how long a clearance cookie lasts, default 30 minutes.
	ClearanceLife time.Duration
	// ReplayWindow is how far back a stream can begin, default 30 minutes.
	ReplayWindow time.Duration
	// Heartbeat is the time between two heartbeat events, default 5 seconds.
	Heartbeat time.Duration
	// MaxPerAddress and MaxPerToken cap the open streams of one client address
	// (default 6) and of one access token (default 4).
	MaxPerAddress, MaxPerToken int

	// FirstSilence is when the line first falls silent, counted from the first
	// stream since the start, default 24 seconds; it always holds the whole
	// address. Negative: not at all.
	FirstSilence time.Duration
	// Silence is the mean time until a stream falls silent for no reason,
	// default 2 minutes. Negative: no silences, the first one included.
	Silence time.Duration
	// MuteChance is the chance, up to 1, that a silence holds the client's
	// whole address, default 0.5: then a new stream through the same exit is
	// silent too. Negative: never.
	MuteChance float64
	// Mute is how long a silence holds an address, default 20 seconds.
	Mute time.Duration
	// RevokeChance is the chance, up to 1, that a token is revoked before it
	// expires, default 0.05. Negative: never.
	RevokeChance float64
	// FirstRevoke is when the token that opened the first stream since the
	// start is revoked, counted from that opening; 0: left to RevokeChance.
	FirstRevoke time.Duration

	// ProxyLife is how long a proxy keeps one tunnel or forwarded request
	// before it closes it, default 3 minutes. Negative: for ever.
	ProxyLife time.Duration
	// GatewayLife is how long the gateway keeps a session's exit when the user
	// name names no lifetime, default 10 minutes.
	GatewayLife time.Duration

	// Log receives what happens, without secrets; nil discards it.
	Log *slog.Logger
}

const (
	minRate = 0.001
	maxRate = 100_000
)

// withDefaults fills what was left zero and refuses what cannot work. Seed and
// rate stay zero: the data directory may know them.
func (o Options) withDefaults() (Options, error) {
	o.Listen = cmp.Or(o.Listen, "127.0.0.1:8700")
	o.User = cmp.Or(o.User, "trader")
	o.Password = cmp.Or(o.Password, "correct-horse")
	o.ProxyUser = cmp.Or(o.ProxyUser, "isp-user")
	o.ProxyPassword = cmp.Or(o.ProxyPassword, "isp-pass")
	o.GatewayUser = cmp.Or(o.GatewayUser, "gw-user")
	o.GatewayPassword = cmp.Or(o.GatewayPassword, "gw-pass")
	o.SessionLife = cmp.Or(o.SessionLife, time.Hour)
	o.TokenLife = cmp.Or(o.TokenLife, 20*time.Second)
	o.ClearanceLife = cmp.Or(o.ClearanceLife, 30*time.Minute)
	o.ReplayWindow = cmp.Or(o.ReplayWindow, 30*time.Minute)
	o.Heartbeat = cmp.Or(o.Heartbeat, 5*time.Second)
	o.MaxPerAddress = cmp.Or(o.MaxPerAddress, 6)
	o.MaxPerToken = cmp.Or(o.MaxPerToken, 4)
	o.FirstSilence = cmp.Or(o.FirstSilence, 24*time.Second)
	o.Silence = cmp.Or(o.Silence, 2*time.Minute)
	o.MuteChance = cmp.Or(o.MuteChance, 0.5)
	o.Mute = cmp.Or(o.Mute, 20*time.Second)
	o.RevokeChance = cmp.Or(o.RevokeChance, 0.05)
	o.ProxyLife = cmp.Or(o.ProxyLife, 3*time.Minute)
	o.GatewayLife = cmp.Or(o.GatewayLife, 10*time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}

	var errs []error
	if _, _, err := o.address(); err != nil {
		errs = append(errs, err)
	}
	if o.Rate != 0 && !validRate(o.Rate) {
		errs = append(errs, fmt.Errorf("option Rate is %v: want %v to %d events a second", o.Rate, minRate, maxRate))
	}
	for name, d := range map[string]time.Duration{
		"SessionLife": o.SessionLife, "TokenLife": o.TokenLife, "ClearanceLife": o.ClearanceLife,
		"ReplayWindow": o.ReplayWindow, "Heartbeat": o.Heartbeat, "Mute": o.Mute, "GatewayLife": o.GatewayLife,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("option %s is %v: want more than nothing", name, d))
		}
	}
	for name, c := range map[string]float64{"MuteChance": o.MuteChance, "RevokeChance": o.RevokeChance} {
		if !(c <= 1) {
			errs = append(errs, fmt.Errorf("option %s is %v: want at most 1", name, c))
		}
	}
	for name, n := range map[string]int{"MaxPerAddress": o.MaxPerAddress, "MaxPerToken": o.MaxPerToken} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("option %s is %d: want at least 1", name, n))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Options{}, fmt.Errorf("demo exchange: %w", err)
	}
	return o, nil
}

func validRate(r float64) bool { return r >= minRate && r <= maxRate }

// address splits Listen. The proxies need the three ports above the site's.
func (o Options) address() (host string, port int, err error) {
	host, p, err := net.SplitHostPort(o.Listen)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil || port < 0 || port > 65535-3 {
		return "", 0, fmt.Errorf("option Listen is %q: want an address and a port up to %d, such as 127.0.0.1:8700", o.Listen, 65535-3)
	}
	return host, port, nil
}
