package mapping

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/expr-lang/expr/vm"
	"github.com/tidwall/gjson"

	"github.com/holdline/scrape/framework"
)

// decode makes the records of an event. width is how many values a record has,
// places are those of the rule's columns among them.
func (r *Rule) decode(stream string, ev *framework.Event, width int, places []int, emit func(framework.Record)) error {
	data := ev.Data
	if r.format == FormatBase64 {
		var err error
		if data, err = unpack(data); err != nil {
			return err
		}
	}
	if r.needsNothing && (r.format == FormatRaw || r.format == FormatBase64) {
		emit(bare(framework.Record{Data: data}, width, places))
		return nil
	}
	run := r.pool.Get().(*run)
	run.width, run.places, run.emit = width, places, emit
	defer run.done()
	payload := string(data)
	run.long = len(payload) > longPayload
	if r.format == FormatText || r.format == FormatBase64 {
		if err := checkText(payload); err != nil {
			return err
		}
		run.event(stream, ev, gjson.Result{})
		if data == nil {
			data = []byte{} // which is not the value's JSON
		}
		return run.one(text(payload), data)
	}
	if r.format == FormatNDJSON {
		return run.lines(stream, ev, payload)
	}
	v, err := parseJSON(payload)
	if err != nil {
		return err
	}
	run.event(stream, ev, v)
	return run.entries(v, data)
}

// run is the decoding of one event.
type run struct {
	*Rule
	width  int
	places []int
	emit   func(framework.Record)
	long   bool // the payload is: what is kept of it is copied

	vm     vm.VM
	env    map[string]any // what programs see
	values []gjson.Result // by slot
	json   []byte         // of a record
}

// longPayload is how much a record may hold in memory beside its own bytes.
const longPayload = 4 << 10

// done lets go of the event.
func (r *run) done() {
	clear(r.values)
	clear(r.env)
	r.emit = nil
	if cap(r.json) > 64<<10 {
		r.json = nil
	}
	r.pool.Put(r)
}

func (r *run) lines(stream string, ev *framework.Event, payload string) error {
	n := 0
	for line := range strings.SplitSeq(payload, "\n") {
		n++
		if strings.Trim(line, " \t\r") == "" {
			continue
		}
		v, err := parseJSON(line)
		if err == nil {
			r.event(stream, ev, v)
			err = r.entries(v, nil)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return nil
}

// event finds what is wanted of the event itself.
func (r *run) event(stream string, ev *framework.Event, whole gjson.Result) {
	clear(r.values)
	r.outer.fill(whole, r.values)
	for _, a := range r.attributes {
		v := &r.values[a.slot]
		switch a.name {
		case "id":
			*v = text(strings.ToValidUTF8(string(ev.ID), "\ufffd"))
		case "type":
			*v = text(strings.ToValidUTF8(ev.Type, "\ufffd"))
		case "stream":
			*v = text(stream)
		case "time":
			*v = text(ev.Time.UTC().Format(time.RFC3339Nano))
		}
	}
	for _, n := range r.shared {
		if n.time {
			r.env[n.text] = ev.Time.UTC()
		} else {
			r.env[n.text] = toAny(r.values[n.slot], computable)
		}
	}
}

// entries makes a record of each entry, or of the value itself.
func (r *run) entries(v gjson.Result, data []byte) error {
	if r.each == nil {
		return r.one(v, data)
	}
	found := make([]gjson.Result, 1)
	r.each.fill(v, found)
	list := found[0]
	switch {
	case list.Raw == "":
		return fmt.Errorf("each: there is no list at %s", r.list)
	case list.Type == gjson.Null:
		return nil
	case !list.IsArray():
		return fmt.Errorf("each: what stands at %s is not a list", r.list)
	}
	n := 0
	var err error
	list.ForEach(func(_, entry gjson.Result) bool {
		if err = r.one(entry, nil); err != nil {
			err = fmt.Errorf("entry %d of %s: %w", n, r.list, err)
		}
		n++
		return err == nil
	})
	return err
}

// one makes a record of a value, which is data as it came; nil is the value's
// own JSON.
func (r *run) one(v gjson.Result, data []byte) error {
	for _, slot := range r.inner {
		r.values[slot] = gjson.Result{}
	}
	r.this.fill(v, r.values)
	if r.schema != nil {
		if err := r.schema.validate(v); err != nil {
			return err
		}
	}
	for _, n := range r.own {
		r.env[n.text] = toAny(r.values[n.slot], computable)
	}
	if r.where != nil {
		is, err := r.value(r.where)
		switch {
		case err != nil:
			return fmt.Errorf("where: %w", err)
		case is.Type == gjson.False || is.Type == gjson.Null:
			return nil
		case is.Type != gjson.True:
			return wrongAt("where", r.where, wrong(&is, "true or false"))
		}
	}
	var rec framework.Record
	if r.typ != nil {
		is, err := r.value(r.typ)
		switch {
		case err != nil:
			return wrongAt("type", r.typ, err)
		case is.Type == gjson.String:
			rec.Type = is.Str
		case is.Type == gjson.JSON:
			return wrongAt("type", r.typ, wrong(&is, "text"))
		default:
			rec.Type = is.Raw
		}
		if is.Type == gjson.Null {
			rec.Type = "" // the event's
		}
	}
	if r.at != nil {
		is, err := r.value(r.at)
		if err == nil && missing(&is) {
			err = errors.New("there is no time")
		}
		if err == nil {
			rec.Time, err = parseTime(&is, r.unit)
		}
		if err != nil {
			return wrongAt("time", r.at, err)
		}
	}
	if r.long {
		rec.Type = strings.Clone(rec.Type)
	}
	if len(r.columns) > 0 {
		return r.fill(rec)
	}
	if rec.Data = data; data == nil {
		rec.Data = []byte(v.Raw)
	}
	r.emit(bare(rec, r.width, r.places))
	return nil
}

// fill fills the columns of a record.
func (r *run) fill(rec framework.Record) error {
	rec.Values = make([]any, r.width)
	to := append(r.json[:0], '{')
	for i := range r.columns {
		c := &r.columns[i]
		v, err := r.value(c.bound)
		if err != nil {
			return wrongAt(fmt.Sprintf("the column %q", c.Name), c.bound, err)
		}
		if c.Required && missing(&v) {
			return wrongAt(fmt.Sprintf("the column %q", c.Name), c.bound, errors.New("it is required, and there is no value"))
		}
		if i > 0 {
			to = append(to, ',')
		}
		to = append(to, c.json...)
		var x any
		if x, to, err = convert(to, &v, c.Type, c.plain, r.unit); err != nil {
			return wrongAt(fmt.Sprintf("the column %q", c.Name), c.bound, err)
		}
		if r.long {
			x = apart(x)
		}
		rec.Values[r.places[i]] = x
	}
	r.json = append(to, '}')
	rec.Data = bytes.Clone(r.json)
	r.emit(rec)
	return nil
}

// apart is the value without the payload that it stands in.
func apart(x any) any {
	switch v := x.(type) {
	case string:
		return strings.Clone(v)
	case json.Number:
		return json.Number(strings.Clone(string(v)))
	}
	return x
}

// bare is a record without columns of its own, beside others that have some.
func bare(rec framework.Record, width int, places []int) framework.Record {
	if width > 0 {
		rec.Values = make([]any, width)
		rec.Values[places[0]] = string(rec.Data)
	}
	return rec
}

// value is what the expression results in.
func (r *run) value(b *bound) (gjson.Result, error) {
	if b.path != nil {
		return r.values[b.slot], nil
	}
	x, err := r.vm.Run(b.program, r.env)
	if err != nil {
		return gjson.Result{}, errors.New(brief(err))
	}
	return made(x, r.values)
}

func wrongAt(what string, b *bound, err error) error {
	return fmt.Errorf("%s (%s): %w", what, excerpt(b.source), err)
}

// maxDepth is how deep the JSON of an event may nest: what reads it later, a
// database too, goes down as deep.
const maxDepth = 1000

// parseJSON reads one JSON value, down to its last byte.
func parseJSON(s string) (gjson.Result, error) {
	s = strings.Trim(s, " \t\r\n")
	if !utf8.ValidString(s) {
		return gjson.Result{}, errors.New("the payload is not JSON: it is not text in UTF-8")
	}
	if strings.Count(s, "[")+strings.Count(s, "{") > maxDepth && depth(s) > maxDepth {
		return gjson.Result{}, fmt.Errorf("the payload nests more than %d deep", maxDepth)
	}
	if !gjson.Valid(s) {
		var v json.RawMessage
		return gjson.Result{}, fmt.Errorf("the payload is not JSON: %w", cmp.Or(json.Unmarshal([]byte(s), &v), errors.New("invalid")))
	}
	return gjson.Parse(s), nil
}

// depth is how deep brackets nest outside of strings.
func depth(s string) int {
	open, most, quoted := 0, 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			open++
			most = max(most, open)
		case c == ']' || c == '}':
			open--
		}
	}
	return most
}

func checkText(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("the payload is not text in UTF-8")
	}
	return nil
}

// unpack undoes base64, of either alphabet, with or without padding and line
// breaks.
func unpack(data []byte) ([]byte, error) {
	packed := make([]byte, 0, len(data))
	for _, c := range data {
		switch c {
		case ' ', '\t', '\r', '\n':
		case '-':
			packed = append(packed, '+')
		case '_':
			packed = append(packed, '/')
		default:
			packed = append(packed, c)
		}
	}
	packed = bytes.TrimRight(packed, "=")
	n, err := base64.RawStdEncoding.Decode(packed, packed)
	if err != nil {
		return nil, fmt.Errorf("the payload is not base64: %w", err)
	}
	return packed[:n], nil
}
