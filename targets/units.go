package targets

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written as a number with a unit: 250ms, 4s,
// 1m30s, 24h. It is never negative.
type Duration time.Duration

var errDuration = errors.New("want a duration: a number with a unit (ms, s, m or h), such as 4s or 1m30s")

// UnmarshalText reads the form that a file holds.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return errDuration
	}
	if v < 0 {
		return errors.New("want a duration that is not negative, such as 4s")
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the form that a file holds.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes the duration without units that are zero: 10m, not 10m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}

// AutoDuration is a Duration that may be left to the program: 0, written auto.
type AutoDuration time.Duration

// UnmarshalText reads the form that a file holds.
func (d *AutoDuration) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*d = 0
		return nil
	}
	var v Duration
	switch err := v.UnmarshalText(text); {
	case err != nil:
		return errors.New("want auto, or " + strings.TrimPrefix(err.Error(), "want "))
	case v < Duration(time.Millisecond):
		return errors.New("want auto, or a duration of at least 1ms")
	}
	*d = AutoDuration(v)
	return nil
}

// MarshalText writes the form that a file holds.
func (d AutoDuration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is the duration as Duration writes it, or auto.
func (d AutoDuration) String() string {
	if d == 0 {
		return "auto"
	}
	return Duration(d).String()
}

// Size is a number of bytes, written with a unit (16MiB, 10GiB, 500KB) or
// without (4096).
type Size int64

var errSize = errors.New("want a size: a whole number of bytes, or a number with a unit (KiB, MiB, GiB, TiB, KB, MB, GB or TB), such as 16MiB")

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1},
}

// UnmarshalText reads the form that a file holds.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimRight(n, " "), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 {
		return errSize
	}
	if n > math.MaxInt64/unit {
		return errors.New("want a size below 8 EiB, such as 16MiB")
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText writes the form that a file holds.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the size in the largest binary unit that leaves no rest.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if n := int64(s); n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Lag is how far something may fall behind: a length of time (48h) or a number
// of bytes (20GiB). The zero value is no limit.
type Lag struct {
	Time  Duration
	Bytes Size
}

var errLag = errors.New("want a duration of at least 1m, such as 48h, or a size of at least 1MiB, such as 20GiB")

// UnmarshalText reads the form that a file holds.
func (l *Lag) UnmarshalText(text []byte) error {
	*l = Lag{}
	if l.Time.UnmarshalText(text) == nil && l.Time >= Duration(time.Minute) {
		return nil
	}
	l.Time = 0
	if l.Bytes.UnmarshalText(text) == nil && l.Bytes >= 1<<20 {
		return nil
	}
	return errLag
}

// MarshalText writes the form that a file holds.
func (l Lag) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// String is the limit as Duration or Size write it; empty when there is none.
func (l Lag) String() string {
	switch {
	case l.Time > 0:
		return l.Time.String()
	case l.Bytes > 0:
		return l.Bytes.String()
	}
	return ""
}

// Path is a path in the file system. A relative one is relative to the file
// that it is written in; after loading it is relative to the working
// directory, or absolute, like any other path of the program.
type Path string
