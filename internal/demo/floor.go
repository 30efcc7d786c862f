package demo

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// floor is where the streams stand: who is open, which addresses are mute,
// and what happened so far. Its zero value is ready.
type floor struct {
	mu        sync.Mutex
	stats     Stats
	streams   map[*stream]struct{}
	byAddress map[netip.Addr]int
	byToken   map[uint64]int
	muteUntil map[netip.Addr]time.Time // the zero address stands for all

	firstSilence time.Time // when it is due; zero before the first stream
	hadFirst     bool
	firstToken   uint64    // what opened the first stream
	firstRevoke  time.Time // when it dies; zero: like any other

	broken      int
	brokenUntil time.Time
}

// stream is one open event stream.
type stream struct {
	number  uint64
	address netip.Addr
	token   access
	conn    net.Conn
	silence time.Time // when it falls silent by itself; zero: never
}

func (f *floor) count(change func(*Stats)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.stats)
}

// firstRevoked tells whether the token is the first one and its time has come.
func (f *floor) firstRevoked(token uint64, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.firstRevoke.IsZero() && token == f.firstToken && now.After(f.firstRevoke)
}

// enter takes s in, or names the cap that is full.
func (f *floor) enter(s *stream, o Options, now time.Time) (full string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.streams == nil {
		f.streams = make(map[*stream]struct{})
		f.byAddress = make(map[netip.Addr]int)
		f.byToken = make(map[uint64]int)
		f.stats.Peak = make(map[string]int)
		f.firstSilence = now.Add(o.FirstSilence)
		f.hadFirst = o.FirstSilence < 0 || o.Silence < 0
		if o.FirstRevoke > 0 {
			f.firstToken, f.firstRevoke = s.token.number, now.Add(o.FirstRevoke)
		}
	}
	switch {
	case f.byAddress[s.address] >= o.MaxPerAddress:
		full = "address"
	case f.byToken[s.token.number] >= o.MaxPerToken:
		full = "token"
	}
	if full != "" {
		f.stats.Refused++
		return full
	}
	f.streams[s] = struct{}{}
	f.byAddress[s.address]++
	f.byToken[s.token.number]++
	f.stats.Streams++
	s.number = uint64(f.stats.Streams)
	peer := s.address.String()
	f.stats.Peak[peer] = max(f.stats.Peak[peer], f.byAddress[s.address])
	return ""
}

func (f *floor) leave(s *stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.streams, s)
	if f.byAddress[s.address]--; f.byAddress[s.address] == 0 {
		delete(f.byAddress, s.address)
	}
	if f.byToken[s.token.number]--; f.byToken[s.token.number] == 0 {
		delete(f.byToken, s.token.number)
	}
}

func (f *floor) mute(addr netip.Addr, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.muteLocked(addr, until)
}

func (f *floor) muteLocked(addr netip.Addr, until time.Time) {
	if f.muteUntil == nil {
		f.muteUntil = make(map[netip.Addr]time.Time)
	}
	f.muteUntil[addr] = until
}

// silent tells whether s must fall silent now: its address is mute, or an
// accident is due, which may itself hold the address.
func (f *floor) silent(s *stream, o Options, luck chance, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.muteUntil[s.address]) || now.Before(f.muteUntil[netip.Addr{}]) {
		return true
	}
	switch {
	case !f.hadFirst && !now.Before(f.firstSilence):
		f.hadFirst = true
		f.muteLocked(s.address, now.Add(o.Mute))
	case !s.silence.IsZero() && !now.Before(s.silence):
		if luck.unit(drawMute, s.number) < o.MuteChance {
			f.muteLocked(s.address, now.Add(o.Mute))
		}
	default:
		return false
	}
	f.stats.Silences++
	return true
}

// drop resets the connection of every stream.
func (f *floor) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		reset(s.conn)
	}
}

// reset closes a connection without saying goodbye.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// outage is the status to answer with while the site is broken, else 0.
func (f *floor) outage(now time.Time) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.brokenUntil) {
		return f.broken
	}
	return 0
}
