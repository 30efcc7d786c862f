package sse

import (
	"math"
	"strconv"
	"strings"
)

// outcome is everything that the bytes of a stream determine.
type outcome struct {
	Events   []event
	Own      []bool // Event.HasID
	LastID   string
	Retry    int64 // milliseconds, -1 if never set
	Comments []string
	IDs      []string // told to OnID
	Odd      [kinds]int64
	LeftData string
	LeftType string
	LeftID   string
}

type event struct{ ID, Type, Data string }

// refDecode reads a whole stream as HTML 9.2.5 and 9.2.6 say it, step by step
// and without regard to speed. Where the standard is silent (what is odd) it
// follows the documentation of this package. Limits are not its business.
func refDecode(in string, lastID string) outcome {
	o := outcome{LastID: lastID, Retry: -1}
	s := strings.TrimPrefix(refUTF8(in), "\uFEFF")

	// "Lines must be separated by either a CRLF pair, a single LF, or a single CR."
	s = strings.ReplaceAll(s, "\r\n", "\n")
	s = strings.ReplaceAll(s, "\r", "\n")
	lines := strings.Split(s, "\n")
	rest := lines[len(lines)-1]
	lines = lines[:len(lines)-1]

	data, typ, id := "", "", lastID
	dataLines, hasID, hasBlank := 0, false, false
	field := func(name, value string) {
		switch name {
		case "event":
			typ = value
		case "data":
			data += value + "\n"
			if dataLines++; dataLines == noBlankLines && !hasBlank {
				o.Odd[NoBlankLine]++
			}
		case "id":
			if strings.Contains(value, "\x00") {
				o.Odd[NULInID]++
			} else {
				id, hasID = value, true
			}
		case "retry":
			if value == "" || strings.Trim(value, "0123456789") != "" {
				o.Odd[BadRetry]++
				break
			}
			ms, err := strconv.ParseInt(value, 10, 64)
			if most := int64(math.MaxInt64 / 1_000_000); err != nil || ms > most {
				ms = most
			}
			o.Retry = ms
		default:
			o.Odd[UnknownField]++
		}
	}
	split := func(line string) (string, string) {
		name, value, _ := strings.Cut(line, ":")
		return name, strings.TrimPrefix(value, " ")
	}
	for _, line := range lines {
		switch {
		case line == "":
			hasBlank = true
			o.LastID = id
			switch {
			case data != "":
				t := typ
				if t == "" {
					t = "message"
				}
				o.Events = append(o.Events, event{o.LastID, t, strings.TrimSuffix(data, "\n")})
				o.Own = append(o.Own, hasID)
			case typ != "":
				o.Odd[NoData]++
			}
			if data == "" && hasID {
				o.IDs = append(o.IDs, id)
			}
			data, typ, dataLines, hasID = "", "", 0, false
		case line[0] == ':':
			text := line[1:]
			o.Comments = append(o.Comments, text)
		default:
			field(split(line))
		}
	}
	// "Once the end of the file is reached, any pending data must be discarded."
	if rest != "" || data != "" || typ != "" || hasID {
		o.Odd[Unterminated]++
		if name, value := split(rest); name == "data" {
			data += value + "\n"
		}
		o.LeftData, o.LeftType = strings.TrimSuffix(data, "\n"), typ
		if hasID {
			o.LeftID = id
		}
	}
	return o
}

// refUTF8 is the UTF-8 decoder of the Encoding standard (8.1.1), to a string.
func refUTF8(in string) string {
	var out strings.Builder
	point, seen, needed := rune(0), 0, 0
	lower, upper := byte(0x80), byte(0xBF)
	for i := 0; i < len(in); {
		b := in[i]
		if needed == 0 {
			i++
			switch {
			case b <= 0x7F:
				out.WriteByte(b)
			case b >= 0xC2 && b <= 0xDF:
				needed, point = 1, rune(b&0x1F)
			case b >= 0xE0 && b <= 0xEF:
				if b == 0xE0 {
					lower = 0xA0
				}
				if b == 0xED {
					upper = 0x9F
				}
				needed, point = 2, rune(b&0xF)
			case b >= 0xF0 && b <= 0xF4:
				if b == 0xF0 {
					lower = 0x90
				}
				if b == 0xF4 {
					upper = 0x8F
				}
				needed, point = 3, rune(b&0x7)
			default:
				out.WriteRune(0xFFFD)
			}
			continue
		}
		if b < lower || b > upper {
			// "Restore byte to ioQueue": it is read again.
			point, seen, needed, lower, upper = 0, 0, 0, 0x80, 0xBF
			out.WriteRune(0xFFFD)
			continue
		}
		i++
		lower, upper = 0x80, 0xBF
		point = point<<6 | rune(b&0x3F)
		if seen++; seen == needed {
			out.WriteRune(point)
			point, seen, needed = 0, 0, 0
		}
	}
	if needed > 0 {
		out.WriteRune(0xFFFD)
	}
	return out.String()
}
