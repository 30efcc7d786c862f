package proxies

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestOddRepliesOfSOCKSProxies has proxies say what no proxy should, or what few do.
func TestOddRepliesOfSOCKSProxies(t *testing.T) {
	const bound = "\x01\x7f\x00\x00\x01\x00\x50"
	for _, c := range []struct {
		name     string
		password bool
		says     []string // after the methods, the password if the method is that, and the request
		silent   bool     // it goes on listening
		layer    string   // empty for a tunnel
		want     string
	}{
		{name: "bound to an IPv6 address", says: []string{"\x05\x00", "\x05\x00\x00\x04" + strings.Repeat("\x01", 16) + "\x00\x50"}},
		{name: "bound to a name", says: []string{"\x05\x00", "\x05\x00\x00\x03\x04name\x00\x50"}},
		{name: "bound to a long name", says: []string{"\x05\x00", "\x05\x00\x00\x03\xff" + strings.Repeat("n", 255) + "\x00\x50"}},
		{name: "bound to no name", says: []string{"\x05\x00", "\x05\x00\x00\x03\x00\x00\x50"}},
		{name: "a password that nobody wants", password: true, says: []string{"\x05\x00", "\x05\x00\x00" + bound}},
		{name: "bound to nothing known", says: []string{"\x05\x00", "\x05\x00\x00\x09\x00\x00"}, layer: LayerExit, want: "unknown address type 9"},
		{name: "half a method", says: []string{"\x05"}, layer: LayerExit, want: "broke off"},
		{name: "SOCKS4", says: []string{"\x00\x5b\x00\x00\x00\x00\x00\x00"}, layer: LayerExit, want: "does not speak SOCKS5"},
		{name: "no method", says: []string{"\x05\xff"}, layer: LayerAuth, want: "another way of logging in"},
		{name: "Kerberos", password: true, says: []string{"\x05\x01"}, layer: LayerAuth, want: "another way of logging in"},
		{name: "Kerberos, silent", says: []string{"\x05\x01"}, silent: true, layer: LayerAuth, want: "another way of logging in"},
		{name: "a password that is missing", says: []string{"\x05\x02"}, layer: LayerAuth, want: "should have a user name and password"},
		{name: "a password that is missing, silent", says: []string{"\x05\x02"}, silent: true, layer: LayerAuth, want: "was not offered"},
		{name: "half a word on the password", password: true, says: []string{"\x05\x02", "\x01"}, layer: LayerExit, want: "broke off"},
		{name: "another version of passwords", password: true, says: []string{"\x05\x02", "\x05\x00"}, layer: LayerExit, want: "invalid username/password version"},
		{name: "another version of the reply", says: []string{"\x05\x00", "\x04\x03\x00" + bound}, layer: LayerExit, want: "does not speak SOCKS5"},
		{name: "a reserved byte", says: []string{"\x05\x00", "\x05\x00\x07" + bound}, layer: LayerExit, want: "non-zero reserved field"},
		{name: "half a reply", says: []string{"\x05\x00", "\x05\x00\x00"}, layer: LayerExit, want: "EOF"},
		{name: "half an address", says: []string{"\x05\x00", "\x05\x00\x00\x03\xffname"}, layer: LayerExit, want: "EOF"},
		{name: "an unknown reply", says: []string{"\x05\x00", "\x05\x63\x00" + bound}, layer: LayerExit, want: "unknown code: 99"},
		{name: "silent at once", silent: true, layer: LayerExit, want: "dial timeout"},
		{name: "silent after the method", says: []string{"\x05\x00"}, silent: true, layer: LayerExit, want: "dial timeout"},
		{name: "silent after the password", password: true, says: []string{"\x05\x02", "\x01\x00"}, silent: true, layer: LayerExit, want: "dial timeout"},
		{name: "silent in an address", says: []string{"\x05\x00", "\x05\x00\x00\x03\xffname"}, silent: true, layer: LayerExit, want: "dial timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, nil, func(conn net.Conn) {
				read := func(n int) []byte { b := make([]byte, n); io.ReadFull(conn, b); return b }
				asked := []func(){
					func() { read(int(read(2)[1])) },
					func() { read(int(read(2)[1])); read(int(read(1)[0])) },
					func() { read(int(read(5)[4]) + 2) },
				}
				if len(c.says) > 0 && c.says[0] != "\x05\x02" {
					asked = append(asked[:1], asked[2])
				}
				for i, say := range c.says {
					asked[i]()
					io.WriteString(conn, say)
				}
				switch {
				case c.silent:
					io.Copy(io.Discard, conn)
				case c.layer == "":
					io.Copy(conn, conn)
				}
			})
			user, password, timeout := "", "", time.Minute
			if c.password {
				user, password = "name@x", odd
			}
			if c.want == "dial timeout" {
				timeout = 20 * time.Millisecond
			}
			l := lease(t, newPool(t, Config{Exits: []Exit{at("socks5", s, user, password)}, DialTimeout: timeout}), Request{})
			conn, err := l.DialContext(t.Context(), "tcp", "target.example:443")
			if c.layer == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				roundTrip(t, conn)
				return
			}
			var derr *DialError
			if !errors.As(err, &derr) || derr.Layer() != c.layer || !strings.Contains(err.Error()+derr.Remedy(), c.want) {
				t.Errorf("%v; want the layer %s and %q", err, c.layer, c.want)
			}
			noSecrets(t, err.Error())
		})
	}
}
