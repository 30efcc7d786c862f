package framework

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/html"

	"github.com/holdline/scrape/internal/transport"
)

// PrefaceType is the type of the event that holds a [Preface].
const PrefaceType = "preface"

// Preface is JSON that stands in a page: what a site tells its visitors before
// the stream goes on from there. It is fetched for each connection, before
// that is opened, and delivered once for it, before its first event.
type Preface struct {
	// URL is the page; empty means the stream's own address, asked for a page.
	// Headers and cookies of the stream's request go along to the same host
	// only.
	URL string
	// Select says where the JSON stands: "json", where it is empty, for an
	// answer that is JSON itself; "json-ld" for the scripts of that type in an
	// HTML page, as a list when there are several; "script#ID" for the script
	// with the id.
	Select string
}

const (
	prefaceTimeout = 30 * time.Second
	maxPreface     = 16 << 20
)

// Check tells what is wrong.
func (p *Preface) Check() error {
	if id, ok := strings.CutPrefix(p.Select, "script#"); p.Select != "" && p.Select != "json" && p.Select != "json-ld" && (!ok || id == "") {
		return errors.New("a preface is selected by json, json-ld or script#ID")
	}
	if _, err := url.Parse(p.URL); err != nil {
		return errors.New("the address of the preface cannot be read")
	}
	return nil
}

// fetch reads the preface of a connection that the request is about to open.
func (p *Preface) fetch(ctx context.Context, s *Session, stream *http.Request, o SSEOptions) ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, prefaceTimeout)
	defer cancel()
	at := p.URL
	if at == "" {
		at = stream.URL.String()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, errors.New("the address of the preface cannot be read")
	}
	if transport.SameSite(stream.URL, req.URL) {
		req.Header = stream.Header.Clone()
		req.Header.Del("Content-Type")
	}
	req.Header.Set("Accept", "text/html, application/json;q=0.9, */*;q=0.8")
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, answer(resp, "instead of the page with the preface", o.Answers[resp.StatusCode])
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxPreface+1))
	if err != nil {
		return nil, fmt.Errorf("read the preface: %w", err)
	}
	found, reason := p.find(page)
	if reason == "" {
		return found, nil
	}
	// Another page in its place is most often that of a login.
	return nil, &HTTPError{Status: resp.StatusCode, Header: resp.Header, Body: page[:min(len(page), errorBody)],
		Reason: "preface: " + reason, Verdict: o.Answers[resp.StatusCode]}
}

// find returns the JSON in the page, or why there is none.
func (p *Preface) find(page []byte) (found []byte, reason string) {
	if len(page) > maxPreface {
		return nil, fmt.Sprintf("the page is longer than %d bytes", maxPreface)
	}
	parts := [][]byte{page}
	switch id, byID := strings.CutPrefix(p.Select, "script#"); {
	case byID:
		parts = scripts(page, "id", id)
	case p.Select == "json-ld":
		parts = scripts(page, "type", "application/ld+json")
	}
	switch {
	case len(parts) == 0:
		return nil, "the page has no " + p.Select
	case slices.ContainsFunc(parts, func(part []byte) bool { return !json.Valid(part) }):
		return nil, "what stands there is not JSON"
	case len(parts) == 1:
		return bytes.TrimSpace(parts[0]), ""
	}
	return slices.Concat([]byte("["), bytes.Join(parts, []byte(",")), []byte("]")), ""
}

// scripts returns what stands in the scripts of an HTML page whose attribute
// has the value.
func scripts(page []byte, name, value string) (found [][]byte) {
	z := html.NewTokenizer(bytes.NewReader(page))
	for wanted := false; ; {
		switch z.Next() {
		case html.ErrorToken:
			return found
		case html.StartTagToken:
			t := z.Token()
			wanted = t.Data == "script" && slices.ContainsFunc(t.Attr, func(a html.Attribute) bool {
				return a.Key == name && (a.Val == value || name == "type" && strings.EqualFold(strings.TrimSpace(a.Val), value))
			})
		case html.TextToken:
			if wanted {
				found = append(found, bytes.Clone(z.Raw()))
			}
			wanted = false
		default:
			wanted = false
		}
	}
}

// aside journals what goes with the events of a line and is none of them. It
// runs under r.mu.
func (r *runner) aside(ctx context.Context, l *line, ev *Event) error {
	if l.closed() {
		return errReplaced
	}
	if !r.share.take() {
		return errEnough
	}
	ev.Cursor = r.cursor
	if err := r.put(ctx, ev); err != nil {
		return err
	}
	r.stats.asides.Add(1)
	if r.share.done() {
		return errEnough
	}
	return nil
}
