package demo

import (
	"bytes"
	"embed"
	"encoding/json"
	"html/template"
	"net/http"
	"time"
)

//go:embed pages/*.html
var pageFiles embed.FS

var pages = template.Must(template.ParseFS(pageFiles, "pages/*.html"))

// handler is the site: nothing of it without a clearance.
func (e *Exchange) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", e.home)
	mux.HandleFunc("GET /login", e.loginForm)
	mux.HandleFunc("POST /login", e.login)
	mux.HandleFunc("POST /api/v1/token", e.issueToken)
	mux.HandleFunc("GET /api/v1/prices", e.prices)
	mux.HandleFunc("GET /api/v1/market/stream", e.stream)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status := e.floor.outage(time.Now()); status != 0 {
			e.page(w, status, "outage", http.StatusText(status))
			return
		}
		if !e.cleared(r) {
			e.interstitial(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (e *Exchange) page(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name+".html", data); err != nil {
		e.log.Error("page failed", "page", name, "error", err)
		http.Error(w, "page failed", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
