package targets

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// Sink is where records are delivered: an entry with exactly one kind of sink
// (its name is the key, its settings are the value) or a `use`.
type Sink struct {
	// The name of a sink in scrape.yaml, instead of a kind.
	Use string `yaml:"use"`
	// The name of the sink, unique in the target. It is part of the id under
	// which the destination keeps its position, so a renamed sink begins
	// anew. Without this key: the kind, or the name in `use`.
	Name string `yaml:"name"`
	// Gives the sink only the records where this expression is true. Names are
	// the columns of the records, or fields of their JSON where they have no
	// columns; record.type, record.time, record.id, record.stream and
	// record.data (the text of the record) are the record's own. A record that
	// it fails for becomes a dead letter of this sink.
	Where string `yaml:"where"`
	// Where a new sink begins: with the oldest event that the journal holds, or
	// with what comes from now on. One that has a position goes on from there.
	Start string `yaml:"start" default:"earliest" enum:"earliest,latest"`
	// How records are gathered.
	Batch Batch `yaml:"batch"`
	// How far the sink may fall behind: how long an event may wait for it
	// (48h), or how much the journal keeps for it (20GiB). Beyond that it is
	// detached: the journal keeps nothing for it any more, and once it works
	// again it has to begin anew, with --restart-sink. One that is catching
	// up is not detached by time. Without this key only the journal's
	// max_bytes is a limit.
	MaxLag Lag `yaml:"max_lag"`

	// Kind is the kind of sink.
	Kind string `yaml:"-"`
	// Plan is what the kind understood.
	Plan SinkPlan `yaml:"-"`
	// Wanted is what Where says; nil wants all records.
	Wanted func(*framework.Record) (bool, error) `yaml:"-"`

	at, where ast.Node
	settings  any // what the kind read
}

// Batch says when the records gathered are delivered: as soon as one of the
// limits is reached.
type Batch struct {
	// So many records.
	Records int `yaml:"records" default:"10000" min:"1"`
	// The first of them has waited so long.
	Every Duration `yaml:"every" default:"200ms" min:"1ms"`
}

// SQLite holds the keys of a `sqlite` sink: a table in a SQLite file. Its columns
// are _key, stream, id, type, time (RFC 3339, UTC) and data, or in place of data
// those of the records: text, time and json as TEXT, integer as INTEGER, boolean
// as 0 and 1. A number is an INTEGER where it is a whole one of 64 bits, a REAL
// where it has at most 15 digits, and else TEXT, which keeps all digits. What is
// no text, or has a NUL in it, is a BLOB. New columns that may be empty are added
// to the table; where anything else does not fit, the error has the statement to
// run.
type SQLite struct {
	// The file. It is made when it is missing. Without this key it is named
	// after the target and lies in the data directory.
	File Path `yaml:"file"`
	// The table. It is made when it is missing. Two sinks of one target need
	// two tables.
	Table string `yaml:"table" default:"records"`
}

// Postgres holds the keys of a `postgres` sink: a table in a PostgreSQL
// database. Its columns are _key, stream, id, type, time, data (text) and raw
// (bytea): what is no text goes into raw, data being NULL. Make data a jsonb
// column to query into payloads: what is no JSON goes into raw then. Records with
// columns of their own have these in place of data and raw: text as text, integer
// as bigint, number as numeric with all its digits, boolean, time as timestamptz,
// json as jsonb. Texts, id and type among them, are written as \x and hexadecimal
// digits where they are not valid UTF-8, have a NUL in them or begin with \x. New
// columns that may be empty are added to the table; where anything else does not
// fit, the error has the statement to run.
type Postgres struct {
	// The database, as postgres://user:password@host:5432/name or
	// `host=… dbname=…`, best as ${env:NAME}.
	URL auth.Secret `yaml:"url" required:"true"`
	// The table, with a schema in front of it or without. It is made when it
	// is missing, its schema is not. Two sinks of one target need two tables.
	Table string `yaml:"table" default:"records"`
}

// JSONL holds the keys of a `jsonl` sink: files of JSON lines, one object per
// record with the keys key, stream, id, type, time and one of data (the
// payload, when it is JSON; for records with columns the object of these), text
// (when it is not) and base64 (when it is not UTF-8). id and type are written as
// \x and hexadecimal digits where they are no text. Beside the files lies one
// that says how much of them counts.
type JSONL struct {
	// The directory. It is made when it is missing; several sinks may share
	// it, since their files are named after them. Without this key it is
	// jsonl in the data directory.
	Dir Path `yaml:"dir"`
	// When the next file begins. A file that is finished may be moved away.
	Rotate Rotate `yaml:"rotate"`
	// How files are compressed: each batch is a frame, so a file can be read
	// up to the last whole one. Without this key they are not.
	Compress string `yaml:"compress" enum:"zstd"`
}

// Rotate says when a file is full: as soon as one of the limits is reached.
type Rotate struct {
	// It has so many bytes.
	Size Size `yaml:"size" default:"256MiB" min:"1"`
	// It was begun so long ago. Without this key no file is too old.
	Every Duration `yaml:"every" min:"1s"`
}

func (s *Sink) decodeNode(d *decoder, n ast.Node, path string) {
	s.at = n
	s.decode(d, n, path, true)
}

// plainSink is Sink without its form of its own.
type plainSink Sink

// decode reads an entry of a list of sinks. In scrape.yaml, where the name is
// the key that the entry stands under, named is false.
func (s *Sink) decode(d *decoder, n ast.Node, path string, named bool) {
	entries, ok := d.entries(n, path)
	if !ok {
		d.wrongType(n, path, "a mapping: the kind of sink with its settings, as in sqlite: {table: prices}")
		return
	}
	kinds := d.options.Registry.Sinks
	fields := fieldsOf(reflect.TypeFor[plainSink]())
	if !named {
		fields = slices.DeleteFunc(fields, func(f field) bool { return f.name != "batch" })
	}
	sec := d.section(n, path, entries)
	var present []string
	if sec.has("use") && named {
		present = append(present, "use")
		s.decodeUse(sec)
	}
	for _, e := range entries {
		if i := slices.IndexFunc(fields, func(f field) bool { return f.name == e.name }); i >= 0 {
			if e.name != "use" {
				sec.decodeField(e, reflect.ValueOf(s).Elem(), fields[i])
			}
			if sec.good("where") {
				s.where = sec.keys["where"].value
			}
			continue
		}
		kind, ok := kinds[e.name]
		if !ok {
			sec.unknown(e, append(names(fields), keysOf(kinds)...))
			continue
		}
		present = append(present, e.name)
		if len(present) == 1 {
			s.Kind = e.name
			s.call(sec, e, kind)
		}
	}
	meant := slices.ContainsFunc(keysOf(kinds), func(k string) bool { return sec.meant[k] }) || sec.meant["use"]
	switch {
	case len(present) == 0 && meant:
	case len(present) == 0 && named:
		sec.wrong("", "there is no kind of sink"+in(path), "write one of: "+strings.Join(append(keysOf(kinds), "use"), ", "))
	case len(present) == 0:
		sec.wrong("", "there is no kind of sink"+in(path), "write one of: "+strings.Join(keysOf(kinds), ", "))
	case len(present) > 1:
		d.problem(sec.keys[present[1]].key, join(path, present[1]), strings.Join(present, " and ")+" in one entry"+in(path), "make a list entry of each")
	}
	switch {
	case !named:
	case sec.good("name") && !nameForm.MatchString(s.Name):
		sec.wrong("name", `"name" is `+show(s.Name), nameRemedy)
	case s.Name == "" && s.Use != "":
		s.Name = s.Use
	case s.Name == "":
		s.Name = s.Kind
	}
}

// decodeUse takes over a sink of scrape.yaml.
func (s *Sink) decodeUse(sec *section) {
	sec.decodeField(sec.keys["use"], reflect.ValueOf(s).Elem(), fieldsOf(reflect.TypeFor[plainSink]())[0])
	if sec.bad["use"] {
		return
	}
	var sinks map[string]*NamedSink
	if w := sec.d.options.Worker; w != nil {
		sinks = w.Sinks
	}
	named, ok := sinks[s.Use]
	if !ok {
		sec.wrong("use", "there is no sink "+show(s.Use), didYouMean("sinks in scrape.yaml", s.Use, keysOf(sinks)))
		return
	}
	s.Kind, s.Plan, s.Batch, s.settings = named.Kind, named.Plan, named.Batch, named.settings
}

// call has the kind read its settings.
func (s *Sink) call(sec *section, e entry, kind SinkKind) {
	d, path := sec.d, join(sec.path, e.name)
	before := len(d.problems)
	plan, err := kind(func(into any) error {
		s.settings = into
		return d.decodeInto(e.value, into, path)
	})
	s.Plan = plan
	if err != nil && len(d.problems) == before {
		sec.wrong(e.name, fmt.Sprintf("sink %s: %s", e.name, d.hide(err.Error())), "")
	}
	sec.bad[e.name] = len(d.problems) > before
}

// checkColumns finds columns that a sink cannot have, of one stream or of all of
// them together.
func (f *File) checkColumns(s *section) {
	var names []string
	decoders := map[string]framework.Decoder{}
	for i := range f.Streams {
		name := f.Name + "/" + f.Streams[i].Name
		names = append(names, name)
		decoders[name] = f.Decoder(&f.Streams[i])
	}
	united, err := framework.UniteColumns(names, decoders)
	if err != nil {
		return // checkRecords has said so
	}
	for i, k := range f.Sinks {
		if k.Plan.Columns == nil {
			continue
		}
		if err := k.Plan.Columns(united); err != nil {
			s.d.problem(k.at, fmt.Sprintf("sinks[%d]", i), fmt.Sprintf("the sink %s cannot take the records", show(k.Name)), err.Error())
		}
	}
}

// checkSinks finds sinks of one target that would be taken for each other.
func (f *File) checkSinks(s *section) {
	seen, into := map[string]bool{}, map[string]string{}
	for i, k := range f.Sinks {
		path := fmt.Sprintf("sinks[%d]", i)
		if k.Name == "" {
			continue // has a problem of its own
		}
		if seen[k.Name] {
			s.d.problem(k.at, path, fmt.Sprintf("another sink has the name %s", show(k.Name)), "give one of them another name")
			continue
		}
		seen[k.Name] = true
		if k.Plan.Destination == "" {
			continue
		}
		destination := k.Kind + "\x00" + k.Plan.Destination
		if other, ok := into[destination]; ok {
			s.d.problem(k.at, path, fmt.Sprintf("the sinks %s and %s write to the same place", other, k.Name), "every record would arrive there twice: give one of them a table or a file of its own")
			continue
		}
		into[destination] = k.Name
	}
}
