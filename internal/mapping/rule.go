package mapping

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/holdline/scrape/framework"
)

// Rule is a [Spec], compiled. It is safe for concurrent use.
type Rule struct {
	types  []string
	format Format
	schema *schema
	each   *tree // nil where the event is one record
	list   string
	where  *bound
	typ    *bound
	at     *bound
	unit   Unit

	columns []column

	this, outer  *tree // what is wanted of the record's value and the event's
	attributes   []attribute
	slots        int
	inner        []int  // slots of the record's value
	own, shared  []name // what programs use, of the record's value and the event
	needsNothing bool   // but the payload
	pool         sync.Pool
}

type column struct {
	framework.Column
	*bound
	plain bool   // without a type: see convert
	json  []byte // the name in JSON, with its colon
}

// bound is an expression whose paths have slots.
type bound struct {
	*expression
	source string
	slot   int // of its path
}

// attribute is a part of the event that a slot has.
type attribute struct {
	slot int
	name string
}

// name is what programs know a slot by.
type name struct {
	text string
	slot int
	time bool // of the event
}

// eventParts are what `event` has.
var eventParts = []string{"id", "type", "time", "stream", "data"}

// NewRule compiles a spec. It reports everything that is wrong with it.
func NewRule(spec Spec) (*Rule, []*Problem) {
	c := &compiler{spec: spec, slots: map[string]int{}, Rule: &Rule{
		types: spec.Types, format: spec.Format, unit: spec.TimeUnit, this: newTree(), outer: newTree(),
	}}
	c.compile()
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	r := c.Rule
	r.needsNothing = r.slots == 0 && len(r.columns) == 0 && r.where == nil && r.typ == nil && r.at == nil
	r.pool.New = func() any { return &run{Rule: r, env: map[string]any{}, values: make([]gjson.Result, r.slots)} }
	return r, nil
}

// compiler makes a rule.
type compiler struct {
	*Rule
	spec     Spec
	slots    map[string]int
	problems []*Problem
}

func (c *compiler) problem(key string, p *Problem) {
	p.Key = key
	c.problems = append(c.problems, p)
}

func (c *compiler) compile() {
	s := &c.spec
	if c.format == FormatRaw && (s.Each != "" || s.Schema != "" || s.Where != "" || s.Type != "" || s.Time != "" || len(s.Columns) > 0) {
		c.format = FormatJSON
	}
	if s.Schema != "" {
		if c.packed() {
			c.problem("schema", &Problem{Message: fmt.Sprintf("a schema describes JSON, and the format is %s", c.format), Remedy: "write format: json, or remove the schema"})
		} else if schema, problem := loadSchema(s.Schema); problem != nil {
			c.problem("schema", problem)
		} else {
			c.schema = schema
		}
	}
	if s.Each != "" {
		c.eachOf()
	}
	c.where = c.bind("where", s.Where)
	if c.where != nil {
		if problem := c.where.truth(); problem != nil {
			c.problem("where", problem)
		}
	}
	c.typ, c.at = c.bind("type", s.Type), c.bind("time", s.Time)
	columns := s.Columns
	if len(columns) == 0 && c.schema != nil {
		columns = c.schema.columns()
	}
	var names []string
	for _, col := range columns {
		c.column(col, names)
		names = append(names, col.Name)
	}
}

// packed tells that the payload is no JSON.
func (c *compiler) packed() bool { return c.format == FormatText || c.format == FormatBase64 }

func (c *compiler) eachOf() {
	if c.packed() {
		c.problem("each", &Problem{Message: fmt.Sprintf("there is no list in %s", c.format), Remedy: "write format: json, or remove each"})
		return
	}
	e, problem := compile(c.spec.Each, &ruleRoots{packed: c.packed()})
	switch {
	case problem != nil:
		c.problem("each", problem)
	case e.path == nil || e.path.root != "this":
		c.problem("each", &Problem{Message: "this is not the path of a list in the event", Remedy: "write one such as data.trades, or this where the event is the list"})
	default:
		c.each = newTree()
		c.each.at(e.path.steps).slot = 0
		c.list = c.spec.Each
	}
}

// bind compiles the expression of a key; nil without one, or with a problem.
func (c *compiler) bind(key, source string) *bound {
	if source == "" {
		return nil
	}
	e, problem := compile(source, &ruleRoots{packed: c.packed(), each: c.spec.Each != "", schema: c.schema})
	if problem != nil {
		c.problem(key, problem)
		return nil
	}
	b := &bound{expression: e, source: source}
	for _, p := range e.uses {
		slot := c.slot(p)
		if e.path != nil {
			b.slot = slot
			continue
		}
		n := name{text: p.String(), slot: slot, time: p.root == "event" && p.steps[0].key == "time"}
		list := &c.shared
		if p.root == "this" {
			list = &c.own
		}
		if !slices.Contains(*list, n) {
			*list = append(*list, n)
		}
	}
	return b
}

// slot is where the value of the path will be.
func (c *compiler) slot(p path) int {
	text := p.String()
	slot, ok := c.slots[text]
	if ok {
		return slot
	}
	slot = c.Rule.slots
	c.Rule.slots++
	c.slots[text] = slot
	switch p.root {
	case "this":
		c.this.at(p.steps).slot = slot
		c.inner = append(c.inner, slot)
	case "event":
		c.attributes = append(c.attributes, attribute{slot, p.steps[0].key})
	default:
		c.outer.at(p.steps).slot = slot
	}
	return slot
}

func (c *compiler) column(col Column, before []string) {
	key := "map." + col.Name
	if problem := checkName(col.Name, before); problem != nil {
		c.problem(key, problem)
		return
	}
	if col.Value == "" {
		col.Value = path{"this", []step{{col.Name, -1}}}.String()
	}
	b := c.bind(key, col.Value)
	if b == nil {
		return
	}
	out := column{Column: framework.Column{Name: col.Name, Type: col.Type, Required: col.Required}, bound: b}
	out.json = append(appendString(nil, col.Name), ':')
	if out.Type == "" {
		out.Type = c.typeOf(b)
	}
	if out.Type == "" {
		out.Type, out.plain = framework.ColumnText, true
	}
	c.columns = append(c.columns, out)
}

// typeOf is what is known of the expression's type, or nothing.
func (c *compiler) typeOf(b *bound) framework.ColumnType {
	if b.path != nil {
		switch {
		case b.path.root == "event" && b.path.steps[0].key == "time":
			return framework.ColumnTime
		case b.path.root == "this" && c.schema != nil:
			return c.schema.typeAt(b.path.steps)
		}
		return ""
	}
	if b.result == nil {
		return ""
	}
	switch b.result.Kind() {
	case reflect.String:
		return framework.ColumnText
	case reflect.Bool:
		return framework.ColumnBoolean
	case reflect.Int:
		return framework.ColumnInteger
	case reflect.Float64:
		return framework.ColumnNumber
	case reflect.Slice, reflect.Map:
		return framework.ColumnJSON
	}
	if b.result == reflect.TypeFor[time.Time]() {
		return framework.ColumnTime
	}
	return ""
}

// maxName is the longest name that PostgreSQL keeps.
const maxName = 63

func checkName(name string, before []string) *Problem {
	switch {
	case name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
		return &Problem{Message: fmt.Sprintf("%.80q cannot be the name of a column", name), Remedy: fmt.Sprintf("use up to %d printable bytes", maxName)}
	case slices.ContainsFunc(before, func(other string) bool { return strings.EqualFold(other, name) }):
		return &Problem{Message: fmt.Sprintf("another column has the name %q", name), Remedy: "to a database small and capital letters are the same: give each a name of its own"}
	}
	return nil
}

// described are the columns as others see them.
func (r *Rule) described() []framework.Column {
	var list []framework.Column
	for _, c := range r.columns {
		list = append(list, c.Column)
	}
	return list
}

func (r *Rule) takes(typ string) bool { return len(r.types) == 0 || slices.Contains(r.types, typ) }

// ruleRoots are the names that the expressions of a rule know.
type ruleRoots struct {
	packed bool // the payload is no JSON
	each   bool // `this` is an entry of a list, not the event's data
	schema *schema
}

func (r *ruleRoots) name(name string) (path, *Problem) {
	if name == "this" || name == "event" {
		return path{name, nil}, nil
	}
	to := path{"this", []step{{name, -1}}}
	if r.packed {
		return to, &Problem{Message: fmt.Sprintf("text has no field %q", name), Remedy: "the text is `this`"}
	}
	return to, r.schema.lacks(to.steps)
}

func (r *ruleRoots) member(p path, s step) (path, bool, *Problem) {
	switch {
	case p.root == "event" && len(p.steps) > 0:
		return p, false, nil // of a text or a time
	case p.root == "event" && !slices.Contains(eventParts, s.key):
		return p, false, &Problem{Message: fmt.Sprintf("event has no %q", s.key), Name: s.key, What: "it has", Valid: eventParts}
	case p.root == "event" && s.key == "data":
		if !r.each {
			return path{"this", nil}, true, nil
		}
		return path{"event.data", nil}, true, nil
	case p.root == "this":
		to := p.to(s)
		return to, true, r.schema.lacks(to.steps)
	}
	return p.to(s), true, nil
}

func (r *ruleRoots) whole(root string) *Problem {
	if root == "event" {
		return &Problem{Message: "event is no value", Remedy: "write a part of it, such as event." + strings.Join(eventParts, " or event.")}
	}
	return nil
}
