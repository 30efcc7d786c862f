// Package sse decodes a Server-Sent Events stream, to the letter of the HTML
// standard (sections 9.2.5 and 9.2.6), from any io.Reader.
//
// The main type is [Decoder]: a pull reader that never looks further than the
// bytes it has, allocates nothing per event, and tells what the standard drops
// ([Oddity], [Unfinished]). [Budget] bounds the unfinished events of many
// decoders together.
//
// It deliberately knows nothing of HTTP, reconnecting, silence or cursors that
// are not ids: those belong to its caller.
package sse
