package targets

import (
	"reflect"
	"testing"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

func TestStreamsInsideABrowser(t *testing.T) {
	f, err := Load("testdata/inside.good.yaml", testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		page   *auth.Page
		resume framework.ResumeBy
	}{
		{&auth.Page{URL: "https://example.com/quiet"}, framework.ResumeBy{From: "json:/n", As: "header"}},
		// It cannot say where it was, and is not thought to.
		{&auth.Page{EventSource: true, Types: []string{"tick"}}, framework.ResumeBy{From: "none", As: "header"}},
		{&auth.Page{EventSource: true}, framework.ResumeBy{From: "id", As: "query", Name: "after"}},
		{nil, framework.ResumeBy{From: "id", As: "header"}},
	} {
		st := &f.Streams[i]
		if got := st.InPage(); !reflect.DeepEqual(got, want.page) || st.request().Options.Resume != want.resume {
			t.Errorf("%s: %+v, resumed by %+v", st.Name, got, st.request().Options.Resume)
		}
	}
}
