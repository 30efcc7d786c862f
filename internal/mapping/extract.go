package mapping

import (
	"strconv"

	"github.com/tidwall/gjson"
)

// tree is what is to be found in a JSON value, gathered in one pass: of keys
// that stand there twice the last one counts, as in most readers of JSON.
type tree struct {
	slot  int // of the value itself; -1 where only parts of it are wanted
	keys  []branch
	items []branch
}

type branch struct {
	step
	to *tree
}

func newTree() *tree { return &tree{slot: -1} }

// at is the part of the tree at the steps, made where it is missing.
func (t *tree) at(steps []step) *tree {
	for _, s := range steps {
		list := &t.keys
		if s.index >= 0 {
			list = &t.items
		}
		t = find(list, s)
	}
	return t
}

func find(list *[]branch, s step) *tree {
	for _, b := range *list {
		if b.step == s {
			return b.to
		}
	}
	to := newTree()
	*list = append(*list, branch{s, to})
	return to
}

// fill finds the values; those of slots that are not there stay as they are.
func (t *tree) fill(v gjson.Result, values []gjson.Result) {
	if t.slot >= 0 {
		values[t.slot] = v
	}
	if len(t.keys) > 0 && v.IsObject() {
		v.ForEach(func(key, value gjson.Result) bool {
			for i := range t.keys {
				if b := &t.keys[i]; b.key == key.Str {
					b.to.clear(values)
					b.to.fill(value, values)
					break
				}
			}
			return true
		})
	}
	if len(t.items) > 0 && v.IsArray() {
		n := 0
		v.ForEach(func(_, value gjson.Result) bool {
			for i := range t.items {
				if b := &t.items[i]; b.index == n {
					b.to.fill(value, values)
					break
				}
			}
			n++
			return true
		})
	}
}

// clear forgets what a key that stands there again has brought before.
func (t *tree) clear(values []gjson.Result) {
	for _, list := range [][]branch{t.keys, t.items} {
		for _, b := range list {
			if b.to.slot >= 0 {
				values[b.to.slot] = gjson.Result{}
			}
			b.to.clear(values)
		}
	}
}

// missing tells whether there is no value, or null.
func missing(v *gjson.Result) bool { return v.Type == gjson.Null }

// toAny is a JSON value as plain Go values; its numbers are what the function
// number makes of their digits.
func toAny(v gjson.Result, number func(raw string) any) any {
	switch v.Type {
	case gjson.String:
		return v.Str
	case gjson.Number:
		return number(v.Raw)
	case gjson.True:
		return true
	case gjson.False:
		return false
	case gjson.Null:
		return nil
	}
	if v.IsArray() {
		list := []any{}
		v.ForEach(func(_, value gjson.Result) bool {
			list = append(list, toAny(value, number))
			return true
		})
		return list
	}
	object := map[string]any{}
	v.ForEach(func(key, value gjson.Result) bool {
		object[key.Str] = toAny(value, number)
		return true
	})
	return object
}

// computable is a number to compute with.
func computable(raw string) any {
	if n, err := strconv.Atoi(raw); err == nil {
		return n
	}
	f, _ := strconv.ParseFloat(raw, 64) // what is too large is infinite
	return f
}
