package postgres

import (
	"context"
	"errors"
	"strconv"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
	"github.com/jackc/pgx/v5"
)

// The progress table. It can never change: databases out there hold it.
const (
	positionsTable   = "_scrape_positions"
	positionsColumns = ` (sink text, partition integer, journal text, seq bigint, event bigint, moved timestamptz, PRIMARY KEY (sink, partition))`
)

func (s *Sink) ensurePositions(ctx context.Context, tx pgx.Tx) error {
	var there bool
	if err := tx.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", s.positions).Scan(&there); err != nil || there {
		return err
	}
	return s.make(ctx, tx, "CREATE TABLE "+s.positions+positionsColumns)
}

// openPosition returns the position of the sink. It is put at the beginning of
// the journal when another journal's is given up, or when the sink is to begin
// anew, and where info has it when there is none.
func (s *Sink) openPosition(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	start := framework.Position{Journal: info.Journal, Partition: info.Partition}
	tx, err := s.begin(ctx)
	if err != nil {
		return start, err
	}
	defer rollback(tx)
	// FOR UPDATE waits for a transaction that an earlier connection of ours
	// left behind: what is read afterwards is how that one ended.
	pos, err := s.readPosition(ctx, tx, " FOR UPDATE")
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return start, err
	}
	// Somebody else's, made this moment, stays as it is unless it is to be
	// given up: the first Write finds out.
	conflict := "NOTHING"
	switch {
	case info.Restart > 0:
		if err := s.remove(ctx, tx, info); err != nil {
			return start, err
		}
		conflict = "UPDATE SET journal = excluded.journal, seq = 0, event = 0, moved = excluded.moved"
	case err != nil:
		start = info.First()
	case pos.Journal == info.Journal:
		return pos, nil
	case info.Adopt:
		conflict = "UPDATE SET journal = excluded.journal, seq = 0, event = 0, moved = excluded.moved"
	default:
		return pos, &framework.PositionError{Sink: info.ID, Want: start, Have: pos,
			Reason: "table " + s.table + " was filled from another journal: adopt it (its rows stay, this journal is delivered from its beginning), or choose another table"}
	}
	_, err = tx.Exec(ctx, "INSERT INTO "+s.positions+" (sink, partition, journal, seq, event, moved) VALUES ($1, $2, $3, $4, $5, now()) ON CONFLICT (sink, partition) DO "+conflict,
		s.id, s.partition, string(start.Journal), int64(start.Seq), start.Event)
	if err != nil {
		return start, err
	}
	return start, tx.Commit(ctx)
}

// remove removes the records of the journal's partition from the chunk
// info.Restart on. Other targets may have theirs in the same table.
func (s *Sink) remove(ctx context.Context, tx pgx.Tx, info framework.SinkInfo) error {
	prefix, streams := sink.Belongings(info)
	tag, err := tx.Exec(ctx, "DELETE FROM "+s.table+` WHERE left("_key", length($1)) = $1 AND left("stream", length($2)) = $2
		AND CASE WHEN split_part("_key", '/', 3) ~ '^[0-9]+$' THEN split_part("_key", '/', 3)::numeric >= $3::text::numeric ELSE false END`,
		prefix, streams, strconv.FormatUint(info.Restart, 10))
	if err == nil {
		s.log.Info("removed records that will be delivered again", "records", tag.RowsAffected())
	}
	return err
}

// readPosition returns pgx.ErrNoRows when the sink has no position.
func (s *Sink) readPosition(ctx context.Context, tx pgx.Tx, lock string) (framework.Position, error) {
	pos := framework.Position{Partition: s.partition}
	var journal string
	var seq int64
	err := tx.QueryRow(ctx, "SELECT journal, seq, event FROM "+s.positions+" WHERE sink = $1 AND partition = $2"+lock,
		s.id, s.partition).Scan(&journal, &seq, &pos.Event)
	pos.Journal, pos.Seq = framework.JournalID(journal), uint64(seq)
	return pos, err
}

// movePosition moves the position from b.From to b.To. Its lock on the row
// makes a second writer wait until the transaction ends, and that on the table
// keeps its columns as they are, which it checks.
func (s *Sink) movePosition(ctx context.Context, tx pgx.Tx, b *framework.Batch) error {
	var now string
	var batch pgx.Batch // one message there and one back
	batch.Queue("LOCK TABLE " + s.table + " IN ROW EXCLUSIVE MODE")
	batch.Queue("UPDATE "+s.positions+` SET seq = $3, event = $4, moved = now()
		WHERE sink = $5 AND partition = $6 AND journal = $7 AND seq = $8 AND event = $9 RETURNING `+stamp,
		s.table, s.names, int64(b.To.Seq), b.To.Event, s.id, s.partition, string(b.From.Journal), int64(b.From.Seq), b.From.Event).
		QueryRow(func(row pgx.Row) error { return row.Scan(&now) })
	err := tx.SendBatch(ctx, &batch).Close()
	switch {
	case err == nil && now != s.stamp:
		return errChanged
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	}
	refusal := &framework.PositionError{Sink: s.id, Want: b.From, Reason: "table " + s.table + " is not where the batch begins: another writer moved it, or an answer was lost"}
	refusal.Have, err = s.readPosition(ctx, tx, "")
	if errors.Is(err, pgx.ErrNoRows) {
		refusal.Have = framework.Position{Journal: b.From.Journal, Partition: s.partition}
		refusal.Reason = "table " + s.table + " has lost its position: its row in " + s.positions + " is gone"
		err = nil
	}
	if err != nil {
		return err
	}
	return refusal
}
