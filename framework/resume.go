package framework

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
	"golang.org/x/net/http/httpguts"
)

// ResumeBy says what of an event the cursor is, and how it is sent when the
// stream is resumed.
type ResumeBy struct {
	// From is "id", the last event id, where it is empty; "none" for a site
	// that cannot resume; or "json:" and a JSON pointer ("json:/a/b", RFC 6901)
	// or dotted path ("json:a.b") into the data. A cursor from the data is also
	// the id of an event that has none, so it must tell events apart. Of a
	// string it is the content, of anything else the JSON text. Where the data
	// lacks it, or has null there, the cursor stays what it was.
	From string
	// As is "header", where it is empty, or "query".
	As string
	// Name is that of the header, where it is empty Last-Event-ID, or of the
	// parameter.
	Name string
}

// Check tells what is wrong.
func (r ResumeBy) Check() error {
	_, err := r.parse()
	return err
}

// resume is a ResumeBy that was understood.
type resume struct {
	never bool
	path  []string // into the data; nil for the last event id
	query bool
	name  string
}

func (r ResumeBy) parse() (resume, error) {
	out := resume{name: r.Name}
	switch path, ok := strings.CutPrefix(r.From, "json:"); {
	case r.From == "" || r.From == "id":
	case r.From == "none":
		out.never = true
	case !ok:
		return out, errors.New(`the cursor comes from id, from none, or from the data, as in json:/sequence_number`)
	case strings.HasPrefix(path, "/"):
		unescape := strings.NewReplacer("~1", "/", "~0", "~")
		for part := range strings.SplitSeq(path[1:], "/") {
			out.path = append(out.path, unescape.Replace(part))
		}
	case path == "" || strings.Contains("."+path+".", ".."):
		return out, errors.New("the path after json: is empty or has an empty part")
	default:
		out.path = strings.Split(path, ".")
	}
	switch r.As {
	case "", "header":
		if out.name == "" {
			out.name = "Last-Event-ID"
		}
	case "query":
		out.query = true
		if out.name == "" {
			return out, errors.New("a cursor that goes into the query needs the name of the parameter")
		}
	default:
		return out, fmt.Errorf("the cursor is sent as header or as query, not as %q", r.As)
	}
	return out, nil
}

// send puts the cursor into the request. It is false for one that a header
// cannot hold, since it has control characters (RFC 9110, section 5.5): asked
// for nothing the site answers, and asked for that never.
func (r resume) send(req *http.Request, from Cursor) (sent bool) {
	switch {
	case from == "" || r.never:
	case !r.query && !httpguts.ValidHeaderFieldValue(string(from)):
		return false
	case r.query:
		u := *req.URL
		q := u.Query()
		q.Set(r.name, string(from))
		u.RawQuery = q.Encode()
		req.URL = &u
	default:
		req.Header.Set(r.name, string(from))
	}
	return true
}

// find returns what stands at the path in JSON data: the content of a string,
// otherwise the text without white space. It finds nothing in data that is not
// JSON, and no null.
func find(data []byte, path []string) ([]byte, bool) {
	if !json.Valid(data) {
		return nil, false
	}
	value := gjson.ParseBytes(data)
	for _, part := range path {
		list, at := value.IsArray(), 0
		if list {
			var err error
			if at, err = strconv.Atoi(part); err != nil {
				return nil, false
			}
		} else if !value.IsObject() {
			return nil, false
		}
		var found gjson.Result
		value.ForEach(func(key, v gjson.Result) bool {
			if list && at == 0 || !list && content(key) == part {
				found = v // of equal keys the last one counts
			}
			at--
			return !list || at >= 0
		})
		value = found
	}
	switch {
	case !value.Exists(), value.Type == gjson.Null:
		return nil, false
	case value.Type == gjson.String:
		text := content(value)
		return []byte(text), text != ""
	case value.IsArray(), value.IsObject():
		var b bytes.Buffer
		err := json.Compact(&b, []byte(value.Raw))
		return b.Bytes(), err == nil
	}
	return []byte(value.Raw), true
}

// content is what a JSON string says, as encoding/json has it.
func content(v gjson.Result) string {
	if !strings.Contains(v.Raw, `\`) && utf8.ValidString(v.Raw) {
		return v.Str
	}
	var text string
	_ = json.Unmarshal([]byte(v.Raw), &text) // it is valid
	return text
}
