package exchange_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/examples/plugin/exchange"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/targets"
)

// load reads a target file with one stream, the options given and the URL.
func load(t testing.TB, options, url string) (framework.Target, error) {
	path := filepath.Join(t.TempDir(), "trades.yaml")
	text := "plugin: exchange\n" + options + "streams:\n  - name: market\n    url: " + url + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := targets.Load(path, targets.Options{
		Registry: targets.Registry{Plugins: map[string]targets.Plugin{"exchange": exchange.Plugin}},
	})
	if err != nil {
		return nil, err
	}
	return f.Target, nil
}

func mustLoad(t testing.TB, options, url string) framework.Target {
	target, err := load(t, options, url)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

const feed = "http://127.0.0.1:8700/api/v1/market/stream"

func TestFilesAreReadStrictly(t *testing.T) {
	for _, c := range []struct{ name, options, url, want string }{
		{"unknown option", "options: {symbol: [AAPL]}\n", feed, `trades.yaml:2:11: unknown key "symbol" in options`},
		{"misspelt symbol", "options:\n  symbols: [AAPL, BTC-USDT]\n", feed, `trades.yaml:3:19: "symbols[1]" is "BTC-USDT"`},
		{"negative volume", "options: {min_volume: -1}\n", feed, "the least is 0"},
		{"no address", "", `""`, `"url"`},
		{"a key the plugin does not read", "", feed + "\n    headers: {X-Key: abc}", "makes its request by itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.options, c.url)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

const received = "2026-01-02T03:04:09Z"

func decode(t testing.TB, target framework.Target, typ, data string) (records []framework.Record, err error) {
	at, parseErr := time.Parse(time.RFC3339, received)
	if parseErr != nil {
		t.Fatal(parseErr)
	}
	ev := &framework.Event{ID: []byte("7"), Type: typ, Data: []byte(data), Time: at, Cursor: "7"}
	err = target.(framework.Decoder).Decode("", ev, func(r framework.Record) { records = append(records, r) })
	return records, err
}

func TestDecode(t *testing.T) {
	target := mustLoad(t, "options: {symbols: [BTC-USD, AAPL], min_volume: 0.5}\n", feed)
	for _, c := range []struct{ name, typ, data, want, err string }{
		{"wanted", "price_update", `{"symbol":"BTC-USD","price":64000.10,"volume":0.500,"timestamp":"2026-01-02T03:04:05.678Z"}`, `{"s":"BTC-USD","p":64000.10,"v":0.500}`, ""},
		{"over several lines", "price_update", "{\n  \"symbol\": \"AAPL\",\n  \"price\": 189.30,\n  \"volume\": 2.000,\n  \"timestamp\": \"2026-01-02T03:04:05.678Z\"\n}", `{"s":"AAPL","p":189.30,"v":2.000}`, ""},
		{"another symbol", "price_update", `{"symbol":"ETH-USD","price":3400.00,"volume":9.000,"timestamp":"2026-01-02T03:04:05.678Z"}`, "", ""},
		{"too small", "price_update", `{"symbol":"AAPL","price":189.30,"volume":0.499,"timestamp":"2026-01-02T03:04:05.678Z"}`, "", ""},
		{"another type", "heartbeat", `{"time":"2026-01-02T03:04:05.678Z"}`, "", "unknown"},
		{"no JSON", "price_update", `{"symbol":"AAPL"`, "", "JSON"},
		{"no price", "price_update", `{"symbol":"AAPL","volume":2.000,"timestamp":"2026-01-02T03:04:05.678Z"}`, "", "price"},
		{"no volume", "price_update", `{"symbol":"AAPL","price":189.30,"timestamp":"2026-01-02T03:04:05.678Z"}`, "", "volume"},
		{"no symbol", "price_update", `{"price":189.30,"volume":2.000,"timestamp":"2026-01-02T03:04:05.678Z"}`, "", "symbol"},
		{"no time", "price_update", `{"symbol":"AAPL","price":189.30,"volume":2.000}`, "", "timestamp"},
		{"a price below nothing", "price_update", `{"symbol":"AAPL","price":-1,"volume":2.000,"timestamp":"2026-01-02T03:04:05.678Z"}`, "", "price"},
	} {
		t.Run(c.name, func(t *testing.T) {
			records, err := decode(t, target, c.typ, c.data)
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) || len(records) > 0 {
					t.Errorf("got %v and %d records, want an error about %q alone", err, len(records), c.err)
				}
			case err != nil:
				t.Error(err)
			case c.want == "":
				if len(records) > 0 {
					t.Errorf("got the record %s, want none", records[0].Data)
				}
			case len(records) != 1 || string(records[0].Data) != c.want || records[0].Type != "trade":
				t.Errorf("got %+v, want one trade %s", records, c.want)
			case !records[0].Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)):
				t.Errorf("its time is %v, want the trade's", records[0].Time)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"symbol":"BTC-USD","price":64000.10,"volume":0.500,"timestamp":"2026-01-02T03:04:05.678Z"}`)
	f.Add(`{"symbol":"","price":"1e400","volume":-0,"timestamp":null}`)
	target := mustLoad(f, "", feed)
	f.Fuzz(func(t *testing.T, data string) {
		records, err := decode(t, target, "price_update", data)
		if len(records) > 1 || err != nil && len(records) > 0 || err == nil && len(records) == 0 {
			t.Fatalf("%d records and the error %v", len(records), err)
		}
		for _, r := range records {
			if !json.Valid(r.Data) {
				t.Errorf("the data is not JSON: %q", r.Data)
			}
		}
	})
}

func TestClassify(t *testing.T) {
	target := mustLoad(t, "", feed)
	for _, c := range []struct {
		name   string
		layer  framework.Layer
		status int
		body   string
		want   framework.Verdict
	}{
		{"revoked", framework.LayerTarget, 401, `{"error":"token_revoked"}`, framework.Verdict{Remedy: framework.Reauthenticate, Cause: "token_revoked"}},
		{"logged out", framework.LayerTarget, 401, `{"error":"login_required"}`, framework.Verdict{Remedy: framework.Reauthenticate, Cause: "login_required"}},
		{"no token sent", framework.LayerTarget, 401, `{"error":"token_missing"}`, framework.Verdict{Remedy: framework.Fail, Cause: "token_missing"}},
		{"another code", framework.LayerTarget, 401, `{"error":"maintenance"}`, framework.Verdict{}},
		{"a page", framework.LayerTarget, 401, `<html>`, framework.Verdict{}},
		{"another status", framework.LayerTarget, 403, `{"error":"token_revoked"}`, framework.Verdict{}},
		{"the proxy's answer", framework.LayerExit, 401, `{"error":"token_revoked"}`, framework.Verdict{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := target.(framework.Classifier).Classify(&framework.Outcome{Layer: c.layer, Status: c.status, Body: []byte(c.body)})
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// A stream is all it takes to try Open: no file, journal or login.
func TestOpenAsksForWhatComesAfterTheCursor(t *testing.T) {
	var asked string
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RequestURI()
		if r.URL.Query().Get("last_event_id") != "41" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.Write([]byte("id: 42\nevent: price_update\ndata: {}\n\n"))
	}))
	defer site.Close()
	stream := framework.Stream{Name: "trades/market", Target: mustLoad(t, "", site.URL+"/stream"), From: "41"}
	for ev, err := range stream.Events(t.Context()) {
		if err != nil || string(ev.ID) != "42" || ev.Cursor != "42" {
			t.Errorf("got %+v, %v, want event 42", ev, err)
		}
		break
	}
	if asked != "/stream?last_event_id=41" {
		t.Errorf("asked for %s", asked)
	}
}
