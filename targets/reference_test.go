package targets

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdline/scrape/auth"
)

// chapters is the order of REFERENCE.md.
var chapters = []struct {
	title string
	typ   reflect.Type
}{
	{"Target file", reflect.TypeFor[File]()},
	{"streams[]", reflect.TypeFor[Stream]()},
	{"streams[].resume", reflect.TypeFor[ResumeBy]()},
	{"streams[].preface", reflect.TypeFor[Preface]()},
	{"streams[].answers.STATUS", reflect.TypeFor[Answer]()},
	{"streams[].reconnect", reflect.TypeFor[Reconnect]()},
	{"streams[].backfill", reflect.TypeFor[Backfill]()},
	{"records[], streams[].records[]", reflect.TypeFor[Entry]()},
	{"records[].map.NAME", reflect.TypeFor[Column]()},
	{"auth", reflect.TypeFor[Auth]()},
	{"auth.stack[]", reflect.TypeFor[Credential]()},
	{"auth.basic", reflect.TypeFor[Basic]()},
	{"auth.cookie_file", reflect.TypeFor[CookieFile]()},
	{"auth.oauth2", reflect.TypeFor[OAuth2]()},
	{"auth.login", reflect.TypeFor[Login]()},
	{"auth.browser", reflect.TypeFor[Browser]()},
	{"auth.browser.steps[]", reflect.TypeFor[Step]()},
	{"auth.browser.steps[].wait", reflect.TypeFor[Wait]()},
	{"proxies", reflect.TypeFor[Proxies]()},
	{"proxies.exits[]", reflect.TypeFor[Exit]()},
	{"limits", reflect.TypeFor[Limits]()},
	{"alerts", reflect.TypeFor[Alerts]()},
	{"sinks[]", reflect.TypeFor[Sink]()},
	{"sinks[].batch", reflect.TypeFor[Batch]()},
	{"sinks[].sqlite", reflect.TypeFor[SQLite]()},
	{"sinks[].postgres", reflect.TypeFor[Postgres]()},
	{"sinks[].jsonl", reflect.TypeFor[JSONL]()},
	{"sinks[].jsonl.rotate", reflect.TypeFor[Rotate]()},
	{"demo", reflect.TypeFor[Demo]()},
	{"demo, kind exchange", reflect.TypeFor[Exchange]()},
	{"scrape.yaml", reflect.TypeFor[Worker]()},
	{"scrape.yaml: pools.NAME", reflect.TypeFor[Pool]()},
	{"scrape.yaml: sinks.NAME", reflect.TypeFor[NamedSink]()},
	{"scrape.yaml: journal", reflect.TypeFor[Journal]()},
}

const preface = `# Keys of target files and of scrape.yaml

<!-- Made from the comments in this package by go test ./targets -update. -->

Files are YAML, read strictly: an unknown key, a doubled key, a value of the
wrong type and a section without a value are errors, and all of them are told
at once. Anchors, aliases and merge keys (` + "`<<`" + `) work.

| type | what to write |
|---|---|
| text | text; numbers are taken as they are written |
| duration | a number with a unit: 250ms, 4s, 1m30s, 24h |
| size | bytes, or a number with a unit: 16MiB, 10GiB, 500KB |
| path | a path; a relative one is relative to the file that it is written in |
| secret | text that is never shown, in which ` + "`${env:NAME}`" + ` stands for an environment variable and ` + "`${file:PATH}`" + ` for the content of a file without its last line break; ` + "`$${`" + ` is a plain ` + "`${`" + ` |
`

func TestReferenceIsUpToDate(t *testing.T) {
	got := describe(t)
	if *update {
		if err := os.WriteFile("REFERENCE.md", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("REFERENCE.md")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Error("REFERENCE.md is out of date: run go test ./targets -update")
	}
}

// TestReferenceIsComplete finds sections that no chapter describes.
func TestReferenceIsComplete(t *testing.T) {
	described := map[reflect.Type]bool{}
	for _, c := range chapters {
		described[c.typ] = true
	}
	for _, c := range chapters {
		for _, f := range fieldsOf(c.typ) {
			typ := f.typ
			for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
				typ = typ.Elem()
			}
			if typ.Kind() == reflect.Struct && len(fieldsOf(typ)) > 0 && !described[typ] {
				t.Errorf("no chapter describes %v, the value of %q", typ, f.name)
			}
			if text, ok := f.tag.Lookup("default"); ok {
				v := reflect.New(f.typ).Elem()
				mustSet(v, text)
				for _, tag := range []string{"min", "max"} {
					if text := f.tag.Get(tag); text != "" {
						bound(v, text)
					}
				}
			}
		}
	}
}

func describe(t *testing.T) string {
	docs := comments(t)
	var b strings.Builder
	b.WriteString(preface)
	for _, c := range chapters {
		doc := docs[c.typ.Name()]
		if doc == "" {
			t.Errorf("%v has no doc comment", c.typ)
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| key | type | default | meaning |\n|---|---|---|---|\n", c.title, doc)
		rows(t, &b, docs, c.typ)
	}
	return b.String()
}

func rows(t *testing.T, b *strings.Builder, docs map[string]string, typ reflect.Type) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		key := f.Tag.Get("yaml")
		if f.Anonymous {
			rows(t, b, docs, f.Type)
			continue
		}
		if key == "" || key == "-" {
			continue
		}
		doc := docs[typ.Name()+"."+f.Name]
		if doc == "" {
			t.Errorf("the key %q (%v.%s) has no doc comment", key, typ, f.Name)
		}
		if limit := f.Tag.Get("min"); limit != "" && limit != "1" && limit != "1ms" && limit != "0" {
			doc += " At least " + limit + "."
		}
		preset := "`" + f.Tag.Get("default") + "`"
		switch {
		case f.Tag.Get("required") != "":
			preset = "required"
		case preset == "``":
			preset = ""
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", key, typeName(f), preset, strings.ReplaceAll(doc, "|", "\\|"))
	}
}

func typeName(f reflect.StructField) string {
	if words := f.Tag.Get("enum"); words != "" {
		return "`" + strings.ReplaceAll(words, ",", "`, `") + "`"
	}
	return nameOf(f.Type)
}

func nameOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Duration]():
		return "duration"
	case reflect.TypeFor[Lag]():
		return "duration or size"
	case reflect.TypeFor[AutoDuration]():
		return "`auto` or duration"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[Path]():
		return "path"
	case reflect.TypeFor[auth.Secret]():
		return "secret"
	case reflect.TypeFor[Demo](), reflect.TypeFor[Answer]():
		return "text or section"
	case reflect.TypeFor[Exit]():
		return "secret or section"
	case reflect.TypeFor[Records]():
		return "section or list of sections"
	case reflect.TypeFor[Columns]():
		return "name → text or section"
	case reflect.TypeFor[Sessions]():
		return "whole number or list of text"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return nameOf(t.Elem())
	case reflect.Slice:
		return "list of " + strings.Replace(nameOf(t.Elem()), "section", "sections", 1)
	case reflect.Map:
		return "name → " + nameOf(t.Elem())
	case reflect.Struct:
		return "section"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "number"
	}
	return "whole number"
}

// comments reads the doc comments of this package's types ("File") and their
// fields ("File.Name"), each as one line.
func comments(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(cmp.Or[error](err, fs.ErrNotExist))
	}
	docs := map[string]string{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			decl, ok := n.(*ast.GenDecl)
			if !ok || decl.Tok != token.TYPE {
				return true
			}
			for _, spec := range decl.Specs {
				typ := spec.(*ast.TypeSpec)
				docs[typ.Name.Name] = oneLine(cmp.Or(typ.Doc, decl.Doc))
				fields, ok := typ.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, f := range fields.Fields.List {
					for _, name := range f.Names {
						docs[typ.Name.Name+"."+name.Name] = oneLine(f.Doc)
					}
				}
			}
			return false
		})
	}
	return docs
}

func oneLine(doc *ast.CommentGroup) string { return strings.Join(strings.Fields(doc.Text()), " ") }
