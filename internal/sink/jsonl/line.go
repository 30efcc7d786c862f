package jsonl

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
	"github.com/tidwall/gjson"
)

// appendLine appends the record as one line. The payload is in one of three
// members, so that none is taken for another: data when it is JSON, as it
// arrived (numbers keep their digits; only line breaks between its parts are
// left out), else text, else base64 when it is not UTF-8 either.
func appendLine(b []byte, r *framework.Record, c *common) ([]byte, error) {
	if err := c.setTime(r.Time); err != nil {
		return b, &framework.RecordError{Key: r.Key, Err: err}
	}
	c.setPlace(r)
	b = append(b, c.place...)
	b = strconv.AppendInt(b, int64(r.Key.Event), 10)
	b = append(b, '/')
	b = strconv.AppendInt(b, int64(r.Key.Record), 10)
	b = append(b, c.stream...)
	if r.ID != "" {
		b = append(b, `,"id":`...)
		b = appendString(b, sink.Text(r.ID))
	}
	b = append(b, `,"type":`...)
	b = appendString(b, sink.Text(r.Type))
	b = append(b, `,"time":"`...)
	b = c.appendTime(b, r.Time.Nanosecond())
	return appendPayload(append(b, '"'), r.Data), nil
}

// common is the text that one record shares with the next, as most do.
type common struct {
	second int64
	time   []byte // up to the second's point; empty for none

	position framework.Position // of the chunk
	place    []byte             // the line up to the event's ordinal; empty for none
	name     string
	stream   []byte // from the end of the key to that of the stream; empty for none
}

// setPlace makes place and stream those of the record.
func (c *common) setPlace(r *framework.Record) {
	chunk := r.Key.Position
	chunk.Event = 0
	if len(c.place) == 0 || c.position != chunk {
		// Letters, digits and slashes, of which the last two ordinals go.
		b := framework.Key{Position: chunk}.Append(append(c.place[:0], `{"key":"`...))
		c.position, c.place = chunk, b[:len(b)-len("0/0")]
	}
	if len(c.stream) == 0 || c.name != r.Stream {
		c.name, c.stream = r.Stream, appendString(append(c.stream[:0], `","stream":`...), sink.Text(r.Stream))
	}
}

// setTime makes time that of the record.
func (c *common) setTime(t time.Time) error {
	if len(c.time) > 0 && t.Unix() == c.second {
		return nil
	}
	u := t.UTC()
	if y := u.Year(); y < 0 || y > 9999 {
		return fmt.Errorf("its time is in the year %d: RFC 3339 ends at 9999", y)
	}
	c.second, c.time = t.Unix(), u.AppendFormat(c.time[:0], "2006-01-02T15:04:05.")
	return nil
}

// appendTime appends the second that was set with nine decimals.
func (c *common) appendTime(b []byte, ns int) []byte {
	b = append(b, c.time...)
	for unit := 100_000_000; unit > 0; unit /= 10 {
		b = append(b, byte('0'+ns/unit%10))
	}
	return append(b, 'Z')
}

// appendPayload appends the last member and the end of the line. What a JSON
// parser lets pass in strings may still not be UTF-8.
func appendPayload(b, data []byte) []byte {
	switch {
	case !utf8.Valid(data):
		b = append(b, `,"base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, data)
		return append(b, "\"}\n"...)
	case !valid(data):
		b = append(b, `,"text":`...)
		b = appendString(b, data)
	case bytes.IndexByte(data, '\n') >= 0 || bytes.IndexByte(data, '\r') >= 0:
		b = append(b, `,"data":`...)
		buf := bytes.NewBuffer(b)
		_ = json.Compact(buf, data) // it is valid
		b = buf.Bytes()
	default:
		b = append(b, `,"data":`...)
		b = append(b, data...)
	}
	return append(b, "}\n"...)
}

// valid tells whether data is JSON, as encoding/json judges and three times as
// fast: without a step for each byte. What is nested may be deep enough for
// gjson to run out of stack: that is left to encoding/json.
func valid(data []byte) bool {
	const deep = 1000
	if bytes.Count(data, []byte("["))+bytes.Count(data, []byte("{")) > deep {
		return json.Valid(data)
	}
	return gjson.ValidBytes(data)
}

// appendString appends valid UTF-8 as a JSON string. Unlike encoding/json it
// leaves <, > and & as they are.
func appendString[T string | []byte](b []byte, s T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}

// due tells whether the newest file is to be followed by another.
func (s *Sink) due(p *progress, now time.Time) bool {
	if p.File == "" {
		return true
	}
	if n, _ := s.number(p.File); p.File != s.name(n) {
		return true // of another form
	}
	// A clock that was set back would make the file last longer.
	age := now.Sub(p.Begun)
	return p.Size > 0 && (p.Size >= s.config.MaxSize || s.config.MaxAge > 0 && (age >= s.config.MaxAge || age < 0))
}

func (s *Sink) name(n int) string { return fmt.Sprintf("%s-%08d%s", s.base, n, s.ending()) }
