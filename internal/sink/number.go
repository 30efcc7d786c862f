package sink

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Number is a decimal number taken apart: the digits of Whole and Fraction with
// the point between them, times ten to the power of Exponent.
type Number struct {
	Negative        bool
	Whole, Fraction string
	Exponent        int
}

// maxExponent is far beyond what any destination keeps.
const maxExponent = 1 << 20

// ParseNumber takes a number of JSON apart.
func ParseNumber(n json.Number) (Number, error) {
	rest, negative := strings.CutPrefix(string(n), "-")
	d := Number{Negative: negative}
	if at := strings.IndexAny(rest, "eE"); at >= 0 {
		e, err := strconv.Atoi(rest[at+1:])
		if err != nil || e < -maxExponent || e > maxExponent {
			return d, fmt.Errorf("the exponent of %.40q is no number, or too large", string(n))
		}
		rest, d.Exponent = rest[:at], e
	}
	var point bool
	d.Whole, d.Fraction, point = strings.Cut(rest, ".")
	if !digits(d.Whole) || point && !digits(d.Fraction) {
		return d, fmt.Errorf("%.40q is not a number", string(n))
	}
	return d, nil
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// Digit returns the digit that counts ten to the power of p.
func (d *Number) Digit(p int) int {
	switch i := len(d.Whole) + d.Exponent - 1 - p; {
	case i < 0:
	case i < len(d.Whole):
		return int(d.Whole[i] - '0')
	case i < len(d.Whole)+len(d.Fraction):
		return int(d.Fraction[i-len(d.Whole)] - '0')
	}
	return 0
}

// Bounds returns the powers of ten of the first and the last digit that is not
// 0; ok is false when there is none.
func (d *Number) Bounds() (high, low int, ok bool) {
	high, low = len(d.Whole)+d.Exponent-1, d.Exponent-len(d.Fraction)
	for ; high >= low && d.Digit(high) == 0; high-- {
	}
	if high < low {
		return 0, 0, false
	}
	for ; d.Digit(low) == 0; low++ {
	}
	return high, low, true
}

// Scale is how many digits follow the point when the number is written without
// an exponent.
func (d *Number) Scale() int { return max(0, len(d.Fraction)-d.Exponent) }
