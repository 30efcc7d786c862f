package main

import (
	"encoding/json"
	"strconv"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/targets"
)

// halved is sse whose records, made of numbers, have columns.
func halved(f *targets.File, decode func(any) error) (framework.Target, error) {
	var t halvedTarget
	if err := decode(&t); err != nil {
		return nil, err
	}
	var err error
	t.Target, err = targets.SSE(f, func(any) error { return nil })
	return &t, err
}

type halvedTarget struct {
	framework.Target `yaml:"-"`
	// Note is the name of one more column.
	Note string `yaml:"note"`
}

func (h *halvedTarget) Columns(string) []framework.Column {
	columns := []framework.Column{
		{Name: "number", Type: framework.ColumnInteger, Required: true}, {Name: "half", Type: framework.ColumnNumber, Required: true},
	}
	if h.Note != "" {
		columns = append(columns, framework.Column{Name: h.Note, Type: framework.ColumnText})
	}
	return columns
}

func (h *halvedTarget) Decode(_ string, ev *framework.Event, emit func(framework.Record)) error {
	n, err := strconv.ParseInt(string(ev.ID), 10, 64)
	if err != nil {
		return err
	}
	half := strconv.FormatInt(n/2, 10) + ".00"
	if n%2 > 0 {
		half = strconv.FormatInt(n/2, 10) + ".50"
	}
	values := []any{n, json.Number(half)}
	if h.Note != "" {
		values = append(values, "note")
	}
	emit(framework.Record{Data: []byte(half), Values: values})
	return nil
}
