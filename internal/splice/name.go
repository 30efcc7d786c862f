package splice

import (
	"hash/maphash"
	"math"
	"math/bits"
)

// name is an event's own id.
type name struct {
	hash    uint64 // 0 without an id
	number  uint64 // what the id says, if numeric
	numeric bool   // it is a decimal number
}

func (s *Splice) name(id []byte) (n name) {
	switch n.number, n.numeric = decimal(id); {
	case n.numeric:
		n.hash = n.number*s.odd | 1
	case len(id) > 0:
		n.hash = maphash.Bytes(s.seed, id) | 1
	}
	return n
}

const golden = 0x9e3779b97f4a7c15 // spreads over all bits

func (n name) token(content uint64) uint64 { return bits.RotateLeft64(n.hash, 17)*golden ^ content }

// key names the id in an epoch.
func (n name) key(epoch uint64) uint64 {
	if n.hash == 0 {
		return 0
	}
	return (n.hash + epoch*golden) | 1
}

// decimal reads a number in its shortest decimal form: "007" names another
// event than "7".
func decimal(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 20 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	for i, c := range b {
		d := uint64(c - '0')
		if d > 9 || i == 19 && (n > math.MaxUint64/10 || n*10 > math.MaxUint64-d) {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}
