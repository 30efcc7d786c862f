package targets

import (
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// maxBody bounds a body_file.
const maxBody = 16 << 20

// ResumeBy says what of an event the cursor is, where the stream goes on after
// a break, and how it is sent.
type ResumeBy struct {
	// Where the cursor comes from: `id`, the event's id; `json:` with a JSON
	// pointer or a dotted path into the data, as in json:/sequence_number or
	// json:meta.offset, for a value that tells events apart; `none` for a
	// site that cannot go on where it was. An event without the field leaves
	// the cursor as it was.
	From string `yaml:"from" default:"id"`
	// Whether the cursor is sent in a header or in the query.
	As string `yaml:"as" default:"header" enum:"header,query"`
	// The name of the header, Last-Event-ID without this key, or of the
	// parameter, such as starting_after.
	Name string `yaml:"name"`
}

func (r *ResumeBy) check(s *section) {
	if s.bad["as"] || s.bad["from"] || s.bad["name"] {
		return
	}
	key := "from"
	if (framework.ResumeBy{From: r.From}).Check() == nil {
		key = "as"
	}
	if err := framework.ResumeBy(*r).Check(); err != nil {
		s.wrong(key, fmt.Sprintf("%s: %v", join(s.path, key), err), "")
	}
	if r.As == "header" && r.Name != "" && (!headerName.MatchString(r.Name) || http.CanonicalHeaderKey(r.Name) == "Host") {
		s.wrong("name", show(r.Name)+" cannot be the name of a header", "use letters, digits and dashes")
	}
	if r.From == "none" && (s.has("as") || s.has("name")) {
		s.wrong("from", "without a cursor there is nothing to send", "remove as and name, or say where the cursor comes from")
	}
}

// Preface is JSON in a page that is read before the first event of each
// connection and delivered as a record of its own, of the type `preface`.
type Preface struct {
	// The address of the page. Without this key: that of the feed, asked for a
	// page. The headers and cookies of the stream go along to the feed's own
	// host only.
	URL string `yaml:"url"`
	// Where the JSON stands: `json` for a page that is JSON itself, `json-ld`
	// for the scripts of that type in an HTML page (a list, when there are
	// several), `script#ID` for the script with this id, such as
	// script#__NEXT_DATA__.
	Select string `yaml:"select" default:"json"`
}

func (p *Preface) check(s *section) {
	if s.good("url") {
		if message, remedy := checkURL("url", p.URL); message != "" {
			s.wrong("url", message, remedy)
		} else if u, err := url.Parse(p.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" {
			s.wrong("url", `"url" is neither http nor https`, "")
		}
	}
	if s.good("select") {
		if err := (&framework.Preface{Select: p.Select}).Check(); err != nil {
			s.wrong("select", fmt.Sprintf("%s: %v", join(s.path, "select"), err), "")
		}
	}
}

// Answer says what to do about an answer: a remedy by itself, or this mapping.
type Answer struct {
	// `reconnect` connects again after a wait, `reauthenticate` logs in
	// again, `rotate` changes the exit, `stop` ends the stream in good order,
	// `fail` ends it with an error. `forget` connects without the cursor, where
	// there is one: the stream goes on where the site has newcomers begin, and
	// what lies between is noted as missing, or as possibly missing.
	Remedy string `yaml:"remedy" required:"true" enum:"reconnect,reauthenticate,rotate,stop,fail,forget"`
	// How long to wait at least before that.
	Wait Duration `yaml:"wait" default:"0s"`
}

// plainAnswer is Answer without its methods: the mapping.
type plainAnswer Answer

func (a *Answer) decodeNode(d *decoder, n ast.Node, path string) {
	v := reflect.ValueOf((*plainAnswer)(a)).Elem()
	if _, isText := scalarText(n); isText {
		d.decodeString(n, v.Field(0), path, v.Type().Field(0).Tag)
		return
	}
	d.decodeStruct(n, v, path)
}

var remedies = map[string]framework.Remedy{
	"reconnect": framework.Reconnect, "reauthenticate": framework.Reauthenticate, "rotate": framework.Rotate,
	"stop": framework.Stop, "fail": framework.Fail, "forget": framework.Forget,
}

// checkRequest finds what is wrong with the request and with the answers.
func (st *Stream) checkRequest(s *section) {
	if s.has("body") && s.has("body_file") {
		s.wrong("body_file", "body and body_file exclude each other", "keep one of them")
	}
	for _, key := range []string{"body", "body_file"} {
		if s.has(key) && !s.bad[key] && st.Method == http.MethodGet {
			s.wrong(key, "a GET request has no body", "write method: POST, or remove "+key)
		}
	}
	if s.good("body_file") {
		body, err := readLimited(string(st.BodyFile), maxBody)
		if err != nil {
			s.wrong("body_file", fmt.Sprintf("the file %s cannot be read: %s", st.BodyFile, reason(err)), "relative paths are relative to "+s.d.file)
		}
		st.body = string(body)
	}
	checkCookies(s, st.Cookies)
	for _, status := range keysOf(st.Answers) {
		if n, err := strconv.Atoi(status); err != nil || n < 200 || n > 599 || len(status) != 3 {
			s.wrong("answers", showKey(status)+" is not the status of an answer", "want a number from 200 to 599, such as 404")
		}
	}
	if st.Resume.From != "" && st.Wire == framework.WireNDJSON && st.Resume.From == "id" && s.has("from") && s.good("from") {
		s.wrong("from", "JSON lines have no ids to begin at", "say with resume where in the data the cursor stands")
	}
}

// checkCookies finds names and values that a Cookie header cannot carry (RFC
// 6265, section 4.1.1).
func checkCookies(s *section, cookies map[string]auth.Secret) {
	for _, name := range keysOf(cookies) {
		value := cookies[name].Reveal()
		switch {
		case !headerName.MatchString(name):
			s.wrong("cookies", show(name)+" cannot be the name of a cookie", "use letters, digits and dashes")
		case strings.ContainsFunc(value, notInHeader) || strings.ContainsAny(value, "; "):
			s.wrong("cookies", "the value of the cookie "+name+" has characters that a cookie cannot carry", "encode it as the site does; it holds no space and no semicolon")
		}
	}
}

// request is what the stream's section says, with its secrets in the open.
func (st *Stream) request() *framework.SSE {
	t := &framework.SSE{
		Request: framework.Request{
			URL:     st.URL,
			Method:  st.Method,
			Query:   reveal(st.Query),
			Header:  reveal(st.Headers),
			Cookies: reveal(st.Cookies),
			Body:    st.Body.Reveal() + st.body,
		},
		Options: framework.SSEOptions{
			Wire:         st.Wire,
			MaxEvent:     int64(st.MaxEvent),
			FailTooLarge: st.OnTooLarge == "fail",
			Done:         st.Done,
			StopAtEnd:    st.OnEnd == "stop",
			Resume:       framework.ResumeBy(st.Resume),
			Base64:       st.Payload == "base64",
			Answers:      map[int]framework.Verdict{},
		},
	}
	if p := st.Preface; p != nil {
		t.Options.Preface = &framework.Preface{URL: p.URL, Select: p.Select}
	}
	for status, a := range st.Answers {
		n, _ := strconv.Atoi(status) // checked
		t.Options.Answers[n] = framework.Verdict{Remedy: remedies[a.Remedy], Wait: time.Duration(a.Wait)}
	}
	return t
}
