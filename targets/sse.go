package targets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// SSE is the plugin `sse`, a [Plugin]: it reads Server-Sent Events over HTTP
// as the streams of the file describe them, and has no options.
func SSE(f *File, decode func(into any) error) (framework.Target, error) {
	if err := decode(&struct{}{}); err != nil {
		return nil, err
	}
	t := sseTarget{}
	for i := range f.Streams {
		st := &f.Streams[i]
		u, err := url.Parse(st.URL)
		switch {
		case st.URL == "":
			st.Problem("url", `"url" is missing`, "the plugin sse reads the feed from there")
			continue
		case err != nil:
			continue // the file has said so
		case u.Scheme != "http" && u.Scheme != "https":
			st.Problem("url", fmt.Sprintf(`"url" has the scheme %s`, show(u.Scheme)), "the plugin sse reads http and https")
			continue
		}
		t[f.Name+"/"+st.Name] = newSSERequest(st, u)
	}
	return t, nil
}

// sseTarget has the request of each stream, by "target/stream".
type sseTarget map[string]*sseRequest

type sseRequest struct {
	request *http.Request // without context
	shown   string        // its address without the parameters that may be secret
	body    auth.Secret
	options framework.SSEOptions
}

func newSSERequest(st *Stream, u *url.URL) *sseRequest {
	query := u.Query()
	for name, value := range st.Query {
		query.Set(name, value.Reveal())
	}
	if len(st.Query) > 0 {
		u.RawQuery = query.Encode()
	}
	header := http.Header{}
	for name, value := range st.Headers {
		header.Set(name, value.Reveal())
	}
	return &sseRequest{
		request: &http.Request{Method: st.Method, URL: u, Host: u.Host, Header: header},
		shown:   st.URL,
		body:    st.Body,
		options: framework.SSEOptions{MaxEvent: int64(st.MaxEvent), Done: st.Done, StopAtEnd: st.OnEnd == "stop"},
	}
}

// Open implements [framework.Target].
func (t sseTarget) Open(ctx context.Context, s *framework.Session, from framework.Cursor) (framework.Connection, error) {
	r, ok := t[s.Stream]
	if !ok {
		return nil, fmt.Errorf("the target file has no stream %s", s.Stream)
	}
	req := r.request.Clone(ctx)
	if !r.body.IsZero() {
		body := r.body.Reveal()
		req.ContentLength = int64(len(body))
		// A redirect sends it again.
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
		req.Body, _ = req.GetBody()
	}
	c, err := framework.OpenSSE(ctx, s, req, from, r.options)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		// It would name the whole address, with what query holds.
		err = &url.Error{Op: failed.Op, URL: r.shown, Err: failed.Err}
	}
	return c, err
}
