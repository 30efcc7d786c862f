package splice

// forgotten is a memory of the ids that the window has lost, as numbers do not
// need it: it tells for certain of an id that it was not among them, and else
// that it may have been (it was not, once in fifteen). It remembers the last
// 32,768 to 65,536 of them in 64 KiB, and costs nothing before there is one.
type forgotten struct {
	young, old []uint64 // a bit for each of three parts of a key
	added      int      // to young
}

const (
	generation = 1 << 15 // keys
	filterBits = 1 << 18 // of a generation
	keyPart    = 18      // bits of a key that choose one of them
	partMask   = uint64(1)<<keyPart - 1
)

func (f *forgotten) add(key uint64) {
	if f.young == nil || f.added == generation {
		f.young, f.old, f.added = make([]uint64, filterBits/64), f.young, 0
	}
	f.added++
	key >>= 1 // the lowest bit is always set
	for range 3 {
		f.young[key&partMask/64] |= 1 << (key & 63)
		key >>= keyPart
	}
}

func (f *forgotten) has(key uint64) bool { return in(f.young, key) || in(f.old, key) }

func in(bits []uint64, key uint64) bool {
	if bits == nil {
		return false
	}
	key >>= 1
	for range 3 {
		if bits[key&partMask/64]&(1<<(key&63)) == 0 {
			return false
		}
		key >>= keyPart
	}
	return true
}
