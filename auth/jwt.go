package auth

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"time"
)

// year10000 is the first second that a clock of four digits cannot show.
const year10000 = 253402300800

// JWTExpiry reads the exp claim of a JSON Web Token (RFC 7519, section 4.1.4).
// The signature is not verified: it is the site's to check, we only want to
// know when to renew. It reports false for anything that is not a JWT with an
// exp that a clock can show.
func JWTExpiry(token string) (time.Time, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Exp *float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Exp == nil {
		return time.Time{}, false
	}
	seconds, fraction := math.Modf(*claims.Exp)
	if seconds <= 0 || seconds >= year10000 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), int64(fraction*1e9)), true
}
