package sink

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
)

// Standard are the columns that every table of records has. The others are
// those of the records, or hold the payload.
var Standard = []string{"_key", "stream", "id", "type", "time"}

// maxName is how long the name of a column may be, in bytes: PostgreSQL would
// cut a longer one.
const maxName = 63

// CheckColumns tells whether a table can have the columns beside the standard
// ones and others that are taken. Names that differ in case only count as one,
// as SQLite has it.
func CheckColumns(columns []framework.Column, taken ...string) error {
	seen := map[string]string{}
	for _, c := range columns {
		lower := strings.ToLower(c.Name)
		switch {
		case c.Name == "" || !utf8.ValidString(c.Name) || strings.ContainsRune(c.Name, 0):
			return fmt.Errorf("a column is named %q: give it a name of text", c.Name)
		case len(c.Name) > maxName:
			return fmt.Errorf("the column %q has a name of %d bytes: give it one of at most %d", c.Name, len(c.Name), maxName)
		case slices.Contains(Standard, lower):
			return fmt.Errorf("the column %q has the name of one that every table has (%s): give it another", c.Name, strings.Join(Standard, ", "))
		case slices.Contains(taken, lower):
			return fmt.Errorf("the column %q has a name that the database keeps for itself: give it another", c.Name)
		case seen[lower] == c.Name:
			return fmt.Errorf("two columns are named %q: give one of them another name", c.Name)
		case seen[lower] != "":
			return fmt.Errorf("the names of the columns %q and %q differ in case only: give one of them another", seen[lower], c.Name)
		}
		seen[lower] = c.Name
	}
	return nil
}

// Mismatch is the error for a value that its column cannot hold, because the
// decoder made something else than it said.
func Mismatch(c framework.Column, value any) error {
	return fmt.Errorf("it is %s, and the decoder made a %T for it", c.Type, value)
}

// CheckValues tells whether the record has a value, or nil, for each of n
// columns.
func CheckValues(r *framework.Record, n int) error {
	if len(r.Values) != n {
		return fmt.Errorf("the decoder made %d values for %d columns", len(r.Values), n)
	}
	return nil
}

// Belongings tells which rows of a table are a sink's: those whose keys begin
// with prefix, followed by the number of the chunk, and whose streams begin with
// streams. Sinks of several targets may share a table, two of one target may
// not.
func Belongings(info framework.SinkInfo) (prefix, streams string) {
	target, _, _ := strings.Cut(info.ID, "/")
	return string(info.Journal) + "/" + strconv.Itoa(info.Partition) + "/", target + "/"
}
