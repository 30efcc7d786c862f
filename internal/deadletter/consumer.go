package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/holdline/scrape/framework"
)

// consumer is the reader of the journal that keeps what the decoder refuses.
type consumer struct {
	s  *Store
	id string
}

// Consumer returns a sink that keeps the events which the decoder refuses, and
// retires the letters whose events have come again: it wants to be
// [framework.SinkConfig.Refused]. Its Close leaves the store open.
func (s *Store) Consumer() framework.Sink { return &consumer{s: s} }

// Open implements [framework.Sink]. Letters of another journal stay, and this
// one is read from its beginning.
func (c *consumer) Open(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	c.id = info.ID
	at := framework.Position{Journal: info.Journal, Partition: info.Partition}
	err := c.s.write(ctx, func(tx *sql.Tx) error {
		pos, err := position(tx, c.id, info.Partition)
		switch {
		case err == nil && pos.Journal == info.Journal && info.Restart == 0:
			at = pos
			return nil
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return err
		}
		_, err = tx.Exec(`INSERT OR REPLACE INTO positions (consumer, partition, journal, seq, event) VALUES (?, ?, ?, 0, 0)`,
			c.id, at.Partition, string(at.Journal))
		return err
	})
	return at, c.s.explain(err)
}

// querier is a database or a transaction.
type querier interface {
	QueryRow(query string, args ...any) *sql.Row
}

func position(q querier, consumer string, partition int) (framework.Position, error) {
	p := framework.Position{Partition: partition}
	err := q.QueryRow(`SELECT journal, seq, event FROM positions WHERE consumer = ? AND partition = ?`, consumer, partition).
		Scan(&p.Journal, &p.Seq, &p.Event)
	return p, err
}

// Position returns where the consumer of this id is; zero when it has never
// been open.
func (s *Store) Position(consumer string, partition int) (framework.Position, error) {
	p, err := position(s.db, consumer, partition)
	if errors.Is(err, sql.ErrNoRows) {
		return framework.Position{Partition: partition}, nil
	}
	return p, s.explain(err)
}

// Write implements [framework.Sink].
func (c *consumer) Write(ctx context.Context, b *framework.Batch) error {
	var refused *framework.PositionError
	err := c.s.write(ctx, func(tx *sql.Tx) error {
		have, err := position(tx, c.id, b.From.Partition)
		if err != nil {
			return err
		}
		if have != b.From {
			refused = &framework.PositionError{Sink: c.id, Want: b.From, Have: have, Reason: "the store of dead letters is not where the batch begins"}
			return refused
		}
		for i := range b.Records {
			if err := c.take(tx, &b.Records[i]); err != nil {
				return err
			}
		}
		if err := forget(tx, time.Now().Add(-KeepRetired)); err != nil {
			return err
		}
		_, err = tx.Exec(`UPDATE positions SET seq = ?, event = ? WHERE consumer = ? AND partition = ?`, b.To.Seq, b.To.Event, c.id, b.To.Partition)
		return err
	})
	if refused != nil {
		return refused
	}
	return c.s.explain(err)
}

func (c *consumer) take(tx *sql.Tx, rec *framework.Record) error {
	if rec.Reason != "" {
		ev := framework.StoredEvent{ID: rec.ID, Type: rec.Type, Cursor: rec.Cursor, Time: rec.Time, Data: rec.Data, Again: rec.Again}
		if err := c.s.insert(tx, rec.Key.Position.String(), rec.Stream, &ev, rec.Reason); err != nil {
			return err
		}
	}
	if rec.Again == nil {
		return nil
	}
	now := time.Now().UnixNano()
	if _, err := tx.Exec(`UPDATE refusals SET retired = ? WHERE event = ? AND sink = ? AND record = ?`,
		now, rec.Again.Event, rec.Again.Sink, rec.Again.Record); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE letters SET retired = ? WHERE event = ? AND NOT EXISTS
		(SELECT 1 FROM refusals r WHERE r.event = letters.event AND r.retired = 0)`, now, rec.Again.Event)
	return err
}

// forget removes the letters that were retired before the time.
func forget(tx *sql.Tx, before time.Time) error {
	for _, statement := range []string{
		`DELETE FROM refusals WHERE event IN (SELECT event FROM letters WHERE retired > 0 AND retired < ?)`,
		`DELETE FROM letters WHERE retired > 0 AND retired < ?`,
	} {
		if _, err := tx.Exec(statement, before.UnixNano()); err != nil {
			return err
		}
	}
	return nil
}

// Close implements [framework.Sink].
func (c *consumer) Close() error { return nil }
