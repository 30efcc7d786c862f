package proxies

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// sessions is a pool of a made-up provider's, whose gateway answers as told.
func sessions(t testing.TB, s Subscription, c Config, answer func(proxy string) string) (*Pool, *wire) {
	t.Helper()
	p, err := ParseProvider("acme", []byte(`{"kinds": ["residential"], "address": "10.0.0.1:8080", "user": "{user}-{session}[-strict{strict}]",
		"session": {"alphabet": "a-z0-9", "length": 8}, "lifetime": {"min": "1m", "max": "1h"}, "exit_header": "X-Exit",
		"rules": [{"status": 502, "strict": true, "layer": "identity"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	s.User, s.Password = "u", "p"
	exits, err := p.Exits(s)
	if err != nil {
		t.Fatal(err)
	}
	c.Exits = exits
	return wired(t, c, answer)
}

func from(address string) string { return "HTTP/1.1 200 OK\r\nX-Exit: " + address + "\r\n\r\n" }

func TestSessionStaysAndRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		make5 := func(c *Commons) *Pool {
			p, _ := sessions(t, Subscription{Sessions: 5}, Config{Seed: "s", Name: "n", Commons: c}, works)
			return p
		}
		commons := &Commons{}
		p := make5(commons)
		first := lease(t, p, Request{Key: "k"})
		if err := dialOnce(first); err != nil {
			t.Fatal(err)
		}
		if again := lease(t, p, Request{Key: "k"}); again.Exit().URL.User.Username() != first.Exit().URL.User.Username() {
			t.Error("the same key got another session")
		}
		// Somebody asks for another identity: the key stays with its exit, which has another session.
		next := lease(t, p, Request{Key: "k", Avoid: []string{first.Exit().Name}})
		if want := first.Exit().Name + "~1"; next.Exit().Name != want || next.Exit().URL.User.Username() == first.Exit().URL.User.Username() {
			t.Errorf("rotated from %v to %v, want %s", first.Exit(), next.Exit(), want)
		}
		// A second one who left the same address does not rotate again.
		if also := lease(t, p, Request{Key: "k", Avoid: []string{first.Exit().Name}}); also.Exit().Name != next.Exit().Name {
			t.Errorf("rotated twice: %v", also.Exit())
		}
		if err := dialOnce(first); err != nil {
			t.Errorf("the lease of the old session does not go on: %v", err)
		}
		// A target that refuses it has it rotate, too.
		next.Release(TargetRefused)
		third := lease(t, p, Request{Key: "k"})
		if want := first.Exit().Name + "~2"; third.Exit().Name == next.Exit().Name && third.Exit().Name != want {
			t.Errorf("%v", third.Exit())
		}

		// After a restart the sessions are the same.
		kept, err := json.Marshal(commons)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(kept), "u-") {
			t.Errorf("what is kept holds user names: %s", kept)
		}
		commons = &Commons{}
		if err := json.Unmarshal(kept, commons); err != nil {
			t.Fatal(err)
		}
		names := func(p *Pool) (s string) {
			for _, e := range p.exits {
				s += e.Name + " " + e.URL.User.Username() + "\n"
			}
			return s
		}
		if a, b := names(p), names(make5(commons)); a != b {
			t.Errorf("before:\n%safter:\n%s", a, b)
		}
	})
}

func TestSessionEndsWithItsClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := sessions(t, Subscription{Lifetime: 20 * time.Minute}, Config{}, works)
		lease(t, p, Request{Key: "a"})
		time.Sleep(time.Hour) // nothing was dialled: the session has not begun
		first := lease(t, p, Request{Key: "a"})
		if err := dialOnce(first); err != nil || first.Exit().Name != "acme-1" {
			t.Fatal(first.Exit(), err)
		}
		begun := time.Now()
		time.Sleep(10 * time.Minute)
		second := lease(t, p, Request{Key: "b"})
		if left := second.end.Sub(begun); left != 20*time.Minute {
			t.Errorf("the lease ends %v after the session's beginning", left)
		}
		time.Sleep(6 * time.Minute)
		if late := lease(t, p, Request{Key: "c"}); late.Exit().Name != "acme-1~1" {
			t.Errorf("with 4 minutes left: %v", late.Exit())
		}
		time.Sleep(5 * time.Minute)
		if err := dialOnce(second); !errors.Is(err, ErrLeaseEnded) {
			t.Errorf("after its end: %v", err)
		}
	})
}

func TestChangedAddressIsALostIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var address atomic.Value
		address.Store("192.0.2.1")
		p, w := sessions(t, Subscription{}, Config{}, func(string) string { return from(address.Load().(string)) })
		w.tunnels = true
		l := lease(t, p, Request{Key: "k"})
		for range 2 {
			if err := dialOnce(l); err != nil {
				t.Fatal(err)
			}
		}
		if s := p.Stats()[0]; s.Address != "192.0.2.1" {
			t.Errorf("%+v", s)
		}
		address.Store("192.0.2.2")
		err := dialOnce(l)
		var derr *DialError
		if !errors.As(err, &derr) || derr.Layer() != LayerIdentity || !strings.Contains(err.Error(), "192.0.2.1") || !strings.Contains(err.Error(), "192.0.2.2") {
			t.Fatalf("%v", err)
		}
		synctest.Wait()
		if w.open.Load() != 0 || p.Stats()[0].Conns != 0 {
			t.Errorf("%d connections are left open", w.open.Load())
		}
		// The old lease never gets through again, a new one has another name: nothing bound to the old one fits it.
		if err := dialOnce(l); !errors.As(err, &derr) || derr.Layer() != LayerIdentity {
			t.Errorf("%v", err)
		}
		next := lease(t, p, Request{Key: "k"})
		if err := dialOnce(next); err != nil || next.Exit().Name != "acme-1~1" {
			t.Errorf("%v: %v", next.Exit(), err)
		}
		if s := p.Stats()[0]; s.State != StateOK {
			t.Errorf("the exit is at fault: %+v", s)
		}
	})
}

func TestStrictRefusalIsALostIdentityOnceTheSessionHasWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		p, _ := sessions(t, Subscription{}, Config{}, func(string) string {
			if gone.Load() {
				return dead("")
			}
			return established
		})
		l := lease(t, p, Request{Key: "k"})
		if err := dialOnce(l); err != nil {
			t.Fatal(err)
		}
		gone.Store(true)
		var derr *DialError
		if err := dialOnce(l); !errors.As(err, &derr) || derr.Layer() != LayerIdentity {
			t.Fatalf("%v", err)
		}
		if s := p.Stats()[0]; s.Name != "acme-1~1" || s.State != StateOK {
			t.Errorf("%+v", s)
		}
		// Sessions that never work are a dead exit: three of them put it out.
		for range 3 {
			dialOnce(lease(t, p, Request{Key: "k"}))
		}
		if s := p.Stats()[0]; s.State != StateQuarantined {
			t.Errorf("%+v", s)
		}
		gone.Store(false)
		time.Sleep(time.Minute)
		l = lease(t, p, Request{Key: "k"})
		if err := dialOnce(l); err != nil || l.Exit().Name != "acme-1~2" || p.Stats()[0].State != StateOK {
			t.Errorf("%v: %v, %+v", l.Exit(), err, p.Stats()[0])
		}
	})
}

func TestUnreachableGatewayBurnsNoSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, w := sessions(t, Subscription{Sessions: 3}, Config{}, works)
		if err := dialOnce(lease(t, p, Request{Key: "k"})); err != nil {
			t.Fatal(err)
		}
		w.answer = func(string) string { return "" }
		var avoid []string
		for i := range 20 {
			l := lease(t, p, Request{Key: "k", Avoid: avoid})
			if i == 1 && l.Exit().Name == avoid[0] {
				t.Errorf("%s was to be avoided", avoid[0])
			}
			dialOnce(l)
			l.Release(ExitFailed)
			avoid = []string{l.Exit().Name}
			time.Sleep(10 * time.Second)
		}
		for _, s := range p.Stats() {
			if strings.Contains(s.Name, "~") {
				t.Errorf("%s was burnt", s.Name)
			}
		}
	})
}

func TestUpdateKeepsWhatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(4)
		p, _ := wired(t, Config{Exits: exits[:3]}, works)
		stays, goes := lease(t, p, Request{Prefer: "e01"}), lease(t, p, Request{Prefer: "e00"})
		c, err := goes.DialContext(t.Context(), "tcp", "target.example:443")
		if err != nil {
			t.Fatal(err)
		}
		lease(t, p, Request{Prefer: "e02"}).Release(ExitFailed)
		if err := p.Update([]Exit{exits[1], {Kind: "no"}}); err == nil || len(p.Stats()) != 3 {
			t.Errorf("a broken list was taken: %v", err)
		}
		if err := p.Update(nil); err == nil {
			t.Error("an empty list was taken")
		}
		if goes.Removed().Err() != nil {
			t.Error("removed although nothing changed")
		}
		if err := p.Update(exits[1:]); err != nil {
			t.Fatal(err)
		}
		if stays.Removed().Err() != nil || goes.Removed().Err() == nil {
			t.Error("the wrong leases were told")
		}
		s := p.Stats()
		if len(s) != 3 || s[0].Name != "e01" || s[0].Leases != 1 || s[1].State != StateQuarantined || s[2].Name != "e03" {
			t.Errorf("%+v", s)
		}
		// The lease of what is gone goes on until its holder has moved.
		if err := dialOnce(goes); err != nil {
			t.Error(err)
		}
		if name := lease(t, p, Request{Prefer: "e00"}).Exit().Name; name == "e00" {
			t.Error("leased although it is gone")
		}
		c.Close()
		goes.Release(Healthy)
		if n := len(p.config.Commons.addresses); n != 3 {
			t.Errorf("%d addresses are remembered", n)
		}
		// Another URL under the same name is another exit.
		exits[3].URL = nExits(9)[8].URL
		if err := p.Update(exits[1:]); err != nil {
			t.Fatal(err)
		}
		if got := lease(t, p, Request{Prefer: "e03"}).Exit().URL.Host; got != "10.0.0.8:8080" {
			t.Errorf("%s", got)
		}
	})
}

func TestThisMachinesOwnWayHasOneCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		commons := &Commons{}
		a, _ := wired(t, Config{Exits: []Exit{{Kind: Direct, MaxConns: 3}}, Commons: commons, Name: "a"}, works)
		b, _ := wired(t, Config{Exits: append(nExits(1), Exit{Name: "home"}), Commons: commons, Name: "b"}, works)
		var open []net.Conn
		for _, p := range []*Pool{a, b, b} {
			c, err := lease(t, p, Request{Key: "prices", Kind: Direct}).DialContext(t.Context(), "tcp", "target.example:443")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		for _, p := range []*Pool{a, b} {
			var werr *WaitError
			_, err := lease(t, p, Request{Key: "late", Kind: Direct}).DialContext(t.Context(), "tcp", "target.example:443")
			if !errors.As(err, &werr) || werr.Cap != 3 || !strings.Contains(err.Error(), `held by "prices" (3)`) {
				t.Errorf("%v", err)
			}
			for _, s := range p.Stats() {
				if s.Kind == Direct && (s.Conns != 3 || s.Cap != 3) {
					t.Errorf("%+v", s)
				}
			}
		}
		// A slot that one pool frees is the other's.
		served := make(chan error)
		go func() { served <- dialOnce(lease(t, a, Request{Key: "late", Kind: Direct})) }()
		synctest.Wait()
		open[1].Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		for _, c := range open {
			c.Close()
		}
		if n := commons.addresses["direct"].slots.used; n != 0 {
			t.Errorf("%d slots are held", n)
		}
	})
}

func TestCapsAreSharedByWhatIsDialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		commons := &Commons{}
		exits := nExits(2)
		for i := range exits {
			exits[i].Account, exits[i].AccountConns, exits[i].MaxConns = "acme", 5, 3
		}
		other := nExits(2)
		for i := range other {
			other[i].Name += "-other" // the same addresses, by another name
			other[i].Account = "acme"
		}
		a, _ := wired(t, Config{Exits: exits, Commons: commons, Name: "a"}, works)
		b, _ := wired(t, Config{Exits: other, Commons: commons, Name: "b"}, works)
		var open []net.Conn
		dial := func(p *Pool, key, exit string) error {
			c, err := lease(t, p, Request{Key: key, Prefer: exit}).DialContext(t.Context(), "tcp", "target.example:443")
			if err == nil {
				open = append(open, c)
			}
			return err
		}
		for range 3 {
			if err := dial(a, "prices", "e00"); err != nil {
				t.Fatal(err)
			}
		}
		var werr *WaitError
		err := dial(b, "late", "e00-other")
		if !errors.As(err, &werr) || werr.Cap != 3 || !strings.Contains(err.Error(), `held by "prices" (3)`) {
			t.Errorf("%v", err)
		}
		for range 2 {
			if err := dial(b, "trades", "e01-other"); err != nil {
				t.Fatal(err)
			}
		}
		err = dial(a, "late", "e01")
		if !errors.As(err, &werr) || werr.Account != "acme" || !strings.Contains(err.Error(), `account acme: no free slot of 5 after 30s; held by "prices" (3), "trades" (2)`) {
			t.Errorf("%v", err)
		}
		// A slot of the account that comes free goes to who waits for it, whichever exit that is.
		served := make(chan error)
		go func() { served <- dialOnce(lease(t, a, Request{Key: "late", Prefer: "e01"})) }()
		synctest.Wait()
		open[0].Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		for _, c := range open {
			c.Close()
		}
		if rows := commons.Accounts(); len(rows) != 1 || rows[0].Exits != 4 || rows[0].Cap != 5 || rows[0].State != StateOK {
			t.Errorf("%+v", rows)
		}
		if n := commons.accounts["account\x00acme"].slots.used; n != 0 {
			t.Errorf("%d slots of the account are held", n)
		}
		// A refused password stops the account wherever it is used.
		a.dialer.tcp = (&wire{answer: func(string) string { return "HTTP/1.1 407 No\r\n\r\n" }}).dial
		dialOnce(lease(t, a, Request{Prefer: "e00"}))
		var derr *DialError
		if _, err := b.Lease(t.Context(), Request{}); !errors.As(err, &derr) || derr.Layer() != LayerAuth {
			t.Errorf("%v", err)
		}
	})
}

func TestFullGatewayLowersTheAccountsCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		p, _ := sessions(t, Subscription{Sessions: 4}, Config{}, func(string) string {
			if full.Load() {
				return "HTTP/1.1 429 Too Many\r\n\r\n"
			}
			return established
		})
		for i := range 8 {
			c, err := lease(t, p, Request{Key: fmt.Sprint(i)}).DialContext(t.Context(), "tcp", "target.example:443")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		full.Store(true)
		time.Sleep(time.Second)
		dialOnce(lease(t, p, Request{Key: "one more"}))
		if s := p.exits[0].account.slots; s.cap(time.Now()) != 4 {
			t.Errorf("the account's cap is %d, 9 were too many", s.cap(time.Now()))
		}
		for _, s := range p.Stats() {
			if s.Cap != 8 {
				t.Errorf("the exit's cap is %d", s.Cap)
			}
		}
	})
}

func TestBudgetOfTheDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(12 * time.Hour) // noon: synctest begins at midnight UTC
		exits := nExits(2)
		for i := range exits {
			exits[i].Budget, exits[i].Account, exits[i].AccountBudget = 2000, "acme", 3000
		}
		commons := &Commons{}
		p, w := wired(t, Config{Exits: exits, Commons: commons, Name: "n"}, works)
		carry := func(p *Pool, name string) error {
			c, err := lease(t, p, Request{Prefer: name}).DialContext(t.Context(), "tcp", "target.example:443")
			if err != nil {
				return err
			}
			defer c.Close()
			for {
				if _, err := c.Write(make([]byte, 100)); err != nil {
					return err
				}
				if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
					return err
				}
			}
		}
		w.tunnels = true
		var berr *BudgetError
		if err := carry(p, "e00"); !errors.As(err, &berr) || berr.Exit != "e00" || berr.Layer() != LayerExit || berr.RetryAfter() != 12*time.Hour {
			t.Fatalf("%v", err)
		}
		if s := p.Stats()[0]; s.State != StateSpent || s.BytesToday < 2000 || s.BytesToday > 2200 || !s.Until.Equal(time.Now().Add(12*time.Hour)) {
			t.Errorf("%+v", s)
		}
		l := lease(t, p, Request{Prefer: "e00"})
		if l.Exit().Name != "e01" {
			t.Error("leased although its budget is used up")
		}
		l.Report(Healthy)
		if err := carry(p, "e01"); !errors.As(err, &berr) || berr.Account != "acme" || !strings.Contains(err.Error(), "account acme has used up its budget of 3000 bytes for today: it is out until 2000-01-02 00:00 UTC") {
			t.Errorf("%v", err)
		}
		_, err := p.Lease(t.Context(), Request{})
		if !errors.As(err, &berr) || berr.Layer() != LayerCapacity {
			t.Errorf("%v", err)
		}
		a := commons.Accounts()
		if len(a) != 1 || a[0].Name != "acme" || a[0].State != StateSpent || a[0].Budget != 3000 || a[0].BytesToday < 3000 || a[0].BytesToday != a[0].BytesIn+a[0].BytesOut || a[0].Exits != 2 || a[0].Cap != 0 {
			t.Errorf("%+v", a)
		}
		// A restart does not give another budget, the next day does.
		kept, err := json.Marshal(commons)
		if err != nil {
			t.Fatal(err)
		}
		commons = &Commons{}
		if err := json.Unmarshal(kept, commons); err != nil {
			t.Fatal(err)
		}
		p, w = wired(t, Config{Exits: exits, Commons: commons, Name: "n"}, works)
		w.tunnels = true
		if _, err := p.Lease(t.Context(), Request{}); !errors.As(err, &berr) {
			t.Errorf("%v", err)
		}
		time.Sleep(12 * time.Hour)
		if s := p.Stats()[0]; s.State != StateOK || s.BytesToday != 0 {
			t.Errorf("%+v", s)
		}
		if err := carry(p, "e00"); !errors.As(err, &berr) {
			t.Errorf("%v", err)
		}
	})
}

func TestEchoTellsTheAddress(t *testing.T) {
	var answer atomic.Value
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer.Load().(string)) }))
	defer page.Close()
	target := echo(t)
	proxy := connectProxy(t, &proxyServer{}, nil)
	p := newPool(t, Config{Exits: []Exit{at("http", proxy.server, "", "")}, MaxConnsPerExit: 1, Echo: page.URL})
	answer.Store(`{"ip": "198.51.100.7", "country": "DE"}`)
	dial := func(l *Lease) error {
		c, err := l.DialContext(t.Context(), "tcp", target.addr)
		if err == nil {
			c.Close()
		}
		return err
	}
	l := lease(t, p, Request{})
	if err := dial(l); err != nil || p.Stats()[0].Address != "198.51.100.7" {
		t.Fatalf("%v: %+v", err, p.Stats()[0])
	}
	answer.Store("2001:db8::1\n")
	if err := dial(l); err != nil {
		t.Errorf("asked again within a minute: %v", err)
	}
	again := func() {
		p.mu.Lock()
		p.exits[0].asked = time.Time{}
		p.mu.Unlock()
	}
	again()
	var derr *DialError
	if err := dial(l); !errors.As(err, &derr) || derr.Layer() != LayerIdentity {
		t.Errorf("%v", err)
	}
	// A page that fails is no reason to stop.
	again()
	answer.Store("out of order")
	if l = lease(t, p, Request{}); dial(l) != nil || !strings.HasSuffix(l.Exit().Name, "~1") {
		t.Errorf("%v", l.Exit())
	}
}

// Of an address and an account that pools share the strictest wish counts, as
// long as there is a pool that has it: an exit that is taken out, has another
// wish or loses its pool has none, and those who wait are served at once.
func TestWishesOfPoolsThatAreGoneCountNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exit := func(conns, accountConns int, budget int64) []Exit {
			return append(nExits(1), Exit{Name: "paid", URL: nExits(2)[1].URL, Account: "paid", MaxConns: conns, AccountConns: accountConns, Budget: budget, AccountBudget: 2 * budget})
		}
		commons := &Commons{}
		mild, _ := wired(t, Config{Exits: exit(5, 0, 0), Commons: commons, Name: "mild"}, works)
		strict, _ := wired(t, Config{Exits: exit(1, 2, 100_000), Commons: commons, Name: "strict"}, works)
		want := func(when string, cap, accountCap int, budget int64) {
			t.Helper()
			s := mild.Stats()[1]
			i := slices.IndexFunc(commons.Accounts(), func(a AccountStats) bool { return a.Name == "paid" })
			a := commons.Accounts()[i]
			if s.Cap != cap || a.Cap != accountCap || mild.exits[1].meter.budget.Load() != budget || a.Budget != 2*budget {
				t.Errorf("%s: %d connections, %d of the account, budgets %d and %d; want %d, %d and %d", when, s.Cap, a.Cap, mild.exits[1].meter.budget.Load(), a.Budget, cap, accountCap, budget)
			}
		}
		want("both", 1, 2, 100_000)
		l := lease(t, mild, Request{Prefer: "paid"})
		c, err := l.DialContext(t.Context(), "tcp", "target.example:443")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waits := make(chan error, 1)
		go func() {
			c, err := l.DialContext(t.Context(), "tcp", "target.example:443")
			if err == nil {
				c.Close()
			}
			waits <- err
		}()
		synctest.Wait()
		held := lease(t, strict, Request{Prefer: "paid"})
		began := time.Now()
		strict.Close()
		if err := <-waits; err != nil || time.Since(began) > 0 {
			t.Errorf("after %v who waited got %v", time.Since(began), err)
		}
		want("one is closed", 5, 0, 0)
		if err := strict.Update(exit(1, 2, 1)); err != nil || held.Removed().Err() == nil {
			t.Errorf("closed, updated: %v; its lease: %v", err, held.Removed().Err())
		}
		var none *ExhaustedError
		if _, err := strict.Lease(t.Context(), Request{}); !errors.As(err, &none) {
			t.Errorf("a closed pool gives %v", err)
		}
		want("the closed one is updated", 5, 0, 0)
		strict, _ = wired(t, Config{Exits: exit(2, 3, 0), Commons: commons, Name: "strict"}, works)
		want("it comes back", 2, 3, 0)
		if err := mild.Update(exit(1, 1, 50)); err != nil {
			t.Fatal(err)
		}
		want("another wish", 1, 1, 50)
		if err := mild.Update(exit(4, 0, 0)); err != nil {
			t.Fatal(err)
		}
		want("another wish that is taken back", 2, 3, 0)
		if err := strict.Update(nExits(1)); err != nil {
			t.Fatal(err)
		}
		want("the exit is taken out", 4, 0, 0)
	})
}
