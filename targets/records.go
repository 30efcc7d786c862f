package targets

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/mapping"
)

// Records says what records are made of events: an [Entry], or a list of them
// of which the first one counts that takes an event.
type Records struct {
	Entries []Entry

	mapping *mapping.Mapping // nil where something is wrong with it
	at      ast.Node
}

// Entry says which events it takes and what records are made of them. Without
// `types` it takes all; an event that no entry of the list takes becomes a dead
// letter, and so does one that an entry cannot make its records of.
//
// `each`, `where`, `type`, `time` and the columns are expressions
// (expr-lang.org/docs/language-definition). Names are fields of the JSON value
// that becomes a record: price, meta.seq, levels[0].bid, this["odd name"]. A
// field that is not there is nil, and so is null: write price ?? 0 for another
// value. `this` is the value itself. `event` has id, type, time, stream, and
// data, which is the whole event where `each` is in use. A field that is only
// moved keeps all digits of its numbers; what is computed has 64 bits, whole
// numbers where both sides are such, else binary floating point. Of a key that
// stands twice in an object the last one counts.
type Entry struct {
	// The types of the events that the entry takes. Without this key it takes
	// all that no entry above it takes.
	Types []string `yaml:"types"`
	// What the data of the events is. `json` is one JSON value; `ndjson` one a
	// line, each of which is a record; `text` is in UTF-8; `base64` is undone.
	// In text and base64 `this` is the text. Without this key it is json where
	// any of the keys below is there, and else the data is taken as it came.
	Format string `yaml:"format" enum:"json,ndjson,text,base64"`
	// The path of a list in the event: each of its entries becomes a record.
	// A list that is null has no entries.
	Each string `yaml:"each"`
	// A file with the JSON Schema (2020-12 unless it says otherwise) that the
	// value of each record has to meet. It may refer to other files, and to
	// nothing in the network. Numbers with more than 400 digits are refused.
	Schema Path `yaml:"schema"`
	// Makes records only where it is true.
	Where string `yaml:"where"`
	// The type of the record; text itself stands in quotes. Without this key,
	// and where it is nil, it is the event's.
	Type string `yaml:"type"`
	// The time of the record: RFC 3339, an ISO date with or without a time of
	// day (UTC), or a number since 1970. Without this key it is when the event
	// was received.
	Time string `yaml:"time"`
	// What numbers that stand for times count. `auto` goes by their size:
	// seconds below 1e11, ms below 1e14, us below 1e17, else ns.
	TimeUnit string `yaml:"time_unit" default:"auto" enum:"auto,s,ms,us,ns"`
	// The columns of the record by name, in this order, each with its
	// expression or a section. The record's data is then the JSON object of
	// them. Without this key the columns are the top-level properties of the
	// schema; without a schema the record has no columns, and its data stays
	// as it is.
	Map Columns `yaml:"map"`

	rule    *mapping.Rule
	section *section
}

// Columns are the columns of a record, in their order.
type Columns []Column

// Column is a column of a record.
type Column struct {
	// The expression. Without this key: the field with the column's name.
	Value string `yaml:"value"`
	// What the values are. `integer` has 64 bits, `number` all its digits;
	// both are read from text, too. `time` is read as `time` of the entry is.
	// Without this key: what the schema says of the field, or what the
	// expression is certain to result in; else it is text, as it stands in
	// the event, and stays what it is in the record's JSON.
	Type string `yaml:"type" enum:"text,integer,number,boolean,time,json"`
	// Whether an event where the value is missing or null becomes a dead
	// letter.
	Required bool `yaml:"required" default:"false"`

	name string
	at   ast.Node // the expression, or what stands in its place
}

func (r *Records) decodeNode(d *decoder, n ast.Node, path string) {
	r.at = n
	before := len(d.problems)
	if list, ok := n.(*ast.SequenceNode); ok {
		if len(list.Values) == 0 {
			d.problem(n, path, "there are no entries"+in(path), "write at least one, or remove the key")
			return
		}
		d.decodeList(n, reflect.ValueOf(&r.Entries).Elem(), path, "")
	} else {
		r.Entries = make([]Entry, 1)
		one := reflect.ValueOf(&r.Entries[0]).Elem()
		setDefaults(one)
		d.decodeStruct(n, one, path)
	}
	var rules []*mapping.Rule
	for i := range r.Entries {
		e := &r.Entries[i]
		if i > 0 && len(r.Entries[i-1].Types) == 0 && e.section != nil && !r.Entries[i-1].section.has("types") {
			e.section.wrong("", fmt.Sprintf("no event reaches %s", e.section.path), "the entry above it takes all: give that one types, or put it last")
		}
		rules = append(rules, e.rule)
	}
	if len(d.problems) > before {
		return
	}
	var err error
	if r.mapping, err = mapping.New(rules); err != nil {
		d.problem(n, path, err.Error(), "")
	}
}

func (c *Columns) decodeNode(d *decoder, n ast.Node, path string) {
	entries, ok := d.entries(n, path)
	if !ok {
		d.wrongType(n, path, "a mapping of columns to expressions, as in price: data.price")
		return
	}
	for _, e := range entries {
		to := Column{name: e.name, at: e.value}
		own := join(path, e.name)
		v := d.resolve(e.value, own)
		if v == nil {
			continue
		}
		if _, ok := d.entries(v, own); ok {
			d.decodeStruct(v, reflect.ValueOf(&to).Elem(), own)
		} else if text, ok := scalarText(v); ok {
			to.Value = text
		} else {
			d.wrongType(v, own, "an expression such as data.price, or a mapping with value, type, required")
			continue
		}
		*c = append(*c, to)
	}
}

func (c *Column) check(s *section) {
	if e, ok := s.keys["value"]; ok {
		c.at = e.value
	}
}

// check compiles the entry.
func (e *Entry) check(s *section) {
	e.section = s
	if slices.Contains(e.Types, "") {
		s.wrong("types", "an event type is empty", "an event without a type has the type message")
	}
	for _, bad := range s.bad {
		if bad {
			return
		}
	}
	spec := mapping.Spec{
		Types: e.Types, Format: mapping.Format(e.Format), Each: e.Each, Schema: string(e.Schema), Where: e.Where,
		Type: e.Type, Time: e.Time, TimeUnit: mapping.Unit(e.TimeUnit),
	}
	for _, c := range e.Map {
		spec.Columns = append(spec.Columns, mapping.Column{Name: c.name, Value: c.Value, Type: framework.ColumnType(c.Type), Required: c.Required})
	}
	for key, value := range map[string]string{"each": e.Each, "where": e.Where, "type": e.Type, "time": e.Time} {
		if s.has(key) && value == "" {
			s.wrong(key, fmt.Sprintf("%q is empty", key), "write an expression, or remove the key")
		}
	}
	if s.has("map") && len(e.Map) == 0 {
		s.wrong("map", "there are no columns"+in(join(s.path, "map")), "write at least one, or remove the key")
	}
	rule, problems := mapping.NewRule(spec)
	e.rule = rule
	for _, p := range problems {
		if column, ok := strings.CutPrefix(p.Key, "map."); ok {
			i := slices.IndexFunc(e.Map, func(c Column) bool { return c.name == column })
			if i >= 0 {
				s.d.problem(e.Map[i].at, join(join(s.path, "map"), column), fmt.Sprintf("the column %s: %s", showKey(column), s.d.hide(p.Message)), remedyOf(p))
				continue
			}
			s.wrong("schema", fmt.Sprintf("the column %s of the schema: %s", showKey(column), p.Message), remedyOf(p))
			continue
		}
		s.wrong(p.Key, fmt.Sprintf("%q: %s", p.Key, s.d.hide(p.Message)), remedyOf(p))
	}
}

func remedyOf(p *mapping.Problem) string {
	if len(p.Valid) > 0 {
		return didYouMean(p.What, p.Name, p.Valid)
	}
	return p.Remedy
}

// Decoder makes the records of the stream: what its `records` or the target's
// say, or else the target itself, where it does. Nil leaves events as they are.
func (f *File) Decoder(st *Stream) framework.Decoder {
	for _, r := range []*Records{st.Records, f.Records} {
		if r != nil && r.mapping != nil {
			return r.mapping
		}
		if r != nil {
			return nil
		}
	}
	d, _ := f.Target.(framework.Decoder)
	return d
}

// Columns are those of the stream's records.
func (f *File) Columns(st *Stream) []framework.Column {
	if c, ok := f.Decoder(st).(framework.Columner); ok {
		return c.Columns(f.Name + "/" + st.Name)
	}
	return nil
}

// checkRecords looks at all records of the target together, and compiles what
// the sinks choose of them.
func (f *File) checkRecords(s *section) {
	if _, ok := f.Target.(framework.Decoder); ok {
		for _, r := range append([]*Records{f.Records}, f.ownRecords()...) {
			if r != nil {
				s.d.problem(r.at, "records", fmt.Sprintf("the plugin %s makes records of its own", f.Plugin), "remove records")
			}
		}
	}
	columns, decoders := map[string][]framework.Column{}, map[string]framework.Decoder{}
	var names []string
	for i := range f.Streams {
		st := &f.Streams[i]
		name := f.Name + "/" + st.Name
		names = append(names, name)
		columns[name], decoders[name] = f.Columns(st), f.Decoder(st)
		f.checkTypes(s, st)
	}
	if _, err := framework.UniteColumns(names, decoders); err != nil && len(f.Sinks) > 0 {
		at := s.node
		for _, r := range append(f.ownRecords(), f.Records) {
			if r != nil {
				at = r.at
			}
		}
		s.d.problem(at, "records", err.Error(), "")
	}
	for i := range f.Sinks {
		f.Sinks[i].choose(s.d, columns, fmt.Sprintf("sinks[%d].where", i))
	}
}

func (f *File) ownRecords() []*Records {
	var list []*Records
	for i := range f.Streams {
		list = append(list, f.Streams[i].Records)
	}
	return list
}

// checkTypes finds entries for events that the stream does not keep.
func (f *File) checkTypes(s *section, st *Stream) {
	if st.Records == nil || len(st.Types) == 0 {
		return
	}
	for _, e := range st.Records.Entries {
		for _, typ := range e.Types {
			if typ != "" && typ != framework.PrefaceType && !slices.Contains(st.Types, typ) {
				e.section.wrong("types", fmt.Sprintf("the stream %s keeps no events of the type %s", st.Name, show(typ)), didYouMean("it keeps", typ, st.Types))
			}
		}
	}
}

// choose compiles the sink's `where`.
func (s *Sink) choose(d *decoder, columns map[string][]framework.Column, path string) {
	if s.where == nil {
		return
	}
	var problem *mapping.Problem
	if s.Wanted, problem = mapping.NewWhere(s.Where, columns); problem != nil {
		d.problem(s.where, path, `"where": `+d.hide(problem.Message), remedyOf(problem))
	}
}
