package proxies

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Update puts other exits in the place of the pool's. An exit whose name and URL stay the same keeps everything that is known
// of it. Leases of exits that are gone go on; Lease.Removed tells their holders. When the error is not nil, nothing has changed.
func (p *Pool) Update(exits []Exit) error {
	if len(exits) == 0 {
		return errNoExits
	}
	p.mu.Lock()
	defer p.unlock()
	if p.closed {
		return nil
	}
	named, err := p.named(exits)
	if err != nil {
		return err
	}
	now, added := time.Now(), 0
	old := map[string]*exit{}
	for _, e := range p.exits {
		old[e.base] = e
	}
	list := make([]*exit, 0, len(named))
	for _, x := range named {
		if e := old[x.Name]; e != nil && e.stays(x) {
			delete(old, x.Name)
			e.ask(-1)
			e.Kind, e.MaxConns, e.Lifetime, e.Budget = x.Kind, x.MaxConns, x.Lifetime, x.Budget
			e.AccountConns, e.AccountBudget = x.AccountConns, x.AccountBudget
			e.ask(1)
			e.heed(now)
			list = append(list, e)
			continue
		}
		kept := p.config.Commons.memory(p.config.Name + "/" + x.Name)
		e := p.exit(x, kept.Generation)
		added++
		e.since, e.seen = kept.Since, kept.Address
		list = append(list, e)
	}
	if p.exits != nil && added+len(old) > 0 {
		p.note(slog.LevelInfo, "exits changed", slog.Int("exits", len(list)), slog.Int("added", added), slog.Int("removed", len(old)))
	}
	p.exits = list
	for _, e := range old {
		p.retire(e)
		e.remove()
		if !slices.ContainsFunc(list, func(x *exit) bool { return x.base == e.base }) {
			delete(p.config.Commons.kept, p.config.Name+"/"+e.base)
		}
	}
	return nil
}

// Close takes all exits out of the pool, for good, as Update does: what they asked for of addresses and accounts that other
// pools use, too, counts no more. A pool that shares its Commons with none needs it not. Update then does nothing, and
// Lease finds no exit.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.unlock()
	p.closed = true
	for _, e := range p.exits {
		p.retire(e)
		e.remove()
	}
	p.exits = nil
}

var errNoExits = errors.New("proxies: no exits: give at least one, or Exit{} to leave directly")

// stays tells whether x is what e already is, but for its caps.
func (e *exit) stays(x Exit) bool {
	if x.session != nil || e.session != nil {
		// Two renderings of one generation tell the settings apart.
		if x.session == nil || e.session == nil {
			return false
		}
		x.render("", 0)
		y := e.Exit
		y.Name = e.base
		y.render("", 0)
		return x.URL.String() == y.URL.String()
	}
	return identifier(x) == e.id
}

// named checks exits and gives names to those that have none.
func (p *Pool) named(exits []Exit) ([]Exit, error) {
	names := map[string]bool{}
	urls := map[string]int{}
	var errs []error
	out := slices.Clone(exits)
	for i := range out {
		x := &out[i]
		fail := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("proxies: exit %d %s: "+format, append([]any{i + 1, x.Name}, args...)...))
		}
		if err := x.validate(); err != nil {
			fail("%w", err)
			continue
		}
		if x.URL == nil {
			x.Kind = Direct
		} else {
			x.URL = cloneURL(x.URL)
		}
		if first, ok := urls[identifier(*x)]; ok && x.session == nil {
			fail("is the same as exit %d: list it once, or its cap would count twice", first)
			continue
		}
		if x.session == nil {
			urls[identifier(*x)] = i + 1
		}
		if x.Name == "" {
			// Sticky sessions of one gateway share host and port; they are told apart by their place among these.
			x.Name = x.label()
			for n := 2; names[x.Name]; n++ {
				x.Name = fmt.Sprintf("%s#%d", x.label(), n)
			}
		}
		if names[x.Name] {
			fail("another exit has this name: names must differ")
			continue
		}
		names[x.Name] = true
		x.MaxConns = cmp.Or(x.MaxConns, p.config.MaxConnsPerExit)
	}
	return out, errors.Join(errs...)
}

// identifier tells addresses apart: the whole URL, since sessions of one gateway differ in the user name only.
func identifier(x Exit) string {
	if x.URL == nil {
		return "direct"
	}
	return x.URL.String()
}

// exit makes one generation of an exit.
func (p *Pool) exit(x Exit, generation int) *exit {
	common, key := p.config.Commons, p.config.Name+"/"+x.Name
	e := &exit{base: x.Name, generation: generation, hash: mix(hashString(x.Name)), memory: common.memory(key)}
	x.render(p.config.Seed+"\x00"+p.config.Name, generation)
	if generation > 0 {
		x.Name = fmt.Sprintf("%s~%d", x.Name, generation)
	}
	e.Exit, e.id = x, identifier(x)
	account := "account/" + p.config.Name + "/" + x.accountName()
	if x.Account != "" {
		account = "account/" + x.Account
	}
	e.address, e.account = common.address(e.id, common.meterFor(key)), common.account(x, common.meterFor(account))
	e.ask(1)
	e.heed(time.Now())
	e.removed, e.remove = context.WithCancel(context.Background())
	e.rests = map[string]rest{}
	return e
}

func (p *Pool) retire(e *exit) {
	e.gone = true
	e.ask(-1)
	e.heed(time.Now())
	p.config.Commons.sweep()
}

// worn says why a lease for r must have another generation of the exit, empty if it need not.
func (e *exit) worn(r Request, now time.Time) string {
	idle := e.session.idle()
	switch {
	case !e.session.rotates():
	case e.burnt:
		return "it failed"
	case !e.mute && slices.Contains(r.Avoid, e.Name):
		return "asked for"
	case !e.mute && e.resting(r.Target, now):
		return "a target refuses it"
	case e.Lifetime > 0 && !e.since.IsZero() && now.Sub(e.since) > e.Lifetime*3/4:
		return "its time is nearly over"
	case idle > 0 && e.slots.used == 0 && !e.since.IsZero() && now.Sub(e.since) > idle && now.Sub(e.used) > idle:
		return "it was not used for too long"
	}
	return ""
}

// rotate puts the next generation in the exit's place. Leases of the old one go on with it.
func (p *Pool) rotate(e *exit, why string, now time.Time) *exit {
	i := slices.Index(p.exits, e)
	if i < 0 {
		return e // it has a successor already
	}
	x := e.Exit
	x.Name = e.base
	next := p.exit(x, e.generation+1)
	// The way to the proxy is the same, and the same dials failed on it.
	next.health = e.health
	next.burnt, next.rests, next.probe = false, map[string]rest{}, nil
	next.remove, e.remove = e.remove, nil
	next.removed = e.removed
	*next.memory = memory{Generation: next.generation, meter: next.memory.meter}
	p.exits[i] = next
	p.retire(e)
	p.note(slog.LevelInfo, "exit has a new generation", slog.String("exit", e.Name), slog.String("now", next.Name), slog.String("reason", why))
	return next
}

// meet notes the first connection of an exit, and the address it leaves from. When that is another than before, the error says
// so: nothing that is bound to the old one may use the new one.
func (p *Pool) meet(e *exit, seen, addr string) error {
	if e.since.IsZero() {
		e.since = time.Now()
		if !e.gone {
			e.memory.Since = e.since
		}
	}
	switch {
	case seen == "":
		return nil
	case e.seen == "":
		e.seen = seen
		if !e.gone {
			e.memory.Address = seen
		}
		return nil
	case e.seen == seen:
		return nil
	}
	p.rotate(e, "its address has changed", time.Now())
	return &DialError{
		Exit: e.Exit, Addr: addr, Err: fmt.Errorf("the exit left from %s and now leaves from %s", e.seen, seen),
		layer: LayerIdentity, remedy: remedyIdentity,
	}
}

// echoEvery is how often an exit is asked for its address.
const echoEvery = time.Minute

// echo asks Config.Echo through the exit for the address it leaves from; empty when it is not known. The slot of the dial that
// follows is used for it. That the page fails says nothing about the exit.
func (p *Pool) echo(ctx context.Context, e *exit, now time.Time) string {
	if p.config.Echo == "" || e.URL == nil {
		return ""
	}
	p.mu.Lock()
	early := now.Sub(e.asked) < echoEvery
	if !early {
		e.asked = now
	}
	p.unlock()
	if early {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.DialTimeout)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, _, err := p.dialer.dial(ctx, e.Exit, network, addr, func(c net.Conn) net.Conn { return newConn(c, e, func() {}) })
			return c, err
		},
	}
	defer transport.CloseIdleConnections()
	address, err := ask(ctx, transport, p.config.Echo)
	if err != nil {
		p.config.Log.Debug("the address of the exit could not be asked for", "exit", e.Exit, "error", err)
	}
	return address
}

// ask reads the first address on a page.
func ask(ctx context.Context, transport *http.Transport, page string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxConnectBody))
	if err != nil {
		return "", err
	}
	words := strings.FieldsFunc(string(body), func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF.:", r) })
	for _, w := range words {
		if a, err := netip.ParseAddr(w); err == nil {
			return a.String(), nil
		}
	}
	return "", fmt.Errorf("the page answered %s with no address in it", resp.Status)
}
