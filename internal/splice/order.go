package splice

// Positions are in the order of delivery, which is not that of the stream where
// a connection brought late what is missing before events that another one had
// delivered. Connections are aligned with the order of the stream: it is that
// of the positions but for these exceptions.

// order holds the exceptions.
type order struct {
	// after is the position that comes next in the stream, by the position
	// after the event before it, where the two are not the same.
	after map[int]int
	first int // the position that the stream begins with, while after is not empty
}

// follow returns the position that comes in the stream after the event at the
// position before p.
func (o *order) follow(p int) int {
	if len(o.after) == 0 {
		return p
	}
	if next, ok := o.after[p]; ok {
		return next
	}
	return p
}

// before returns the p of which follow returns the position.
func (o *order) before(position int) int {
	for p, next := range o.after {
		if next == position {
			return p
		}
	}
	return position
}

func (o *order) set(p, next int) {
	if p == next {
		delete(o.after, p)
		return
	}
	o.after[p] = next
}

// forget takes out the oldest position.
func (o *order) forget(base int) {
	next := o.follow(base + 1)
	delete(o.after, base+1)
	if o.first == base {
		o.first = next
	} else if p := o.before(base); p != base {
		o.set(p, next)
	}
}

// Insert says that the events delivered from a position on, which are the last
// ones, came late: in the stream they lie directly before the event at the
// other position, or before all that is remembered if that event is not.
func (s *Splice) Insert(from, before int) {
	o := &s.order
	if before < s.base() {
		before = s.head()
	}
	if from >= s.end || before >= from {
		return // there are none, or nothing else is remembered
	}
	if len(o.after) == 0 {
		o.after, o.first = map[int]int{}, s.base()
	}
	o.set(o.before(from), s.end)
	if p := o.before(before); before == o.first {
		o.first = from
	} else {
		o.set(p, from)
	}
	o.set(s.end, before)
}

// stream returns the positions remembered in the order of the stream, from a
// position on.
func (s *Splice) stream(from int) []int {
	out := make([]int, 0, len(s.ring))
	for p := from; p < s.end; p = s.order.follow(p + 1) {
		out = append(out, p)
	}
	return out
}

// head is the position that begins what is remembered of the stream.
func (s *Splice) head() int {
	if len(s.order.after) == 0 {
		return s.base()
	}
	return s.order.first
}
