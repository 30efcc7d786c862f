package sinktest

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdline/scrape/framework"
)

// feed is what one sink gets of one partition: records counted from 1, each of
// an event of its own. It is a pure function of its fields, so that another
// process makes the same.
type feed struct {
	journal   framework.JournalID
	partition int
	sink      string
}

// perChunk is small and odd, so that batches begin and end inside chunks.
const perChunk = 7

var prices = feed{journal: "aaaabbbbccccdddd", partition: 0, sink: "demo/prices"}

func (f feed) info() framework.SinkInfo {
	return framework.SinkInfo{ID: f.sink, Journal: f.journal, Partition: f.partition}
}

// at is the position after the record n; at(0) is the beginning.
func (f feed) at(n int) framework.Position {
	p := framework.Position{Journal: f.journal, Partition: f.partition}
	if n > 0 {
		p.Seq, p.Event = uint64((n-1)/perChunk+1), (n-1)%perChunk+1
	}
	return p
}

// number is the n for which at(n) is p.
func (f feed) number(p framework.Position) int {
	if p.Seq == 0 {
		return 0
	}
	return int(p.Seq-1)*perChunk + p.Event
}

func (f feed) record(n int) framework.Record {
	return framework.Record{
		Key:    framework.Key{Position: f.at(n), Record: 1},
		Stream: "demo/market",
		ID:     fmt.Sprint(n),
		Type:   "price_update",
		Time:   time.Date(2026, 1, 2, 3, 4, 5, n*1000, time.UTC),
		Data:   fmt.Appendf(nil, `{"n":%d,"symbol":"ACME","price":1.50,"note":"%s"}`, n, strings.Repeat("x", 150)),
	}
}

func (f feed) batch(from, to int) *framework.Batch {
	b := &framework.Batch{From: f.at(from), To: f.at(to)}
	for n := from + 1; n <= to; n++ {
		b.Records = append(b.Records, f.record(n))
	}
	return b
}
