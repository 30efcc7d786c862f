package proxies_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/holdline/scrape/proxies"
)

// A pool works in any http.Client: one transport per lease, whose connections leave by the lease's exit.
func Example() {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello")
	}))
	defer site.Close()

	exit, err := proxies.ParseExit("direct") // or http://user:password@host:port
	if err != nil {
		fmt.Println(err)
		return
	}
	pool, err := proxies.New(proxies.Config{Exits: []proxies.Exit{exit}})
	if err != nil {
		fmt.Println(err)
		return
	}
	lease, err := pool.Lease(context.Background(), proxies.Request{Key: "prices", Target: "site.example"})
	if err != nil {
		fmt.Println(err)
		return
	}
	transport := &http.Transport{DialContext: lease.DialContext}
	resp, err := (&http.Client{Transport: transport}).Get(site.URL)
	if err != nil {
		lease.Release(proxies.Unused) // the pool has seen the dial fail
		fmt.Println(err)
		return
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	transport.CloseIdleConnections() // frees the slots
	lease.Release(proxies.Healthy)
	fmt.Println(lease.Exit(), string(body), err)
	// Output: direct hello <nil>
}

func ExampleProvider_Exits() {
	provider, err := proxies.BuiltinProvider("decodo")
	if err != nil {
		panic(err)
	}
	_, err = provider.Exits(proxies.Subscription{User: "acme", Password: "…", Country: "us", Lifetime: 25 * time.Hour})
	fmt.Println(err)

	exits, err := provider.Exits(proxies.Subscription{User: "acme", Password: "…", Country: "us", Sessions: 2, Lifetime: time.Hour})
	if err != nil {
		panic(err)
	}
	for _, e := range exits {
		fmt.Println(e)
	}
	// Output:
	// decodo keeps no session for 25h: want 1m to 1d
	// decodo-1 (http://gate.decodo.com:7000)
	// decodo-2 (http://gate.decodo.com:7000)
}
