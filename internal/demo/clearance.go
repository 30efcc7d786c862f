package demo

import (
	"crypto/sha256"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	clearanceCookie = "clearance"
	// proofBits is the work a browser does for its clearance: about 4,000
	// hashes, some tens of milliseconds.
	proofBits = 12
)

// clientAddr is the address a request comes from.
func clientAddr(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr().Unmap()
}

// cleared tells whether the request brings a clearance earned by this address
// and this User-Agent.
func (e *Exchange) cleared(r *http.Request) bool {
	c, err := r.Cookie(clearanceCookie)
	if err != nil {
		return false
	}
	challenge, _, ok := cutLast(c.Value, ".")
	return ok && e.sign.opens(challenge, time.Now(), "clearance", clientAddr(r).String(), r.UserAgent()) &&
		proven(c.Value, r.UserAgent())
}

// proven tells whether the hash of the clearance and the User-Agent begins
// with proofBits zeros.
func proven(clearance, userAgent string) bool {
	sum := sha256.Sum256([]byte(clearance + " " + userAgent))
	return sum[0] == 0 && sum[1]>>(16-proofBits) == 0
}

// interstitial answers with the page whose script earns a clearance.
func (e *Exchange) interstitial(w http.ResponseWriter, r *http.Request) {
	e.floor.count(func(s *Stats) { s.Challenges++ })
	e.page(w, http.StatusForbidden, "interstitial", map[string]any{
		"Challenge": e.sign.seal(time.Now().Add(e.o.ClearanceLife), "clearance", clientAddr(r).String(), r.UserAgent()),
		"Bits":      proofBits,
		"MaxAge":    strconv.Itoa(int(e.o.ClearanceLife.Seconds())),
	})
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
