package postgres

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
	"github.com/jackc/pgx/v5"
)

// BenchmarkWrite compares the ways to write 200-byte payloads in batches of
// 5,000: ours, a plain COPY of the same rows, pgx's own COPY, and a staging
// table with INSERT ON CONFLICT. The table begins empty for each.
func BenchmarkWrite(b *testing.B) {
	const size = 5000
	server := postgrestest.Start(b)
	pos := framework.Position{Journal: "aaaabbbbccccdddd"}
	data := bytes.Repeat([]byte("x"), 200)
	next := func() *framework.Batch {
		batch := &framework.Batch{From: pos, Records: make([]framework.Record, size)}
		pos.Seq, pos.Event = pos.Seq+1, size
		batch.To = pos
		for i := range batch.Records {
			at := pos
			at.Event = i + 1
			batch.Records[i] = framework.Record{Key: framework.Key{Position: at, Record: 1}, Stream: "demo/market", ID: "1234567", Type: "price_update", Time: time.Now(), Data: data}
		}
		return batch
	}
	copyIn := func(ctx context.Context, s *Sink, tx pgx.Tx, batch *framework.Batch) error {
		return s.copy(ctx, tx, batch.Records)
	}
	for _, way := range []struct {
		name  string
		write func(*Sink, context.Context, *framework.Batch) error
	}{
		{"exactly-once", (*Sink).write},
		{"copy", inTx(copyIn)},
		{"copy-pgx", inTx(func(ctx context.Context, s *Sink, tx pgx.Tx, batch *framework.Batch) error {
			return copyPgx(ctx, tx, batch, "records")
		})},
		{"staging-on-conflict", inTx(func(ctx context.Context, s *Sink, tx pgx.Tx, batch *framework.Batch) error {
			if _, err := tx.Exec(ctx, "CREATE TEMPORARY TABLE staging (LIKE records) ON COMMIT DROP"); err != nil {
				return err
			}
			if err := copyPgx(ctx, tx, batch, "staging"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO records SELECT * FROM staging ON CONFLICT DO NOTHING")
			return err
		})},
	} {
		b.Run(way.name, func(b *testing.B) {
			s, err := New(Config{URL: auth.NewSecret(server.Database(b))})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			pos = framework.Position{Journal: pos.Journal}
			if _, err := s.Open(b.Context(), framework.SinkInfo{ID: "demo/bench", Journal: pos.Journal}); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size * 200)
			for b.Loop() {
				if err := way.write(s, b.Context(), next()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func inTx(write func(context.Context, *Sink, pgx.Tx, *framework.Batch) error) func(*Sink, context.Context, *framework.Batch) error {
	return func(s *Sink, ctx context.Context, batch *framework.Batch) error {
		tx, err := s.begin(ctx)
		if err != nil {
			return err
		}
		defer rollback(tx)
		if err := write(ctx, s, tx, batch); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
}

func copyPgx(ctx context.Context, tx pgx.Tx, batch *framework.Batch, table string) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{table}, []string{"_key", "stream", "id", "type", "time", "data"},
		pgx.CopyFromSlice(len(batch.Records), func(i int) ([]any, error) {
			r := &batch.Records[i]
			return []any{r.Key.String(), r.Stream, r.ID, r.Type, r.Time, string(r.Data)}, nil
		}))
	return err
}

// BenchmarkEncode is what a row costs on this side.
func BenchmarkEncode(b *testing.B) {
	records := make([]framework.Record, 1000)
	for i := range records {
		at := framework.Position{Journal: "aaaabbbbccccdddd", Seq: 1 << 20, Event: i + 1}
		records[i] = framework.Record{Key: framework.Key{Position: at, Record: 1}, Stream: "demo/market", ID: "1234567", Type: "price_update", Time: time.Now(), Data: bytes.Repeat([]byte("x"), 200)}
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = dataType("text").appendRows(buf[:0], records); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(records)), "ns/row")
}
