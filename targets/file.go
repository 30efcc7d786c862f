package targets

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// File is a target file: a site and how to read it.
type File struct {
	// The target's name: letters, digits, dots, dashes and underscores. The
	// journal and the sinks know its records by it, so a renamed target
	// begins anew. Without this key it is the name of the file without its
	// ending.
	Name string `yaml:"name"`
	// A demo site that is started for the run, here or in another target
	// file: its kind alone, or a mapping with `kind` and the keys of that
	// kind.
	Demo *Demo `yaml:"demo"`
	// The plugin that understands the site. `sse` reads Server-Sent Events
	// over HTTP; a custom build brings plugins of its own.
	Plugin string `yaml:"plugin" default:"sse"`
	// What the plugin wants to know, in keys of its own. `sse` has none.
	Options *PluginOptions `yaml:"options"`
	// The feeds of the site that are held.
	Streams []Stream `yaml:"streams" required:"true"`
	// What opens the site. Without this section requests are anonymous.
	Auth *Auth `yaml:"auth"`
	// The ways out that requests take. Without this section they leave
	// directly.
	Proxies *Proxies `yaml:"proxies"`
	// What records are made of the events of streams that have no `records` of
	// their own: an entry, or a list of entries. Without this key a record is
	// the event as it came, or what the plugin makes of it.
	Records *Records `yaml:"records"`
	// How hard the site may be knocked at.
	Limits Limits `yaml:"limits"`
	// Where records are delivered. Each sink gets all of them.
	Sinks []Sink `yaml:"sinks"`
	// Who is told what needs a person, of this target.
	Alerts *Alerts `yaml:"alerts"`

	// Path is the file itself, as it was given.
	Path string `yaml:"-"`
	// Target is what the plugin made of the file.
	Target framework.Target `yaml:"-"`

	settings any // what the plugin read of options
}

// Stream is one logical feed of a target. How often it is silent, broken or
// reconnected does not matter: it goes on where it was.
type Stream struct {
	// The stream's name, unique in the target. The journal knows the stream
	// by it, so a renamed stream begins anew.
	Name string `yaml:"name" required:"true"`
	// The address of the feed: http or https for the plugin `sse`. It shows
	// up in logs: secrets belong into `query` or `headers`.
	URL string `yaml:"url"`
	// The method of the request.
	Method string `yaml:"method" default:"GET" enum:"GET,POST,PUT,PATCH"`
	// Headers to send with the request.
	Headers map[string]auth.Secret `yaml:"headers"`
	// Parameters to add to the query of `url`.
	Query map[string]auth.Secret `yaml:"query"`
	// Cookies to send with the request, besides those of the login.
	Cookies map[string]auth.Secret `yaml:"cookies"`
	// The body of the request.
	Body auth.Secret `yaml:"body"`
	// A file with the body of the request, sent byte for byte, up to 16MiB.
	BodyFile Path `yaml:"body_file"`
	// The format of the feed: Server-Sent Events, or one JSON value a line.
	// `auto` goes by the content type, and takes any other type for a wrong
	// answer; the others read whatever is not an HTML page.
	Wire framework.Wire `yaml:"wire" default:"auto" enum:"auto,sse,ndjson"`
	// What reads the feed: the program itself over HTTP, or a page of a real
	// browser, for a site whose clearance does not move out of the browser. The
	// page leaves through the same exit. After a login with `browser` it is the
	// page that the login has left, and the browser runs as long as the stream
	// is held. The browser's own cookies and User-Agent are sent.
	Transport string `yaml:"transport" default:"http" enum:"http,browser"`
	// How a page of the browser reads the feed. `fetch` sends what the stream
	// says, but for headers that are the browser's own affair. `eventsource` is
	// for a site that wants nothing else: it sends no headers, so that the
	// stream goes on where it was only with `resume: {as: query}` (without it
	// every break is a gap in the ledger); it brings only the types named in
	// `types`, and those without a type; and heartbeats do not keep the line
	// alive, since a page is not told of them.
	Via string `yaml:"via" default:"fetch" enum:"fetch,eventsource"`
	// The page of the browser that reads the feed. Without this key: the page
	// that the login has left, where that is of the feed's host, otherwise the
	// front page of that host. A page of another host needs the leave of the
	// feed's (CORS). It shows up in logs.
	Page string `yaml:"page"`
	// How the data of the events is packed. `base64` is undone before anything
	// but `done` looks at the data; what cannot be undone is kept as it came,
	// and counted.
	Payload string `yaml:"payload" default:"text" enum:"text,base64"`
	// How the stream goes on where it was.
	Resume ResumeBy `yaml:"resume"`
	// JSON in a page to read before the first event of each connection.
	Preface *Preface `yaml:"preface"`
	// What to do about answers that are not the feed, by status; 200 stands
	// for an answer of another content type. Without an entry: 204 ends the
	// stream; 401, and a page in the feed's place, log in again; 403 changes
	// the exit; 429 and 503 wait as long as the site asks for; 410 to a cursor
	// forgets it, and so does the third 400, 404, 412, 414, 416, 422 or 431 in
	// a row, where the site answers without it and still not with it; all
	// others connect again after a wait.
	Answers map[string]Answer `yaml:"answers"`
	// The cursor to begin at when the stream is held for the very first time,
	// such as an event id. Without it the site decides.
	From string `yaml:"from"`
	// The types of the events that are kept. Others keep the line alive but
	// are not recorded. Without this key all are kept.
	Types []string `yaml:"types"`
	// How long the line may bring no byte at all before it is taken for dead.
	// `auto` learns it from the pauses of the feed and its heartbeats: 45s at
	// first, a second after a minute of 50 events each. For a finite stream,
	// one with `done` or `on_end: stop`, it stays at 45s.
	StaleAfter AutoDuration `yaml:"stale_after" default:"auto"`
	// How long the line may bring no event of the types kept, while heartbeats
	// or comments keep coming, before it is taken for dead. 0s: for ever.
	QuietAfter Duration `yaml:"quiet_after" default:"0s"`
	// The longest event.
	MaxEvent Size `yaml:"max_event" default:"16MiB" min:"1" max:"64MiB"`
	// What becomes of a longer one: `skip` counts it as a dead letter, `fail`
	// ends the stream with an error.
	OnTooLarge string `yaml:"on_too_large" default:"skip" enum:"skip,fail"`
	// The data of the event that ends a finite stream for good, such as
	// "[DONE]". It is not recorded.
	Done string `yaml:"done"`
	// What the clean end of an answer means: a feed to be connected to again,
	// or a finite stream that is complete.
	OnEnd string `yaml:"on_end" default:"reconnect" enum:"reconnect,stop"`
	// How long to wait before connecting again.
	Reconnect Reconnect `yaml:"reconnect"`
	// How a connection is replaced when the change can be foreseen. `overlap`
	// opens the next one first, `break` closes the old one first, `auto` does
	// what site, ids and caps allow.
	Handover framework.Handover `yaml:"handover" default:"auto" enum:"auto,overlap,break"`
	// How many connections are held side by side, through different exits
	// where there are as many: what one loses without a word the others bring.
	// The site and the exits must allow so many; 4 at most.
	Lines int `yaml:"lines" default:"1" min:"1" max:"4"`
	// The field of the event's JSON data, as a dotted path such as `meta.seq`,
	// that numbers the events without holes: then missing ones are named.
	// Without it ids that are seen to count by one do the same.
	Sequence string `yaml:"sequence"`
	// How many events before the last one a new connection resumes, where the
	// site can replay: seeing them again proves that none was missed. Needs
	// events with ids or a `sequence`.
	ReplayCheck int `yaml:"replay_check" default:"0" min:"0" max:"1024"`
	// Where events are fetched that are known to be missing. Without this
	// section they stay missing.
	Backfill *Backfill `yaml:"backfill"`
	// What records are made of the events: an entry, or a list of entries.
	// Without this key: as `records` of the target says.
	Records *Records `yaml:"records"`

	body    string // of BodyFile
	section *section
}

// Problem reports what is wrong with the value of a key of the stream, or with
// a key that is missing. It is for plugins, while they are called, and is not
// repeated for a key whose value is known to be wrong.
func (st *Stream) Problem(key, message, remedy string) {
	if st.section != nil && !st.section.bad[key] {
		st.section.wrong(key, message, remedy)
	}
}

// Backfill is a history endpoint that answers with JSON. It is asked with GET,
// as the stream's identity.
type Backfill struct {
	// The address; `{from}` and `{to}` in it stand for the first and the last
	// missing number. It shows up in logs: secrets belong into `headers`.
	URL string `yaml:"url" required:"true"`
	// Headers to send with the request.
	Headers map[string]auth.Secret `yaml:"headers"`
	// The dotted path of the list of events in the answer. Without it the
	// answer is the list.
	Each string `yaml:"each"`
	// The dotted path of the event's id in its entry of the list. It is the
	// number that is missing, unless the stream has a `sequence`, which is
	// then looked for in the event's data.
	ID string `yaml:"id"`
	// The dotted path of the event's type; without it the type is `message`.
	Type string `yaml:"type"`
	// The dotted path of the event's data. Without it the whole entry is the
	// data.
	Data string `yaml:"data"`
}

func (b *Backfill) check(s *section) {
	if s.good("url") {
		message, remedy := checkURL("url", strings.NewReplacer("{from}", "1", "{to}", "2").Replace(b.URL))
		if message == "" && (!strings.Contains(b.URL, "{from}") || !strings.Contains(b.URL, "{to}")) {
			message, remedy = `"url" does not say where the numbers go`, "write {from} and {to} for the first and the last missing number"
		}
		if message != "" {
			s.wrong("url", message, remedy)
		}
	}
	checkHeaders(s, "headers", b.Headers)
}

// Reconnect bounds the wait before a connection is made again. It doubles with
// each failure, with jitter.
type Reconnect struct {
	// The first wait.
	Min Duration `yaml:"min" default:"1s" min:"1ms"`
	// The longest wait.
	Max Duration `yaml:"max" default:"1m" min:"1ms"`
	// How long a connection must have brought events to begin again with
	// `min`.
	HealthyAfter Duration `yaml:"healthy_after" default:"10s" min:"1ms"`
}

// Limits paces what is done to one host, by all streams of the target.
type Limits struct {
	// Attempts to connect, at most so many a second in the long run.
	ConnectsPerSecond float64 `yaml:"connects_per_second" default:"2" min:"0.001"`
	// Attempts that may be made at once.
	Burst int `yaml:"burst" default:"4" min:"1"`
	// Streams that may be open to one host at once, by all targets together.
	StreamsPerHost int `yaml:"streams_per_host" default:"1000" min:"1"`
	// Streams that may be open at once with the target's credential.
	StreamsPerCredential int `yaml:"streams_per_credential" default:"1000" min:"1"`
}

// PluginOptions is a part of the file that the plugin reads.
type PluginOptions struct {
	node ast.Node
	path string
}

func (o *PluginOptions) decodeNode(_ *decoder, n ast.Node, path string) { o.node, o.path = n, path }

// nameForm is what names may be: they are parts of "target/stream" and of the
// keys in destinations.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckName says what is wrong with a name for a stream or sink.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%s cannot be a name: %s", show(name), nameRemedy)
	}
	return nil
}

const nameRemedy = "use up to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit"

func (f *File) check(s *section) {
	f.Path = s.d.file
	if !s.has("name") {
		file := filepath.Base(f.Path)
		f.Name = strings.TrimSuffix(file, filepath.Ext(file))
		if !nameForm.MatchString(f.Name) {
			s.wrong("name", "the file's name does not serve as the target's name", "write name: and a name; "+nameRemedy)
		}
	} else if s.good("name") && !nameForm.MatchString(f.Name) {
		s.wrong("name", `"name" is `+show(f.Name), nameRemedy)
	}

	if s.good("streams") && len(f.Streams) == 0 {
		s.wrong("streams", "there are no streams", "a target holds at least one")
	}
	var streams []string
	for _, st := range f.Streams {
		if st.Name != "" && slices.Contains(streams, st.Name) {
			st.Problem("name", "another stream has the name "+show(st.Name), "give each a name of its own")
		}
		streams = append(streams, st.Name)
	}
	f.checkSinks(s)
	f.checkEventSources(s)
	f.checkPace(s)
	f.callPlugin(s)
	f.checkRecords(s)
	f.checkColumns(s)
}

// callPlugin has the plugin read its options and make the target.
func (f *File) callPlugin(s *section) {
	d := s.d
	plugin, ok := d.options.Registry.Plugins[f.Plugin]
	if !ok {
		s.wrong("plugin", "there is no plugin "+show(f.Plugin), didYouMean("plugins of this build", f.Plugin, keysOf(d.options.Registry.Plugins)))
		return
	}
	target, err := plugin(f, func(into any) error {
		f.settings = into
		if f.Options == nil {
			return d.defaults(into, s.node, "options")
		}
		return d.decodeInto(f.Options.node, into, f.Options.path)
	})
	f.Target = target
	for i := range f.Streams {
		f.Streams[i].section = nil // Problem is for the plugin alone
	}
	// A plugin that is given a file with problems may have more of its own.
	if err != nil && len(d.problems) == 0 {
		at := "plugin"
		if s.has("options") {
			at = "options"
		}
		s.wrong(at, fmt.Sprintf("plugin %s: %s", f.Plugin, d.hide(err.Error())), "")
	}
}

func (st *Stream) check(s *section) {
	st.section = s
	if s.good("name") && !nameForm.MatchString(st.Name) {
		s.wrong("name", `"name" is `+show(st.Name), nameRemedy)
	}
	if s.good("url") {
		if message, remedy := checkURL("url", st.URL); message != "" {
			s.wrong("url", message, remedy)
		}
	}
	checkHeaders(s, "headers", st.Headers)
	st.checkRequest(s)
	st.checkInside(s)
	if st.Backfill != nil && st.Backfill.ID == "" && st.Sequence == "" && s.good("backfill") {
		s.wrong("backfill", "backfill has no id, and the stream has no sequence", "name the field that holds the number of an event")
	}
	if slices.Contains(st.Types, "") {
		s.wrong("types", "an event type is empty", "an event without a type has the type message")
	}
}

func (r *Reconnect) check(s *section) {
	if r.Max < r.Min && !s.bad["min"] && !s.bad["max"] {
		s.wrong("max", fmt.Sprintf("max (%v) is shorter than min (%v)", r.Max, r.Min), "raise max or lower min")
	}
}

// checkURL never quotes the URL, since a wrong one may hold a password.
func checkURL(key, raw string) (message, remedy string) {
	const want = "want an address such as https://example.com/stream"
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return strconv.Quote(key) + " cannot be read", want
	case u.Scheme == "" || u.Host == "" || u.Hostname() == "":
		return strconv.Quote(key) + " has no scheme or no host", want
	case u.User != nil:
		return strconv.Quote(key) + " holds a user name or a password", "addresses show up in logs: put Authorization into headers, or use auth"
	}
	return "", ""
}

// checkHeaders finds names and values that HTTP cannot carry.
func checkHeaders(s *section, key string, headers map[string]auth.Secret) {
	seen := map[string]bool{}
	for _, name := range keysOf(headers) {
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !headerName.MatchString(name):
			s.wrong(key, show(name)+" cannot be the name of a header", "use letters, digits and dashes")
		case canonical == "Host":
			s.wrong(key, "the header Host follows from the address", "remove it")
		case seen[canonical]:
			s.wrong(key, "the header "+canonical+" stands here twice", "case makes no difference in header names; remove one")
		case strings.ContainsFunc(headers[name].Reveal(), notInHeader):
			s.wrong(key, "the value of the header "+canonical+" has characters that a header cannot carry", "it must be one line of printable characters")
		}
		seen[canonical] = true
	}
}

// headerName is a token of RFC 9110, section 5.6.2.
var headerName = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

// notInHeader tells what no field value holds (RFC 9110, section 5.5).
func notInHeader(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }
