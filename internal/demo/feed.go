package demo

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Feed is the market: a pure function of a seed, a start time and a rate. It
// holds no state, so any event of any time can be computed at once, and two
// runs over the same data directory tell the same story. Safe for concurrent
// use.
type Feed struct {
	seed   chance
	start  time.Time
	period time.Duration // time slot of one event
}

func newFeed(seed uint64, start time.Time, rate float64) Feed {
	return Feed{seed: chance(seed), start: start, period: time.Duration(math.Round(float64(time.Second) / rate))}
}

// Event is one trade. Its id is its number, from 1.
type Event struct {
	ID     int64
	Symbol string
	Price  float64
	Volume float64
	Time   time.Time

	decimals int
	lines    bool // data is spread over several lines
}

type symbol struct {
	name     string
	base     float64
	decimals int
}

var symbols = [...]symbol{
	{"BTC-USD", 64000, 2}, {"ETH-USD", 3400, 2}, {"SOL-USD", 152, 2}, {"DOGE-USD", 0.16, 5},
	{"EUR-USD", 1.084, 5}, {"GBP-USD", 1.271, 5}, {"USD-JPY", 151.4, 3}, {"XAU-USD", 2330, 2},
	{"AAPL", 189.3, 2}, {"MSFT", 421.9, 2}, {"NVDA", 903.6, 2}, {"TSLA", 171.1, 2},
}

// waves make a price that wanders, stays bounded, and costs the same for any
// event: no event needs the one before it.
var waves = [...]struct{ amplitude, seconds float64 }{
	{0.031, 1021}, {0.012, 211}, {0.005, 43}, {0.002, 7.3},
}

// Start is when the market opened: no event is earlier.
func (f Feed) Start() time.Time { return f.start }

// offset is when event n happens, after the start: somewhere in the n-th slot,
// so that times are strictly ordered and can be computed both ways.
func (f Feed) offset(n int64) time.Duration {
	slot := time.Duration(n-1) * f.period
	return slot + time.Duration(f.seed.bits(drawJitter, uint64(n))%uint64(f.period))
}

// Time is when event n happens. n is at least 1.
func (f Feed) Time(n int64) time.Time { return f.start.Add(f.offset(n)) }

// LastID is the newest event that has happened at that time, 0 for none.
func (f Feed) LastID(at time.Time) int64 {
	d := at.Sub(f.start)
	if d < 0 {
		return 0
	}
	n := int64(d/f.period) + 1
	if f.offset(n) > d {
		n--
	}
	return n
}

// Event computes event n. n is at least 1.
func (f Feed) Event(n int64) Event {
	u := uint64(n)
	s := f.symbol(n)
	offset := f.offset(n)
	drift := (f.seed.unit(drawNoise, u) - 0.5) * 0.0006
	for k, w := range waves {
		phase := f.seed.unit(drawPhase, uint64(s*len(waves)+k))
		drift += w.amplitude * math.Sin(2*math.Pi*(offset.Seconds()/w.seconds+phase))
	}
	return Event{
		ID:       n,
		Symbol:   symbols[s].name,
		Price:    round(symbols[s].base*(1+drift), symbols[s].decimals),
		Volume:   round(0.001+20*math.Pow(f.seed.unit(drawVolume, u), 3), 3),
		Time:     f.start.Add(offset),
		decimals: symbols[s].decimals,
		lines:    f.seed.bits(drawLayout, u)%16 == 0,
	}
}

func (f Feed) symbol(n int64) int {
	return int(f.seed.bits(drawSymbol, uint64(n)) % uint64(len(symbols)))
}

// State is the last event of each symbol up to and with event n, newest first;
// a symbol that has not traded yet is missing.
func (f Feed) State(n int64) []Event {
	var seen [len(symbols)]bool
	var state []Event
	for ; n >= 1 && len(state) < len(symbols); n-- {
		if s := f.symbol(n); !seen[s] {
			seen[s] = true
			state = append(state, f.Event(n))
		}
	}
	return state
}

func round(v float64, decimals int) float64 {
	scale := math.Pow10(decimals)
	return math.Round(v*scale) / scale
}

// Data is the event's data as a decoder must hand it on: one JSON object, now
// and then spread over several lines.
func (ev Event) Data() string { return string(ev.appendJSON(nil)) }

func (ev Event) appendJSON(b []byte) []byte {
	open, next, colon, end := "{", ",", ":", "}"
	if ev.lines {
		open, next, colon, end = "{\n  ", ",\n  ", ": ", "\n}"
	}
	b = append(b, open+`"symbol"`+colon+`"`...)
	b = append(b, ev.Symbol...)
	b = append(b, `"`+next+`"price"`+colon...)
	b = strconv.AppendFloat(b, ev.Price, 'f', ev.decimals, 64)
	b = append(b, next+`"volume"`+colon...)
	b = strconv.AppendFloat(b, ev.Volume, 'f', 3, 64)
	b = append(b, next+`"timestamp"`+colon+`"`...)
	b = ev.Time.UTC().AppendFormat(b, timeLayout)
	return append(b, `"`+end...)
}

// appendSSE appends the event as it goes over the wire.
func (ev Event) appendSSE(b []byte) []byte {
	b = append(b, "id: "...)
	b = strconv.AppendInt(b, ev.ID, 10)
	b = append(b, "\nevent: price_update\n"...)
	if !ev.lines {
		b = append(b, "data: "...)
		b = ev.appendJSON(b)
		return append(b, "\n\n"...)
	}
	for line := range strings.Lines(ev.Data()) {
		b = append(b, "data: "...)
		b = append(b, strings.TrimSuffix(line, "\n")...)
		b = append(b, '\n')
	}
	return append(b, '\n')
}

// timeLayout is RFC 3339 in UTC with milliseconds, so that texts sort as times do.
const timeLayout = "2006-01-02T15:04:05.000Z07:00"
