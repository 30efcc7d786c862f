package targets

import (
	"encoding"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
	"github.com/holdline/scrape/auth"
)

// decoder turns the nodes of one file into structs and gathers everything that
// is wrong on the way. It never stops at a problem: what could not be read
// keeps its default.
//
// Struct tags say what a key is: yaml (its name), default (in the form that a
// file holds), required, enum (the words allowed, separated by commas), min,
// max, and late (kinds of references to secrets that stay as they are).
type decoder struct {
	file     string       // as it was given, for messages
	dir      string       // what relative paths are relative to
	root     reflect.Type // of the whole file
	options  Options
	aliases  map[*ast.AliasNode]ast.Node
	left     int // how many more nodes may be visited
	lost     int // aliases met that stand for nothing
	secrets  []string
	problems Problems
}

// nodeDecoder is a type with a form of its own in a file.
type nodeDecoder interface {
	decodeNode(d *decoder, n ast.Node, path string)
}

// checker is a struct with rules that no tag can say. check is called after
// its keys were decoded, also when some of them were wrong.
type checker interface {
	check(s *section)
}

// section is a mapping that was decoded.
type section struct {
	d    *decoder
	path string
	node ast.Node
	keys map[string]entry
	bad  map[string]bool // keys whose values have problems already
	// meant are keys that unknown keys were probably meant to be.
	meant map[string]bool
}

func (s *section) has(key string) bool { _, ok := s.keys[key]; return ok }

// good reports whether the key is there and has a value that was understood.
func (s *section) good(key string) bool { return s.has(key) && !s.bad[key] }

// wrong reports a problem at the key's value, or at the section when it has no
// such key.
func (s *section) wrong(key, message, remedy string) {
	s.bad[key] = true
	if e, ok := s.keys[key]; ok {
		s.d.problem(e.value, join(s.path, key), message, remedy)
		return
	}
	s.d.problem(s.node, s.path, message, remedy)
}

// oneOf reports when not exactly one of the keys stands in the section.
func (s *section) oneOf(what string, keys ...string) {
	var have []string
	for _, key := range keys {
		if s.has(key) || s.meant[key] {
			have = append(have, key)
		}
	}
	switch len(have) {
	case 0:
		s.wrong("", what+" is missing"+in(s.path), "write one of: "+strings.Join(keys, ", "))
	case 1:
	default:
		at := s.node
		if e, ok := s.keys[have[1]]; ok {
			at = e.key
		}
		s.d.problem(at, join(s.path, have[1]), fmt.Sprintf("%s exclude each other%s", strings.Join(have, " and "), in(s.path)), "keep one of them")
	}
}

func (d *decoder) problem(n ast.Node, path, message, remedy string) {
	d.at(position(n), path, message, remedy)
}

func (d *decoder) at(pos *token.Position, path, message, remedy string) {
	p := &Problem{File: d.file, Key: path, Message: message, Remedy: remedy}
	if pos != nil {
		p.Line, p.Column = pos.Line, pos.Column
	}
	d.problems = append(d.problems, p)
}

// whole reports a problem of the file itself.
func (d *decoder) whole(cause error, message string) {
	d.problems = append(d.problems, &Problem{File: d.file, Message: message, Err: cause})
}

// decode reads n into v, which is addressable.
func (d *decoder) decode(n ast.Node, v reflect.Value, path string, tag reflect.StructTag) {
	if n = d.resolve(n, path); n == nil {
		return
	}
	if own, ok := v.Addr().Interface().(nodeDecoder); ok {
		own.decodeNode(d, n, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		to := reflect.New(v.Type().Elem())
		setDefaults(to.Elem())
		d.decode(n, to.Elem(), path, tag)
		v.Set(to)
	case reflect.Slice:
		d.decodeList(n, v, path, tag)
	case reflect.Map:
		d.decodeMap(n, v, path, tag)
	case reflect.Struct:
		if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); !ok {
			d.decodeStruct(n, v, path)
			return
		}
		d.decodeScalar(n, v, path, tag)
	default:
		d.decodeScalar(n, v, path, tag)
	}
}

func (d *decoder) decodeList(n ast.Node, v reflect.Value, path string, tag reflect.StructTag) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrongType(n, path, "a list: one entry a line, each after a dash")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values))
	for i, one := range list.Values {
		setDefaults(out.Index(i))
		d.decode(one, out.Index(i), fmt.Sprintf("%s[%d]", path, i), tag)
	}
	v.Set(out)
}

func (d *decoder) decodeMap(n ast.Node, v reflect.Value, path string, tag reflect.StructTag) {
	entries, ok := d.entries(n, path)
	if !ok {
		d.wrongType(n, path, "a mapping of names to values")
		return
	}
	out := reflect.MakeMap(v.Type())
	for _, e := range entries {
		one := reflect.New(v.Type().Elem()).Elem()
		setDefaults(one)
		d.decode(e.value, one, join(path, e.name), tag)
		out.SetMapIndex(reflect.ValueOf(e.name), one)
	}
	v.Set(out)
}

// decodeStruct reads a mapping. Keys in except were read by somebody else.
func (d *decoder) decodeStruct(n ast.Node, v reflect.Value, path string, except ...string) {
	fields := fieldsOf(v.Type())
	entries, ok := d.entries(n, path)
	if !ok {
		d.wrongType(n, path, "a mapping with keys such as "+strings.Join(names(fields)[:min(len(fields), 4)], ", "))
		return
	}
	s := d.section(n, path, entries)
	for _, e := range entries {
		if slices.Contains(except, e.name) {
			continue
		}
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == e.name })
		if i < 0 {
			s.unknown(e, names(fields))
			continue
		}
		s.decodeField(e, v, fields[i])
	}
	for _, f := range fields {
		if f.tag.Get("required") != "" && !s.has(f.name) && !s.meant[f.name] {
			s.wrong("", fmt.Sprintf("%q is missing%s", f.name, in(path)), "")
		}
	}
	if c, ok := v.Addr().Interface().(checker); ok {
		c.check(s)
	}
}

func (d *decoder) section(n ast.Node, path string, entries []entry) *section {
	s := &section{d: d, path: path, node: n, keys: map[string]entry{}, bad: map[string]bool{}, meant: map[string]bool{}}
	for _, e := range entries {
		s.keys[e.name] = e
	}
	return s
}

func (s *section) decodeField(e entry, v reflect.Value, f field) {
	problems, lost := len(s.d.problems), s.d.lost
	s.d.decode(e.value, v.FieldByIndex(f.index), join(s.path, f.name), f.tag)
	s.bad[f.name] = len(s.d.problems) > problems || s.d.lost > lost
}

// unknown reports a key that nothing reads, with the one that was probably
// meant: of the same section, or of another one of the file.
func (s *section) unknown(e entry, valid []string) {
	near := nearest(e.name, valid)
	remedy := didYouMean("keys here", e.name, valid)
	if near != "" {
		s.meant[near] = true
	} else if places := elsewhere(s.d.root, e.name); len(places) > 0 && len(places) < 3 {
		remedy = "it belongs in " + strings.Join(places, " or ")
	}
	s.d.problem(e.key, join(s.path, e.name), "unknown key "+showKey(e.name)+in(s.path), remedy)
}

func (d *decoder) decodeScalar(n ast.Node, v reflect.Value, path string, tag reflect.StructTag) {
	text, ok := scalarText(n)
	if secret, is := v.Addr().Interface().(*auth.Secret); is {
		if !ok {
			d.wrongType(n, path, "text; put it in quotes if it must be empty")
			return
		}
		var late []string
		if kinds := tag.Get("late"); kinds != "" {
			late = strings.Split(kinds, ",")
		}
		if value, ok := d.expand(n, text, path, late, nil); ok {
			d.secrets = append(d.secrets, value)
			*secret = auth.NewSecret(value)
		}
		return
	}
	if v.Kind() == reflect.String {
		d.decodeString(n, v, path, tag)
		return
	}
	kind := ""
	switch n.(type) {
	case *ast.BoolNode:
		kind = "bool"
	case *ast.IntegerNode, *ast.FloatNode:
		kind = "number"
	}
	err := errors.ErrUnsupported
	if ok {
		err = setText(v, text, kind)
	}
	if err != nil {
		what := found(n)
		if ok {
			what = show(text)
		}
		want := wanted(v)
		if !errors.Is(err, errors.ErrUnsupported) {
			want = err.Error()
		}
		d.problem(n, path, fmt.Sprintf("%s is %s", base(path), what), want)
		return
	}
	if least := tag.Get("min"); least != "" && below(v, bound(v, least)) {
		d.problem(n, path, fmt.Sprintf("%s is %s", base(path), show(text)), "the least is "+least)
	}
	if most := tag.Get("max"); most != "" && below(bound(v, most), v) {
		d.problem(n, path, fmt.Sprintf("%s is %s", base(path), show(text)), "the most is "+most)
	}
}

func (d *decoder) decodeString(n ast.Node, v reflect.Value, path string, tag reflect.StructTag) {
	text, ok := scalarText(n)
	if _, isBool := n.(*ast.BoolNode); isBool {
		ok = false
	}
	if !ok {
		d.wrongType(n, path, "text; put it in quotes if it looks like something else")
		return
	}
	if words := tag.Get("enum"); words != "" {
		valid := strings.Split(words, ",")
		if !slices.Contains(valid, text) {
			d.problem(n, path, fmt.Sprintf("%s is %s", base(path), show(text)), didYouMean("want one of", text, valid))
			return
		}
	}
	if r, found := findReference(text); found && (r.kind == "env" || r.kind == "file") {
		d.problem(n, path, fmt.Sprintf("%s shows up in logs, so ${%s:…} is not read here", base(path), r.kind), "put the secret into a key that keeps it hidden, such as headers, query or value")
		return
	}
	if _, isPath := v.Interface().(Path); isPath {
		if text == "" {
			d.problem(n, path, base(path)+" is empty", "want the path of a file")
			return
		}
		text = d.path(text)
	}
	v.SetString(text)
}

// path makes a path of this file one of the program.
func (d *decoder) path(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(d.dir, p)
}

func (d *decoder) wrongType(n ast.Node, path, want string) {
	d.problem(n, path, fmt.Sprintf("%s is %s", base(path), found(n)), "want "+want)
}

// join is the path of a key.
func join(path, key string) string {
	if !keyForm.MatchString(key) {
		key = "?"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// base names a value in a sentence.
func base(path string) string {
	if path == "" {
		return "the file"
	}
	return strconv.Quote(path[strings.LastIndexByte(path, '.')+1:])
}

// in is " in path", or nothing at the top level.
func in(path string) string {
	if path == "" {
		return ""
	}
	return " in " + path
}
