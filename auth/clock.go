package auth

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// leastSkew is what the Date header's resolution, the way here and a busy
// machine explain.
const leastSkew = 10 * time.Second

// Skew is how far the site's clock is ahead of this machine's, as the Date
// header of an answer says that has just come (RFC 9110, section 6.6.1). It is
// zero where it cannot be told, and where it is too small to matter.
func Skew(answer http.Header) time.Duration {
	skew, _ := skewOf(answer)
	return skew
}

// skewOf also tells whether the answer says what the site's clock shows.
func skewOf(answer http.Header) (skew time.Duration, told bool) {
	date, err := http.ParseTime(answer.Get("Date"))
	if err != nil || answer.Get("Age") != "" { // a cache's answer is an old one
		return 0, false
	}
	skew = time.Until(date)
	if skew.Abs() < leastSkew {
		return 0, true
	}
	return skew, true
}

// Answered reads the site's clock off an answer of the site that has just come.
// It is how the ends of what no login brought, such as a token that a person
// gave, are read by the clock that counts.
func (k *Keeper) Answered(answer http.Header) {
	skew, told := skewOf(answer)
	if !told {
		return
	}
	k.mu.Lock()
	k.skew, k.heard = skew, true
	say := k.sayClock(skew)
	k.mu.Unlock()
	k.warn(say)
	if parts, ok := k.config.Source.(stack); ok {
		for _, part := range parts {
			part.mu.Lock()
			part.skew, part.heard = skew, true
			part.mu.Unlock()
		}
	}
}

// sayClock returns what is to be said, once, of clocks that differ. k.mu is held.
func (k *Keeper) sayClock(skew time.Duration) []line {
	if skew.Abs() < loudSkew {
		return nil
	}
	return k.once("this machine's clock and the site's differ; what the site says of times is read by the site's clock", "site_clock_ahead", skew.Round(time.Second), "remedy", "set this machine's clock")
}

// byClock says by which clock an end was read.
func byClock(skew time.Duration) string {
	switch {
	case skew > 0:
		return fmt.Sprintf(" by the site's clock (this machine's is %v behind)", skew.Round(time.Second))
	case skew < 0:
		return fmt.Sprintf(" by the site's clock (this machine's is %v ahead)", -skew.Round(time.Second))
	}
	return " by this machine's clock"
}

// skewed is how far the site's clock was found to be ahead when old was in use.
func skewed(old *Credential) time.Duration {
	if old == nil {
		return 0
	}
	return old.Skew
}

// RetryAfter is how long an answer asks us to wait, an hour at most (RFC 9110,
// section 10.2.3); zero where it asks nothing.
func RetryAfter(answer http.Header) time.Duration {
	value := answer.Get("Retry-After")
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		wait = time.Duration(min(seconds, 3600)) * time.Second // the largest number, where it is beyond that
	} else if at, err := http.ParseTime(value); err == nil {
		wait = time.Until(at)
	}
	return min(max(0, wait), time.Hour)
}
