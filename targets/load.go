package targets

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/goccy/go-yaml/ast"
	"github.com/holdline/scrape/framework"
)

// Registry names what this build of the program understands. It is a plain
// value; nothing registers itself.
//
// Each kind is called once for every place in a file that names it, and reads
// its own settings with decode: a pointer to a struct whose fields have yaml
// tags, and optionally default, required, enum, min and max tags, as those of
// [File]. Fields may be strings, bools, ints, float64, [Duration], [Size],
// [Path], auth.Secret, and structs, pointers, slices and string-keyed maps of
// them. decode reports what is wrong with its line and column; its error only
// says that something was, and is returned as it is. Other errors are reported
// at the place of the kind. A kind does no work: it opens and starts nothing.
type Registry struct {
	Plugins map[string]Plugin
	Sinks   map[string]SinkKind
	Demos   map[string]DemoKind
	// Hooks are the names that steps of a browser can call.
	Hooks []string
}

// Plugin makes the target that a file describes. It is called after the file
// was read, also when parts of it were wrong: f may lack what is required, and
// errors are then passed over. decode reads `options`.
type Plugin func(f *File, decode func(into any) error) (framework.Target, error)

// SinkKind reads the settings of a sink.
type SinkKind func(decode func(into any) error) (SinkPlan, error)

// SinkPlan is a sink to be made.
type SinkPlan struct {
	// Destination tells places that are written to apart, in the kind's own
	// words; empty when they cannot be compared. Two sinks of one target must
	// not share one.
	Destination string
	// Columns tells whether the sink can take records with these columns of
	// their own; nil when it takes any.
	Columns func([]framework.Column) error
	// New makes the sink for one partition.
	New func(SinkPlace) (framework.Sink, error)
}

// SinkPlace says where in the worker a sink belongs.
type SinkPlace struct {
	// Target is the name of the target, Name that of the sink.
	Target, Name string
	// Data is the worker's data directory.
	Data string
	Log  *slog.Logger
}

// DemoKind reads the settings of a demo site.
type DemoKind func(decode func(into any) error) (DemoPlan, error)

// DemoPlan is a demo site to be started.
type DemoPlan struct {
	// Settings is a comparable value: targets with the same settings share one
	// site.
	Settings any
	// New makes the site, which keeps what it must remember in dir.
	New func(dir string, log *slog.Logger) (DemoSite, error)
}

// DemoSite is a site that is served for the length of a run. Once Listen has
// returned it can be reached; Run serves until ctx ends.
type DemoSite interface {
	Listen() error
	Run(ctx context.Context) error
}

// Options says what a file may refer to.
type Options struct {
	Registry Registry
	// Worker is what scrape.yaml holds; nil when there is none.
	Worker *Worker
	// Getenv resolves ${env:NAME}; nil means os.LookupEnv.
	Getenv func(name string) (string, bool)
}

func (o Options) getenv(name string) (string, bool) {
	if o.Getenv == nil {
		return os.LookupEnv(name)
	}
	return o.Getenv(name)
}

// Load reads a target file. Its error is [Problems], with everything that is
// wrong.
func Load(path string, o Options) (*File, error) {
	files, err := LoadAll([]string{path}, o)
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// LoadAll reads target files that are to run in one worker. Its error is
// [Problems], with everything that is wrong with each of them and with all of
// them together.
func LoadAll(paths []string, o Options) ([]*File, error) {
	var files []*File
	var all Problems
	places, names := map[string]bool{}, map[string]string{}
	for _, path := range paths {
		place := filepath.Clean(path)
		if abs, err := filepath.Abs(path); err == nil {
			place = abs
		}
		if places[place] {
			all = append(all, &Problem{File: path, Message: "is given twice", Remedy: "name each target file once"})
			continue
		}
		places[place] = true

		f := &File{}
		d, body := newDecoder(path, o)
		if body != nil {
			d.document(body, f)
			if other, ok := names[f.Name]; ok && f.Name != "" {
				d.problem(nameNode(body), "name", fmt.Sprintf("the target %s has the name of the one in %s", show(f.Name), other), "every target needs a name of its own: change name")
			} else {
				names[f.Name] = path
			}
		}
		files = append(files, f)
		all = append(all, d.problems.sorted()...)
	}
	if err := all.err(); err != nil {
		return nil, err
	}
	return files, nil
}

// LoadWorker reads scrape.yaml. Its error is [Problems]; errors.Is knows
// fs.ErrNotExist. o.Worker is not used.
func LoadWorker(path string, o Options) (*Worker, error) {
	w := &Worker{}
	d, body := newDecoder(path, o)
	if body != nil {
		d.document(body, w)
	}
	if err := d.problems.sorted().err(); err != nil {
		return nil, err
	}
	return w, nil
}

// document reads the whole file into a pointer to a struct.
func (d *decoder) document(body ast.Node, into any) {
	v := reflect.ValueOf(into).Elem()
	d.root = v.Type()
	setDefaults(v)
	d.decode(body, v, "", "")
}

// decodeInto reads a mapping into a struct of another room.
func (d *decoder) decodeInto(n ast.Node, into any, path string, except ...string) error {
	v := settings(into)
	setDefaults(v)
	before := len(d.problems)
	if n = d.resolve(n, path); n != nil {
		d.decodeStruct(n, v, path, except...)
	}
	return d.problems[before:].sorted().err()
}

// defaults is decodeInto where the file says nothing.
func (d *decoder) defaults(into any, at ast.Node, path string) error {
	v := settings(into)
	setDefaults(v)
	before := len(d.problems)
	for _, f := range fieldsOf(v.Type()) {
		if f.tag.Get("required") != "" {
			d.problem(at, path, fmt.Sprintf("%q is missing in %s", f.name, path), "")
		}
	}
	return d.problems[before:].err()
}

func settings(into any) reflect.Value {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("targets: decode into %T: want a pointer to a struct", into))
	}
	return v.Elem()
}

// nameNode is where a target's name stands, or the whole file.
func nameNode(body ast.Node) ast.Node {
	if m, ok := body.(*ast.MappingNode); ok {
		for _, v := range m.Values {
			if text, ok := scalarText(v.Key); ok && text == "name" {
				return v.Value
			}
		}
	}
	return body
}

func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
