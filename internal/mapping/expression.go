package mapping

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"
)

// step is a key of an object, or an index of a list where key is empty and
// index is not negative.
type step struct {
	key   string
	index int
}

// path leads from a root, such as "this", to a value.
type path struct {
	root  string
	steps []step
}

// String is how the path may be written; expressions know its value by it.
func (p path) String() string {
	var b strings.Builder
	b.WriteString(p.root)
	for _, s := range p.steps {
		switch {
		case s.index >= 0:
			fmt.Fprintf(&b, "[%d]", s.index)
		case plain(s.key):
			b.WriteString("." + s.key)
		default:
			fmt.Fprintf(&b, "[%q]", s.key)
		}
	}
	return b.String()
}

// plain tells whether a key can stand after a dot.
func plain(key string) bool {
	for i, r := range key {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return key != ""
}

func (p path) to(s step) path { return path{p.root, append(slices.Clone(p.steps), s)} }

// expression is compiled. It is either a path alone, whose value is taken as
// it is, or a program over the values of paths.
type expression struct {
	path    *path
	program *vm.Program
	uses    []path
	result  reflect.Type // what a program is known to result in, or an interface
}

// roots resolves the names of an expression.
type roots interface {
	// name is what a bare name stands for.
	name(name string) (path, *Problem)
	// member is what the step leads to. ok is false where that is known only
	// while the expression runs.
	member(p path, s step) (to path, ok bool, problem *Problem)
	// whole reports a root that is no value by itself.
	whole(root string) *Problem
}

// impure are functions whose results are not the same every time, or in no
// certain order: an event that is delivered again must make the same records.
var impure = []string{"now", "keys", "values", "toPairs"}

// compile compiles an expression.
func compile(source string, names roots) (*expression, *Problem) {
	if strings.TrimSpace(source) == "" {
		return nil, &Problem{Message: "the expression is empty", Remedy: "write a field such as price, or remove the key"}
	}
	v := &resolver{roots: names, paths: map[string]path{}, lets: map[string]bool{}}
	if tree, err := parser.Parse(source); err == nil {
		ast.Walk(&tree.Node, (*declared)(v))
	}
	options := []expr.Option{expr.Env(map[string]any{}), expr.AllowUndefinedVariables(), expr.Patch(v)}
	for _, name := range impure {
		options = append(options, expr.DisableBuiltin(name))
	}
	program, err := expr.Compile(source, options...)
	if v.problem != nil {
		return nil, v.problem
	}
	if err != nil {
		return nil, &Problem{Message: "the expression does not compile: " + brief(err)}
	}
	e := &expression{program: program, result: program.Node().Type()}
	used := &gathered{}
	node := program.Node()
	ast.Walk(&node, used)
	for _, name := range used.list {
		if p, ok := v.paths[name]; ok {
			e.uses = append(e.uses, p)
			if problem := names.whole(name); problem != nil {
				return nil, problem
			}
		}
	}
	if id, ok := node.(*ast.IdentifierNode); ok && len(e.uses) == 1 && e.uses[0].String() == id.Value {
		e.path, e.program = &e.uses[0], nil
	}
	return e, nil
}

// brief is an error of the library as one line, with the character where it
// arose.
func brief(err error) string {
	if f, ok := errors.AsType[*file.Error](err); ok {
		where := ""
		if f.Snippet != "" && f.Line > 1 {
			where = fmt.Sprintf(" at line %d, character %d", f.Line, f.Column+1)
		} else if f.Snippet != "" {
			where = fmt.Sprintf(" at character %d", f.Column+1)
		}
		return strings.Replace(f.Message, "unexpected token EOF", "it ends too soon", 1) + where
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}

// declared gathers the names that `let` declares.
type declared resolver

func (d *declared) Visit(n *ast.Node) {
	if v, ok := (*n).(*ast.VariableDeclaratorNode); ok {
		d.lets[v.Name] = true
	}
}

// gathered gathers the names of an expression, each once.
type gathered struct{ list []string }

func (l *gathered) Visit(n *ast.Node) {
	if v, ok := (*n).(*ast.IdentifierNode); ok && !slices.Contains(l.list, v.Value) {
		l.list = append(l.list, v.Value)
	}
}

// resolver puts one name in the place of each path, so that only what the
// expression reads has to be decoded, and what is not there is nil.
type resolver struct {
	roots
	paths   map[string]path
	lets    map[string]bool
	problem *Problem // the first one
	of      string   // the path that has it
}

// Visit is called for the parts of an expression before the whole.
func (r *resolver) Visit(n *ast.Node) {
	switch v := (*n).(type) {
	case *ast.IdentifierNode:
		if !r.lets[v.Value] {
			p, problem := r.name(v.Value)
			r.put(n, p, problem)
		}
	case *ast.MemberNode:
		p, ok := r.path(v.Node)
		if !ok {
			return
		}
		var s step
		switch key := v.Property.(type) {
		case *ast.StringNode:
			s = step{key.Value, -1}
		case *ast.IntegerNode:
			s = step{"", key.Value}
		default:
			return
		}
		if to, ok, problem := r.member(p, s); ok || problem != nil {
			r.put(n, to, problem)
		}
	case *ast.ChainNode:
		if _, ok := r.path(v.Node); ok {
			*n = v.Node
		}
	case *ast.CallNode:
		p, ok := r.path(v.Callee)
		if !ok {
			return
		}
		name := p.root
		if len(p.steps) > 0 {
			name = p.steps[len(p.steps)-1].key
		}
		if r.of == p.String() { // as a name it is wrong, too
			r.problem = nil
		}
		problem := &Problem{Message: fmt.Sprintf("there is no function %q", name), Name: name, What: "functions", Valid: functions()}
		if slices.Contains(impure, name) {
			problem = &Problem{Message: fmt.Sprintf("the function %q is not there, since its result is not always the same", name)}
			if problem.Remedy = "name the fields one by one"; name == "now" {
				problem.Remedy = "event.time is when the event came"
			}
		}
		r.put(n, p, problem)
	}
}

func (r *resolver) path(n ast.Node) (path, bool) {
	id, ok := n.(*ast.IdentifierNode)
	if !ok || r.lets[id.Value] {
		return path{}, false
	}
	p, ok := r.paths[id.Value]
	return p, ok
}

// put replaces the node by the path.
func (r *resolver) put(n *ast.Node, p path, problem *Problem) {
	if problem != nil && r.problem == nil {
		problem.Message += " at character " + strconv.Itoa((*n).Location().From+1)
		r.problem, r.of = problem, p.String()
	}
	r.paths[p.String()] = p
	ast.Patch(n, &ast.IdentifierNode{Value: p.String()})
}

func functions() []string {
	return slices.DeleteFunc(slices.Sorted(slices.Values(builtin.Names)), func(name string) bool { return slices.Contains(impure, name) })
}
