package proxies

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/elazarl/goproxy"
)

const (
	peerUser     = "alice"
	peerPassword = "s3cret-pass"
)

// peer is a real proxy on loopback.
type peer struct {
	scheme  string
	addr    string
	tls     *tls.Config
	user    string // of the one who may use it
	anybody bool   // it takes any password
	kill    func()
}

// peers are the real proxies, by name. Each starts one.
var peers = map[string]func(t *testing.T) *peer{
	"squid": func(t *testing.T) *peer {
		dir, addr := peerDir(t), freeAddr(t)
		helper := filepath.Join(dir, "helper")
		write(t, helper, "#!/bin/sh\nwhile read -r line; do\n  case $line in '"+peerUser+" "+peerPassword+"') echo OK ;; *) echo ERR ;; esac\ndone\n")
		conf := filepath.Join(dir, "squid.conf")
		write(t, conf, strings.Join([]string{
			"http_port " + addr, "pid_filename none", "cache deny all", "cache_mem 8 MB", "shutdown_lifetime 0 seconds",
			"access_log none", "cache_log " + filepath.Join(dir, "cache.log"), "coredump_dir " + dir, "netdb_filename none",
			"auth_param basic program " + helper, "auth_param basic realm peers", "auth_param basic children 1",
			"acl known proxy_auth REQUIRED", "http_access allow known", "http_access deny all", ""}, "\n"))
		return child(t, &peer{scheme: "http", addr: addr}, "squid", "-N", "-f", conf)
	},
	"tinyproxy": func(t *testing.T) *peer {
		dir, addr := peerDir(t), freeAddr(t)
		conf := filepath.Join(dir, "tinyproxy.conf")
		host, port, _ := net.SplitHostPort(addr)
		write(t, conf, fmt.Sprintf("Port %s\nListen %s\nMaxClients 20\nTimeout 60\nLogLevel Critical\nBasicAuth %s %s\n", port, host, peerUser, peerPassword))
		return child(t, &peer{scheme: "http", addr: addr}, "tinyproxy", "-d", "-c", conf)
	},
	"dante": func(t *testing.T) *peer {
		dir, addr := peerDir(t), freeAddr(t)
		p := &peer{scheme: "socks5", addr: addr}
		method, privileged := "none", ""
		// Its passwords are those of system accounts, which only root can make, and check.
		if os.Getuid() == 0 {
			method, privileged = "username", "user.privileged: root\nuser.unprivileged: nobody\n"
			p.user = fmt.Sprintf("peers-%d", os.Getpid())
			run(t, "", "useradd", "-r", "-M", "-s", "/usr/sbin/nologin", p.user)
			t.Cleanup(func() { run(t, "", "userdel", p.user) })
			run(t, p.user+":"+peerPassword, "chpasswd")
		}
		p.anybody = method == "none"
		conf := filepath.Join(dir, "danted.conf")
		host, port, _ := net.SplitHostPort(addr)
		write(t, conf, fmt.Sprintf("logoutput: %s/log\ninternal: %s port = %s\nexternal: 127.0.0.1\nsocksmethod: %s\nclientmethod: none\n%s"+
			"client pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }\nsocks pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }\n", dir, host, port, method, privileged))
		return child(t, p, "danted", "-f", conf, "-p", filepath.Join(dir, "pid"))
	},
	"microsocks": func(t *testing.T) *peer {
		addr := freeAddr(t)
		host, port, _ := net.SplitHostPort(addr)
		return child(t, &peer{scheme: "socks5", addr: addr}, "microsocks", "-i", host, "-p", port, "-u", peerUser, "-P", peerPassword)
	},
	"goproxy behind TLS": func(t *testing.T) *peer {
		h := goproxy.NewProxyHttpServer()
		h.Logger = log.New(io.Discard, "", 0)
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte(peerUser+":"+peerPassword))
		h.OnRequest().HandleConnectFunc(func(host string, ctx *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
			if ctx.Req.Header.Get("Proxy-Authorization") == want {
				return goproxy.OkConnect, host
			}
			ctx.Resp = goproxy.NewResponse(ctx.Req, "text/plain", http.StatusProxyAuthRequired, "who are you?")
			return goproxy.RejectConnect, host
		})
		srv := httptest.NewUnstartedServer(h)
		var tunnels conns
		srv.Listener = &noting{srv.Listener, &tunnels}
		srv.StartTLS()
		t.Cleanup(func() { tunnels.close(); srv.Close() })
		u, _ := url.Parse(srv.URL)
		trust := srv.Client().Transport.(*http.Transport).TLSClientConfig
		return &peer{scheme: "https", addr: u.Host, tls: trust, kill: func() { srv.Listener.Close(); tunnels.close() }}
	},
}

// TestRealPeers asks real proxies for what goes well and what does not, and reads the layer and the remedy. It prints a table of
// them.
func TestRealPeers(t *testing.T) {
	rows := map[string][]string{}
	for name, start := range peers {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			target := echo(t)
			user := cmp.Or(p.user, peerUser)
			pool := func(password string) *Pool {
				u := &url.URL{Scheme: p.scheme, Host: p.addr, User: url.UserPassword(user, password)}
				return newPool(t, Config{Exits: []Exit{{URL: u}}, TLS: p.tls})
			}
			judged := func(what string, err error, layer, remedy string) {
				t.Helper()
				var derr *DialError
				if !errors.As(err, &derr) || derr.Layer() != layer || !strings.Contains(derr.Remedy(), remedy) {
					t.Errorf("%s: %v; want the layer %s and %q", what, err, layer, remedy)
				}
				if err != nil && (strings.Contains(err.Error(), peerPassword) || strings.Contains(err.Error(), user) && user != peerUser) {
					t.Errorf("%s: the error tells a secret: %v", what, err)
				}
				t.Logf("%s: %v", what, err)
				if derr != nil {
					found := derr.Layer()
					if derr.Status != 0 {
						found = fmt.Sprintf("%s (%d)", found, derr.Status)
					}
					rows[name] = append(rows[name], found)
				}
			}

			right := lease(t, pool(peerPassword), Request{})
			c, err := right.DialContext(t.Context(), "tcp", target.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got := make([]byte, 5)
			c.Write([]byte("hello"))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q: %v", got, err)
			}
			rows[name] = append(rows[name], "open")
			if p.anybody {
				rows[name] = append(rows[name], "takes any")
			} else {
				_, err = lease(t, pool("wr0ng"), Request{}).DialContext(t.Context(), "tcp", target.addr)
				judged("wrong password", err, LayerAuth, "user name or password")
			}
			_, err = right.DialContext(t.Context(), "tcp", nobody)
			judged("refused target", err, LayerTarget, "destination")

			p.kill()
			c.SetReadDeadline(time.Now().Add(time.Minute)) // the news is there already: its sockets went with it
			if n, err := c.Read(got); err == nil {
				t.Errorf("read %d bytes after the proxy was killed", n)
			} else if os.IsTimeout(err) {
				t.Errorf("that the proxy was killed was not noticed: %v", err)
			} else {
				how := "reset"
				if errors.Is(err, io.EOF) {
					how = "EOF"
				}
				rows[name] = append(rows[name], how)
			}
			_, err = right.DialContext(t.Context(), "tcp", target.addr)
			judged("killed", err, LayerExit, "cannot be reached")
		})
	}
	var table strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(&table, "| %s | %s |\n", name, strings.Join(rows[name], " | "))
	}
	t.Logf("what was found:\n| | right password | wrong password | refused target | forced close | dialled after it |\n|---|---|---|---|---|---|\n%s", &table)
}

// peerDir is a directory that a program may read which gives up root.
func peerDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "peers-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, stdin, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// freeAddr is an address for a program to listen on. It stays free until then: the host is one of loopback's that belongs to this
// process alone, so that nobody else is given the port meanwhile.
func freeAddr(t *testing.T) string {
	t.Helper()
	pid := os.Getpid() // below 1<<22, see proc(5)
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 64+pid>>16, pid>>8&0xff, pid&0xff))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// child starts a proxy as a child process, and waits until it listens.
func child(t *testing.T, p *peer, program string, args ...string) *peer {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			t.Fatalf("%v: internal/setup/setup.sh test installs it", err)
		}
	}
	var out bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	// The whole group dies with the test, helpers and all.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { cmd.Wait(); close(over) }()
	// Once: afterwards the number may be another's.
	p.kill = sync.OnceFunc(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); <-over })
	t.Cleanup(p.kill)
	for { // bounded by the test's own time
		c, err := net.Dial("tcp", p.addr)
		if err == nil {
			c.Close()
			return p
		}
		select {
		case <-over:
			t.Fatalf("%s ended: %s", program, &out)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// noting notes the connections that a listener accepts, to cut them.
type noting struct {
	net.Listener
	all *conns
}

func (n *noting) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if err == nil {
		n.all.add(c)
	}
	return c, err
}

type conns struct {
	mu   sync.Mutex
	list []net.Conn
}

func (c *conns) add(one net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, one)
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.list {
		one.Close()
	}
}
