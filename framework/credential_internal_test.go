package framework

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

func TestAPlannedRenewalBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &countingSource{life: time.Hour} // a login takes 2 s
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source})})
		defer ids.Close()
		first, err := ids.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer first.release()
		acquire := func() (*identity, time.Duration) {
			began := time.Now()
			id, err := ids.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			id.release()
			return id, time.Since(began)
		}
		for _, refused := range []bool{false, true} {
			old, _ := acquire()
			var renewal sync.WaitGroup
			renewal.Go(func() {
				id, err := ids.reauthenticate(t.Context(), old, refused)
				if err != nil {
					t.Error(err)
					return
				}
				id.release()
			})
			synctest.Wait()
			id, waited := acquire()
			if !refused && (id != old || waited != 0) {
				t.Errorf("a planned renewal made another stream wait for %v", waited)
			}
			if refused && (id == old || waited != 2*time.Second) {
				t.Errorf("after a refusal another stream got the old one: %v, after %v", id == old, waited)
			}
			renewal.Wait()
		}
	})
}
