package targets

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// chef is a plugin's target that makes records of its own.
type chef struct{ framework.TargetFunc }

func (chef) Decode(_ string, ev *framework.Event, emit func(framework.Record)) error {
	emit(framework.Record{Data: ev.Data, Values: []any{"x"}})
	return nil
}

func (chef) Columns(string) []framework.Column {
	return []framework.Column{{Name: "dish", Type: "text"}}
}

func chefOptions(t *testing.T) Options {
	o := testOptions(t)
	o.Registry.Plugins["chef"] = func(_ *File, decode func(any) error) (framework.Target, error) {
		return chef{}, decode(&struct{}{})
	}
	return o
}

func records(t *testing.T, f *File, stream int, typ, data string) []framework.Record {
	t.Helper()
	var list []framework.Record
	ev := &framework.Event{Type: typ, Data: []byte(data), Time: time.Unix(1, 0)}
	if err := f.Decoder(&f.Streams[stream]).Decode("t/x", ev, func(r framework.Record) { list = append(list, r) }); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestRecordsOfAFile(t *testing.T) {
	f, err := Load("testdata/records.good.yaml", testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(f.Columns(&f.Streams[0])); got != "[{symbol text true} {price number true} {at time false}]" {
		t.Errorf("columns of quotes are %s", got)
	}
	if got := fmt.Sprint(f.Columns(&f.Streams[1])); got != "[{symbol text false} {price number false} {notional number false} {venue text false} {odd name text false} {dear boolean false} {at time false} {levels json false} {line text false}]" {
		t.Errorf("columns of trades are %s", got)
	}
	list := records(t, f, 1, "trade", `{"venue":"X","data":{"trades":[{"symbol":"A","price":1200.10,"qty":2,"side":"buy","ts":1714979289123,"odd name":1.0,"levels":[1.50]},{"qty":0}]}}`)
	if len(list) != 1 || list[0].Type != "trade.buy" || list[0].Time.UnixMilli() != 1714979289123 ||
		string(list[0].Data) != `{"symbol":"A","price":1200.10,"notional":2400.2,"venue":"X","odd name":1.0,"dear":true,"at":"2024-05-06T07:08:09.123Z","levels":[1.50]}` {
		t.Errorf("records are %s %+v", list[0].Data, list)
	}
	if list = records(t, f, 1, "note", "a\nb"); string(list[0].Data) != `{"line":"a\nb"}` {
		t.Errorf("record is %s", list[0].Data)
	}
	if f.Sinks[0].Wanted != nil {
		t.Error("a sink without where chooses")
	}
	rec := framework.Record{Stream: "records.good/trades", Values: []any{"B", json.Number("100.5"), nil, nil, nil, nil, nil, nil, nil}}
	if ok, err := f.Sinks[1].Wanted(&rec); !ok || err != nil {
		t.Error(ok, err)
	}
	rec.Values[0] = "C"
	if ok, err := f.Sinks[1].Wanted(&rec); ok || err != nil {
		t.Error(ok, err)
	}
}

func TestRecordsOfAPlugin(t *testing.T) {
	f, err := load(t, oneStream+"plugin: chef\nsinks: [{sqlite: {}, where: dish == 'x'}]\n", chefOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(f.Columns(&f.Streams[0])); got != "[{dish text false}]" {
		t.Errorf("columns are %s", got)
	}
	rec := records(t, f, 0, "a", "b")[0]
	rec.Stream = "t/a" // as the engine sets it
	if ok, err := f.Sinks[0].Wanted(&rec); !ok || err != nil {
		t.Error(ok, err)
	}
	for _, text := range []string{oneStream + "plugin: chef\nrecords: {format: json}\n", "plugin: chef\n\nstreams: [{name: a, url: 'http://127.0.0.1:1/', records: {format: json}}]\n"} {
		if _, err := load(t, text, chefOptions(t)); err == nil || !strings.Contains(err.Error(), "t.yaml:3:") || !strings.HasSuffix(err.Error(), "the plugin chef makes records of its own; remove records") {
			t.Error(err)
		}
	}
}

func TestNoRecords(t *testing.T) {
	f := mustLoad(t, oneStream)
	if d := f.Decoder(&f.Streams[0]); d != nil {
		t.Errorf("the decoder is %v", d)
	}
	if c := f.Columns(&f.Streams[0]); c != nil {
		t.Errorf("columns are %v", c)
	}
}
