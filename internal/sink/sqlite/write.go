package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/holdline/scrape/framework"
)

// maxArguments bounds the rows of one statement. The driver's time to bind
// arguments grows with the square of their number, so many are slower again: 16
// rows of 6 columns were the best of 1 to 64, and twice as fast as 1.
const maxArguments = 16 * 6

// Write implements [framework.Sink].
func (s *Sink) Write(ctx context.Context, b *framework.Batch) error {
	if s.db == nil {
		return s.explain(errClosed)
	}
	err := s.write(ctx, b)
	if refusesRow(err) {
		err = s.blame(ctx, b.Records, err)
	}
	return s.explain(err)
}

func (s *Sink) write(ctx context.Context, b *framework.Batch) error {
	tx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := s.unchanged(ctx, tx); err != nil {
		return err
	}
	if err := s.movePosition(ctx, tx, b); err != nil {
		return err
	}
	many, one := tx.StmtContext(ctx, s.many), tx.StmtContext(ctx, s.one)
	for rows := range slices.Chunk(b.Records, s.rows) {
		if len(rows) == s.rows {
			if err := s.insert(ctx, many, rows); err != nil {
				return err
			}
			continue
		}
		for i := range rows {
			if err := s.insert(ctx, one, rows[i:i+1]); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}

// insert runs stmt, which takes as many rows as there are.
func (s *Sink) insert(ctx context.Context, stmt *sql.Stmt, rows []framework.Record) error {
	s.args = s.args[:0]
	defer func() { clear(s.args) }() // keep no payload alive
	for i := range rows {
		for _, c := range s.columns {
			v, err := c.value(&rows[i])
			if err != nil {
				return &framework.RecordError{Key: rows[i].Key, Err: err}
			}
			s.args = append(s.args, v)
		}
	}
	_, err := stmt.ExecContext(ctx, s.args...)
	return err
}

// blame finds the record for which SQLite refused the batch with err. It does
// so in a transaction of its own that is never committed: the refusal may have
// ended the first one, and then every further row would be on its own.
func (s *Sink) blame(ctx context.Context, records []framework.Record, err error) error {
	tx, end, beginErr := s.begin(ctx)
	if beginErr != nil {
		return beginErr
	}
	defer end()
	one := tx.StmtContext(ctx, s.one)
	for i := range records {
		key := records[i].Key
		insertErr := s.insert(ctx, one, records[i:i+1])
		switch {
		case insertErr == nil:
		case !refusesRow(insertErr):
			return insertErr
		case code(insertErr) == codeTooBig:
			return &framework.RecordError{Key: key, Err: fmt.Errorf("larger than SQLite can store: %w", insertErr)}
		default:
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+quote(s.table)+" WHERE _key = ?", key.String()).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return &framework.StoredError{Sink: s.id, Key: key, Place: fmt.Sprintf("table %q", s.table), Position: "_scrape_positions"}
			}
			return &framework.RecordError{Key: key, Err: fmt.Errorf("refused by table %q: %w", s.table, insertErr)}
		}
	}
	return err
}
