package cmd

import (
	"os"
	"time"
)

// echo is how long after the first interrupt others are taken for the same one.
// timeout of coreutils, supervisors and terminals signal a process and then its
// group, so that what was asked once arrives twice within milliseconds. A
// person who asks twice has read what the first one did, or presses again and
// again until something happens.
const echo = 300 * time.Millisecond

// heed answers interrupts until over is closed: the first one calls stop, and
// those that are no echo of it call abort.
func heed(interrupts <-chan os.Signal, over <-chan struct{}, stop, abort func()) {
	var first time.Time
	for {
		select {
		case <-interrupts:
			switch {
			case first.IsZero():
				first = time.Now()
				stop()
			case time.Since(first) >= echo:
				abort()
			}
		case <-over:
			return
		}
	}
}
