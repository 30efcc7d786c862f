package proxies

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Commons is what the pools of a process have in common, by what is really dialled and whichever pool names it: the slots of
// an exit's address, and of an account its slots, its refusals and its bytes. Pools that share one also remember in it which
// generation their sessions are of; it can be kept between runs as JSON, which holds no secret.
//
// The zero value is ready to use. Its methods may be called concurrently.
type Commons struct {
	mu        sync.Mutex // of all pools that share it
	addresses map[string]*address
	accounts  map[string]*account
	kept      map[string]*memory // by pool and exit, or account
}

// address is one exit's way out: the URL with everything in it, or this machine's own.
type address struct {
	slots *slots
	meter *meter
	wishes
}

// account is what exits with one password have in common: whether the proxy takes it, and how much it may carry.
type account struct {
	name    string
	slots   *slots
	meter   *meter
	refusal *DialError // the last refusal, nil while the account is good
	until   time.Time  // when one dial may try again
	trying  bool       // that dial is under way
	wishes
}

// memory is what is kept of an exit or an account between runs.
type memory struct {
	Generation int       `json:"generation,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Address    string    `json:"address,omitempty"`
	Day        int64     `json:"day,omitempty"`
	Bytes      int64     `json:"bytes,omitempty"`

	meter *meter // where Day and Bytes go on
}

// unlimited is the cap of what has none.
const unlimited = math.MaxInt

// wishes are what the exits of pools ask for that have an address or an account. Of thousands most ask for the same.
type wishes struct {
	users int
	asked []struct {
		wish
		times int
	}
}

// wish is a cap and a budget; 0 is none.
type wish struct {
	conns  int
	budget int64
}

// count adds n times the wish.
func (w *wishes) count(n int, of wish) {
	w.users += n
	for i := range w.asked {
		if w.asked[i].wish == of {
			if w.asked[i].times += n; w.asked[i].times == 0 {
				w.asked = slices.Delete(w.asked, i, i+1)
			}
			return
		}
	}
	w.asked = append(w.asked, struct {
		wish
		times int
	}{of, n})
}

// settle has the strictest wish count. Connections of exits that are gone keep to what was asked for last.
func (w *wishes) settle(s *slots, m *meter, now time.Time) {
	if w.users == 0 {
		return
	}
	s.limit = unlimited
	budget := int64(0)
	for _, a := range w.asked {
		if a.conns > 0 {
			s.limit = min(s.limit, a.conns)
		}
		if a.budget > 0 && (budget == 0 || a.budget < budget) {
			budget = a.budget
		}
	}
	m.budget.Store(budget)
	s.run(now)
}

// ask adds n times what the exit asks for of its address and its account; it counts from heed on. The mutex is held, as it is
// in all functions here that do not take it.
func (e *exit) ask(n int) {
	e.address.wishes.count(n, wish{e.MaxConns, e.Budget})
	e.account.wishes.count(n, wish{e.AccountConns, e.AccountBudget})
}

// heed has what is asked for now count.
func (e *exit) heed(now time.Time) {
	e.address.wishes.settle(e.address.slots, e.address.meter, now)
	e.account.wishes.settle(e.account.slots, e.account.meter, now)
}

// address finds the address of an exit or makes it.
func (c *Commons) address(id string, m *meter) *address {
	if a := c.addresses[id]; a != nil {
		return a
	}
	a := &address{slots: newSlots(unlimited), meter: m}
	a.slots.mu = &c.mu
	if c.addresses == nil {
		c.addresses = map[string]*address{}
	}
	c.addresses[id] = a
	return a
}

// account finds the account of an exit or makes it.
func (c *Commons) account(e Exit, m *meter) *account {
	a := c.accounts[e.account()]
	if a == nil {
		a = &account{name: e.accountName(), slots: newSlots(unlimited), meter: m}
		a.slots.mu = &c.mu
		if c.accounts == nil {
			c.accounts = map[string]*account{}
		}
		c.accounts[e.account()] = a
	}
	return a
}

// sweep forgets addresses that no pool has and nobody dials any more.
func (c *Commons) sweep() {
	for id, a := range c.addresses {
		if a.users == 0 && a.slots.used == 0 && a.slots.waiting == 0 {
			delete(c.addresses, id)
		}
	}
}

func (c *Commons) memory(key string) *memory {
	m := c.kept[key]
	if m == nil {
		m = &memory{}
		if c.kept == nil {
			c.kept = map[string]*memory{}
		}
		c.kept[key] = m
	}
	return m
}

// meterFor is the meter that goes on where the memory left it.
func (c *Commons) meterFor(key string) *meter {
	m := c.memory(key)
	if m.meter == nil {
		m.meter = &meter{}
		m.meter.day.Store(m.Day)
		m.meter.today.Store(m.Bytes)
	}
	return m.meter
}

// MarshalJSON writes what must survive a restart: generations of sessions, the addresses they leave from, and the bytes of the
// day.
func (c *Commons) MarshalJSON() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.kept {
		if m.meter != nil {
			m.Day, m.Bytes = m.meter.day.Load(), m.meter.today.Load()
		}
	}
	return json.Marshal(c.kept)
}

// UnmarshalJSON reads what MarshalJSON wrote. It is called before any pool shares the Commons.
func (c *Commons) UnmarshalJSON(data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return json.Unmarshal(data, &c.kept)
}

// AccountStats is a row of the table of accounts: what its exits carry together, in whichever pools they are.
type AccountStats struct {
	Name              string
	Exits             int   // those of pools
	Conns             int   // connections open or being opened
	Cap               int   // how many there may be now; 0 for any number
	Waiting           int   // dials waiting for a slot
	BytesIn, BytesOut int64 // with what the proxy protocol and TLS add
	BytesToday        int64 // of them, both ways, since midnight UTC
	Budget            int64 // bytes a day, 0 for any number
	State             State // StateOK, StateSpent or StateRefused
	Until             time.Time
}

// Accounts lists the accounts that exits of the pools have, by name.
func (c *Commons) Accounts() []AccountStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var rows []AccountStats
	for _, a := range c.accounts {
		if a.users == 0 {
			continue
		}
		r := AccountStats{
			Name: a.name, Exits: a.users, Conns: a.slots.used, Cap: a.slots.cap(now), Waiting: a.slots.waiting,
			BytesIn: a.meter.in.Load(), BytesOut: a.meter.out.Load(), BytesToday: a.meter.spent(now), Budget: a.meter.budget.Load(), State: StateOK,
		}
		if r.Cap == unlimited {
			r.Cap = 0
		}
		switch {
		case a.meter.over(now):
			r.State, r.Until = StateSpent, midnight(now)
		case a.refused(now) != nil:
			r.State, r.Until = StateRefused, a.until
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b AccountStats) int { return cmp.Compare(a.Name, b.Name) })
	return rows
}

// meter counts bytes, and those of the day against a budget.
type meter struct {
	in, out atomic.Int64
	day     atomic.Int64 // since 1970, of today
	today   atomic.Int64
	budget  atomic.Int64 // bytes a day, 0 for any number
}

const aDay = 24 * time.Hour

func dayOf(now time.Time) int64 { return now.Unix() / int64(aDay/time.Second) }

// midnight is when the day of now ends, in UTC.
func midnight(now time.Time) time.Time { return time.Unix((dayOf(now)+1)*int64(aDay/time.Second), 0) }

func (m *meter) add(total *atomic.Int64, n int, now time.Time) {
	total.Add(int64(n))
	if day := dayOf(now); m.day.Load() != day {
		// Two connections may meet midnight together: one of them begins the day.
		if m.day.Swap(day) != day {
			m.today.Store(0)
		}
	}
	m.today.Add(int64(n))
}

// spent is how many bytes of today passed.
func (m *meter) spent(now time.Time) int64 {
	if m.day.Load() != dayOf(now) {
		return 0
	}
	return m.today.Load()
}

// over tells whether the budget is used up.
func (m *meter) over(now time.Time) bool {
	budget := m.budget.Load()
	return budget > 0 && m.spent(now) >= budget
}

// BudgetError says that an exit, or all exits of an account, have carried what they may in a day. Reading from and writing to
// connections fails with it, and so do Lease and dialling.
type BudgetError struct {
	// Exit has used its budget up; when it is empty, Account has.
	Exit, Account string
	// Budget is in bytes a day.
	Budget int64

	until time.Time
}

func (e *BudgetError) Error() string {
	who := "exit " + e.Exit
	if e.Exit == "" {
		who = "account " + e.Account
	}
	return fmt.Sprintf("%s has used up its budget of %d bytes for today: it is out until %s; raise the budget, or add exits", who, e.Budget, e.until.UTC().Format("2006-01-02 15:04 UTC"))
}

// RetryAfter is how long until midnight (UTC).
func (e *BudgetError) RetryAfter() time.Duration { return max(time.Until(e.until), 0) }

// Layer is LayerExit for an exit, since another may do, and LayerCapacity for an account.
func (e *BudgetError) Layer() string {
	if e.Exit != "" {
		return LayerExit
	}
	return LayerCapacity
}

// overBudget says why the exit may carry nothing more today, nil if it may.
func (e *exit) overBudget(now time.Time) *BudgetError {
	// What an account may carry says more than what one of its exits may.
	if a := e.account; a.meter.over(now) {
		return &BudgetError{Account: a.name, Budget: a.meter.budget.Load(), until: midnight(now)}
	}
	if e.meter.over(now) {
		return &BudgetError{Exit: e.Name, Budget: e.meter.budget.Load(), until: midnight(now)}
	}
	return nil
}
