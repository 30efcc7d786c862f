package demo

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

type connKey struct{}

// connOf is the connection a request came by.
func connOf(ctx context.Context) net.Conn { return ctx.Value(connKey{}).(net.Conn) }

// serveHTTP serves until ctx ends, and returns when the last connection is
// closed and the last handler, also of a hijacked connection, has returned.
func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	var busy sync.WaitGroup
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			busy.Add(1) // its connection is still counted, so busy is not zero
			defer busy.Done()
			h.ServeHTTP(w, r)
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				busy.Add(1)
			case http.StateClosed, http.StateHijacked:
				busy.Done()
			}
		},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	err := srv.Serve(ln)
	if ctx.Err() != nil {
		err = nil
	}
	srv.Close()
	busy.Wait()
	return err
}
