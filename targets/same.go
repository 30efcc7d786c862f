package targets

import (
	"reflect"
	"slices"

	"github.com/holdline/scrape/auth"
)

// Same tells whether two values of this package, read from files, say the same,
// with every default in place and every reference followed: a secret that has
// become another one, or a file with a body, makes a difference. Nothing of
// them is shown. Places in files make none, nor does what was made of the
// values, such as [SinkPlan].
func Same(a, b any) bool { return same(reflect.ValueOf(a), reflect.ValueOf(b)) }

var secretType = reflect.TypeFor[auth.Secret]()

func same(a, b reflect.Value) bool {
	if !a.IsValid() || !b.IsValid() {
		return a.IsValid() == b.IsValid()
	}
	if a.Type() != b.Type() {
		return false
	}
	switch a.Kind() {
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return same(a.Elem(), b.Elem())
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for _, k := range a.MapKeys() {
			if !b.MapIndex(k).IsValid() || !same(a.MapIndex(k), b.MapIndex(k)) {
				return false
			}
		}
		return true
	case reflect.Struct:
		return sameStruct(a, b)
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return true // made of what the files say
	}
	return a.Equal(b)
}

func sameStruct(a, b reflect.Value) bool {
	if a.Type() == secretType {
		return a.Field(0).IsNil() == b.Field(0).IsNil() && (a.Field(0).IsNil() || a.Field(0).Elem().Equal(b.Field(0).Elem()))
	}
	for i := range a.NumField() {
		f := a.Type().Field(i)
		kept := f.IsExported() && f.Tag.Get("yaml") != "-"
		if f.PkgPath != "" { // what a file says and no key holds
			kept = f.Type.Kind() == reflect.String || f.Name == "settings" || f.Anonymous
		}
		if kept && !same(a.Field(i), b.Field(i)) {
			return false
		}
	}
	return true
}

// SamePlugin tells whether two files name one plugin, with the same options.
func (f *File) SamePlugin(other *File) bool {
	return f.Plugin == other.Plugin && Same(f.settings, other.settings)
}

// SameRecords tells whether the records of a stream are made in the same way in
// two files. Where a schema is in use nobody knows: it may refer to any number
// of files.
func (f *File) SameRecords(st *Stream, other *File, its *Stream) bool {
	mine, theirs := f.recordsOf(st), other.recordsOf(its)
	if mine != nil && slices.ContainsFunc(mine.Entries, func(e Entry) bool { return e.Schema != "" }) {
		return false
	}
	return Same(mine, theirs)
}

// recordsOf are the stream's own records, or those of the target.
func (f *File) recordsOf(st *Stream) *Records {
	if st.Records != nil {
		return st.Records
	}
	return f.Records
}
