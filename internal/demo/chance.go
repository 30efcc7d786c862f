package demo

import (
	"hash/fnv"
	"math"
	"time"
)

// chance is the one source of everything that looks accidental here: a hash of
// the seed, what the draw is for, and a counter. Equal arguments draw equally.
type chance uint64

// purpose keeps draws for different things independent of each other.
type purpose uint64

const (
	drawSymbol purpose = iota + 1
	drawJitter
	drawPhase
	drawNoise
	drawVolume
	drawLayout
	drawSilence
	drawMute
	drawRevoke
	drawRevokeTime
	drawExit
)

// bits draws 64 uniform bits: splitmix64 finalisers over seed, purpose and n.
func (c chance) bits(p purpose, n uint64) uint64 {
	return mix(mix(uint64(c)+uint64(p)*0x9e3779b97f4a7c15) + n*0x9e3779b97f4a7c15)
}

// unit draws from [0, 1).
func (c chance) unit(p purpose, n uint64) float64 {
	return float64(c.bits(p, n)>>11) / (1 << 53)
}

// wait draws an exponential waiting time, so that a stream which is replaced
// often meets as many accidents an hour as one that is held.
func (c chance) wait(p purpose, n uint64, mean time.Duration) time.Duration {
	return time.Duration(-math.Log(1-c.unit(p, n)) * float64(mean))
}

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// number turns a name into a counter for a draw.
func number(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}
