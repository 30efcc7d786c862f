package framework

import (
	"errors"
	"net"
	"testing"

	"github.com/holdline/scrape/proxies"
)

func TestAnIdentityWithoutAPoolDialsAsThePoolDoes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there any more
	ids := NewIdentities(IdentityConfig{})
	defer ids.Close()
	id, err := ids.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer id.release()
	_, err = id.client.Get("http://" + l.Addr().String())
	var dial *proxies.DialError
	if !errors.As(err, &dial) || outcomeOf(err).Layer != LayerConnect {
		t.Errorf("a refused connection gives %v in layer %v, want the pool's error in the layer of connecting", err, outcomeOf(err).Layer)
	}
}
