package targets

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
)

// setText reads a scalar in the form that a file or a default tag holds. kind
// is "number" or "bool" for text that YAML takes for one, and empty for other
// text.
func setText(v reflect.Value, text, kind string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
		return nil
	case reflect.Bool:
		if kind == "bool" {
			v.SetBool(text == "true")
			return nil
		}
	case reflect.Int, reflect.Int64:
		if x, err := strconv.ParseInt(text, 10, 64); err == nil && kind == "number" {
			v.SetInt(x)
			return nil
		}
	case reflect.Uint64:
		if x, err := strconv.ParseUint(text, 10, 64); err == nil && kind == "number" {
			v.SetUint(x)
			return nil
		}
	case reflect.Float64:
		if x, err := strconv.ParseFloat(text, 64); err == nil && kind == "number" && !math.IsInf(x, 0) {
			v.SetFloat(x)
			return nil
		}
	default:
		panic(fmt.Sprintf("targets: no way to read a %v", v.Type()))
	}
	return errors.ErrUnsupported
}

// wanted says what a value of the type looks like.
func wanted(v reflect.Value) string {
	switch v.Interface().(type) {
	case Duration:
		return errDuration.Error()
	case Size:
		return errSize.Error()
	case Lag:
		return errLag.Error()
	}
	switch v.Kind() {
	case reflect.Bool:
		return "want true or false, without quotes"
	case reflect.Float64:
		return "want a number such as 0.5, without quotes"
	}
	return "want a whole number such as 8, without quotes"
}

// bound is the number, duration or size of a min or max tag.
func bound(v reflect.Value, text string) reflect.Value {
	b := reflect.New(v.Type()).Elem()
	mustSet(b, text)
	return b
}

func below(a, b reflect.Value) bool {
	switch {
	case a.CanInt():
		return a.Int() < b.Int()
	case a.CanUint():
		return a.Uint() < b.Uint()
	}
	return a.Float() < b.Float()
}

// mustSet reads what a struct tag holds.
func mustSet(v reflect.Value, text string) {
	kind := "number"
	if v.Kind() == reflect.Bool {
		kind = "bool"
	}
	if err := setText(v, text, kind); err != nil {
		panic(fmt.Sprintf("targets: %v: bad tag %q: %v", v.Type(), text, err))
	}
}

// setDefaults gives v what its default tags say, sections inside it included.
// Optional sections (pointers) stay nil.
func setDefaults(v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	for _, f := range fieldsOf(v.Type()) {
		to := v.FieldByIndex(f.index)
		if text, ok := f.tag.Lookup("default"); ok {
			mustSet(to, text)
			continue
		}
		setDefaults(to)
	}
}

// field is a key that a struct reads.
type field struct {
	name  string
	index []int
	tag   reflect.StructTag
	typ   reflect.Type
}

// fieldsOf lists the keys of a struct in the order of its fields. A field
// without a yaml tag is none; an embedded one is read in place.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("yaml")
		switch {
		case f.Anonymous && name == ",inline":
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				fields = append(fields, inner)
			}
		case name != "" && name != "-":
			fields = append(fields, field{name, []int{i}, f.Tag, f.Type})
		}
	}
	return fields
}

func names(fields []field) []string {
	var list []string
	for _, f := range fields {
		list = append(list, f.name)
	}
	return list
}

// elsewhere lists the sections of the file that know the key.
func elsewhere(root reflect.Type, key string) []string {
	var places []string
	var look func(t reflect.Type, path string)
	look = func(t reflect.Type, path string) {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Slice:
			look(t.Elem(), path+"[]")
		case reflect.Map:
			look(t.Elem(), join(path, "NAME"))
		case reflect.Struct:
			for _, f := range fieldsOf(t) {
				if f.name == key {
					place := cmp.Or(path, "the top level")
					if !slices.Contains(places, place) {
						places = append(places, place)
					}
				}
				look(f.typ, join(path, f.name))
			}
		}
	}
	look(root, "")
	return places
}
