package cmd

import (
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What follows the first interrupt within milliseconds is the same one, sent to
// the process and to its group; what comes later is a person's.
func TestEchoOfAnInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		interrupts, over := make(chan os.Signal, 2), make(chan struct{})
		stopped, aborted := 0, 0
		go heed(interrupts, over, func() { stopped++ }, func() { aborted++ })
		defer close(over)
		wants := func(when string, stops, aborts int) {
			t.Helper()
			synctest.Wait()
			if stopped != stops || aborted != aborts {
				t.Errorf("%s: stopped %d times and aborted %d times, want %d and %d", when, stopped, aborted, stops, aborts)
			}
		}
		interrupts <- syscall.SIGTERM
		interrupts <- syscall.SIGTERM
		wants("two at once", 1, 0)
		time.Sleep(echo - time.Millisecond)
		interrupts <- os.Interrupt
		wants("one just before it is a person's", 1, 0)
		time.Sleep(time.Millisecond)
		interrupts <- os.Interrupt
		wants("a person's", 1, 1)
	})
}
