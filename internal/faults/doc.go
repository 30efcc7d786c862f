// Package faults makes faults for real (silence, vanished peers, dropped
// packets, resets, lying sites) and holds streams through them. Its test fills
// the fault table of the README: what was sent, what arrived once, doubled or
// not at all, whether that was written down, and how long it took.
//
// It is all tests: nothing imports it.
package faults
