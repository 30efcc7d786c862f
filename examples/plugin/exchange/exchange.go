// Package exchange is a plugin for the demo exchange, and a first plugin to
// learn from.
//
// [Plugin] is called with each target file that names it and returns a
// [framework.Target], whose Open is all that a plugin must have. This one has
// the two optional parts as well: it is a [framework.Decoder], which makes
// records of its own, and a [framework.Classifier], which reads the codes in
// the site's answers.
//
// It knows neither logins, proxies, reconnects, journal nor sinks: the engine
// brings a session that is ready, asks for a connection whenever it wants one,
// and does what a verdict says.
package exchange

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/targets"
)

// Options are the keys of `options` in a target file. The tags are those of
// [targets.Registry]; an unknown key or a wrong value is reported with its
// line, and `check` shows it.
type Options struct {
	// Symbols are those to record; none means all. A misspelt one would go
	// unnoticed for days, hence the list.
	Symbols []string `yaml:"symbols" enum:"BTC-USD,ETH-USD,SOL-USD,DOGE-USD,EUR-USD,GBP-USD,USD-JPY,XAU-USD,AAPL,MSFT,NVDA,TSLA"`
	// MinVolume is the smallest volume to record.
	MinVolume float64 `yaml:"min_volume" min:"0"`
}

// Plugin makes the target of a file: it is a [targets.Plugin], to be given to
// cmd.WithTarget. It only reads; nothing is opened before Open.
func Plugin(f *targets.File, decode func(into any) error) (framework.Target, error) {
	t := &target{feeds: map[string]string{}}
	if err := decode(&t.options); err != nil {
		return nil, err
	}
	for i := range f.Streams {
		st := &f.Streams[i]
		if st.URL == "" {
			st.Problem("url", `"url" is missing`, "the plugin exchange reads the feed from there")
		}
		// A key that was read and forgotten would be a lie.
		if st.Method != http.MethodGet || len(st.Headers)+len(st.Query) > 0 || st.Done != "" || st.OnEnd != "reconnect" {
			st.Problem("", "the plugin exchange makes its request by itself", "remove method, headers, query, done and on_end")
		}
		t.feeds[f.Name+"/"+st.Name] = st.URL
	}
	return t, nil
}

// target is the exchange as one file describes it. It holds nothing that
// changes, since its methods are called concurrently.
type target struct {
	options Options
	feeds   map[string]string // address by "target/stream"
}

// Open asks for the trades after the cursor, which is the id of the last one.
// It asks as the site's own page does, with the id in the query.
//
// The session's client leaves by the right exit with cookies, User-Agent and
// token, and OpenSSE makes errors that can be judged: whatever goes wrong is
// returned as it is.
func (t *target) Open(ctx context.Context, s *framework.Session, from framework.Cursor) (framework.Connection, error) {
	r := framework.Request{URL: t.feeds[s.Stream]}
	if from != "" {
		r.Query = map[string]string{"last_event_id": string(from)}
	}
	req, err := r.New(ctx)
	if err != nil {
		return nil, err
	}
	return framework.OpenSSE(ctx, s, req, from, framework.SSEOptions{MaxEvent: 64 << 10})
}

// update is a price_update as the site sends it. Numbers stay as they were
// written: a float64 would lose the zeros of 64000.10.
type update struct {
	Symbol    string      `json:"symbol"`
	Price     json.Number `json:"price"`
	Volume    json.Number `json:"volume"`
	Timestamp time.Time   `json:"timestamp"`
}

// trade is the data of a record.
type trade struct {
	Symbol string      `json:"s"`
	Price  json.Number `json:"p"`
	Volume json.Number `json:"v"`
}

// Decode makes a record of a price_update: shorter, and at the time of the
// trade instead of its arrival. An update that is not wanted makes none. The
// error makes the event a dead letter: the stream goes on, and the event is
// kept with the reason, to be looked at.
//
// It is a pure function of the event, since the engine calls it again when a
// sink has to repeat something.
func (t *target) Decode(_ string, ev *framework.Event, emit func(framework.Record)) error {
	if ev.Type != "price_update" {
		return fmt.Errorf("events of type %q are unknown here", ev.Type)
	}
	var u update
	if err := json.Unmarshal(ev.Data, &u); err != nil {
		return err
	}
	price, err := u.Price.Float64()
	if err != nil {
		return fmt.Errorf("price: %w", err)
	}
	volume, err := u.Volume.Float64()
	if err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	if u.Symbol == "" || price <= 0 || volume < 0 || u.Timestamp.IsZero() {
		return errors.New("want a symbol, a price, a volume and a timestamp")
	}
	if len(t.options.Symbols) > 0 && !slices.Contains(t.options.Symbols, u.Symbol) || volume < t.options.MinVolume {
		return nil
	}
	data, err := json.Marshal(trade{u.Symbol, u.Price, u.Volume})
	if err != nil {
		return err
	}
	emit(framework.Record{Type: "trade", Time: u.Timestamp, Data: data})
	return nil
}

// Classify judges what the site says in a 401, in words of its own. The cause
// is what logs and the summary call it. A zero verdict leaves the outcome to
// the engine, which knows about silence, dead exits and the other statuses.
func (t *target) Classify(o *framework.Outcome) framework.Verdict {
	if o.Layer != framework.LayerTarget || o.Status != http.StatusUnauthorized {
		return framework.Verdict{}
	}
	var answer struct {
		Code string `json:"error"`
	}
	if json.Unmarshal(o.Body, &answer) != nil {
		return framework.Verdict{}
	}
	switch answer.Code {
	case "token_expired", "token_revoked", "token_invalid", "session_mismatch", "login_required":
		return framework.Verdict{Remedy: framework.Reauthenticate, Cause: framework.Cause(answer.Code)}
	case "token_missing":
		// The target file sends none: no login will ever help.
		return framework.Verdict{Remedy: framework.Fail, Cause: "token_missing"}
	}
	return framework.Verdict{}
}
