package framework

import (
	"log/slog"
	"net/http"
)

// Session is what a [Target] opens a connection with: one identity, ready to
// use. Everything sent through Client leaves by the identity's exit, with its
// cookies, its User-Agent and, towards the target's own hosts only, its
// credential's headers.
type Session struct {
	// Client is for requests to the site. It has no overall time-out, which
	// would cut streams; bound other requests by their context.
	Client *http.Client
	// Stream is "target/stream".
	Stream string
	// Exit is the name of the exit in use.
	Exit string
	// Log carries the stream's name already.
	Log *slog.Logger
}
