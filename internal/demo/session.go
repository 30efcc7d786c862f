package demo

import (
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const sessionCookie = "session"

// newSession makes a session's cookie value: its name, then its seal.
func (e *Exchange) newSession() string {
	id := e.sign.mac("session id", strconv.FormatUint(e.tokens.next(), 36))
	return id + "." + e.sign.seal(time.Now().Add(e.o.SessionLife), "session", id)
}

// session is the name of the session the request belongs to, "" for none.
func (e *Exchange) session(r *http.Request) string {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return ""
	}
	id, sealed, _ := strings.Cut(c.Value, ".")
	if !e.sign.opens(sealed, time.Now(), "session", id) {
		return ""
	}
	return id
}

func (e *Exchange) home(w http.ResponseWriter, r *http.Request) {
	e.page(w, http.StatusOK, "home", map[string]any{"LoggedIn": e.session(r) != ""})
}

func (e *Exchange) loginForm(w http.ResponseWriter, r *http.Request) { e.showLogin(w, r, "") }

// showLogin shows the form. A refused login has status 200 too, as on many
// sites: only the page tells.
func (e *Exchange) showLogin(w http.ResponseWriter, r *http.Request, problem string) {
	e.page(w, http.StatusOK, "login", map[string]any{
		"CSRF":  e.sign.seal(time.Now().Add(time.Hour), "form", visitor(r)),
		"Error": problem,
	})
}

// visitor tells browsers apart before they have a session.
func visitor(r *http.Request) string {
	c, err := r.Cookie(clearanceCookie)
	if err != nil {
		return ""
	}
	return c.Value
}

func (e *Exchange) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	problem := ""
	switch {
	case !e.sign.opens(r.PostFormValue("csrf"), time.Now(), "form", visitor(r)):
		problem = "This form is no longer valid. Please try again."
	case !same(r.PostFormValue("username"), e.o.User) || !same(r.PostFormValue("password"), e.o.Password):
		problem = "User name or password is wrong."
	}
	if problem != "" {
		e.floor.count(func(s *Stats) { s.LoginsRefused++ })
		e.showLogin(w, r, problem)
		return
	}
	e.floor.count(func(s *Stats) { s.Logins++ })
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: e.newSession(), Path: "/",
		MaxAge: int(e.o.SessionLife.Seconds()), HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
