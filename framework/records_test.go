package framework

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// fields makes one record of each word of an event, with the columns given;
// an event that says "bad" is refused after its first record.
type fields struct{ columns []Column }

func (f fields) Columns(string) []Column { return f.columns }

func (f fields) Decode(_ string, ev *Event, emit func(Record)) error {
	for word := range strings.FieldsSeq(string(ev.Data)) {
		if word == "bad" {
			return errors.New("it says bad")
		}
		values := make([]any, len(f.columns))
		for i, c := range f.columns {
			values[i] = c.Name + word
		}
		emit(Record{Data: []byte(word), Values: values})
	}
	return nil
}

func TestRecordsOfSeveralStreamsShareColumns(t *testing.T) {
	text := func(name string) Column { return Column{Name: name, Type: ColumnText, Required: true} }
	decoders := map[string]Decoder{
		"t/a": fields{[]Column{text("x"), text("y")}},
		"t/b": fields{[]Column{text("z"), text("x")}},
	}
	l, err := newLayout([]string{"t/a", "t/b", "t/plain"}, decoders)
	if err != nil {
		t.Fatal(err)
	}
	want := []Column{text("x"), {Name: "y", Type: ColumnText}, {Name: "z", Type: ColumnText}, dataColumn}
	want[0].Required = false // t/plain has none
	if !reflect.DeepEqual(l.columns, want) {
		t.Errorf("columns %v, want %v", l.columns, want)
	}
	j, s := newMemJournal(), &memSink{}
	j.commit("t/a", "1 2")
	j.commit("t/b", "3")
	j.commit("t/plain", "4")
	d := newDeliverer(j, s, SinkConfig{BatchRecords: 10})
	d.decoders, d.layout = decoders, l
	deliverAll(t, d)
	var got [][]any
	for _, b := range s.batches {
		for _, rec := range b {
			got = append(got, rec.Values)
		}
	}
	if want := [][]any{{"x1", "y1", nil, nil}, {"x2", "y2", nil, nil}, {"x3", nil, "z3", nil}, {nil, nil, nil, "4"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("values %v, want %v", got, want)
	}

	decoders["t/b"] = fields{[]Column{{Name: "y", Type: ColumnInteger}}}
	if _, err := newLayout([]string{"t/a", "t/b"}, decoders); err == nil || !strings.Contains(err.Error(), `"y"`) {
		t.Errorf("one column of two types: %v", err)
	}
	if l, err := newLayout([]string{"t/plain"}, decoders); err != nil || len(l.columns) > 0 {
		t.Errorf("columns %v, %v where no record has any", l.columns, err)
	}
}

func TestWhereChoosesRecords(t *testing.T) {
	j, s := newMemJournal(), &memSink{}
	j.commit("t/s", "1 2", "3 4", "5")
	d := newDeliverer(j, s, SinkConfig{BatchRecords: 10, Where: func(r *Record) (bool, error) {
		if string(r.Data) == "4" {
			return false, errors.New("it cannot be told")
		}
		return string(r.Data) != "1", nil
	}})
	d.decoders = map[string]Decoder{"t/s": fields{}}
	var dead []string
	d.dead = func(letters []DeadLetter) error {
		for _, l := range letters {
			dead = append(dead, string(l.Event.Data)+": "+l.Reason)
		}
		return nil
	}
	deliverAll(t, d)
	if got := s.data(); !slices.Equal(got, []string{"2", "5"}) {
		t.Errorf("records %q, want 2 and 5: an event is delivered whole or not at all", got)
	}
	if want := []string{"3 4: it cannot be told"}; !slices.Equal(dead, want) {
		t.Errorf("dead letters %q, want %q", dead, want)
	}
	if key := s.batches[0][0].Key; key.Record != 2 {
		t.Errorf("the second record of its event has the key %v: a choice must not change keys", key)
	}
}

// What the decoder refuses goes to a sink of its own, and what comes again only
// to those that have not had it.
func TestRefusedEventsAndThoseThatComeAgain(t *testing.T) {
	j := newMemJournal()
	j.add(&Chunk{Streams: []string{"t/s"}, Events: []StoredEvent{
		{Data: []byte("good")},
		{Data: []byte("first bad")},
		{Data: []byte("mended"), Again: &Again{Event: "k1", Sink: "t/sink"}},
		{Data: []byte("other"), Again: &Again{Event: "k2", Sink: "t/other"}},
		{Data: []byte("it has the second"), Again: &Again{Event: "k3", Sink: "t/sink", Record: 3}},
	}})
	run := func(refused bool) *memSink {
		s := &memSink{}
		d := newDeliverer(j, s, SinkConfig{BatchRecords: 10, Refused: refused})
		d.decoders = map[string]Decoder{"t/s": fields{}}
		d.dead = func([]DeadLetter) error { return nil }
		deliverAll(t, d)
		return s
	}
	if got := run(false).data(); !slices.Equal(got, []string{"good", "mended", "the"}) {
		t.Errorf("records %q, want good, mended and the third one of the last", got)
	}
	s := run(true)
	if got := s.data(); !slices.Equal(got, []string{"first bad", "mended", "other", "it has the second"}) {
		t.Fatalf("records %q for what is refused", got)
	}
	recs := s.batches[0]
	if recs[0].Reason != "it says bad" || recs[0].Again != nil || recs[1].Reason != "" || recs[1].Again.Event != "k1" {
		t.Errorf("the records say %+v", recs)
	}
}

// A chunk that can hold neither is passed over as a whole, and only such a one.
func TestRefusedPassesOverWhatHasNothingForIt(t *testing.T) {
	again := &Again{Event: "k1", Sink: "t/sink"}
	for name, test := range map[string]struct {
		noneAgain, decoder bool
		event              StoredEvent
		want               []string
	}{
		"may hold what comes again":       {event: StoredEvent{Data: []byte("bad"), Again: again}, want: []string{"bad"}},
		"may hold what a decoder refuses": {noneAgain: true, decoder: true, event: StoredEvent{Data: []byte("bad")}, want: []string{"bad"}},
		// It is not looked into: an event that should not be there shows that.
		"holds nothing": {noneAgain: true, event: StoredEvent{Data: []byte("bad"), Again: again}},
	} {
		j, s := newMemJournal(), &memSink{}
		j.add(&Chunk{Streams: []string{"t/s"}, Events: []StoredEvent{test.event}, Count: 1, NoneAgain: test.noneAgain})
		d := newDeliverer(j, s, SinkConfig{BatchRecords: 10, Refused: true})
		if test.decoder {
			d.decoders = map[string]Decoder{"t/s": fields{}}
		}
		deliverAll(t, d)
		if got := s.data(); !slices.Equal(got, test.want) {
			t.Errorf("%s: records %q, want %q", name, got, test.want)
		}
		if s.pos != (Position{Journal: j.ID(), Seq: 1, Event: 1}) {
			t.Errorf("%s: the position is %v", name, s.pos)
		}
	}
}

// A dead letter is the event as it came, also where the record that a sink
// refused was made of it.
func TestDeadLetterIsTheEvent(t *testing.T) {
	j := newMemJournal()
	s := &memSink{refuse: func(r *Record) error {
		if string(r.Data) == "2" {
			return errors.New("no twos")
		}
		return nil
	}}
	j.commit("t/s", "1 2 3")
	d := newDeliverer(j, s, SinkConfig{BatchRecords: 10})
	d.decoders = map[string]Decoder{"t/s": fields{}}
	var dead []DeadLetter
	d.dead = func(letters []DeadLetter) error { dead = append(dead, letters...); return nil }
	deliverAll(t, d)
	if len(dead) != 1 || string(dead[0].Event.Data) != "1 2 3" || dead[0].Key.Record != 2 {
		t.Errorf("dead letters %+v", dead)
	}
}

func TestNewSinkMayBeginWithTheLatest(t *testing.T) {
	j, s := newMemJournal(), &memSink{}
	j.commit("t/s", "1", "2")
	open := func() {
		d := newDeliverer(j, s, SinkConfig{BatchRecords: 10, Latest: true})
		_, d.begin = j.Bounds(0)
		if _, err := d.open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	open()
	j.commit("t/s", "3")
	open() // it has a position now
	deliverAll(t, newDeliverer(j, s, SinkConfig{BatchRecords: 10}))
	if got := s.data(); !slices.Equal(got, []string{"3"}) {
		t.Errorf("records %q, want 3", got)
	}
}

// A sink that is to begin anew does so once, however often it is opened and
// whenever it first answers, and does not begin with the latest then.
func TestBeginningAnewCountsOnce(t *testing.T) {
	j, s := newMemJournal(), &memSink{}
	j.commit("t/s", "1", "2")
	deliverAll(t, newDeliverer(j, s, SinkConfig{BatchRecords: 10}))
	s.opened = nil
	d := newDeliverer(j, s, SinkConfig{BatchRecords: 10, Latest: true, Restart: true})
	_, d.begin = j.Bounds(0)
	down := true
	s.openErr = func() error {
		if down {
			return errors.New("it is down")
		}
		return nil
	}
	if _, err := d.open(t.Context()); err == nil {
		t.Fatal("no error")
	}
	down = false
	for range 2 {
		if pos, err := d.open(t.Context()); err != nil || pos.Seq != 0 {
			t.Fatalf("open: %v, %v, want the beginning", pos, err)
		}
	}
	var asked []uint64
	for _, info := range s.opened {
		asked = append(asked, info.Restart)
	}
	if !slices.Equal(asked, []uint64{1, 1, 0}) {
		t.Errorf("the sink was asked to begin anew from chunks %v, want twice, the second time with success", asked)
	}
	deliverAll(t, d)
	if got := s.data(); !slices.Equal(got, []string{"1", "2", "1", "2"}) {
		t.Errorf("records %q, want both twice", got)
	}
}
