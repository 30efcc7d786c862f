package mapping

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/tidwall/gjson"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/holdline/scrape/framework"
)

// schema is a JSON Schema. It reads no file once it is loaded.
type schema struct {
	*jsonschema.Schema
	files *schemaFiles
}

// maxSchema is far more than a person writes.
const maxSchema = 8 << 20

// schemaFiles loads the files of a schema, and nothing from the network.
type schemaFiles struct {
	main  string            // the path that was given
	texts map[string][]byte // by URL
	paths map[string]string // for messages, by URL
}

// Load implements [jsonschema.URLLoader].
func (f *schemaFiles) Load(address string) (any, error) {
	path, err := jsonschema.FileLoader{}.ToFile(address)
	if err != nil {
		return nil, errors.New("it is not a file, and nothing is fetched from the network: save it beside the schema, and refer to the file")
	}
	f.paths[address] = f.beside(path)
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSchema+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxSchema:
		return nil, errors.New("it is longer than 8MiB")
	}
	f.texts[address] = text
	return jsonschema.UnmarshalJSON(bytes.NewReader(text))
}

// beside is the path as seen from where the schema's own is.
func (f *schemaFiles) beside(path string) string {
	if whole, err := filepath.Abs(f.main); err == nil {
		if relative, err := filepath.Rel(filepath.Dir(whole), path); err == nil {
			return filepath.Join(filepath.Dir(f.main), relative)
		}
	}
	return path
}

// loadSchema compiles the schema in a file.
func loadSchema(path string) (*schema, *Problem) {
	s := &schema{files: &schemaFiles{main: path, texts: map[string][]byte{}, paths: map[string]string{}}}
	c := jsonschema.NewCompiler()
	c.UseLoader(s.files)
	var err error
	if s.Schema, err = c.Compile(path); err != nil {
		return nil, s.files.problem(path, err)
	}
	return s, nil
}

// problem says what is wrong with the files, and where.
func (f *schemaFiles) problem(path string, err error) *Problem {
	if load, ok := errors.AsType[*jsonschema.LoadURLError](err); ok {
		at := load.URL
		if p, ok := f.paths[at]; ok {
			at = p
		}
		text := f.texts[load.URL]
		var whole json.RawMessage
		if syntax, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(text, &whole)); ok && text != nil {
			return &Problem{Message: fmt.Sprintf("%s is not JSON: %v", place(at, text, syntax.Offset-1), syntax)}
		}
		cause := load.Err
		if p, ok := errors.AsType[*fs.PathError](cause); ok {
			cause = p.Err
		}
		return &Problem{Message: fmt.Sprintf("the schema %s cannot be read: %v", at, cause)}
	}
	if invalid, ok := errors.AsType[*jsonschema.SchemaValidationError](err); ok {
		address, _, _ := strings.Cut(invalid.URL, "#")
		if e, ok := errors.AsType[*jsonschema.ValidationError](invalid.Err); ok {
			e, _ = deepest(e)
			_, at, _ := locate(f.texts[address], e.InstanceLocation)
			return &Problem{Message: fmt.Sprintf("%s is not a JSON Schema: %s", place(f.paths[address], f.texts[address], at), describe(e))}
		}
	}
	message := err.Error()
	for address, path := range f.paths {
		message = strings.ReplaceAll(message, address, path)
	}
	return &Problem{Message: fmt.Sprintf("the schema %s does not compile: %s", path, message)}
}

// place is "file:line:column" of an offset.
func place(path string, text []byte, offset int64) string {
	before := text[:min(max(offset, 0), int64(len(text)))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf("%s:%d:%d", path, line, column)
}

// locate is the value at a JSON pointer, or the last one on the way to it, and
// the offset where it begins.
func locate(text []byte, pointer []string) (v gjson.Result, at int64, ok bool) {
	s := string(text)
	v = gjson.Parse(s)
	at = int64(strings.Index(s, v.Raw))
	for _, key := range pointer {
		var found gjson.Result
		n, inside := 0, 0
		v.ForEach(func(k, value gjson.Result) bool {
			if v.IsObject() && k.Str == key || v.IsArray() && strconv.Itoa(n) == key {
				found, inside = value, value.Index-v.Index
				return false
			}
			n++
			return true
		})
		if found.Raw == "" {
			return v, at, false
		}
		at, v = at+int64(inside), found
	}
	return v, at, true
}

// maxDigits is how long a number may be that a schema is applied to, and how
// far its exponent may shift it: the library writes it out in full.
const maxDigits = 400

// validate tells what the schema does not allow in the value.
func (s *schema) validate(v gjson.Result) error {
	long := ""
	x := toAny(v, func(raw string) any {
		if !short(raw) {
			long = raw
		}
		return json.Number(raw)
	})
	if long != "" {
		return fmt.Errorf("the number %s is too long for a schema", excerpt(long))
	}
	err := s.Validate(x)
	if e, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		first, more := deepest(e)
		text := "the schema does not allow it: " + describe(first)
		if more > 0 {
			text += fmt.Sprintf(" (and %d more)", more)
		}
		return errors.New(text)
	}
	return err
}

// short tells whether a number keeps to maxDigits.
func short(raw string) bool {
	if len(raw) > maxDigits {
		return false
	}
	at := strings.IndexAny(raw, "eE")
	if at < 0 {
		return true
	}
	n, err := strconv.Atoi(raw[at+1:])
	return err == nil && n >= -maxDigits && n <= maxDigits
}

// deepest is the first of the causes that have no cause of their own, and how
// many more there are.
func deepest(e *jsonschema.ValidationError) (first *jsonschema.ValidationError, more int) {
	if len(e.Causes) == 0 {
		return e, 0
	}
	first, more = deepest(e.Causes[0])
	for _, c := range e.Causes[1:] {
		_, n := deepest(c)
		more += n + 1
	}
	return first, more
}

var english = message.NewPrinter(language.English)

func describe(e *jsonschema.ValidationError) string {
	at := "/" + strings.Join(e.InstanceLocation, "/")
	if len(e.InstanceLocation) == 0 {
		at = "the whole"
	}
	return at + ": " + e.ErrorKind.LocalizedString(english)
}

// resolved follows the references of a schema as far as they lead to one.
func resolved(s *jsonschema.Schema) *jsonschema.Schema {
	for range 32 {
		switch {
		case s == nil:
			return nil
		case s.Ref != nil && s.Types == nil && len(s.Properties) == 0:
			s = s.Ref
		case len(s.AllOf) == 1 && s.Types == nil && len(s.Properties) == 0:
			s = s.AllOf[0]
		default:
			return s
		}
	}
	return s
}

// child is the schema of a key or an entry, nil where none is known.
func child(s *jsonschema.Schema, at step) *jsonschema.Schema {
	if s = resolved(s); s == nil {
		return nil
	}
	if at.index < 0 {
		return s.Properties[at.key]
	}
	if at.index < len(s.PrefixItems) {
		return s.PrefixItems[at.index]
	}
	if items, ok := s.Items.(*jsonschema.Schema); ok {
		return items
	}
	return s.Items2020
}

// typeAt is the type that the schema gives the value at the steps, or nothing.
func (s *schema) typeAt(steps []step) framework.ColumnType {
	at := s.Schema
	for _, one := range steps {
		if at = child(at, one); at == nil {
			return ""
		}
	}
	typ, _ := s.typeOf(at)
	return typ
}

// typeOf is the column type of a schema's values, if it is one, and whether
// they may be null.
func (s *schema) typeOf(of *jsonschema.Schema) (typ framework.ColumnType, null bool) {
	if of = resolved(of); of == nil || of.Types == nil {
		return "", true
	}
	var types []string
	for _, t := range of.Types.ToStrings() {
		if t == "null" {
			null = true
		} else {
			types = append(types, t)
		}
	}
	slices.Sort(types)
	switch strings.Join(types, " ") {
	case "string":
		if format, _, ok := s.part(of, "format"); ok && format.Str == "date-time" {
			return framework.ColumnTime, null
		}
		return framework.ColumnText, null
	case "integer":
		return framework.ColumnInteger, null
	case "number", "integer number":
		return framework.ColumnNumber, null
	case "boolean":
		return framework.ColumnBoolean, null
	case "object", "array", "array object":
		return framework.ColumnJSON, null
	}
	return "", null
}

// columns are the top-level properties, in the order of the file.
func (s *schema) columns() []Column {
	top := resolved(s.Schema)
	names := slices.Sorted(maps.Keys(top.Properties))
	place := map[string]int64{}
	for _, name := range names {
		_, place[name], _ = s.part(top, "properties", name)
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(place[a], place[b]) })
	var columns []Column
	for _, name := range names {
		typ, null := s.typeOf(top.Properties[name])
		columns = append(columns, Column{
			Name: name, Type: typ,
			Required: !null && slices.Contains(top.Required, name),
		})
	}
	return columns
}

// part is something that stands in a schema, and where in its file: what the
// library does not keep.
func (s *schema) part(of *jsonschema.Schema, keys ...string) (v gjson.Result, at int64, ok bool) {
	address, fragment, _ := strings.Cut(of.Location, "#")
	var pointer []string
	for key := range strings.SplitSeq(strings.TrimPrefix(fragment, "/"), "/") {
		if key, err := url.PathUnescape(key); err == nil && key != "" {
			pointer = append(pointer, strings.NewReplacer("~1", "/", "~0", "~").Replace(key))
		}
	}
	return locate(s.files.texts[address], append(pointer, keys...))
}

// lacks reports a path that the schema does not allow to be there.
func (s *schema) lacks(steps []step) *Problem {
	if s == nil {
		return nil
	}
	at := s.Schema
	for _, one := range steps {
		at = resolved(at)
		if at == nil {
			return nil
		}
		next := child(at, one)
		if closed, ok := at.AdditionalProperties.(bool); next == nil && one.index < 0 && ok && !closed && len(at.PatternProperties) == 0 {
			return &Problem{Message: fmt.Sprintf("the schema knows no property %q", one.key), Name: one.key, What: "its properties", Valid: slices.Sorted(maps.Keys(at.Properties))}
		}
		at = next
	}
	return nil
}
