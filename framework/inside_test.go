package framework_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// paper is a browser made of paper: it has the first place that it gives lose
// its clearance, and sends for the others.
type paper struct {
	mu     sync.Mutex
	places []*paperPlace
}

type paperPlace struct {
	lost       bool
	via        auth.Via
	credential *auth.Credential
	pages      []auth.Page
	closed     int
}

func (p *paper) Inside(via auth.Via, c *auth.Credential) auth.Inside {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.places = append(p.places, &paperPlace{lost: len(p.places) == 0, via: via, credential: c})
	return p.places[len(p.places)-1]
}

func (p *paperPlace) Transport(page auth.Page) http.RoundTripper {
	p.pages = append(p.pages, page)
	return p
}

func (p *paperPlace) RoundTrip(req *http.Request) (*http.Response, error) {
	if p.lost {
		return nil, &auth.LostError{Status: http.StatusForbidden}
	}
	req.Header.Add("X-Inside", fmt.Sprint(req.Header["User-Agent"]))
	return http.DefaultTransport.RoundTrip(req)
}

func (p *paperPlace) Close() { p.closed++ }

// paperLogin brings a header, and a browser's User-Agent.
type paperLogin struct{}

func (paperLogin) Bound() auth.Binding { return auth.BoundToExit }

func (paperLogin) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	return &auth.Credential{
		Header: http.Header{"Authorization": {"Bearer x"}}, UserAgent: "Mozilla", BrowserHeader: http.Header{"Sec-Ch-Ua": {"x"}},
	}, nil
}

func TestAStreamIsReadInsideTheBrowserOfItsIdentity(t *testing.T) {
	var asked []http.Header
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header)
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "id: 1\ndata: 1\n\nid: 3\ndata: 3\n\ndata: end\n\n")
	}))
	defer site.Close()
	keeper := auth.NewKeeper(auth.Config{Name: "test", Source: paperLogin{}})
	browser := &paper{}
	ids := framework.NewIdentities(framework.IdentityConfig{
		Keeper: keeper, Browser: browser, Hosts: []string{strings.TrimPrefix(site.URL, "http://")},
	})
	page := auth.Page{URL: site.URL + "/page", EventSource: true, Types: []string{"tick"}}
	s := &framework.Stream{
		Name: "test/feed", Identities: ids, Page: &page, MinWait: time.Millisecond,
		Target: &framework.SSE{Request: framework.Request{URL: site.URL}, Options: framework.SSEOptions{Done: "end"}},
	}
	var got []string
	for ev, err := range s.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(ev.Data))
	}
	if fmt.Sprint(got) != "[1 3]" {
		t.Errorf("events are %q", got)
	}
	// The first place had lost what the login brought: one more login, through
	// the same exit, and nothing else was tried.
	if len(browser.places) != 2 || keeper.Stats().Logins != 2 || ids.Rotations() != 0 {
		t.Fatalf("%d places, %d logins, %d rotations", len(browser.places), keeper.Stats().Logins, ids.Rotations())
	}
	for i, p := range browser.places {
		if p.via.Exit != "direct" || p.credential.Generation != uint64(i+1) || !reflect.DeepEqual(p.pages, []auth.Page{page}) {
			t.Errorf("place %d: %+v", i, p)
		}
	}
	// What is the browser's own affair is left to it.
	h := asked[0]
	if len(asked) != 1 || h.Get("X-Inside") != "[]" || h.Get("Authorization") != "Bearer x" || h.Get("Sec-Ch-Ua") != "" {
		t.Errorf("%d requests, %v", len(asked), h)
	}
	ids.Close()
	for i, p := range browser.places {
		if p.closed != 1 {
			t.Errorf("place %d was closed %d times", i, p.closed)
		}
	}
}

func TestAStreamInsideABrowserNeedsOne(t *testing.T) {
	s := &framework.Stream{Name: "test/feed", Page: &auth.Page{}, Target: &framework.SSE{}}
	for _, err := range s.Events(t.Context()) {
		if err == nil || !strings.Contains(err.Error(), "its Identities have none") {
			t.Errorf("got %v", err)
		}
		return
	}
	t.Error("no error")
}
