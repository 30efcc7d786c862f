package sqlite

import (
	"errors"
	"fmt"
	"strings"

	"github.com/holdline/scrape/framework"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// The primary result codes the sink acts on (https://sqlite.org/rescode.html).
const (
	codeOK         = lib.SQLITE_OK
	codeError      = lib.SQLITE_ERROR
	codeBusy       = lib.SQLITE_BUSY
	codeTooBig     = lib.SQLITE_TOOBIG
	codeConstraint = lib.SQLITE_CONSTRAINT
	codeMismatch   = lib.SQLITE_MISMATCH
)

// code is the primary result code of err, codeOK when it is not SQLite's.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return codeOK
}

// refusesRow tells whether err may be about the content of a row: a constraint,
// a value too long, or what a check, a trigger or an indexed expression cannot
// compute of it.
func refusesRow(err error) bool {
	switch code(err) {
	case codeTooBig, codeConstraint, codeMismatch:
		return true
	case codeError: // also the code for a table that has no such column
		return strings.Contains(err.Error(), "malformed JSON") || strings.Contains(err.Error(), "integer overflow")
	}
	return false
}

var remedies = map[int]string{
	codeBusy:             "another program holds it locked: end that program or its transaction",
	lib.SQLITE_FULL:      "the disk is full: make room",
	lib.SQLITE_READONLY:  "it, its directory or its file system is read-only for this user: make both writable, or choose another file",
	lib.SQLITE_PERM:      "this user may not access it: change its permissions, or choose another file",
	lib.SQLITE_CANTOPEN:  "it cannot be opened: see that it is a file, and that this user may write to it and to its directory",
	lib.SQLITE_NOTADB:    "it is not a SQLite database: choose another file",
	lib.SQLITE_CORRUPT:   "it is damaged: restore it from a copy, or choose another file (`PRAGMA integrity_check` tells more)",
	lib.SQLITE_IOERR:     "reading or writing it failed: make room if the disk is full, else look at the disk and at the system's log",
	lib.SQLITE_NOMEM:     "there is not enough memory",
	lib.SQLITE_INTERRUPT: "interrupted",
}

// explain names the file and, where it is known, the remedy.
func (s *Sink) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		return err
	}
	if remedy := remedies[code(err)]; remedy != "" {
		return fmt.Errorf("sqlite sink: %s: %s: %w", s.file, remedy, err)
	}
	return fmt.Errorf("sqlite sink: %s: %w", s.file, err)
}
