package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"github.com/holdline/scrape/framework"
)

// Filter chooses letters. Its zero value is all that are not retired.
type Filter struct {
	// Events are places of events; empty means any.
	Events []string
	// Target and Stream ("target/stream") are names; empty means any.
	Target, Stream string
	// Retired has retired letters too.
	Retired bool
}

func (f *Filter) where() (condition string, args []any) {
	var all []string
	if len(f.Events) > 0 {
		all = append(all, "event IN (?"+strings.Repeat(", ?", len(f.Events)-1)+")")
		for _, e := range f.Events {
			args = append(args, e)
		}
	}
	if f.Target != "" {
		all, args = append(all, "target = ?"), append(args, f.Target)
	}
	if f.Stream != "" {
		all, args = append(all, "stream = ?"), append(args, f.Stream)
	}
	if !f.Retired {
		all = append(all, "retired = 0")
	}
	if len(all) == 0 {
		return "1", nil
	}
	return strings.Join(all, " AND "), args
}

const letterColumns = `event, stream, id, type, cursor, time, data, reason, seen, again, retired`

// scanLetter reads a row of letterColumns.
func scanLetter(rows *sql.Rows) (l Letter, err error) {
	var at, seen, retired int64
	err = rows.Scan(&l.Event, &l.Stream, &l.ID, &l.Type, &l.Cursor, &at, &l.Data, &l.Reason, &seen, &l.Again, &retired)
	l.Time, l.Seen = time.Unix(0, at), time.Unix(0, seen)
	if retired > 0 {
		l.Retired = time.Unix(0, retired)
	}
	return l, err
}

// pageSize is how many letters are read at a time: the file is not held while
// somebody reads a long list.
const pageSize = 256

// Letters yields the letters, oldest first.
func (s *Store) Letters(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		condition, args := f.where()
		seen, event := int64(math.MinInt64), ""
		for {
			page, err := s.page(ctx, condition+" AND (seen, event) > (?, ?) ORDER BY seen, event LIMIT ?", append(args[:len(args):len(args)], seen, event, pageSize)...)
			if err != nil {
				yield(Letter{}, s.explain(err))
				return
			}
			for _, l := range page {
				if !yield(l, nil) {
					return
				}
				seen, event = l.Seen.UnixNano(), l.Event
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

func (s *Store) page(ctx context.Context, rest string, args ...any) ([]Letter, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+letterColumns+" FROM letters WHERE "+rest, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []Letter
	for rows.Next() {
		l, err := scanLetter(rows)
		if err != nil {
			return nil, err
		}
		page = append(page, l)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	for i := range page {
		if page[i].Missing, err = s.missing(ctx, page[i].Event); err != nil {
			return nil, err
		}
	}
	return page, nil
}

func (s *Store) missing(ctx context.Context, event string) ([]Refusal, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT sink, record, reason, sent FROM refusals WHERE event = ? AND retired = 0 ORDER BY sink, record`, event)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []Refusal{}
	for rows.Next() {
		var r Refusal
		if err := rows.Scan(&r.Sink, &r.Record, &r.Reason, &r.sent); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

// Counts returns how many letters are open and how many retired.
func (s *Store) Counts(ctx context.Context) (open, retired uint64, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT count(*) FILTER (WHERE retired = 0), count(*) FILTER (WHERE retired > 0) FROM letters`).Scan(&open, &retired)
	return open, retired, s.explain(err)
}

// The column sent of a refusal: 0 when its event was not appended again, unsure
// while that is being done, else the newest chunk that may hold it.
const unsure = math.MaxInt64

// Settle is called by whoever opens the journal, before anything else, with the
// newest chunk of each partition: an append that was cut off has reached none
// after it.
func (s *Store) Settle(last []uint64) error {
	return s.explain(s.write(context.Background(), func(tx *sql.Tx) error {
		for p, seq := range last {
			if _, err := tx.Exec(`UPDATE refusals SET sent = ? WHERE retired = 0 AND sent = ? AND event LIKE ?`,
				int64(seq), int64(unsure), fmt.Sprintf("%%/%d/%%/%%", p)); err != nil {
				return err
			}
		}
		return nil
	}))
}

// Sending is what became of the letters that were to be sent again.
type Sending struct {
	Sent     int // appended again, one for each sink that had not got it
	UnderWay int // appended by an earlier call, and not read by the consumer yet
	Unasked  int // letters that no sink has refused: those behind will make up their minds when they come to them
}

// Appender is the journal, as far as Send needs it.
type Appender interface {
	// Append appends the event to the stream.
	Append(ctx context.Context, stream string, ev *framework.Event) error
	// Sync returns once everything appended is durable.
	Sync(ctx context.Context) error
	// Passed tells whether the consumer that reads the stream has read all of
	// the chunk.
	Passed(ctx context.Context, stream string, chunk uint64) (bool, error)
}

// Send has the events of the letters appended again, once for each sink that
// has not got them. It is called by the process that has the journal open,
// once at a time.
//
// Each event is marked before it is appended, so that a crash between the two
// sends nothing twice: see Settle.
func (s *Store) Send(ctx context.Context, f Filter, to Appender) (Sending, error) {
	s.sending.Lock()
	defer s.sending.Unlock()
	var done Sending
	f.Retired = false
	var page []Letter
	for l, err := range s.Letters(ctx, f) {
		if err != nil {
			return done, err
		}
		if page = append(page, l); len(page) == pageSize {
			if err := s.send(ctx, page, to, &done); err != nil {
				return done, err
			}
			page = page[:0]
		}
	}
	return done, s.send(ctx, page, to, &done)
}

// send sends a page of letters.
func (s *Store) send(ctx context.Context, page []Letter, to Appender, done *Sending) error {
	type sending struct {
		letter *Letter
		Refusal
	}
	var all []sending
	for i := range page {
		l := &page[i]
		if len(l.Missing) == 0 {
			done.Unasked++
		}
		for _, r := range l.Missing {
			ready := r.sent == 0
			if r.sent > 0 && r.sent != unsure {
				var err error
				if ready, err = to.Passed(ctx, l.Stream, uint64(r.sent)); err != nil {
					return err
				}
			}
			if !ready {
				done.UnderWay++
				continue
			}
			all = append(all, sending{l, r})
		}
	}
	if len(all) == 0 {
		return nil
	}
	var marked []sending
	err := s.write(ctx, func(tx *sql.Tx) error {
		marked = marked[:0]
		for _, r := range all {
			// What has been retired meanwhile is not sent.
			res, err := tx.Exec(`UPDATE refusals SET sent = ? WHERE event = ? AND sink = ? AND record = ? AND sent = ? AND retired = 0`,
				int64(unsure), r.letter.Event, r.Sink, r.Record, r.sent)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil {
				return err
			} else if n == 1 {
				marked = append(marked, r)
			}
		}
		return nil
	})
	if err != nil {
		return s.explain(err)
	}
	for _, r := range marked {
		l := r.letter
		err := to.Append(ctx, l.Stream, &framework.Event{
			ID: []byte(l.ID), Type: l.Type, Cursor: framework.Cursor(l.Cursor), Time: l.Time, Data: l.Data,
			Again: &framework.Again{Event: l.Event, Sink: r.Sink, Record: r.Record},
		})
		if err != nil {
			return err
		}
		done.Sent++
	}
	return to.Sync(ctx)
}

// Drop throws the letters away and returns how many there were.
func (s *Store) Drop(ctx context.Context, f Filter) (n int64, err error) {
	condition, args := f.where()
	err = s.write(ctx, func(tx *sql.Tx) error {
		var bytes int64
		if err := tx.QueryRow("SELECT count(*), coalesce(sum(length(data)), 0) FROM letters WHERE "+condition, args...).Scan(&n, &bytes); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM refusals WHERE event IN (SELECT event FROM letters WHERE "+condition+")", args...); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM letters WHERE "+condition, args...); err != nil {
			return err
		}
		s.size -= bytes
		return nil
	})
	return n, s.explain(err)
}
