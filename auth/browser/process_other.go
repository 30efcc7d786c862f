//go:build !linux

package browser

import (
	"io/fs"
	"os"
	"time"
)

// killMarked knows of no way to find the processes of a room here. The driver
// is killed by awaitDriver, and the browser ends by itself when its pipe closes.
func killMarked(string, time.Time) error { return nil }

// driverAlive trusts playwright-go here.
func driverAlive(int, string) bool { return true }

// awaitDriver kills the driver, of which we know the number.
func awaitDriver(pid int) {
	if process, err := os.FindProcess(pid); err == nil {
		process.Kill()
	}
}

// ownedByUs trusts the temporary directory, which is the user's own here.
func ownedByUs(fs.FileInfo) bool { return true }
