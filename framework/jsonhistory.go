package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// JSONSequence returns a [Stream.Sequence] that reads the number from a field
// of the event's JSON data, named by a dotted path such as "meta.seq". A
// number in quotes counts as well.
func JSONSequence(path string) func(*Event) (uint64, bool) {
	return func(ev *Event) (uint64, bool) {
		v := gjson.GetBytes(ev.Data, path)
		text := v.Raw
		if v.Type == gjson.String {
			text = v.Str
		}
		n, err := strconv.ParseUint(text, 10, 64)
		return n, err == nil
	}
}

// History is a history endpoint that answers with JSON. Its Fetch is one for
// [Backfill].
type History struct {
	// URL is asked with GET; {from} and {to} in it stand for the first and the
	// last missing number.
	URL string
	// Header is sent with the request, beside the identity's.
	Header map[string]string
	// Each is the dotted path of the list of events in the answer; empty means
	// that the answer is the list.
	Each string
	// ID and Type are the dotted paths of an event's id and type in its entry
	// of the list; without them it has none, and the type "message". Its data
	// is the whole entry, or what the path Data names.
	ID, Type, Data string
}

// maxHistory bounds one answer of the history.
const maxHistory = 64 << 20

// Fetch asks for the events with the numbers from first to last.
func (h *History) Fetch(ctx context.Context, s *Session, first, last uint64) ([]Event, error) {
	address := strings.NewReplacer("{from}", strconv.FormatUint(first, 10), "{to}", strconv.FormatUint(last, 10)).Replace(h.URL)
	req, err := Request{URL: address, Header: h.Header}.New(ctx)
	if err != nil {
		return nil, errors.New("the address of the history cannot be read") // quoting it might show a secret
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, NewHTTPError(resp, "asked for its history")
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHistory+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the history: %w", err)
	case len(body) > maxHistory:
		return nil, fmt.Errorf("the history's answer is longer than %d MiB", maxHistory>>20)
	case !gjson.ValidBytes(body):
		return nil, &HTTPError{Status: resp.StatusCode, Header: resp.Header, Reason: "the history's answer is not JSON"}
	}
	list := gjson.ParseBytes(body)
	if h.Each != "" {
		list = list.Get(h.Each)
	}
	if !list.IsArray() {
		return nil, fmt.Errorf("the history's answer holds no list at %q", h.Each)
	}
	var events []Event
	for _, entry := range list.Array() {
		ev := Event{Data: []byte(entry.Raw)}
		if h.ID != "" {
			ev.ID = []byte(entry.Get(h.ID).String())
		}
		if h.Type != "" {
			ev.Type = entry.Get(h.Type).String()
		}
		if h.Data != "" {
			data := entry.Get(h.Data)
			if ev.Data = []byte(data.Raw); data.Type == gjson.String {
				ev.Data = []byte(data.Str)
			}
		}
		events = append(events, ev)
	}
	return events, nil
}
