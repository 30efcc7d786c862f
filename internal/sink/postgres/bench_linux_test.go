package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
	"github.com/jackc/pgx/v5"
)

// trade are the columns of records of about 200 bytes.
var trade = []framework.Column{
	{Name: "symbol", Type: framework.ColumnText, Required: true}, {Name: "price", Type: framework.ColumnNumber, Required: true}, {Name: "quantity", Type: framework.ColumnNumber},
	{Name: "number", Type: framework.ColumnInteger}, {Name: "buyer", Type: framework.ColumnBoolean}, {Name: "traded", Type: framework.ColumnTime}, {Name: "note", Type: framework.ColumnText},
}

// writer makes batches for a sink of its own, and writes them in one way.
type writer struct {
	*Sink
	pos   framework.Position
	way   func(*Sink, context.Context, *framework.Batch) error
	spent []time.Duration
}

const benchBatch = 5000

func newWriter(b *testing.B, server *postgrestest.Server, columns []framework.Column, way func(*Sink, context.Context, *framework.Batch) error) *writer {
	s, err := New(Config{URL: auth.NewSecret(server.Database(b))})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	w := &writer{Sink: s, pos: framework.Position{Journal: "aaaabbbbccccdddd"}, way: way}
	if _, err := s.Open(context.Background(), framework.SinkInfo{ID: "demo/bench", Journal: w.pos.Journal, Columns: columns}); err != nil {
		b.Fatal(err)
	}
	return w
}

func (w *writer) next() *framework.Batch {
	batch := &framework.Batch{From: w.pos, Records: make([]framework.Record, benchBatch)}
	w.pos.Seq, w.pos.Event = w.pos.Seq+1, benchBatch
	batch.To = w.pos
	data := bytes.Repeat([]byte("x"), 200)
	values := []any{"ACME", json.Number("12345.6789"), json.Number("0.00250000"), int64(1234567), true, time.Now(), strings.Repeat("x", 120)}
	for i := range batch.Records {
		at := w.pos
		at.Event = i + 1
		batch.Records[i] = framework.Record{Key: framework.Key{Position: at, Record: 1}, Stream: "demo/market", ID: "1234567", Type: "price_update", Time: time.Now(), Data: data, Values: values}
	}
	return batch
}

// write writes a batch and notes the time.
func (w *writer) write(b *testing.B) {
	batch := w.next()
	start := time.Now()
	if err := w.way(w.Sink, b.Context(), batch); err != nil {
		b.Fatal(err)
	}
	w.spent = append(w.spent, time.Since(start))
}

func (w *writer) median() time.Duration {
	slices.Sort(w.spent)
	return w.spent[len(w.spent)/2]
}

func plainCopy(ctx context.Context, s *Sink, tx pgx.Tx, batch *framework.Batch) error {
	return s.copy(ctx, tx, batch.Records)
}

// BenchmarkWrite compares the ways to write 200-byte payloads in batches of
// 5,000: ours, a plain COPY of the same rows, pgx's own COPY, and a staging
// table with INSERT ON CONFLICT. The table begins empty for each.
func BenchmarkWrite(b *testing.B) {
	server := postgrestest.Start(b)
	for _, way := range []struct {
		name  string
		write func(*Sink, context.Context, *framework.Batch) error
	}{
		{"exactly-once", (*Sink).write},
		{"copy", inTx(plainCopy)},
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
			w := newWriter(b, server, nil, way.write)
			b.SetBytes(benchBatch * 200)
			for b.Loop() {
				w.write(b)
			}
			b.ReportMetric(float64(benchBatch)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkAgainstCopy writes by turns in our way and with a plain COPY of the
// same rows, so that both meet the same machine, and reports how the medians of
// their times compare.
func BenchmarkAgainstCopy(b *testing.B) {
	server := postgrestest.Start(b)
	for _, c := range []struct {
		name    string
		columns []framework.Column
	}{{"payload", nil}, {"columns", trade}} {
		b.Run(c.name, func(b *testing.B) {
			ours, plain := newWriter(b, server, c.columns, (*Sink).write), newWriter(b, server, c.columns, inTx(plainCopy))
			for i := 0; b.Loop(); i++ {
				first, second := ours, plain
				if i%2 > 0 {
					first, second = plain, ours
				}
				first.write(b)
				second.write(b)
			}
			b.ReportMetric(benchBatch/ours.median().Seconds(), "rows/s")
			b.ReportMetric(ours.median().Seconds()/plain.median().Seconds(), "times-copy")
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
	e := newEncoder(nil, nil)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = e.appendRows(buf[:0], records, maxRow); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(records)), "ns/row")
}
