//go:build unix

package jsonl

import (
	"errors"
	"syscall"
)

// full tells whether err says that the disk, or what this user may use of it,
// is full.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
