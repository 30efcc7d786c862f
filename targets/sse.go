package targets

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// SSE is the plugin `sse`, a [Plugin]: it reads Server-Sent Events and JSON
// lines over HTTP as the streams of the file describe them, and has no options.
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
		t[f.Name+"/"+st.Name] = st
	}
	return t, nil
}

func reveal(secrets map[string]auth.Secret) map[string]string {
	plain := make(map[string]string, len(secrets))
	for name, s := range secrets {
		plain[name] = s.Reveal()
	}
	return plain
}

// sseTarget has the streams of a file, by "target/stream". The request is made
// of them at the last moment, since nothing hides its secrets any more.
type sseTarget map[string]*Stream

// Open implements [framework.Target].
func (t sseTarget) Open(ctx context.Context, s *framework.Session, from framework.Cursor) (framework.Connection, error) {
	st, ok := t[s.Stream]
	if !ok {
		return nil, fmt.Errorf("the target file has no stream %s", s.Stream)
	}
	sse := st.request()
	c, err := sse.Open(ctx, s, from)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		// It names the whole address, with the secrets of the query.
		err = &url.Error{Op: failed.Op, URL: st.URL, Err: failed.Err}
	}
	return c, err
}
