package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/holdline/scrape/framework"
	"github.com/jackc/pgx/v5"
)

// keptBuffer is how large a buffer is kept for the next batch.
const keptBuffer = 4 << 20

// Write implements [framework.Sink].
func (s *Sink) Write(ctx context.Context, b *framework.Batch) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.patience, errPatience)
	defer cancel()
	if s.conn == nil {
		return s.explain(ctx, errClosed)
	}
	err := s.write(ctx, b)
	if refusesRow(err) {
		err = s.blame(ctx, b.Records, err)
	}
	return s.explain(ctx, err)
}

func (s *Sink) write(ctx context.Context, b *framework.Batch) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx)
	if err := s.movePosition(ctx, tx, b); err != nil {
		return err
	}
	if err := s.copy(ctx, tx, b.Records); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func (s *Sink) copy(ctx context.Context, tx pgx.Tx, records []framework.Record) error {
	if len(records) == 0 {
		return nil
	}
	buf := s.buf[:0]
	s.buf = nil // until it is certain that nothing reads it any more
	buf, err := s.encoder.appendRows(buf, records, s.maxRow)
	if err != nil {
		return err
	}
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(buf), s.copyStatement())
	if err != nil {
		return err
	}
	if n := tag.RowsAffected(); n != int64(len(records)) {
		// A trigger that passes rows over would lose them without a word.
		return fmt.Errorf("the table took %d of %d rows: a trigger on it drops rows, which loses records: remove it, or name another table", n, len(records))
	}
	if cap(buf) <= keptBuffer {
		s.buf = buf
	}
	return nil
}

// blame finds the record for which the server refused the batch: the last one
// of the shortest beginning that is refused. Nothing of this is committed.
func (s *Sink) blame(ctx context.Context, records []framework.Record, refusal error) error {
	// A table that has other types by now refuses every record, and none is at
	// fault.
	has, err := s.readColumns(ctx, s.conn)
	if err != nil {
		return err
	}
	if !slices.Equal(has, s.has) {
		return fmt.Errorf("%w: %w", errChanged, refusal)
	}
	var other error // that has nothing to do with the records
	culprit := refusal
	n := sort.Search(len(records), func(i int) bool {
		if other != nil {
			return true
		}
		err := s.try(ctx, records[:i+1])
		if err != nil && !refusesRow(err) {
			other = err
		} else if err != nil {
			culprit = err
		}
		return err != nil
	})
	switch {
	case other != nil:
		return other
	case n == len(records):
		return refusal // it is gone: try the batch again
	}
	key := records[n].Key
	var there bool
	if err := s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+s.table+` WHERE "_key" = $1)`, key.String()).Scan(&there); err != nil {
		return err
	}
	if there {
		return &framework.StoredError{Sink: s.id, Key: key, Place: "table " + s.table, Position: s.positions}
	}
	return &framework.RecordError{Key: key, Err: fmt.Errorf("refused by table %s: %w", s.table, culprit)}
}

// try copies records and takes them back.
func (s *Sink) try(ctx context.Context, records []framework.Record) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx)
	// What a constraint says at the commit only, it says at once.
	if _, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE"); err != nil {
		return err
	}
	return s.copy(ctx, tx, records)
}
