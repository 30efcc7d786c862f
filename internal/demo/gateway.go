package demo

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	gatewayExits   = 8
	maxSessionName = 32
	maxLifetime    = 1440   // minutes
	maxSessions    = 10_000 // remembered at once
)

// gateway gives each session named in the user name an exit of its own, for
// the session's lifetime by the clock. The same name after that is a new
// session, with another exit.
type gateway struct {
	o    Options
	luck chance
	rest func() time.Time // end of what belongs to no session

	mu       sync.Mutex
	sessions map[string]*sticky
	rotating uint64 // requests that named no session
}

// sticky is one session.
type sticky struct {
	turn uint64 // how often the name had begun anew
	ends time.Time
}

func (e *Exchange) openGateway(port string) error {
	ln, err := e.listen(net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	for i := range gatewayExits {
		e.paths[gatewayExit(uint64(i))] = transportFrom(gatewayExit(uint64(i)))
	}
	e.gate = &gateway{o: e.o, rest: e.proxyEnd, sessions: make(map[string]*sticky)}
	e.doors = append(e.doors, door{
		Exit: Exit{Kind: Gateway, URL: &url.URL{
			Scheme: "http", Host: ln.Addr().String(), User: url.UserPassword(e.o.GatewayUser, e.o.GatewayPassword),
		}},
		ln:    ln,
		serve: e.serveProxy(e.gate.admit),
	})
	return nil
}

// gatewayExit is one of 127.0.0.21 to 127.0.0.28.
func gatewayExit(n uint64) netip.Addr { return exitAddr(21 + int(n%gatewayExits)) }

// admit is the gateway's guard.
func (g *gateway) admit(user, password string) (route, *refusal) {
	options, ok := strings.CutPrefix(user, g.o.GatewayUser)
	if !ok || !same(password, g.o.GatewayPassword) {
		return route{}, &refusal{http.StatusProxyAuthRequired, "wrong user or password"}
	}
	name, life, err := parseSession(options, g.o.GatewayLife)
	if err != nil {
		return route{}, &refusal{http.StatusBadRequest, err.Error()}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if name == "" {
		g.rotating++
		return route{from: gatewayExit(g.luck.bits(drawExit, g.rotating)), until: g.rest()}, nil
	}
	now := time.Now()
	s := g.sessions[name]
	switch {
	case s == nil:
		if len(g.sessions) >= maxSessions && !g.forget(now) {
			return route{}, &refusal{http.StatusTooManyRequests, "too many sessions"}
		}
		s = &sticky{ends: now.Add(life)}
		g.sessions[name] = s
	case !now.Before(s.ends):
		s.turn++
		s.ends = now.Add(life)
	}
	return route{from: gatewayExit(g.luck.bits(drawExit, number(name)) + s.turn), until: s.ends}, nil
}

// forget drops the sessions that are over and tells whether there were any.
func (g *gateway) forget(now time.Time) bool {
	before := len(g.sessions)
	for name, s := range g.sessions {
		if !now.Before(s.ends) {
			delete(g.sessions, name)
		}
	}
	return len(g.sessions) < before
}

// parseSession reads what follows the gateway's user name: nothing, or
// "-session-<letters and digits>", or that and "-lifetime-<minutes>".
func parseSession(options string, life time.Duration) (name string, _ time.Duration, err error) {
	if options == "" {
		return "", 0, nil
	}
	parts := strings.Split(options, "-")
	if len(parts) != 3 && len(parts) != 5 || parts[0] != "" || parts[1] != "session" || len(parts) == 5 && parts[3] != "lifetime" {
		return "", 0, fmt.Errorf("after the user name comes -session-NAME or -session-NAME-lifetime-MINUTES")
	}
	name = parts[2]
	if len(name) < 1 || len(name) > maxSessionName || strings.Trim(name, alphabet) != "" {
		return "", 0, fmt.Errorf("a session has 1 to %d letters and digits", maxSessionName)
	}
	if len(parts) == 5 {
		minutes, err := strconv.ParseUint(parts[4], 10, 16)
		if err != nil || minutes < 1 || minutes > maxLifetime {
			return "", 0, fmt.Errorf("a lifetime is 1 to %d minutes", maxLifetime)
		}
		life = time.Duration(minutes) * time.Minute
	}
	return name, life, nil
}

const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
