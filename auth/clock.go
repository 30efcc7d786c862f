package auth

import (
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
	date, err := http.ParseTime(answer.Get("Date"))
	if err != nil || answer.Get("Age") != "" { // a cache's answer is an old one
		return 0
	}
	skew := time.Until(date)
	if skew.Abs() < leastSkew {
		return 0
	}
	return skew
}

// RetryAfter is how long an answer asks us to wait, an hour at most (RFC 9110,
// section 10.2.3); zero where it asks nothing.
func RetryAfter(answer http.Header) time.Duration {
	value := answer.Get("Retry-After")
	wait := time.Duration(0)
	if seconds, err := strconv.Atoi(value); err == nil {
		wait = time.Duration(min(seconds, 3600)) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = time.Until(at)
	}
	return min(max(0, wait), time.Hour)
}
