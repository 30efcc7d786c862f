package targets

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a file. It never holds a secret.
type Problem struct {
	// File is the path as it was given.
	File string
	// Line and Column count from 1, columns in characters. Line is 0 when the
	// problem is the file itself.
	Line, Column int
	// Key is the way to the value, such as "streams[0].url"; empty for the
	// whole file.
	Key string
	// Message says what is wrong, Remedy what to do; Remedy may be empty.
	Message, Remedy string
	// Err is the cause where there is one, such as fs.ErrNotExist.
	Err error
}

// Error is "file:line:column: message; remedy".
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	b.WriteString(p.Message)
	if p.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(p.Remedy)
	}
	return b.String()
}

// Unwrap returns Err.
func (p *Problem) Unwrap() error { return p.Err }

// Problems is everything wrong with one or more files, in the order of the
// files and of their lines. It is never empty where it is returned as an error.
type Problems []*Problem

// Error has one problem a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems, so that errors.Is and errors.As look into each.
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i, one := range p {
		errs[i] = one
	}
	return errs
}

// err returns p as an error, nil when it is empty.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// sorted returns the problems of one file in the order of their places, without
// the repetitions that an anchor used twice causes.
func (p Problems) sorted() Problems {
	p = slices.Clone(p)
	slices.SortStableFunc(p, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.CompactFunc(p, func(a, b *Problem) bool {
		return a.Line == b.Line && a.Column == b.Column && a.Message == b.Message
	})
}

// show quotes a piece of a file for a message. Before an @ stands, in every
// mistyped URL, a user name and a password.
func show(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		s = "***" + s[i:]
	}
	const most = 48
	if utf8.RuneCountInString(s) > most {
		s = string([]rune(s)[:most]) + "…"
	}
	return strconv.Quote(s)
}

// keyForm is what keys look like. Anything else in the place of a key may be a
// misplaced value, and a secret.
var keyForm = regexp.MustCompile(`^[\w.-]+( [\w.-]+)*$`)

// showKey quotes a key for a message.
func showKey(s string) string {
	if !keyForm.MatchString(s) {
		return "(not shown: it looks like a value)"
	}
	return show(s)
}

// didYouMean is the remedy for a name that is not among the valid ones.
func didYouMean(what, name string, valid []string) string {
	if near := nearest(name, valid); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if len(valid) == 0 {
		return "there are no " + what
	}
	return what + ": " + strings.Join(valid, ", ")
}

// nearest returns the valid name that was probably meant, or nothing.
func nearest(name string, valid []string) string {
	if len(name) > 64 {
		return ""
	}
	plain := func(s string) string {
		return strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(s))
	}
	best, distance := "", max(1, len(name)/3)+1
	for _, v := range valid {
		if d := edits(plain(name), plain(v)); d < distance {
			best, distance = v, d
		}
	}
	if best != "" {
		return best
	}
	for _, v := range valid {
		if len(name) >= 3 && (strings.HasPrefix(v, name) || strings.HasPrefix(name, v)) {
			return v
		}
	}
	return ""
}

// edits counts the insertions, deletions, substitutions and swaps of
// neighbours that turn a into b (optimal string alignment).
func edits(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
