package demo

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func FuzzSOCKSClient(f *testing.F) {
	hello := "\x05\x01\x02\x01\x01u\x01p"
	f.Add([]byte(hello + "\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte(hello + "\x05\x01\x00\x03\x09localhost\x00\x50"))
	f.Add([]byte(hello + "\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"))
	f.Add([]byte(hello + "\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x04\x01\x00\x50\x7f\x00\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go io.Copy(io.Discard, client)
		in := bufio.NewReader(bytes.NewReader(b))
		admitted := false
		s := &socks{guard: func(user, password string) (route, *refusal) {
			if len(user) > 255 || len(password) > 255 {
				t.Errorf("credentials of %d and %d bytes", len(user), len(password))
			}
			admitted = true
			return route{}, nil
		}}
		if _, err := s.authenticate(in, server); err != nil {
			return
		}
		if !admitted {
			t.Error("let in without a look at the password")
		}
		target, code, err := readTarget(in)
		if err != nil {
			if code == socksGranted {
				t.Error("refused with the code for granted")
			}
			return
		}
		if _, _, err := net.SplitHostPort(target); err != nil {
			t.Errorf("target %q: %v", target, err)
		}
	})
}

func FuzzGatewayUser(f *testing.F) {
	for _, s := range []string{"", "-session-a1", "-session-a1-lifetime-10", "-session-", "-session-a-lifetime-99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, life, err := parseSession(s, time.Minute)
		switch {
		case err != nil:
		case name == "" && s != "":
			t.Errorf("%q names no session and is accepted", s)
		case name != "" && (!strings.HasPrefix(s, "-session-"+name) || life < time.Minute || life > maxLifetime*time.Minute):
			t.Errorf("%q is session %q for %v", s, name, life)
		}
	})
}

func FuzzSeal(f *testing.F) {
	s := signer("a key of the site, thirty-two long")
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	f.Add(s.seal(at, "clearance", "127.0.0.1"))
	f.Add(s.seal(at, "clearance", "127.0.0.1", ""))
	f.Add(".")
	f.Fuzz(func(t *testing.T, sealed string) {
		if s.opens(sealed, at.Add(-time.Second), "clearance", "127.0.0.1") && sealed != s.seal(at, "clearance", "127.0.0.1") {
			t.Errorf("%q opens", sealed)
		}
	})
}

func TestSealsHoldWhatTheyAreBoundTo(t *testing.T) {
	t.Parallel()
	s, now := signer("one key"), time.Now()
	sealed := s.seal(now.Add(time.Minute), "session", "ab")
	if !s.opens(sealed, now, "session", "ab") {
		t.Error("the right one does not open")
	}
	for name, open := range map[string]bool{
		"after its end":       s.opens(sealed, now.Add(time.Minute), "session", "ab"),
		"for another purpose": s.opens(sealed, now, "form", "ab"),
		"cut elsewhere":       s.opens(sealed, now, "sessiona", "b"),
		"by another key":      signer("another").opens(sealed, now, "session", "ab"),
	} {
		if open {
			t.Errorf("opens %s", name)
		}
	}
}

func TestChanceIsEvenAndItsDrawsAreApart(t *testing.T) {
	t.Parallel()
	c := chance(1)
	var sum float64
	var wait time.Duration
	const n = 20_000
	for i := range uint64(n) {
		sum += c.unit(drawNoise, i)
		wait += c.wait(drawSilence, i, time.Minute)
		if c.bits(drawNoise, i) == c.bits(drawVolume, i) || c.bits(drawNoise, i) == c.bits(drawNoise, i+1) || c.bits(drawNoise, i) == chance(2).bits(drawNoise, i) {
			t.Fatalf("draw %d repeats", i)
		}
	}
	if mean := sum / n; mean < 0.49 || mean > 0.51 {
		t.Errorf("mean is %v", mean)
	}
	if mean := wait / n; mean < 58*time.Second || mean > 62*time.Second {
		t.Errorf("mean wait is %v, want a minute", mean)
	}
}

func TestTheGatewayRemembersOnlySoMany(t *testing.T) {
	t.Parallel()
	o, err := Options{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{o: o, luck: 1, sessions: make(map[string]*sticky)}
	ends := time.Now().Add(time.Hour)
	for i := range maxSessions {
		g.sessions[string(rune('a'+i%26))+strings.Repeat("b", i/26)] = &sticky{ends: ends}
	}
	if _, no := g.admit("gw-user-session-new", "gw-pass"); no == nil || no.status != 429 {
		t.Errorf("one session too many: %+v", no)
	}
	g.sessions["a"].ends = time.Now().Add(-time.Second)
	rt, no := g.admit("gw-user-session-new", "gw-pass")
	if no != nil || !rt.from.IsLoopback() || rt.from == netip.MustParseAddr("127.0.0.1") {
		t.Errorf("after one has ended: %+v %+v", rt, no)
	}
	if len(g.sessions) != maxSessions {
		t.Errorf("%d sessions are remembered", len(g.sessions))
	}
}
