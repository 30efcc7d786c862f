//go:build !linux && !darwin

package journal

import "errors"

// freeSpace is not known here: a full disk is noticed when a write fails.
func freeSpace(string) (uint64, error) { return 0, errors.ErrUnsupported }
