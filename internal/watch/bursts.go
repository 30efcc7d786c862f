package watch

import "time"

const (
	longPause = 250 * time.Millisecond
	// several events make a burst, and several bursts a habit.
	severalEvents = 4
	severalBursts = 5
)

// bursts tells from the long pauses of a connection whether somebody on the
// way gathers what the site sends. Two habits show it:
//
//   - A full buffer is sent whether an event ends there or not, so the pauses
//     fall into the middle of events, where a site has no reason to pause.
//   - A timer brings a burst every so often. Some feeds are like that, so it
//     shows only where the stream has been seen to flow evenly before this
//     connection.
//
// A timer on the way from the first connection on, or of less than the longest
// pause, cannot be told from a site that sends in bursts.
type bursts struct {
	usual time.Duration // the longest pause before this connection; 0: not known
	cut   bool          // what was read last ends within a line

	within, between int           // long pauses after bursts: within an event, and between two
	ticks           int           // pauses in a row that were long, regular and unusual
	last            time.Duration // the pause before
	told            bool
}

// end takes a long pause and the number of events that came before it. It
// tells, once, that they show a buffer.
func (b *bursts) end(pause time.Duration, events int) bool {
	last := b.last
	b.last = pause
	if events < severalEvents {
		b.ticks = 0
		return false
	}
	if b.cut {
		b.within++
	} else {
		b.between++
	}
	if off := (pause - last).Abs(); b.usual > 0 && pause >= 4*b.usual && off <= last/5 {
		b.ticks++
	} else {
		b.ticks = 0
	}
	if b.told || b.ticks < severalBursts && (b.within < severalBursts || b.within < 3*b.between) {
		return false
	}
	b.told = true
	return true
}
