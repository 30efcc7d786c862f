package browser

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

const (
	// evaluateTime is how long a page may take to begin a request: one that
	// does not answer for so long is dead.
	evaluateTime = 10 * time.Second
	// headTime is how long the head of an answer may take.
	headTime = 15 * time.Second
	// pieceSize is about how much of an answer is handed over at once, and
	// bufferSize what a page keeps while nobody reads before it stops reading
	// itself. An EventSource cannot be stopped: it ends at mostSize.
	pieceSize  = 256 << 10
	bufferSize = 1 << 20
	mostSize   = 64 << 20
)

// readerScript makes the object in the page that sends a request and hands its
// answer over.
//
//go:embed reader.js
var readerScript string

// pageRequest is what readerScript is told.
type pageRequest struct {
	URL         string      `json:"url"`
	Method      string      `json:"method"`
	Headers     [][2]string `json:"headers"`
	Body        []byte      `json:"body,omitempty"` // base64
	EventSource bool        `json:"eventSource"`
	Types       []string    `json:"types"`
	Limit       int         `json:"limit"`
	Most        int         `json:"most"`
	Piece       int         `json:"piece"`
}

// send sends a request from the page and returns once the head of its answer is
// there. done is called when the answer is over.
func (t *tab) send(ctx context.Context, page auth.Page, req *http.Request, body []byte, done func()) (*http.Response, error) {
	asked := pageRequest{
		URL: req.URL.String(), Method: req.Method, Headers: [][2]string{}, Body: body,
		EventSource: page.EventSource && req.Header.Get("Accept") == "text/event-stream", Types: append([]string{}, page.Types...),
		Limit: bufferSize, Most: mostSize, Piece: pieceSize,
	}
	for name, values := range req.Header {
		if asked.EventSource && name != "Accept" && !auth.BrowsersOwn(name) {
			return nil, fmt.Errorf("an EventSource sends no header, and the request has %s", name)
		}
		if !auth.BrowsersOwn(name) {
			asked.Headers = append(asked.Headers, [2]string{name, strings.Join(values, ", ")})
		}
	}
	text, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	noted(t, t.answers, asked.URL) // of an earlier one
	noted(t, t.failed, asked.URL)
	begun, err := t.evaluate(ctx, "("+strings.TrimSpace(readerScript)+")("+string(text)+")")
	if err != nil {
		return nil, err
	}
	a := &answer{tab: t, object: begun, over: make(chan struct{}), pieces: make(chan []byte), done: done}
	head, err := a.head(ctx)
	if err == nil && head == nil {
		err = t.refusal(asked)
		if answered := (*answeredError)(nil); errors.As(err, &answered) {
			head, err = &answered.head, nil
		}
	}
	if err != nil {
		a.stop()
		return nil, err
	}
	resp := head.response(req)
	resp.Body = a
	context.AfterFunc(ctx, func() { a.end(context.Cause(ctx)) }) // done ends ctx, too
	t.stay.call(a.pump)
	return resp, nil
}

// evaluate has the page evaluate an expression and returns the object that this
// makes. A page that does not answer is given up.
func (t *tab) evaluate(ctx context.Context, expression string) (object string, err error) {
	type evaluated struct {
		result any
		err    error
	}
	returned := make(chan evaluated, 1)
	t.stay.call(func() {
		// Not by Playwright's own Evaluate: that is subject to the page's content
		// security policy.
		result, err := t.cdp.Send("Runtime.evaluate", map[string]any{"expression": expression})
		returned <- evaluated{result, err}
	})
	select {
	case e := <-returned:
		if e.err != nil {
			return "", t.sayable(e.err)
		}
		object, _ = field(e.result, "result", "objectId").(string)
		if object == "" || field(e.result, "exceptionDetails") != nil {
			return "", errors.New("the page cannot send requests")
		}
		return object, nil
	case <-time.After(evaluateTime):
		t.cancel(errHung)
		return "", errHung
	case <-t.ctx.Done():
		return "", context.Cause(t.ctx)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// sayable is an error of Playwright's, which may quote what was sent.
func (t *tab) sayable(err error) error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	if errors.Is(err, playwright.ErrTargetClosed) {
		return errGone
	}
	return errors.New("the page went elsewhere") // and took what it was asked for along
}

// field follows names through JSON objects.
func field(v any, names ...string) any {
	for _, name := range names {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// answerHead is what comes first.
type answerHead struct {
	Status  int         `json:"status"`
	Headers [][2]string `json:"headers"`
}

func (h *answerHead) response(req *http.Request) *http.Response {
	resp := &http.Response{
		Status:     fmt.Sprintf("%d %s", h.Status, http.StatusText(h.Status)),
		StatusCode: h.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, ContentLength: -1, Request: req, Uncompressed: true,
	}
	for _, pair := range h.Headers {
		resp.Header.Add(pair[0], pair[1])
	}
	resp.Header.Del("Content-Encoding") // the browser has undone it
	resp.Header.Del("Content-Length")
	return resp
}

// answeredError is an answer that the page itself is told nothing of.
type answeredError struct{ head answerHead }

func (e *answeredError) Error() string { return fmt.Sprintf("the answer was %d", e.head.Status) }

// refusal tells why the page got no answer. An EventSource that does not like
// its answer keeps that to itself, and the browser knows it.
func (t *tab) refusal(asked pageRequest) error {
	for range 10 { // the browser may tell it a moment later
		if got, ok := noted(t, t.answers, asked.URL); ok {
			head := answerHead{Status: got.status}
			for name, value := range got.header {
				head.Headers = append(head.Headers, [2]string{name, value})
			}
			return &answeredError{head}
		}
		if why, ok := noted(t, t.failed, asked.URL); ok {
			return fmt.Errorf("the page could not fetch it: %s", short(firstLines(why, 1), 100))
		}
		select {
		case <-time.After(glance):
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		}
	}
	why := "the page could not fetch it"
	if origin(asked.URL) != t.origin {
		why += fmt.Sprintf(": it is of %s and the page of %s, which the site has to allow (CORS)", origin(asked.URL), t.origin)
	} else {
		why += ": its content security policy may forbid it"
	}
	return errors.New(why)
}

// answer is the body of an answer that a page reads.
type answer struct {
	tab    *tab
	object string // in the page
	pieces chan []byte
	done   func()

	piece bytes.Reader // of Read

	ending sync.Once
	over   chan struct{}
	err    error // why it is over, set before over is closed
}

// next asks the page for what comes next: its kind and what there is of it.
func (a *answer) next() (kind byte, text string, err error) {
	result, err := a.tab.cdp.Send("Runtime.callFunctionOn", map[string]any{
		"objectId": a.object, "functionDeclaration": "function() { return this.next() }",
		"awaitPromise": true, "returnByValue": true,
	})
	if err != nil {
		return 0, "", a.tab.sayable(err)
	}
	text, _ = field(result, "result", "value").(string)
	if text == "" {
		return 0, "", errors.New("the page does not say what came")
	}
	return text[0], text[1:], nil
}

// head waits for the head of the answer; nil where the page has none.
func (a *answer) head(ctx context.Context) (head *answerHead, err error) {
	type told struct {
		kind byte
		text string
		err  error
	}
	returned := make(chan told, 1)
	a.tab.stay.call(func() {
		kind, text, err := a.next()
		returned <- told{kind, text, err}
	})
	select {
	case got := <-returned:
		if got.err != nil || got.kind != 'h' {
			return nil, got.err
		}
		head = &answerHead{}
		return head, json.Unmarshal([]byte(got.text), head)
	case <-time.After(headTime):
		return nil, fmt.Errorf("no answer within %v: does the page hold six connections to the host already, the most that a browser has over HTTP/1.1?", headTime)
	case <-a.tab.ctx.Done():
		return nil, context.Cause(a.tab.ctx)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// pump takes the pieces from the page, each only after the one before was
// taken from it. That is what slows the page down.
func (a *answer) pump() {
	for {
		kind, text, err := a.next()
		switch {
		case err != nil:
		case kind == 'e':
			err = io.EOF
		case kind == 'f':
			err = fmt.Errorf("the page's answer broke off: %s", short(text, 100))
		default:
			var piece []byte
			if piece, err = base64.StdEncoding.DecodeString(text); err == nil {
				select {
				case a.pieces <- piece:
					continue
				case <-a.over:
				}
			}
		}
		a.end(err)
		return
	}
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	for a.piece.Len() == 0 {
		select {
		case piece := <-a.pieces:
			a.piece.Reset(piece)
		case <-a.over:
			return 0, a.err
		case <-a.tab.ctx.Done():
			a.end(context.Cause(a.tab.ctx))
		}
	}
	return a.piece.Read(p)
}

// Close implements io.Closer. It may be called while Read blocks, and more than
// once.
func (a *answer) Close() error {
	a.end(os.ErrClosed)
	return nil
}

// end ends the answer once, with the error that Read returns from then on.
func (a *answer) end(err error) {
	a.ending.Do(func() {
		a.err = err
		close(a.over)
		a.stop()
		a.done()
	})
}

// stop has the page let go of the request, without waiting for that.
func (a *answer) stop() {
	a.tab.stay.call(func() {
		a.tab.cdp.Send("Runtime.callFunctionOn", map[string]any{"objectId": a.object, "functionDeclaration": "function() { this.stop() }"})
		a.tab.cdp.Send("Runtime.releaseObject", map[string]any{"objectId": a.object})
	})
}
