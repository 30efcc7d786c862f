package mapping

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/expr-lang/expr/vm"
	"github.com/tidwall/gjson"

	"github.com/holdline/scrape/framework"
)

// recordParts are what `record` has, in the choice of a sink.
var recordParts = []string{"stream", "type", "id", "time", "data"}

// NewWhere compiles the choice of a sink, which gets the records of the
// streams. Bare names are columns; in records of streams that have none they
// are the fields of the JSON in Data. `this` is all of them, and `record` has
// stream, type, id, time and data (the payload as text).
//
// The function that it returns fits framework.SinkConfig.Where. It is safe for
// concurrent use.
func NewWhere(source string, streams map[string][]framework.Column) (func(*framework.Record) (bool, error), *Problem) {
	e, problem := compile(source, whereRoots(streams))
	if problem == nil {
		problem = e.truth()
	}
	if problem != nil {
		return nil, problem
	}
	w := &where{expression: e, fields: newTree(), columns: map[string][]int{}}
	for i, p := range e.uses {
		w.names = append(w.names, p.String())
		if p.root == "this" {
			w.json = true
			w.fields.at(p.steps).slot = i
		}
	}
	for name, columns := range streams {
		if len(columns) == 0 {
			continue
		}
		places := make([]int, len(e.uses))
		for i, p := range e.uses {
			places[i] = -1
			if p.root == "this" && len(p.steps) > 0 {
				places[i] = slices.IndexFunc(columns, func(c framework.Column) bool { return c.Name == p.steps[0].key })
			}
		}
		w.columns[name] = places
	}
	w.pool.New = func() any { return &whereState{env: map[string]any{}, values: make([]gjson.Result, len(e.uses))} }
	return w.choose, nil
}

// where is the choice of a sink at work.
type where struct {
	*expression
	fields  *tree            // of records without columns
	json    bool             // fields are wanted
	columns map[string][]int // places of what is used in the columns, by stream
	names   []string         // of what is used
	pool    sync.Pool        // of *whereState
}

type whereState struct {
	vm     vm.VM
	env    map[string]any
	values []gjson.Result
}

func (w *where) choose(rec *framework.Record) (bool, error) {
	s := w.pool.Get().(*whereState)
	defer w.pool.Put(s)
	places := w.columns[rec.Stream]
	if places == nil && w.json {
		if err := s.parse(w.fields, rec.Data); err != nil {
			return false, fmt.Errorf("the sink's where: %w", err)
		}
	}
	for i, p := range w.uses {
		var x any
		switch {
		case p.root == "record":
			x = recordPart(rec, p.steps[0].key)
		case places == nil:
			x = toAny(s.values[i], computable)
		case places[i] >= 0:
			x = member(rec.Values[places[i]], p.steps[1:])
		}
		s.env[w.names[i]] = x
	}
	var x any
	var err error
	if w.path != nil {
		x = s.env[w.names[0]]
	} else if x, err = s.vm.Run(w.program, s.env); err != nil {
		err = errors.New(brief(err))
	}
	clear(s.env)
	clear(s.values)
	if err != nil {
		return false, fmt.Errorf("the sink's where: %w", err)
	}
	switch x := x.(type) {
	case bool:
		return x, nil
	case nil:
		return false, nil
	}
	return false, errors.New("the sink's where is neither true nor false")
}

func (s *whereState) parse(t *tree, data []byte) error {
	v, err := parseJSON(string(data))
	if err == nil {
		t.fill(v, s.values)
	}
	return err
}

func recordPart(rec *framework.Record, name string) any {
	switch name {
	case "stream":
		return rec.Stream
	case "type":
		return rec.Type
	case "id":
		return rec.ID
	case "time":
		return rec.Time.UTC()
	}
	return string(rec.Data)
}

// member is the value of a column, or a part of one that is JSON.
func member(x any, steps []step) any {
	switch v := x.(type) {
	case int64:
		x = int(v)
	case json.Number:
		x = computable(string(v))
	case json.RawMessage:
		t := newTree()
		t.at(steps).slot = 0
		values := make([]gjson.Result, 1)
		t.fill(gjson.Parse(string(v)), values)
		return toAny(values[0], computable)
	}
	if len(steps) > 0 {
		return nil
	}
	return x
}

// truth reports an expression that cannot result in true or false.
func (e *expression) truth() *Problem {
	if e.program != nil && e.result != nil && e.result.Kind() != reflect.Bool && e.result.Kind() != reflect.Interface {
		return &Problem{Message: fmt.Sprintf("the expression results in %v", e.result), Remedy: "write one that is true or false, such as price > 100"}
	}
	return nil
}

// whereRoots are the columns of the streams that a sink gets.
type whereRoots map[string][]framework.Column

func (w whereRoots) name(name string) (path, *Problem) {
	switch name {
	case "this", "record":
		return path{name, nil}, nil
	}
	return w.known(path{"this", []step{{name, -1}}})
}

// known reports a name that is no column, where all records have columns.
func (w whereRoots) known(p path) (path, *Problem) {
	var names []string
	for _, columns := range w {
		if len(columns) == 0 {
			return p, nil
		}
		for _, c := range columns {
			if c.Name == p.steps[0].key {
				return p, nil
			}
			if !slices.Contains(names, c.Name) {
				names = append(names, c.Name)
			}
		}
	}
	name := p.steps[0].key
	problem := &Problem{Message: fmt.Sprintf("there is no column %q", name), Name: name, What: "columns", Valid: names}
	if slices.Contains(recordParts, name) {
		problem.Name, problem.Valid, problem.Remedy = "", nil, fmt.Sprintf("the record's own is record.%s", name)
	}
	slices.Sort(problem.Valid)
	return p, problem
}

func (w whereRoots) whole(root string) *Problem {
	switch {
	case root == "record":
		return &Problem{Message: "record is no value", Remedy: "write a part of it, such as record." + strings.Join(recordParts, " or record.")}
	case root == "this" && slices.ContainsFunc(slices.Collect(maps.Values(w)), func(c []framework.Column) bool { return len(c) > 0 }):
		return &Problem{Message: "a record with columns is no value", Remedy: "name its columns"}
	}
	return nil
}

func (w whereRoots) member(p path, s step) (path, bool, *Problem) {
	switch {
	case p.root == "this" && len(p.steps) == 0:
		to, problem := w.known(p.to(s))
		return to, true, problem
	case p.root == "this":
		return p.to(s), true, nil
	case len(p.steps) > 0:
		return p, false, nil // of a text or a time
	case !slices.Contains(recordParts, s.key):
		return p, false, &Problem{Message: fmt.Sprintf("record has no %q", s.key), Name: s.key, What: "it has", Valid: recordParts}
	}
	return p.to(s), true, nil
}
