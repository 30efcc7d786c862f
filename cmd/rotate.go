package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) rotateCommand() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use: "rotate [TARGET | TARGET/STREAM]…", Short: "Have the streams of the worker that is running leave by another exit",
		Long: `rotate has the streams of these targets, these streams, or all streams of the
worker that runs with this data directory move to another exit, as before the
end of a lease: the new connection delivers before the old one is closed, where
handover and the site allow that, and connections are opened as limits say.
Streams of one target share an exit: those that are not named go on through the
old one until they connect anew. Where there is no other exit, connections are
made anew through the same one.

It prints how many streams change and does not wait for them. Exit codes: 0
done, 1 no worker answers, 2 there is no such stream.`,
		RunE: func(c *cobra.Command, names []string) error { return a.rotate(c.Context(), data, names) },
	}
	c.Flags().StringVar(&data, "data", "data", "the data directory of the worker")
	return c
}

func (a *app) rotate(ctx context.Context, data string, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := json.Marshal(names)
	if err != nil {
		return fail(ExitError, err)
	}
	var n int
	if err := askWorker(ctx, data, http.MethodPost, "/rotate", bytes.NewReader(body), &n); err != nil {
		return err
	}
	if n == 1 {
		fmt.Fprintln(a.stdout, "1 stream changes its connections")
	} else {
		fmt.Fprintf(a.stdout, "%d streams change their connections\n", n)
	}
	return nil
}

// rotate has the streams change that are named, by target or by themselves, or
// all of them where none is.
func (r *reloader) rotate(names []string) (streams int, err error) {
	named := func(stream, name string) bool { return stream == name || strings.HasPrefix(stream, name+"/") }
	var all []string
	for _, s := range r.held.Stats().Streams {
		all = append(all, s.Name)
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(s string) bool { return named(s, name) }) {
			return 0, fail(ExitUsage, fmt.Errorf("the worker has no stream or target %s: its streams are %s", name, strings.Join(all, ", ")))
		}
	}
	n := r.held.Rotate(func(stream string) bool {
		return len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return named(stream, name) })
	})
	r.log.Info("another exit was asked for", "of", names, "streams", n)
	return n, nil
}
