// Package template fills texts such as "Bearer ${json:access_token}" with what
// a login brought. Its main function is [Expand]. It knows nothing of where the
// values come from.
package template

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var reference = regexp.MustCompile(`\$\{([^}]*)\}`)

// References lists kind and name of every ${kind:name} in text. A reference of
// another kind than those given is an error, which quotes nothing else of text.
func References(text string, kinds ...string) (refs [][2]string, err error) {
	for _, match := range reference.FindAllStringSubmatch(text, -1) {
		kind, name, _ := strings.Cut(match[1], ":")
		if name == "" || !slices.Contains(kinds, kind) {
			return nil, fmt.Errorf("%s is none of ${%s:NAME}", match[0], strings.Join(kinds, ":NAME}, ${"))
		}
		refs = append(refs, [2]string{kind, name})
	}
	return refs, nil
}

// Expand puts what value returns in the place of every reference of text. The
// first error of value ends it.
func Expand(text string, value func(kind, name string) (string, error)) (string, error) {
	var first error
	filled := reference.ReplaceAllStringFunc(text, func(match string) string {
		kind, name, _ := strings.Cut(match[2:len(match)-1], ":")
		v, err := value(kind, name)
		if err != nil && first == nil {
			first = err
		}
		return v
	})
	if first != nil {
		return "", first
	}
	return filled, nil
}
