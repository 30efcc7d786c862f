package cmd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/oauth"
	"github.com/holdline/scrape/targets"
)

// loginFlags are the flags of `scrape login`.
type loginFlags struct {
	config  string
	data    string
	keyFile string
	exit    string
	headed  bool
}

func (a *app) loginCommand() *cobra.Command {
	var o loginFlags
	c := &cobra.Command{
		Use:   "login FILE",
		Short: "Log in once, by hand if you like, and keep what it brings",
		Long: `login logs in as the target file says and keeps the session, encrypted, in the
data directory: the next run begins with it, and a run that has lost its own
takes it up within seconds; streams that it had given up begin again.

With --headed the browser shows its window. The steps are done as far as they
go; what they cannot do, such as a captcha or a code from a telephone, is left to
you. The window closes by itself once what the last step waits for is there.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, paths []string) error { return a.login(c.Context(), paths, o) },
	}
	configFlag(c, &o.config)
	keyFlag(c, &o.keyFile)
	f := c.Flags()
	f.StringVar(&o.data, "data", "data", "the data directory of the run")
	f.StringVar(&o.exit, "exit", "", "log in through the exit of this name")
	f.BoolVar(&o.headed, "headed", false, "show the browser's window, for a person")
	return c
}

func (a *app) login(ctx context.Context, paths []string, o loginFlags) error {
	files, worker, err := a.load(paths, o.config)
	if err != nil {
		return fail(ExitUsage, err)
	}
	f := files[0]
	w := &wiring{
		files: files, worker: worker, data: o.data, hooks: a.hooks, byHand: true, headed: o.headed,
		log: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: shortText})),
	}
	w.prompt = func(p oauth.Prompt) { printPrompt(a.stdout, p) }
	w.reset()
	if !w.any((*targets.Credential).Kept) {
		return fail(ExitUsage, fmt.Errorf("%s: there is nothing to log in to: auth has none of browser, login and oauth2", f.Path))
	}
	if o.headed && !w.any(func(c *targets.Credential) bool { return c.Browser != nil }) {
		return fail(ExitUsage, fmt.Errorf("%s: --headed shows a browser, and auth has none", f.Path))
	}
	if err := usable(o.data); err != nil {
		return fail(ExitSetup, err)
	}
	if w.kept, err = openStore(o.data, o.keyFile); err != nil {
		return fail(ExitSetup, err)
	}
	if w.seed, err = exitSeed(o.data, rand.Text()); err != nil {
		return fail(ExitSetup, err)
	}
	stopDemos, err := w.startDemos(ctx)
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer stopDemos()
	closeBrowser, err := w.startBrowser(ctx)
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer closeBrowser()
	t, err := w.wire(f, wired{})
	if err != nil {
		return fail(ExitUsage, err)
	}
	defer t.identities.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(a.drain, func() { cancel(errAborted) })
	defer stop()
	credential, exit, err := t.identities.Login(ctx, o.exit)
	if !workerRuns(ctx, o.data) {
		w.saveExits(nil) // when a session began, which a worker keeps by itself
	}
	if context.Cause(ctx) == errAborted {
		return fail(ExitAborted, errors.New("the login was given up"))
	}
	if err != nil {
		return fail(ExitError, err)
	}
	if o.exit != "" && exit != o.exit {
		fmt.Fprintf(a.stdout, "There is no healthy exit of the name %s: another was taken.\n", o.exit)
	}
	if len(f.Auth.Stack) == 0 {
		// The parts of a stack are bound each for itself.
		exit = cmp.Or(credential.Exit, "any")
	}
	fmt.Fprintf(a.stdout, "Logged in: %s, exit %s, %s.\nIt is kept for\n  scrape run %s --data %s\n", holds(credential), exit, ends(credential, time.Now()), f.Path, o.data)
	a.tellWorker(ctx, f.Name, o.data)
	return nil
}

// tellWorker tells a worker that runs with the data directory of a login.
func (a *app) tellWorker(ctx context.Context, target, data string) {
	name, err := json.Marshal(target)
	var done takenUp
	if err == nil {
		err = askWorker(ctx, data, http.MethodPost, "/login", bytes.NewReader(name), &done)
	}
	switch {
	case errors.Is(err, errNoWorker):
	case err != nil:
		fmt.Fprintf(a.stderr, "the worker that runs with %s was not told: %v\n", data, err)
	case done.Held:
		fmt.Fprintln(a.stdout, "The worker that is running takes it up within seconds.")
	}
}

func printPrompt(to io.Writer, p oauth.Prompt) {
	fmt.Fprintf(to, "Open  %s\nand enter the code  %s\n", p.Address, p.Code)
	if p.Complete != "" {
		fmt.Fprintf(to, "or open  %s\n", p.Complete)
	}
	if !p.Until.IsZero() {
		fmt.Fprintf(to, "Waiting until %s …\n", p.Until.Local().Format("15:04:05"))
	}
}

// ends says when a credential ends.
func ends(c *auth.Credential, now time.Time) string {
	switch {
	case c.Expires.IsZero():
		return "end not known"
	case c.Expired(now) && !c.Refresh.IsZero():
		return "ended, can be renewed"
	case c.Expired(now):
		return "ended"
	}
	return "ends in " + c.Expires.Sub(now).Round(time.Second).String()
}
