package targets

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
)

// maxSecret is far more than a token or a key.
const maxSecret = 64 << 10

var (
	envForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	kindForm = regexp.MustCompile(`^[a-z]{1,12}$`)
)

// reference is one ${kind:name} in a text.
type reference struct {
	kind, name string
	start, end int
}

// findReference finds the first reference. "$${" is a literal "${".
func findReference(text string) (r reference, ok bool) {
	for from := 0; ; {
		i := strings.Index(text[from:], "${")
		if i < 0 {
			return r, false
		}
		i += from
		if i > 0 && text[i-1] == '$' {
			from = i + 2
			continue
		}
		r.start, r.end = i, len(text)
		inner := text[i+2:]
		if end := strings.IndexByte(inner, '}'); end >= 0 {
			inner, r.end = inner[:end], i+2+end+1
		}
		r.kind, r.name, _ = strings.Cut(inner, ":")
		return r, true
	}
}

// expand replaces the references to secrets in text. References of the kinds
// in late are left as they stand for whoever knows them later. encode, if not
// nil, may change a secret; it is told what follows it in the text. ok is
// false when a reference led nowhere, which has been reported.
func (d *decoder) expand(n ast.Node, text, path string, late []string, encode func(secret, rest string) string) (value string, ok bool) {
	ok = true
	if len(late) > 0 && strings.Contains(text, "$${") {
		d.problem(n, path, base(path)+": there can be no plain ${ here", "remove the $${")
		return "", false
	}
	var b strings.Builder
	for rest := text; ; {
		r, found := findReference(rest)
		if !found {
			b.WriteString(strings.ReplaceAll(rest, "$${", "${"))
			return b.String(), ok
		}
		b.WriteString(strings.ReplaceAll(rest[:r.start], "$${", "${"))
		whole := rest[r.start:r.end]
		rest = rest[r.end:]
		if slices.Contains(late, r.kind) && r.name != "" && strings.HasSuffix(whole, "}") {
			b.WriteString(whole)
			continue
		}
		secret, message, remedy := d.secret(whole, r, late)
		if message != "" {
			d.problem(n, path, fmt.Sprintf("%s: %s", base(path), message), remedy)
			ok = false
			continue
		}
		if len(late) > 0 && strings.Contains(secret, "${") {
			d.problem(n, path, base(path)+": the secret of a reference holds a ${, which would be taken for another reference", "such a secret cannot be sent in this header")
			ok = false
		}
		d.secrets = append(d.secrets, secret)
		if encode != nil {
			secret = encode(secret, rest)
		}
		b.WriteString(secret)
	}
}

// secret looks a reference up. Messages hold the reference and never what it
// led to.
func (d *decoder) secret(whole string, r reference, late []string) (value, message, remedy string) {
	switch {
	case !strings.HasSuffix(whole, "}"):
		return "", "a reference that begins with ${ has no closing brace", "write ${env:NAME} or ${file:PATH}; write $${ for a plain ${"
	case r.kind == "env" && envForm.MatchString(r.name):
		value, found := d.options.getenv(r.name)
		switch {
		case !found:
			return "", "the environment variable " + r.name + " is not set", "set it before the start, as in " + r.name + "=… scrape run " + d.file
		case value == "":
			return "", "the environment variable " + r.name + " is empty", "give it a value, or remove the reference"
		}
		return value, "", ""
	case r.kind == "file" && r.name != "":
		text, err := readLimited(d.path(r.name), maxSecret)
		if err != nil {
			return "", fmt.Sprintf("the file %s with the secret cannot be read: %s", d.path(r.name), reason(err)), "relative paths are relative to " + d.file
		}
		value = strings.TrimRight(string(text), "\r\n")
		switch {
		case value == "":
			return "", fmt.Sprintf("the file %s with the secret is empty", d.path(r.name)), ""
		case !utf8.ValidString(value):
			return "", fmt.Sprintf("the file %s with the secret is not text in UTF-8", d.path(r.name)), ""
		}
		return value, "", ""
	}
	kinds := append([]string{"env", "file"}, late...)
	remedy = "write ${" + strings.Join(kinds, ":…} or ${") + ":…}; write $${ for a plain ${"
	// What is no reference may be a password with a ${ in it: it is quoted only
	// where it looks like a reference.
	switch {
	case r.name == "" && envForm.MatchString(r.kind) && strings.ToUpper(r.kind) == r.kind:
		return "", "a reference has no kind", "did you mean ${env:" + r.kind + "}?"
	case r.name == "" || slices.Contains(kinds, r.kind):
		return "", "a reference needs a kind and a name", remedy
	case kindForm.MatchString(r.kind):
		if near := nearest(r.kind, kinds); near != "" {
			remedy = "did you mean ${" + near + ":…}?"
		}
		return "", "${" + r.kind + ":…} is not known here", remedy
	}
	return "", "a reference is not known here", remedy
}

// hide blanks the secrets of this file in text that others wrote.
func (d *decoder) hide(text string) string {
	for _, s := range d.secrets {
		if len(s) < 3 {
			continue // nobody's secret, and part of every word
		}
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s), fmt.Sprintf("%q", s)} {
			text = strings.ReplaceAll(text, form, "***")
		}
	}
	return text
}
