//go:build !unix

package jsonl

// full is not told apart here: the system's own text says it.
func full(error) bool { return false }
