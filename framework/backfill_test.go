package framework

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// holed is a site that cannot replay and whose first connection is cut after
// event 5; it is back at event 21.
func holed() *site {
	s := &site{every: time.Millisecond, start: time.Now()}
	s.script = func(n int, _ Cursor) step {
		if n == 1 {
			return step{events: 5, err: errors.New("connection reset")}
		}
		return step{events: 1 << 60}
	}
	return s
}

// jumping is a target whose numbers jump from 5 to 21 within a connection.
func jumping() *played {
	list := ticks(1, 2, 3, 4, 5)
	for n := 21; n < 2000; n++ {
		list = append(list, fmt.Sprintf("tick:%d", n))
	}
	return &played{connections: [][]string{list}}
}

// filledOf returns the numbers that were filled, in the order of the journal.
func filledOf(m *memoryLog) (out []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ev := range m.events {
		if ev.Filled {
			out = append(out, ev.Sequence)
		}
	}
	return out
}

func upTo(from, to uint64) (out []uint64) {
	for n := from; n <= to; n++ {
		out = append(out, n)
	}
	return out
}

func events(numbers ...uint64) (out []Event) {
	for _, n := range numbers {
		out = append(out, Event{Type: "tick", Data: fmt.Appendf(nil, `{"meta":{"seq":%d},"from":"history"}`, n)})
	}
	return out
}

func TestHistoryOverHTTPFillsAGap(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	var signed []string
	open := 0
	history := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if open++; open > 1 {
			t.Error("two requests at once")
		}
		defer func() { open-- }()
		asked = append(asked, r.URL.RawQuery)
		signed = append(signed, r.Header.Get("Authorization"))
		switch len(asked) {
		case 1:
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		case 2:
			panic(http.ErrAbortHandler) // the connection breaks
		case 3:
			fmt.Fprint(w, "<html>log in</html>")
			return
		case 4:
			fmt.Fprint(w, `{"result": {"list": {}}}`)
			return
		}
		from, _ := strconv.Atoi(r.URL.Query().Get("from"))
		to, _ := strconv.Atoi(r.URL.Query().Get("to"))
		type entry struct {
			ID   int            `json:"id"`
			Kind string         `json:"kind"`
			Data map[string]int `json:"data"`
		}
		page := []entry{}
		for n := from; n <= to+3 && len(page) < 6; n++ { // pages of six; more than was asked for
			page = append(page, entry{n, "price", map[string]int{"n": n}})
		}
		slices.Reverse(page)
		_ = json.NewEncoder(w).Encode(map[string]any{"result": map[string]any{"list": page}})
	}))
	defer history.Close()
	host := strings.TrimPrefix(history.URL, "http://")
	ids := NewIdentities(IdentityConfig{Hosts: []string{host}, Keeper: auth.NewKeeper(auth.Config{Source: auth.Static(http.Header{"Authorization": {"Bearer x"}}, nil)})})
	defer ids.Close()

	// A gap that an earlier run left: the site's own connection brings the rest.
	m := &memoryLog{cursor: "5"}
	m.events = []Event{{ID: []byte("5"), Type: "message", Data: []byte("5"), Cursor: "5", Time: time.Now()}}
	m.notes = []Note{newNote(NoteGap, Gap{State: GapKnown, From: time.Now(), To: time.Now(), FirstID: 6, LastID: 20, Missing: 15, Cause: CauseBroken})}
	quiet := TargetFunc(func(ctx context.Context, _ *Session, from Cursor) (Connection, error) {
		if from != "5" {
			t.Errorf("resumed from %q", from)
		}
		return &quietConn{ctx}, nil
	})
	h := &History{URL: history.URL + "/h?from={from}&to={to}", Each: "result.list", ID: "id", Type: "kind", Data: "data"}
	holdUntil(t, &Stream{Name: "t/s", Target: quiet, Identities: ids, Limits: quickly(), MinWait: time.Millisecond, Backfill: &Backfill{Fetch: h.Fetch}}, m,
		func(ev *Event) bool { return string(ev.ID) == "20" })

	wantGaps(t, m.ledger(), "filled broken 6-20 missing 0 filled 15")
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"from=6&to=20", "from=6&to=20", "from=6&to=20", "from=6&to=20", "from=6&to=20", "from=12&to=20", "from=18&to=20"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
	if slices.ContainsFunc(signed, func(s string) bool { return s != "Bearer x" }) {
		t.Errorf("not asked with the stream's identity: %q", signed)
	}
	for i, ev := range m.events[1:] {
		n := strconv.Itoa(i + 6)
		if string(ev.ID) != n || ev.Type != "price" || string(ev.Data) != `{"n":`+n+`}` || !ev.Filled || ev.Cursor != "5" || ev.Sequenced || ev.Sequence != 0 {
			t.Errorf("event %+v, data %s", ev, ev.Data)
		}
	}
	if len(m.events) != 16 || m.cursor != "5" {
		t.Errorf("%d events, cursor %q", len(m.events), m.cursor)
	}
}

// quietConn is a connection that brings nothing.
type quietConn struct{ ctx context.Context }

func (c *quietConn) Next(*Event) error { <-c.ctx.Done(); return context.Cause(c.ctx) }
func (c *quietConn) Close() error      { return nil }

func TestNumericIDsAreFilledAfterACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := holed()
		m := &memoryLog{}
		var filled int
		fetch := func(_ context.Context, _ *Session, first, last uint64) (out []Event, _ error) {
			if first > last {
				t.Errorf("asked for %d to %d", first, last)
			}
			for n := max(first, 3) - 2; n <= last+2; n++ { // more than was asked for
				out = append(out, Event{ID: strconv.AppendUint(nil, n, 10), Data: []byte("h")})
			}
			filled = int(last-first) + 1
			return out, nil
		}
		account := holdUntil(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), Backfill: &Backfill{Fetch: fetch}}, m, number(3000))
		if account.Coverage != 1 || len(account.Gaps) != 1 || account.Gaps[0].State != GapFilled || account.Filled != uint64(filled) || account.Events != 3000 || account.LastID != "3000" {
			t.Errorf("account %+v", account)
		}
		l := m.ledger()
		if len(l.Gaps) != 1 || l.Gaps[0].State != GapFilled || l.Gaps[0].Filled != uint64(filled) || filled < 100 || l.Sum().Coverage() != 1 {
			t.Errorf("gaps %q", gaps(l))
		}
		seen := map[string]int{}
		for _, ev := range m.events {
			seen[string(ev.ID)]++
		}
		for n := 1; n <= 3000; n++ {
			if seen[strconv.Itoa(n)] != 1 {
				t.Fatalf("event %d was appended %d times", n, seen[strconv.Itoa(n)])
			}
		}
	})
}

func TestHistoryThatLacksEventsLeavesTheGapKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		var asked []string
		fetch := func(_ context.Context, _ *Session, first, last uint64) ([]Event, error) {
			asked = append(asked, fmt.Sprintf("%d-%d", first, last))
			if first <= 8 && last >= 10 {
				return events(8, 9, 10), nil
			}
			if first == 11 {
				return nil, &HTTPError{Status: http.StatusNotFound}
			}
			return nil, nil
		}
		holdUntil(t, &Stream{Name: "t/s", Target: jumping(), Limits: quickly(), Sequence: JSONSequence("meta.seq"), Backfill: &Backfill{Fetch: fetch}}, m,
			func(ev *Event) bool { return ev.Sequence == 500 })
		l := m.ledger()
		wantGaps(t, l, "known skipped 6-20 missing 12 filled 3")
		if left := l.Gaps[0].Left; !slices.Equal(left, []Range{{6, 7}, {11, 20}}) {
			t.Errorf("left %v", left)
		}
		if got := filledOf(m); !slices.Equal(got, upTo(8, 10)) {
			t.Errorf("filled %v", got)
		}
		if want := []string{"6-20", "11-20", "6-7", "11-20", "6-7", "11-20", "6-7", "11-20"}; !slices.Equal(asked, want) {
			t.Errorf("asked %q, want %q", asked, want)
		}
	})
}

func TestFetchedEventsAreNotDoubled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 6 to 8 come late while the history is asked; 9 and 10 are brought by
		// the next connection when they have been filled.
		first := ticks(1, 2, 3, 4, 5, 11, 12, 6, 7, 8, 13, 14, 15)
		second := ticks(9, 10, 15, 16, 17)
		m := &memoryLog{}
		fetch := func(context.Context, *Session, uint64, uint64) ([]Event, error) {
			time.Sleep(4500 * time.Millisecond)
			return events(10, 9, 8, 7, 6), nil
		}
		holdUntil(t, &Stream{Name: "t/s", Target: &played{connections: [][]string{first, second}}, Limits: quickly(), Sequence: JSONSequence("meta.seq"), Backfill: &Backfill{Fetch: fetch}}, m, func(*Event) bool { return false })
		wantGaps(t, m.ledger(), "filled skipped 6-10 missing 0 filled 5", "replayed seen_again server_error")
		var got []uint64
		for _, ev := range m.events {
			got = append(got, ev.Sequence)
		}
		if want := []uint64{1, 2, 3, 4, 5, 11, 12, 6, 7, 8, 9, 10, 13, 14, 15, 16, 17}; !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
	})
}

func TestProgramKilledWhileFillingDoublesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memoryLog{}
		full := errors.New("killed")
		m.fail = func(ev *Event) error {
			if ev.Filled && ev.Sequence == 12 {
				return full
			}
			return nil
		}
		fetch := func(_ context.Context, _ *Session, first, last uint64) ([]Event, error) {
			return events(upTo(first, last)...), nil
		}
		stream := func(p *played) *Stream {
			return &Stream{Name: "t/s", Target: p, Limits: quickly(), Sequence: JSONSequence("meta.seq"), Backfill: &Backfill{Fetch: fetch}}
		}
		r, err := newRunner(t.Context(), stream(jumping()), m)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.run(t.Context()); !errors.Is(err, full) {
			t.Fatalf("the run ends with %v", err)
		}
		r.now().Identities.Close()
		// A killed program accounts for nothing: forget what was noted since.
		m.notes = slices.DeleteFunc(m.notes, func(n Note) bool { return n.Kind == NoteGap && strings.Contains(string(n.Body), `"filled"`) })
		wantGaps(t, m.ledger(), "known skipped 6-20 missing 15 filled 0")

		m.fail = nil
		last := m.events[len(m.events)-1]
		for i := len(m.events) - 1; last.Filled; i-- {
			last = m.events[i]
		}
		// What was filled before may still come, when it does it is doubled.
		holdUntil(t, stream(&played{connections: [][]string{ticks(30, 7, 31, 32)}}), m, func(ev *Event) bool { return ev.Sequence == 32 })
		if got := filledOf(m); !slices.Equal(got, append(upTo(6, 20), upTo(last.Sequence+1, 29)...)) {
			t.Errorf("filled %v", got)
		}
		wantGaps(t, m.ledger(), "filled skipped 6-20 missing 0 filled 15", fmt.Sprintf("filled restart %d-29 missing 0 filled %d", last.Sequence+1, 29-last.Sequence))
		seen := map[uint64]bool{}
		for _, ev := range m.events {
			if seen[ev.Sequence] {
				t.Errorf("event %d is doubled", ev.Sequence)
			}
			seen[ev.Sequence] = true
		}
	})
}

func TestHistoryIsAskedPolitely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		var asked []time.Duration
		begin := time.Now()
		fetch := func(ctx context.Context, _ *Session, first, last uint64) ([]Event, error) {
			asked = append(asked, time.Since(begin).Round(time.Second))
			switch len(asked) {
			case 1:
				return nil, &HTTPError{Status: 429, Header: http.Header{"Retry-After": {"40"}}}
			case 2:
				return nil, &url.Error{Op: "Get", URL: "https://x/?key=s3cret", Err: errors.New("reset")}
			case 3:
				<-ctx.Done() // a site that does not answer
				return nil, context.Cause(ctx)
			}
			return events(upTo(first, last)...), nil
		}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: jumping(), Limits: quickly(), Sequence: JSONSequence("meta.seq"), Backfill: &Backfill{Fetch: fetch}, Log: slog.New(slog.NewTextHandler(&logged, nil))}, m,
			func(ev *Event) bool { return ev.Sequence == 500 })
		wantGaps(t, m.ledger(), "filled skipped 6-20 missing 0 filled 15")
		if len(asked) != 4 || asked[1]-asked[0] != 40*time.Second || asked[2]-asked[1] < time.Second || asked[3]-asked[2] < time.Minute+2*time.Second {
			t.Errorf("asked at %v", asked)
		}
		if strings.Contains(logged.String(), "s3cret") || !strings.Contains(logged.String(), "reset") {
			t.Errorf("the log holds\n%s", logged.String())
		}
	})
}

func TestFilledEventsOfOtherTypesAreNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fetch := func(_ context.Context, _ *Session, first, last uint64) (out []Event, _ error) {
			for i, ev := range events(upTo(first, last)...) {
				if i%5 > 0 {
					ev.Type = "other"
				}
				out = append(out, ev)
			}
			return out, nil
		}
		m := &memoryLog{}
		holdUntil(t, &Stream{Name: "t/s", Target: jumping(), Limits: quickly(), Types: []string{"tick"}, Sequence: JSONSequence("meta.seq"), Backfill: &Backfill{Fetch: fetch}}, m,
			func(ev *Event) bool { return ev.Sequence == 50 })
		wantGaps(t, m.ledger(), "filled skipped 6-20 missing 0 filled 15")
		if got := filledOf(m); !slices.Equal(got, []uint64{6, 11, 16}) {
			t.Errorf("filled %v", got)
		}
	})
}

func TestFilledEventsCountAgainstTheAllowance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fetch := func(_ context.Context, _ *Session, first, last uint64) ([]Event, error) {
			return events(upTo(first, last)...), nil
		}
		m := &memoryLog{}
		r, err := newRunner(t.Context(), &Stream{Name: "t/s", Target: jumping(), Limits: quickly(), Sequence: JSONSequence("meta.seq"), Backfill: &Backfill{Fetch: fetch}}, m)
		if err != nil {
			t.Fatal(err)
		}
		r.share = &allowance{left: 12, over: func() {}}
		if err := r.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.now().Identities.Close()
		if got := filledOf(m); len(m.events) != 12 || len(got) != 6 || !slices.Equal(got, upTo(6, 11)) {
			t.Errorf("%d events, filled %v", len(m.events), got)
		}
	})
}

func TestRecordsSayThatTheyWereFilled(t *testing.T) {
	d := &deliverer{}
	for _, filled := range []bool{true, false} {
		d.decode("t/s", &StoredEvent{Data: []byte("x"), Filled: filled}, Position{})
	}
	if r := d.batch.Records; len(r) != 2 || !r[0].Filled || r[1].Filled {
		t.Errorf("records %+v", r)
	}
}

func TestHistoryAnswers(t *testing.T) {
	answer := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
	defer server.Close()
	ids := NewIdentities(IdentityConfig{})
	defer ids.Close()
	id, err := ids.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer id.release()
	for _, c := range []struct {
		history      History
		answer, want string
	}{
		{History{ID: "id"}, `[{"id":1,"x":[1, 2]}]`, `1  {"id":1,"x":[1, 2]}`},
		{History{ID: "id", Each: "a.b"}, `{"a":{"b":[{"id":"x"},{"id":"y"}]}}`, `x  {"id":"x"};y  {"id":"y"}`},
		{History{ID: "i", Type: "t", Data: "d"}, `[{"i":1,"t":"tick","d":"plain"},{"i":2,"d":{"a":1}}]`, `1 tick plain;2  {"a":1}`},
		{History{}, `[]`, ``},
		{History{}, `{"list":[]}`, `error`},
		{History{Each: "b"}, `{"a":[]}`, `error`},
		{History{}, `[1,`, `error`},
	} {
		answer = c.answer
		c.history.URL = server.URL + "/{from}/{to}"
		got := ""
		list, err := c.history.Fetch(t.Context(), &Session{Client: id.client}, 1, 2)
		for i, ev := range list {
			if i > 0 {
				got += ";"
			}
			got += fmt.Sprintf("%s %s %s", ev.ID, ev.Type, ev.Data)
		}
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%s gives %q (%v), want %q", c.answer, got, err, c.want)
		}
	}
}
