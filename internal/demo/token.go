package demo

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const issuer = "demo-exchange"

// tokens numbers what is issued, and knows what is no longer good.
type tokens struct {
	first   uint64        // number before the first of this run; grows from run to run
	issued  atomic.Uint64 // since the start
	revoked atomic.Uint64 // number of the newest revoked token
}

func (t *tokens) next() uint64 { return t.first + t.issued.Add(1) }

func (t *tokens) revokeAll() { t.revoked.Store(t.first + t.issued.Load()) }

// claims are the content of an access token (RFC 7519).
type claims struct {
	jwt.RegisteredClaims
	Session string `json:"sid"`
}

// access is an access token that was found good, for as long as it stays so.
type access struct {
	number  uint64
	expires time.Time
	revoked time.Time // zero: not planned
}

var errSession = errors.New("the token belongs to another session")
var errRevoked = errors.New("the token was revoked")

// issueToken trades the session cookie for an access token.
func (e *Exchange) issueToken(w http.ResponseWriter, r *http.Request) {
	session := e.session(r)
	if session == "" {
		e.unauthorized(w, "login_required", "log in first")
		return
	}
	now := time.Now()
	expires := now.Add(e.o.TokenLife + time.Second - 1).Truncate(time.Second) // exp has whole seconds
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    issuer,
			Subject:   e.o.User,
			ID:        strconv.FormatUint(e.tokens.next(), 10),
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(expires),
		},
		Session: session,
	}).SignedString([]byte(e.sign))
	if err != nil {
		http.Error(w, "cannot sign", http.StatusInternalServerError)
		return
	}
	e.floor.count(func(s *Stats) { s.Tokens++ })
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": token,
		"token_type":   "Bearer",
		"expires_in":   int(expires.Sub(now).Seconds()),
	})
}

// authorize finds the request's access token good, or answers the request.
// The token comes as RFC 6750 has it: in the Authorization header, or in the
// query, which is all that a browser's EventSource can do.
func (e *Exchange) authorize(w http.ResponseWriter, r *http.Request) (access, bool) {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		text = r.URL.Query().Get("access_token")
	}
	if text == "" {
		e.unauthorized(w, "token_missing", "an access token is needed")
		return access{}, false
	}
	a, err := e.examine(text, e.session(r))
	switch {
	case err == nil:
		return a, true
	case errors.Is(err, jwt.ErrTokenExpired):
		e.unauthorized(w, "token_expired", "the token is expired")
	case errors.Is(err, errRevoked):
		e.unauthorized(w, "token_revoked", err.Error())
	case errors.Is(err, errSession):
		e.unauthorized(w, "session_mismatch", err.Error())
	default:
		e.unauthorized(w, "token_invalid", "the token is not valid")
	}
	return access{}, false
}

func (e *Exchange) examine(text, session string) (access, error) {
	var c claims
	_, err := jwt.ParseWithClaims(text, &c, func(*jwt.Token) (any, error) { return []byte(e.sign), nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithIssuer(issuer), jwt.WithExpirationRequired())
	if err != nil {
		return access{}, err
	}
	if session == "" || c.Session != session {
		return access{}, errSession
	}
	a := access{expires: c.ExpiresAt.Time}
	if a.number, err = strconv.ParseUint(c.ID, 10, 64); err != nil {
		return access{}, err
	}
	// The draw counts from the start of the run, so that it comes from the seed
	// alone; a token of an earlier run wraps around to a draw of its own.
	if n := a.number - e.tokens.first; e.luck.unit(drawRevoke, n) < e.o.RevokeChance {
		// Counted from the end: the beginning, iat, has lost its fraction of a second.
		early := 0.1 + 0.7*e.luck.unit(drawRevokeTime, n)
		a.revoked = a.expires.Add(-time.Duration(early * float64(e.o.TokenLife)))
	}
	if !e.good(a, time.Now()) {
		return access{}, errRevoked
	}
	return a, nil
}

// good tells whether a is still good now.
func (e *Exchange) good(a access, now time.Time) bool {
	if e.floor.firstRevoked(a.number, now) {
		return false
	}
	return now.Before(a.expires) && (a.revoked.IsZero() || now.Before(a.revoked)) && a.number > e.tokens.revoked.Load()
}

func (e *Exchange) unauthorized(w http.ResponseWriter, code, message string) {
	e.floor.count(func(s *Stats) { s.Unauthorized++ })
	w.Header().Set("WWW-Authenticate", `Bearer realm="exchange", error="invalid_token", error_description="`+message+`"`)
	writeJSON(w, http.StatusUnauthorized, map[string]any{"error": code, "message": message})
}
