package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/holdline/scrape/framework"
)

// convert makes the value of a column of what an expression has resulted in,
// and appends it as JSON. A plain column is text that stays in JSON what it is.
func convert(to []byte, v *gjson.Result, typ framework.ColumnType, plain bool, unit Unit) (any, []byte, error) {
	if missing(v) {
		return nil, append(to, "null"...), nil
	}
	switch typ {
	case framework.ColumnText:
		if v.Type == gjson.String {
			return v.Str, append(to, v.Raw...), nil
		}
		if plain {
			return v.Raw, append(to, v.Raw...), nil
		}
		return v.Raw, appendString(to, v.Raw), nil
	case framework.ColumnNumber:
		digits := v.Raw
		if v.Type == gjson.String {
			digits = v.Str
		}
		if v.Type != gjson.Number && !isNumber(digits) {
			return nil, to, wrong(v, "a number")
		}
		return json.Number(digits), append(to, digits...), nil
	case framework.ColumnInteger:
		n, ok := integer(v)
		if !ok {
			return nil, to, wrong(v, "a whole number of 64 bits")
		}
		return n, strconv.AppendInt(to, n, 10), nil
	case framework.ColumnBoolean:
		switch {
		case v.Type == gjson.True, v.Type == gjson.String && v.Str == "true":
			return true, append(to, "true"...), nil
		case v.Type == gjson.False, v.Type == gjson.String && v.Str == "false":
			return false, append(to, "false"...), nil
		}
		return nil, to, wrong(v, "true or false")
	case framework.ColumnTime:
		at, err := parseTime(v, unit)
		if err != nil {
			return nil, to, err
		}
		to = append(to, '"')
		return at, append(at.AppendFormat(to, time.RFC3339Nano), '"'), nil
	}
	return json.RawMessage(v.Raw), append(to, v.Raw...), nil
}

func wrong(v *gjson.Result, want string) error {
	return fmt.Errorf("%s is not %s", excerpt(v.Raw), want)
}

// excerpt is the beginning of what may be long.
func excerpt(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func appendString(to []byte, s string) []byte {
	if !plainString(s) {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(s) // a string and a buffer: it cannot fail
		return append(to, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
	}
	to = append(to, '"')
	to = append(to, s...)
	return append(to, '"')
}

// plainString tells whether the string is the same in JSON.
func plainString(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// isNumber tells whether the text is a number of JSON.
func isNumber(s string) bool {
	return s != "" && (s[0] == '-' || s[0] >= '0' && s[0] <= '9') && s[len(s)-1] >= '0' && s[len(s)-1] <= '9' && gjson.Valid(s)
}

// integer is the value as a whole number; 5.0 and 1e3 are such, also in quotes.
func integer(v *gjson.Result) (int64, bool) {
	digits := v.Raw
	if v.Type == gjson.String {
		digits = v.Str
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil && isNumber(digits) {
		return n, true
	}
	if !isNumber(digits) || len(digits) > 64 {
		return 0, false
	}
	if _, exponent, ok := strings.Cut(strings.ToLower(digits), "e"); ok && len(exponent) > 3 {
		return 0, false // far out of reach, and dear to compute
	}
	r, ok := new(big.Rat).SetString(digits)
	if !ok || !r.IsInt() || !r.Num().IsInt64() {
		return 0, false
	}
	return r.Num().Int64(), true
}

// layouts of times, those without a zone being UTC.
var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05", "2006-01-02"}

var errYear = errors.New("the year is not between 0 and 9999")

// parseTime reads RFC 3339, ISO dates with or without a time, and numbers,
// also in quotes, that count units since 1970 began. The time is in UTC.
func parseTime(v *gjson.Result, unit Unit) (time.Time, error) {
	digits := v.Raw
	if v.Type == gjson.String {
		digits = v.Str
	}
	var at time.Time
	switch {
	case isNumber(digits):
		var ok bool
		if at, ok = since1970(digits, unit); !ok {
			return at, errYear
		}
	case v.Type == gjson.String:
		var err error
		for _, layout := range layouts {
			if at, err = time.Parse(layout, digits); err == nil {
				break
			}
		}
		if err != nil {
			return at, wrong(v, "a time: want RFC 3339, a date or a number")
		}
	default:
		return at, wrong(v, "a time: want RFC 3339, a date or a number")
	}
	if at = at.UTC(); at.Year() < 0 || at.Year() > 9999 {
		return at, errYear
	}
	return at, nil
}

// since1970 reads a number of units, with all digits down to the nanosecond.
func since1970(digits string, unit Unit) (time.Time, bool) {
	if strings.ContainsAny(digits, "eE") {
		f, err := strconv.ParseFloat(digits, 64)
		if err != nil || math.Abs(f) > 1e20 {
			return time.Time{}, false
		}
		digits = strconv.FormatFloat(f, 'f', -1, 64)
	}
	whole, fraction, _ := strings.Cut(digits, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	places := 0 // a unit is so many decimal places of a second
	switch size := math.Abs(float64(n)); {
	case unit == UnitMS, unit != UnitS && unit != UnitUS && unit != UnitNS && size >= 1e11 && size < 1e14:
		places = 3
	case unit == UnitUS, unit != UnitS && unit != UnitNS && size >= 1e14 && size < 1e17:
		places = 6
	case unit == UnitNS, unit != UnitS && size >= 1e17:
		places = 9
	}
	scale := int64(math.Pow10(places))
	perUnit := int64(1e9) / scale
	rest, count := int64(0), perUnit
	for i := 0; i < len(fraction) && count > 1; i++ {
		count /= 10
		rest += int64(fraction[i]-'0') * count
	}
	if strings.HasPrefix(whole, "-") {
		rest = -rest
	}
	const most = 1 << 40 // seconds; far beyond the year 9999
	if n/scale > most || n/scale < -most {
		return time.Time{}, false
	}
	return time.Unix(n/scale, n%scale*perUnit+rest), true
}

// made is the result of a program as a JSON value. A number that is one of
// those it was made of keeps that one's digits.
func made(x any, from []gjson.Result) (gjson.Result, error) {
	switch x := x.(type) {
	case nil:
		return gjson.Result{}, nil
	case bool:
		if x {
			return gjson.Result{Type: gjson.True, Raw: "true"}, nil
		}
		return gjson.Result{Type: gjson.False, Raw: "false"}, nil
	case string:
		if !utf8.ValidString(x) {
			return gjson.Result{}, errors.New("the result is no text in UTF-8")
		}
		return text(x), nil
	case time.Time:
		return text(x.UTC().Format(time.RFC3339Nano)), nil
	case time.Duration:
		return text(x.String()), nil
	case float64:
		for i := range from {
			if v := &from[i]; v.Type == gjson.Number && v.Num == x && computable(v.Raw) == any(x) {
				return *v, nil
			}
		}
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return gjson.Result{}, errors.New("the result is no number: it is infinite or undefined")
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(x); err != nil {
		return gjson.Result{}, fmt.Errorf("the result has no form in JSON: %w", err)
	}
	return gjson.Parse(strings.TrimSuffix(b.String(), "\n")), nil
}

// text is a string as a JSON value.
func text(s string) gjson.Result {
	return gjson.Result{Type: gjson.String, Str: s, Raw: string(appendString(nil, s))}
}
