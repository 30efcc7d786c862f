// Command library holds any event stream from Go, in one loop: no target file,
// no journal and no browser. Try it with
//
//	go run ./examples/library URL [CURSOR-FILE]
//
// A [framework.Stream] is the feed itself, not one connection to it. Ranging
// over its Events connects, notices when the line has died, connects again and
// goes on at the next event; the loop sees only events. Nothing runs any more
// once the loop is over.
//
// What outlives the program is the cursor: each event brings the one that
// resumes the stream after it. It is kept in a file here (cursor.txt unless
// named), where a real program would store it together with what it made of
// the event. A site that goes through a proxy or a login needs one field more,
// Identities.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"

	"github.com/holdline/scrape/framework"
)

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: library URL [CURSOR-FILE]")
		os.Exit(2)
	}
	file := "cursor.txt"
	if len(os.Args) == 3 {
		file = os.Args[2]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := follow(ctx, os.Args[1], file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// follow prints the events until ctx ends (nil), the site says that there are
// no more (nil), or the engine had to give up.
func follow(ctx context.Context, url, file string) error {
	cursor, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	stream := framework.Stream{
		Name:   "library/events", // what logs call it
		Target: &framework.SSE{Request: framework.Request{URL: url}},
		From:   framework.Cursor(cursor), // empty the first time: the site decides
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	for event, err := range stream.Events(ctx) {
		if err != nil {
			return err
		}
		fmt.Printf("%s %s %s\n", event.ID, event.Type, event.Data)
		// Last, so that a crash in between shows an event twice, never not at
		// all.
		if err := save(file, event.Cursor); err != nil {
			return err
		}
	}
	return nil
}

// save replaces the file in one step: a crash leaves the old cursor or the new
// one.
func save(file string, cursor framework.Cursor) error {
	if err := os.WriteFile(file+".new", []byte(cursor), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
