package targets

import (
	"reflect"
	"slices"

	"github.com/goccy/go-yaml/ast"
)

// Worker is scrape.yaml, the optional file for what the targets of a worker
// share. Target files refer to its parts by name.
type Worker struct {
	// Named lists of exits, for `proxies: {pool: NAME}` in target files. What
	// is capped is capped over all targets that use the pool.
	Pools map[string]*Pool `yaml:"pools"`
	// Named sinks, for `use: NAME` in target files. Each target that uses one
	// delivers under an id of its own.
	Sinks map[string]*NamedSink `yaml:"sinks"`
	// The journal, which every event passes through on its way to the sinks.
	Journal Journal `yaml:"journal"`
	// Who is told what needs a person, of all targets.
	Alerts *Alerts `yaml:"alerts"`

	// Path is the file itself, as it was given; empty when there is none.
	Path string `yaml:"-"`
}

// NewWorker is what a worker without a scrape.yaml has: the defaults.
func NewWorker() *Worker {
	w := &Worker{}
	setDefaults(reflect.ValueOf(w).Elem())
	return w
}

func (w *Worker) check(s *section) {
	for key, names := range map[string][]string{"pools": keysOf(w.Pools), "sinks": keysOf(w.Sinks)} {
		for _, name := range names {
			if !nameForm.MatchString(name) {
				s.wrong(key, show(name)+" cannot be a name in "+key, nameRemedy)
			}
		}
	}
	w.Path = s.d.file
}

// Pool is a named list of exits.
type Pool struct {
	Exits `yaml:",inline"`
}

func (p *Pool) check(s *section) {
	if !slices.ContainsFunc(sources, s.has) {
		s.wrong("", `"exits" is missing`+in(s.path), "list at least one, or write file: or provider:")
		return
	}
	p.checkExits(s)
}

// NamedSink is a sink that several targets use: exactly one kind of sink, as
// in a target file.
type NamedSink struct {
	// How records are gathered, where the target says nothing else.
	Batch Batch `yaml:"batch"`

	// Kind is the kind of sink.
	Kind string `yaml:"-"`
	// Plan is what the kind understood.
	Plan SinkPlan `yaml:"-"`

	settings any // what the kind read
}

func (n *NamedSink) decodeNode(d *decoder, node ast.Node, path string) {
	s := Sink{Batch: n.Batch}
	s.decode(d, node, path, false)
	n.Batch, n.Kind, n.Plan, n.settings = s.Batch, s.Kind, s.Plan, s.settings
}

// Journal says where the journal lies and how much it keeps.
type Journal struct {
	// Its directory. Without this key it lies in the data directory.
	Dir Path `yaml:"dir"`
	// How long events are kept that all sinks have.
	Retain Duration `yaml:"retain" default:"24h" min:"1s"`
	// How many bytes of them are kept.
	RetainBytes Size `yaml:"retain_bytes" default:"10GiB" min:"1"`
	// How many bytes the journal takes altogether. What all sinks have goes
	// first; when_full says what happens when sinks have not read the rest.
	// Without this key: three quarters of what it takes and what is free on
	// its disk together.
	MaxBytes Size `yaml:"max_bytes" min:"16MiB"`
	// What happens when the journal is full because a sink is that far behind,
	// since its destination is down or slow. `block`: the streams of that
	// sink are not read until it has caught up; other streams go on, and if
	// they fill a quarter more, the sink is detached. `detach_sink`: the sink
	// furthest behind is detached: nothing is kept for it any more, and it has
	// to begin anew with --restart-sink. `drop_oldest`: the oldest events are
	// dropped; the sink goes on after them, and the ledger names what it lost.
	WhenFull string `yaml:"when_full" default:"block" enum:"block,detach_sink,drop_oldest"`
	// When an event counts as kept. `always`: once it is on the disk; a power
	// cut loses nothing. `every_second`: once the operating system has it; a
	// crash of the program loses nothing, a power cut loses the last second.
	Durability string `yaml:"durability" default:"always" enum:"always,every_second"`
}
