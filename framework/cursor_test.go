package framework

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// cursorSite is a site whose connections know their cursor, as OpenSSE's do.
type cursorSite struct{ *site }

func (s cursorSite) Open(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
	c, err := s.site.Open(ctx, sess, from)
	if err != nil {
		return nil, err
	}
	return &cursorConn{Connection: c, at: from}, nil
}

type cursorConn struct {
	Connection
	at Cursor
}

func (c *cursorConn) Next(ev *Event) error {
	err := c.Connection.Next(ev)
	if err == nil {
		c.at = ev.Cursor
	}
	return err
}

func (c *cursorConn) Cursor() Cursor { return c.at }

// keptLog is a StreamLog that remembers its cursor. Appending past limit waits
// for the end of the run, as it does where the journal cannot follow.
type keptLog struct {
	feed
	limit, events int
	cursor        Cursor
}

func (k *keptLog) Append(ctx context.Context, ev *Event) error {
	if k.events == k.limit {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	k.events++
	k.cursor = ev.Cursor
	return nil
}

func (k *keptLog) Move(_ context.Context, c Cursor) error {
	k.cursor = c
	return nil
}

// A cursor that passes an event which is not in the journal is a hole.
func TestTheCursorNeverPassesAnEventThatWasNotTaken(t *testing.T) {
	for name, stop := range map[string]func(ctx context.Context, r *runner) context.Context{
		"enough events": func(ctx context.Context, r *runner) context.Context {
			r.share = &allowance{left: 5, over: func() {}}
			return ctx
		},
		"interrupted": func(ctx context.Context, _ *runner) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(time.Minute, func() { cancel(errors.New("drained")) })
			return ctx
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &keptLog{limit: 5}
				s := &site{every: time.Second, start: time.Now(), replay: true}
				r, err := newRunner(t.Context(), &Stream{Name: "t/s", Target: cursorSite{s}, Limits: quickly(), StaleAfter: -1}, log)
				if err != nil {
					t.Fatal(err)
				}
				if err := r.run(stop(t.Context(), r)); err != nil {
					t.Fatal(err)
				}
				if name == "enough events" && time.Since(s.start) != 5*time.Second {
					t.Errorf("the run ended after %v, not with the fifth event", time.Since(s.start))
				}
				if log.events != 5 || log.cursor != "5" {
					t.Errorf("%d events were taken and the cursor is %q; want 5 and 5", log.events, log.cursor)
				}
			})
		})
	}
}

type longError struct{}

func (longError) Error() string { return "too long" }
func (longError) TooLong() bool { return true }

// What the journal refuses for its length ends nothing.
func TestWhatIsTooLongForTheJournalEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now()}
		long := Cursor(strings.Repeat("x", MaxCursor+1))
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			c, err := s.Open(ctx, sess, from)
			return connOf{c, func(ev *Event) {
				if string(ev.Data) == "3" {
					ev.Cursor = long
				}
			}}, err
		})
		m := &memoryLog{}
		var third Cursor
		m.fail = func(ev *Event) error {
			switch {
			case string(ev.Data) == "3":
				third = ev.Cursor
			case string(ev.Data) == "5":
				return fmt.Errorf("journal: %w", longError{})
			}
			return nil
		}
		account := holdUntil(t, &Stream{Name: "t/s", Target: target, Limits: quickly()}, m, number(8))
		if got := m.data(); !slices.Equal(got, []string{"1", "2", "3", "4", "6", "7", "8"}) {
			t.Errorf("got %v", got)
		}
		if third != "2" || m.cursor != "8" {
			t.Errorf("the cursor of the third event is %q, the last one %q", third, m.cursor)
		}
		if account.DeadLetters != 1 || account.OdditiesByKind["cursor too long"] != 1 || account.OdditiesByKind["event too long for the journal"] != 1 {
			t.Errorf("%d dead letters, oddities %v", account.DeadLetters, account.OdditiesByKind)
		}
	})
}

// connOf changes the events of a connection.
type connOf struct {
	Connection
	change func(*Event)
}

func (c connOf) Next(ev *Event) error {
	err := c.Connection.Next(ev)
	c.change(ev)
	return err
}
