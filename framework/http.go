package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/holdline/scrape/internal/ndjson"
	"github.com/holdline/scrape/internal/sse"
	"github.com/holdline/scrape/internal/transport"
)

var (
	// ErrDone ends a stream for good: the site said that there is no more. It
	// is not a failure.
	ErrDone = errors.New("the stream is done")
	// ErrGoAway is in the error of a connection that ended after the site had
	// announced it: a planned change, after which the engine comes back at
	// once.
	ErrGoAway = errors.New("the site announced that it ends the connection")
)

// HTTPError is an answer that is not the stream.
type HTTPError struct {
	Status int
	Header http.Header
	// Body is the beginning of the answer, at most 4 KiB.
	Body []byte
	// Reason says what was expected, when the status alone does not.
	Reason string
	// Verdict is what the target wants done about this answer. The zero value
	// leaves that to the engine ([Judge]).
	Verdict Verdict
}

func (e *HTTPError) Error() string {
	text := fmt.Sprintf("the site answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

const (
	errorBody = 4 << 10
	// refusalTimeout bounds the wait for the beginning of an answer that is not
	// the stream: some who refuse never end it, and nothing watches it.
	refusalTimeout = 5 * time.Second
)

// NewHTTPError reads the beginning of the answer, as far as it comes within a
// few seconds, closes its body and returns the error that the engine judges by:
// for plugins that send requests of their own.
func NewHTTPError(resp *http.Response, reason string) *HTTPError {
	late := time.AfterFunc(refusalTimeout, func() { resp.Body.Close() })
	defer late.Stop()
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, errorBody)) // what was readable is enough
	return &HTTPError{Status: resp.StatusCode, Header: resp.Header, Body: body, Reason: reason}
}

// SSEOptions refine [OpenSSE]. The zero value reads any event stream and any
// stream of JSON lines.
type SSEOptions struct {
	// Wire is the format; empty means WireAuto.
	Wire Wire
	// MaxEvent is the longest event, in bytes; 0 means 16 MiB. A longer one is
	// skipped and counted as a dead letter, unless FailTooLarge.
	MaxEvent int64
	// FailTooLarge ends the stream with an error at an event longer than
	// MaxEvent.
	FailTooLarge bool
	// Done is the data of the event that ends a finite stream for good, such
	// as "[DONE]"; empty means that none does. The event itself is not
	// delivered. It is recognised also when its blank line is missing.
	Done string
	// StopAtEnd makes the clean end of the answer the end of the stream, as
	// with finite streams; by default the engine reconnects, as the standard
	// says.
	StopAtEnd bool
	// Resume says what the cursor is and how it is sent.
	Resume ResumeBy
	// Base64 decodes the data of each event (RFC 4648, sections 4 and 5, with
	// or without padding) before anything else looks at it but Done. Data that
	// is no base64 is delivered as it came, and counted as an oddity.
	Base64 bool
	// Preface is what to read before the first event of each connection; nil
	// for nothing.
	Preface *Preface
	// Answers say what to do about answers that are not the stream, by
	// status: a verdict with a Remedy replaces the engine's own. 200 is for an
	// answer with another content type.
	Answers map[int]Verdict
}

// Wire is the format of a stream over HTTP.
type Wire string

const (
	// WireAuto goes by the content type: text/event-stream, or one of
	// application/x-ndjson, application/ndjson, application/jsonl,
	// application/x-jsonlines and application/jsonlines. Anything else is not
	// the stream.
	WireAuto Wire = "auto"
	// WireSSE reads Server-Sent Events whatever the content type says, unless
	// it says HTML: a page in the stream's place is most often a login page.
	WireSSE Wire = "sse"
	// WireNDJSON reads one JSON value a line, whatever the content type says,
	// unless it says HTML. Each line is an event of the type "message".
	WireNDJSON Wire = "ndjson"
)

// of is the format of an answer with the content type, empty if that is not
// the stream.
func (w Wire) of(essence string) Wire {
	auto := w == "" || w == WireAuto
	switch essence {
	case "text/event-stream":
		if auto {
			return WireSSE
		}
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines":
		if auto {
			return WireNDJSON
		}
	case "text/html", "application/xhtml+xml":
		return ""
	}
	if auto {
		return ""
	}
	return w
}

// essenceOf is a content type without its parameters, whatever is wrong with
// these, or the first of several that somebody on the way has joined.
func essenceOf(value string) string {
	if i := strings.IndexAny(value, ";,"); i >= 0 {
		value = value[:i]
	}
	return strings.ToLower(strings.TrimSpace(value))
}

// accept is what a request asks for.
func (w Wire) accept() string {
	if w == WireNDJSON {
		return "application/x-ndjson, application/jsonl, application/json;q=0.9, */*;q=0.1"
	}
	return "text/event-stream"
}

// OpenSSE sends the request through the session and returns the connection
// that reads the Server-Sent Events of the answer, or its JSON lines. It sets
// Accept, Cache-Control and, where there is a cursor, what resumes from it:
// Last-Event-ID (WHATWG HTML, section 9.2) unless o.Resume says otherwise. An
// answer that is not the stream is an *HTTPError; 204 is [ErrDone].
func OpenSSE(ctx context.Context, s *Session, req *http.Request, from Cursor, o SSEOptions) (Connection, error) {
	resume, err := o.Resume.parse()
	if err != nil {
		return nil, err
	}
	s.unasked = true // what the preface comes to is not about the cursor
	c := &httpConnection{options: o, resume: resume, session: s, cursor: from}
	if o.Preface != nil {
		if c.preface, err = o.Preface.fetch(ctx, s, req, o); err != nil {
			return nil, err
		}
	}
	req = req.WithContext(ctx)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", o.Wire.accept())
	}
	req.Header.Set("Cache-Control", "no-store")
	sent := resume.send(req, from)
	if !sent {
		s.oddity("cursor that cannot be sent", excerpt(from), false)
	}
	s.unasked = !sent || resume.never
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, err
	}
	essence := essenceOf(resp.Header.Get("Content-Type"))
	wire := o.Wire.of(essence)
	own := o.Answers[resp.StatusCode]
	switch {
	case resp.StatusCode == http.StatusNoContent && own.Remedy == Auto:
		resp.Body.Close()
		return nil, fmt.Errorf("%w: 204 No Content", ErrDone)
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return nil, answer(resp, fmt.Sprintf("the redirect is not followed: it is not the first %d, leads from https to http, or leads nowhere", transport.MaxRedirects), own)
	case resp.StatusCode != http.StatusOK:
		return nil, answer(resp, "", own)
	case wire == "":
		return nil, answer(resp, fmt.Sprintf("content type %q is not the stream's", essence), own)
	}
	resp.Header = nil // the body keeps the answer, for as long as it is read
	c.answer, _ = resp.Body.(*transport.Body)
	c.body = s.Watch(resp.Body)
	if wire == WireNDJSON {
		c.lines = ndjson.NewDecoder(c.body, c.lineOptions())
		return c, nil
	}
	tooLarge := sse.Skip
	if o.FailTooLarge {
		tooLarge = sse.Fail
	}
	c.events = sse.NewDecoder(c.body, sse.Options{
		MaxEvent:    o.MaxEvent,
		OnTooLarge:  tooLarge,
		LastEventID: string(from),
		Budget:      s.budget,
		OnOddity:    func(o sse.Oddity) { s.oddity(oddityOf(o.Kind.String(), o.Reason), o.First, o.Kind == sse.TooLarge) },
		OnID: func(id []byte) {
			if s.moved != nil && c.resume.path == nil && !c.resume.never { // else the cursor is not the id
				s.moved(Cursor(id))
			}
		},
	})
	return c, nil
}

func answer(resp *http.Response, reason string, own Verdict) *HTTPError {
	e := NewHTTPError(resp, reason)
	e.Verdict = own
	return e
}
