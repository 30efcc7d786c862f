package proxies

import (
	"fmt"
	"slices"
	"strings"
)

// form is a template as vendors' documents write theirs: {name} stands for a value, and what stands in [brackets] is left out
// unless each value in it is set. Brackets do not nest. A value may be set and empty: {strict} and {loose} are such marks.
type form []segment

type segment struct {
	optional bool
	parts    []part
}

// part is text, or the name of a value.
type part struct{ text, name string }

// parseForm reads a template.
func parseForm(text string) (form, error) {
	var f form
	for text != "" {
		s := segment{}
		own := text
		if text[0] == '[' {
			end := strings.IndexByte(text, ']')
			if end < 0 {
				return nil, fmt.Errorf("a [ has no ]")
			}
			s.optional, own, text = true, text[1:end], text[end+1:]
		} else if end := strings.IndexByte(text, '['); end >= 0 {
			own, text = text[:end], text[end:]
		} else {
			text = ""
		}
		for own != "" {
			plain, rest, found := strings.Cut(own, "{")
			if plain != "" {
				s.parts = append(s.parts, part{text: plain})
			}
			if !found {
				break
			}
			name, after, closed := strings.Cut(rest, "}")
			if !closed || name == "" {
				return nil, fmt.Errorf("a { has no name or no }")
			}
			s.parts = append(s.parts, part{name: name})
			own = after
		}
		for _, p := range s.parts {
			if strings.ContainsAny(p.text, "[]{}") || strings.ContainsAny(p.name, "[]{}") {
				return nil, fmt.Errorf("brackets and braces do not nest")
			}
		}
		f = append(f, s)
	}
	return f, nil
}

// render fills the template in.
func (f form) render(values map[string]string) string {
	var b strings.Builder
	for _, s := range f {
		if s.optional && !s.complete(values) {
			continue
		}
		for _, p := range s.parts {
			b.WriteString(p.text)
			b.WriteString(values[p.name])
		}
	}
	return b.String()
}

func (s segment) complete(values map[string]string) bool {
	return !slices.ContainsFunc(s.parts, func(p part) bool {
		_, set := values[p.name]
		return p.name != "" && !set
	})
}

// names lists the values that the template knows, and of them those that must be set.
func (f form) names() (all, required []string) {
	for _, s := range f {
		for _, p := range s.parts {
			if p.name == "" {
				continue
			}
			all = append(all, p.name)
			if !s.optional {
				required = append(required, p.name)
			}
		}
	}
	return all, required
}
