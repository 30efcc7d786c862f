// Package sink holds what kinds of sinks share, each of which lies in a package
// below.
//
// [Text] is how odd texts are kept, [CheckColumns] which columns a table can
// have, [ParseNumber] what numbers are made of. It deliberately does not know any
// destination.
package sink

import (
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// Text is how an id or a type is stored where only text can be: as it is, or,
// when it is not valid UTF-8, holds a NUL or begins with \x, as \x followed by
// two hexadecimal digits a byte, which is what PostgreSQL reads as bytea. So
// no two values become one, and each can be had back.
func Text(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 && !strings.HasPrefix(s, `\x`) {
		return s
	}
	return `\x` + hex.EncodeToString([]byte(s))
}
