package targets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	// maxFile is far more than a person writes.
	maxFile = 256 << 10
	// maxDepth is how deep lists and mappings may nest.
	maxDepth = 64
	// maxNodes bounds what aliases of aliases can blow a small file up to.
	maxNodes = 100_000
)

// newDecoder reads the file and returns its only document. The node is nil
// when the decoder already has a problem that leaves nothing to decode.
func newDecoder(path string, o Options) (*decoder, ast.Node) {
	d := &decoder{file: path, dir: filepath.Dir(path), options: o, left: maxNodes}
	text, err := readLimited(path, maxFile)
	if err != nil {
		d.whole(err, "cannot be read: "+reason(err))
		return d, nil
	}
	return d, d.parse(text)
}

// parse reads YAML down to its one document, with every alias resolved.
func (d *decoder) parse(text []byte) ast.Node {
	if !utf8.Valid(text) {
		d.whole(nil, "is not text in UTF-8")
		return nil
	}
	text = []byte(strings.TrimPrefix(string(text), "\ufeff"))
	if line := deepLine(text); line > 0 {
		d.at(&token.Position{Line: line, Column: 1}, "", "lists and mappings are nested too deep here", "close a bracket or a quotation mark that is still open")
		return nil
	}
	file, err := parseYAML(text)
	if err != nil {
		// The library's full text quotes the lines around the place, and its
		// message the rest of a value that begins with | or >.
		if syntax, ok := errors.AsType[*yaml.SyntaxError](err); ok && syntax.Token != nil {
			d.at(syntax.Token.Position, "", "is not YAML: "+quoted.ReplaceAllString(syntax.Message, "***"), "values with special characters need quotes, and lists and mappings the same indentation for all their entries")
		} else {
			d.whole(nil, "is not YAML")
		}
		return nil
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case body == nil:
			body = doc.Body
		default:
			d.problem(doc.Body, "", "a second document begins here", "write one file for each")
			return nil
		}
	}
	if body == nil {
		d.whole(nil, "is empty")
		return nil
	}
	d.aliases = map[*ast.AliasNode]ast.Node{}
	if !d.link(body, map[string]ast.Node{}, 0) {
		return nil
	}
	return body
}

// quoted is a piece of the file, longer than a character, in a message.
var quoted = regexp.MustCompile(`"(\\.|[^"\\]){2,}"`)

// deepLine returns a line at which so many brackets are open, or so many list
// entries begin, that no person can have written it, or 0. The parser's time
// and memory grow with the square of the depth, beyond all measure.
func deepLine(text []byte) int {
	const most = 500
	line, open, entries := 1, 0, 0
	for i, c := range text {
		switch c {
		case '\n':
			line++
			entries = 0
		case '[', '{':
			open++
		case ']', '}':
			open = max(0, open-1)
		case ' ', '\t':
			if i > 0 && (text[i-1] == '-' || text[i-1] == '?') {
				entries++
			}
		}
		if open > most || entries > most {
			return line
		}
	}
	return 0
}

// parseYAML shields the program from the parser, which reads foreign bytes and
// has panicked on some before.
func parseYAML(text []byte) (file *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("YAML parser: %v", r)
		}
	}()
	return parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
}

// link finds what every alias stands for: the anchor of that name that ended
// last before it. It reports false when the document is nested too deep.
func (d *decoder) link(n ast.Node, anchors map[string]ast.Node, depth int) bool {
	if depth > maxDepth {
		d.problem(n, "", fmt.Sprintf("lists and mappings are nested more than %d deep", maxDepth), "")
		return false
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if !d.link(v, anchors, depth+1) {
				return false
			}
		}
	case *ast.MappingValueNode:
		return d.link(n.Key, anchors, depth+1) && d.link(n.Value, anchors, depth+1)
	case *ast.MappingKeyNode:
		return d.link(n.Value, anchors, depth+1)
	case *ast.SequenceNode:
		for _, v := range n.Values {
			if !d.link(v, anchors, depth+1) {
				return false
			}
		}
	case *ast.TagNode:
		return d.link(n.Value, anchors, depth+1)
	case *ast.AnchorNode:
		if !d.link(n.Value, anchors, depth+1) {
			return false
		}
		if n.Name != nil {
			anchors[n.Name.GetToken().Value] = n.Value
		}
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		to, ok := anchors[name]
		if !ok {
			// Not quoted: it may be a password that begins with an asterisk.
			d.problem(n, "", "this alias has no anchor before it", "put the value in quotes if it only begins with an asterisk")
			return true
		}
		d.aliases[n] = to
	}
	return true
}

// resolve strips anchors and tags and follows aliases. It returns nil, with
// the problem reported, where that leads nowhere.
func (d *decoder) resolve(n ast.Node, path string) ast.Node {
	for {
		if d.left--; d.left <= 0 {
			if d.left == 0 {
				d.problem(n, path, fmt.Sprintf("aliases make this file longer than %d values", maxNodes), "")
			}
			return nil
		}
		switch v := n.(type) {
		case *ast.AnchorNode:
			n = v.Value
		case *ast.AliasNode:
			if n = d.aliases[v]; n == nil {
				d.lost++ // link has reported it
			}
		case *ast.TagNode:
			switch v.Start.Value {
			case "!!str", "!!int", "!!float", "!!bool", "!!map", "!!seq":
				n = v.Value
			default:
				// Not quoted: it may be a password that begins with a !.
				d.problem(v, path, "this tag is not known", "put the value in quotes if it only begins with an exclamation mark")
				return nil
			}
		default:
			return n
		}
		if isNil(n) {
			return nil
		}
	}
}

func isNil(n ast.Node) bool {
	return n == nil || reflect.ValueOf(n).Kind() == reflect.Pointer && reflect.ValueOf(n).IsNil()
}

// entry is a key of a mapping with its value.
type entry struct {
	name  string
	key   ast.Node
	value ast.Node
}

// entries lists a mapping's keys, those of merged mappings (<<) after its own.
// It reports doubled keys. ok is false when the node is no mapping.
func (d *decoder) entries(n ast.Node, path string) (list []entry, ok bool) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return nil, false
	}
	seen := map[string]bool{}
	var merged []ast.Node
	for _, v := range values {
		if _, isMerge := v.Key.(*ast.MergeKeyNode); isMerge {
			merged = append(merged, v.Value)
			continue
		}
		key := d.resolve(v.Key, path)
		if explicit, ok := key.(*ast.MappingKeyNode); ok {
			key = d.resolve(explicit.Value, path)
		}
		if key == nil {
			continue
		}
		name, ok := scalarText(key)
		if !ok {
			d.problem(key, path, "this is no key", "write key: value")
			continue
		}
		if seen[name] {
			d.problem(key, join(path, name), fmt.Sprintf("%s stands here for the second time%s", showKey(name), in(path)), "remove one of the two")
			continue
		}
		seen[name] = true
		list = append(list, entry{name, key, v.Value})
	}
	for _, m := range merged {
		for _, e := range d.merged(m, path) {
			if !seen[e.name] {
				seen[e.name] = true
				list = append(list, e)
			}
		}
	}
	return list, true
}

// merged lists the entries that a merge key brings: of a mapping or of a list
// of mappings.
func (d *decoder) merged(n ast.Node, path string) []entry {
	at := n
	if n = d.resolve(n, path); n == nil {
		return nil
	}
	nodes := []ast.Node{n}
	if s, ok := n.(*ast.SequenceNode); ok {
		nodes = s.Values
	}
	var all []entry
	for _, one := range nodes {
		if one = d.resolve(one, path); one == nil {
			continue
		}
		list, ok := d.entries(one, path)
		if !ok {
			d.problem(at, path, "<< merges a mapping, and this is "+found(one), "give it an alias of a mapping, as in <<: *name")
		}
		all = append(all, list...)
	}
	return all
}

// scalarText is the text of a scalar as it was written; null has none.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// found names what stands in the file, without quoting it.
func found(n ast.Node) string {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return n.Token.Value // true or false
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	}
	return "text"
}

// position is where the node begins.
func position(n ast.Node) *token.Position {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return position(m.Values[0].Key)
		}
		return m.Start.Position
	case *ast.MappingValueNode:
		return position(m.Key)
	}
	if t := n.GetToken(); t != nil {
		return t.Position
	}
	return nil
}

// readLimited reads a file of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if info.IsDir() {
		return nil, errors.New("it is a directory")
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("it is longer than %v", Size(limit))
	}
	return text, nil
}

// reason is an error of the file system without the path, which the message
// names already.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}
