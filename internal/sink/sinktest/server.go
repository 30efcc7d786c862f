package sinktest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// Cases in which the server of a destination, or the way to it, is lost.

// The server is killed in the middle of writing, and started again: what it
// said is stored is stored, nothing is doubled, and the sink that was open goes
// on as soon as it is opened again.
func testServerKilled(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	random := rand.New(rand.NewPCG(7, 8))
	const size = 150
	n := 0
	for range 4 {
		var acknowledged atomic.Int64
		acknowledged.Store(int64(n))
		running, failed := make(chan struct{}, 1), make(chan error, 1)
		go func() {
			for n := n; ; n += size {
				if err := s.Write(t.Context(), prices.batch(n, n+size)); err != nil {
					failed <- err
					return
				}
				acknowledged.Store(int64(n + size))
				select {
				case running <- struct{}{}:
				default:
				}
			}
		}()
		select {
		case <-running:
		case err := <-failed:
			t.Fatalf("Write: %v", err)
		}
		time.Sleep(time.Duration(random.IntN(10_000)) * time.Microsecond) // anywhere in a batch
		restart := h.Kill(t, address)
		neither(t, <-failed)
		neither(t, s.Write(t.Context(), prices.batch(n, n+size)))
		_, err := s.Open(t.Context(), prices.info())
		neither(t, err)
		restart()
		pos, err := s.Open(t.Context(), prices.info())
		if err != nil {
			t.Fatalf("Open after the server was started again: %v", err)
		}
		told := int(acknowledged.Load())
		if n = prices.number(pos); n != told && n != told+size {
			t.Fatalf("after a kill the position is that of record %d, want %d, which was acknowledged, or %d", n, told, told+size)
		}
		holds(t, h, address, "records", map[feed]int{prices: n})
	}
	prices.write(t, s, n, n+size)
	holds(t, h, address, "records", map[feed]int{prices: n + size})
}

// A transaction is done and its answer is lost with the connection: Write does
// not know, Open does, and the same batch is refused.
func testAnswerLostOnTheWire(t *testing.T, h Harness) {
	address := h.Make(t)
	through, lose := h.Wire(t, address)
	s := prices.opened(t, h, through, "records", 0)
	n := 0
	for _, size := range []int{1, 30, 2000} {
		prices.write(t, s, n, n+10)
		n += 10
		lose()
		neither(t, s.Write(t.Context(), prices.batch(n, n+size)))
		prices.open(t, s, n+size)
		prices.refused(t, s, n, n+size, n+size)
		n += size
		holds(t, h, address, "records", map[feed]int{prices: n})
	}
	lose()
	neither(t, s.Write(t.Context(), &framework.Batch{From: prices.at(n), To: prices.at(n + 5)}))
	prices.open(t, s, n+5)
}

// A Wire is a way to a server for which a test can arrange losses.
type Wire struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	marker   []byte
	lose     atomic.Bool
	conns    sync.WaitGroup
}

// NewWire listens on a port of the loopback and passes on what comes to what
// dial connects to. It ends with t. The marker is what a client sends when it
// ends a transaction, and at no other time.
func NewWire(t *testing.T, dial func() (net.Conn, error), marker string) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{listener: l, dial: dial, marker: []byte(marker)}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		l.Close()
		w.conns.Wait()
	})
	w.conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			w.conns.Go(func() { w.serve(ctx, client) })
		}
	})
	return w
}

// Addr is where it listens.
func (w *Wire) Addr() *net.TCPAddr { return w.listener.Addr().(*net.TCPAddr) }

// LoseAnswer has the answer to the next message with the marker read and thrown
// away, and its connection closed then.
func (w *Wire) LoseAnswer() { w.lose.Store(true) }

func (w *Wire) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	server, err := w.dial()
	if err != nil {
		return
	}
	defer server.Close()
	defer context.AfterFunc(ctx, func() { client.Close(); server.Close() })()
	var losing atomic.Bool
	var up sync.WaitGroup
	up.Go(func() {
		pass(server, client, func(b []byte) bool {
			if bytes.Contains(b, w.marker) && w.lose.CompareAndSwap(true, false) {
				losing.Store(true)
			}
			return true
		})
		server.Close()
	})
	pass(client, server, func([]byte) bool { return !losing.Load() })
	client.Close()
	up.Wait()
}

// pass copies until an end is closed or look says no.
func pass(to, from net.Conn, look func([]byte) bool) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !look(b[:n]) {
			return
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}
