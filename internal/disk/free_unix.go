//go:build linux || darwin

// Package disk tells how much room there is.
package disk

import "golang.org/x/sys/unix"

// Free returns the bytes free for this user on the disk of dir. Where that
// cannot be known the error is [errors.ErrUnsupported].
func Free(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}
