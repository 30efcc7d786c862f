// Package demo is a price exchange that behaves as hard real sites do, with
// the forward proxies through which it is reached, all on loopback.
//
// Its main type is [Exchange]. The site wants a clearance that a script has to
// earn, bound to the client's address and User-Agent; a login; a short-lived
// access token; and few streams at a time. Its event stream falls silent for
// no reason and when the token expires, its proxies close tunnels after a
// while, and each of them leaves from an address of its own, so that all of
// this is as real as between machines.
//
// It knows nothing of the scraper and has no back door for it: over the
// network there is only what a browser sees. The methods that inject faults
// and count what happened are for tests in the same process.
package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Exchange is the site and its proxies. Make one with [New]; [Exchange.Run]
// owns everything it does. Its other methods are safe for concurrent use once
// [Exchange.Listen] has returned.
type Exchange struct {
	o    Options
	log  *slog.Logger
	feed Feed
	sign signer
	luck chance

	site  net.Listener
	doors []door // the proxies
	paths map[netip.Addr]*http.Transport

	floor  floor
	tokens tokens
	gate   *gateway
}

// door is a proxy's listener and who serves it.
type door struct {
	Exit
	ln    net.Listener
	serve func(context.Context, net.Listener) error
}

// Kind is how a proxy is spoken to.
type Kind string

const (
	HTTP    Kind = "http"    // CONNECT and forwarding, one exit address
	SOCKS5  Kind = "socks5"  // RFC 1928 with user and password, one exit address
	Gateway Kind = "gateway" // HTTP; the session in the user name picks the exit
)

// Exit is one of the exchange's proxies.
type Exit struct {
	Kind Kind
	// URL holds the credentials. A gateway's user name takes
	// "-session-<letters and digits>" and then "-lifetime-<minutes>".
	URL *url.URL
	// Address is where its connections to the site come from; invalid for a
	// gateway, which has several.
	Address netip.Addr
}

// String is the proxy's address without credentials.
func (x Exit) String() string { return x.URL.Scheme + "://" + x.URL.Host }

// LogValue keeps credentials out of logs.
func (x Exit) LogValue() slog.Value { return slog.StringValue(x.String()) }

// New checks the options. It opens and writes nothing.
func New(o Options) (*Exchange, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Exchange{o: o, log: o.Log}, nil
}

// Listen opens the listeners and the data directory, so that the exchange can
// be reached (and [Exchange.URL] asked) from then on; requests are answered
// once Run serves. Call it at most once, before Run; Run calls it if nobody
// has. What it opened is closed by Run, or by itself when it fails. A taken
// port is an error that names the address and the remedy.
func (e *Exchange) Listen() (err error) {
	host, port, err := e.o.address()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.site, err = e.listen(net.JoinHostPort(host, strconv.Itoa(port))); err != nil {
		return err
	}
	at := func(n int) string { // the n-th port above the site's
		if port == 0 {
			return "0"
		}
		return strconv.Itoa(port + n)
	}
	e.paths = make(map[netip.Addr]*http.Transport)
	for i := 11; i <= 14; i++ {
		if err := e.openProxy(HTTP, exitAddr(i), at(1)); err != nil {
			return err
		}
	}
	for i := 15; i <= 16; i++ {
		if err := e.openProxy(SOCKS5, exitAddr(i), at(2)); err != nil {
			return err
		}
	}
	if err := e.openGateway(at(3)); err != nil {
		return err
	}

	// Last, so that a market whose exchange could not start has not begun.
	l, err := openLedger(e.o)
	if err != nil {
		return err
	}
	e.feed = newFeed(l.Seed, l.Start, l.Rate)
	e.luck = chance(l.Seed)
	e.sign = l.Key
	e.tokens.first = uint64(time.Now().UnixMilli())
	e.gate.luck = e.luck
	return nil
}

func exitAddr(last int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(last)}) }

func (e *Exchange) listen(addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("demo exchange: address %s is taken: end the program that holds it, or choose another port with Listen (in a target file listen, else --listen); the proxies take the three ports after it: %w", addr, err)
	case runtime.GOOS != "linux" && errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("demo exchange: this machine has no address %s; only Linux has all of 127.0.0.0/8 by itself, elsewhere add 127.0.0.11 to 127.0.0.16 and 127.0.0.21 to 127.0.0.28 to the loopback interface: %w", addr, err)
	}
	return nil, fmt.Errorf("demo exchange: %w", err)
}

// Run serves until ctx ends, which is no error. When it returns every
// connection is closed and nothing is left running.
func (e *Exchange) Run(ctx context.Context) error {
	if e.site == nil {
		if err := e.Listen(); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	e.log.Info("demo exchange open", "url", e.URL(), "events", e.feed.LastID(time.Now()))

	var serving sync.WaitGroup
	errs := make(chan error, 1+len(e.doors))
	run := func(serve func(context.Context, net.Listener) error, ln net.Listener) {
		serving.Go(func() {
			defer stop() // one that cannot go on ends all
			errs <- serve(ctx, ln)
		})
	}
	run(func(ctx context.Context, ln net.Listener) error { return serveHTTP(ctx, ln, e.handler(), e.log) }, e.site)
	for _, d := range e.doors {
		run(d.serve, d.ln)
	}
	serving.Wait()
	e.close()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("demo exchange: %w", err)
	}
	return nil
}

func (e *Exchange) close() {
	if e.site != nil {
		e.site.Close()
	}
	for _, d := range e.doors {
		d.ln.Close()
	}
	for _, t := range e.paths {
		t.CloseIdleConnections()
	}
}

// URL is the site's address, "http://127.0.0.1:8700" by default.
func (e *Exchange) URL() string { return "http://" + e.site.Addr().String() }

// Exits are the proxies: four HTTP, two SOCKS5, one gateway.
func (e *Exchange) Exits() []Exit {
	var all []Exit
	for _, d := range e.doors {
		all = append(all, d.Exit)
	}
	return all
}

// Feed is the truth about every event.
func (e *Exchange) Feed() Feed { return e.feed }

// Stats counts what happened since the start.
type Stats struct {
	Challenges    int            // requests answered with the interstitial
	Logins        int            // sessions opened
	LoginsRefused int            // wrong user or password, or a stale form
	Tokens        int            // access tokens issued
	Streams       int            // streams opened
	Refused       int            // streams refused by a cap
	Unauthorized  int            // requests refused for their token or session
	Silences      int            // streams that fell silent without reason
	Open          int            // streams open now
	Peak          map[string]int // most streams at once, by client address
}

// Stats tells what happened so far.
func (e *Exchange) Stats() Stats {
	e.floor.mu.Lock()
	defer e.floor.mu.Unlock()
	s := e.floor.stats
	s.Open = len(e.floor.streams)
	s.Peak = maps.Clone(s.Peak)
	return s
}

// Mute silences every stream of that client address, and those it opens, for
// d; a stream met by it stays silent until it is closed. The zero address
// stands for all.
func (e *Exchange) Mute(addr netip.Addr, d time.Duration) { e.floor.mute(addr, time.Now().Add(d)) }

// Revoke makes every token issued so far worthless.
func (e *Exchange) Revoke() { e.tokens.revokeAll() }

// Drop resets the connections of all open streams.
func (e *Exchange) Drop() { e.floor.drop() }

// Break answers every request with that status and a page of HTML for d.
// Streams that are open go on.
func (e *Exchange) Break(status int, d time.Duration) {
	e.floor.mu.Lock()
	defer e.floor.mu.Unlock()
	e.floor.broken, e.floor.brokenUntil = status, time.Now().Add(d)
}
