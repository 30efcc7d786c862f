// Package cmd is the command line of scrape, importable, so that a build with
// plugins of its own is a main of five lines:
//
//	func main() { cmd.Main(cmd.WithTarget("acme", acme.Plugin)) }
//
// It is the one place that knows every room: it reads target files, makes
// pools, keepers, streams and sinks of them, and runs them as one
// [framework.Worker]. It holds no logic of its own beyond that.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/auth/browser"
	"github.com/holdline/scrape/targets"
)

// The exit codes of scrape.
const (
	ExitOK       = 0   // done, a limit was reached, or an interrupt was drained
	ExitError    = 1   // an error that none of the others describes; coverage: a known gap is open
	ExitUsage    = 2   // a flag, an argument or a target file is wrong: nothing was started
	ExitSetup    = 3   // this machine lacks something, or the data directory cannot be used
	ExitPosition = 4   // a destination does not belong to the journal: nothing was read; replay: it has these records
	ExitStream   = 5   // a stream had to be given up; what it brought is safe
	ExitAborted  = 130 // a second interrupt: stopped at once
)

// Option changes what the command line can do.
type Option func(*app)

// WithTarget adds a plugin under the name that target files use in `plugin:`.
func WithTarget(name string, p targets.Plugin) Option {
	return func(a *app) { a.registry.Plugins[name] = p }
}

// WithHook adds a hook under the name that steps of a browser use in `call:`.
func WithHook(name string, h browser.Hook) Option {
	return func(a *app) {
		a.hooks[name] = h
		a.registry.Hooks = append(a.registry.Hooks, name)
	}
}

// Main runs the command line with the process's arguments and exits.
func Main(options ...Option) {
	// An echo of the interrupt that ended the run may come after it, and must
	// not end the process with another exit code.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	os.Exit(Run(os.Args[1:], os.Stdout, os.Stderr, options...))
}

// Run runs the command line and returns its exit code. The process's interrupts
// are taken for its own.
func Run(args []string, stdout, stderr io.Writer, options ...Option) int {
	a := &app{stdout: stdout, stderr: stderr, registry: builtin(), hooks: map[string]browser.Hook{}}
	for _, o := range options {
		o(a)
	}
	// The first interrupt asks to stop, a second one stops at once.
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	ctx, abort := context.WithCancelCause(context.Background())
	defer abort(nil)
	drain, stop := context.WithCancel(context.Background())
	defer stop()
	over := make(chan struct{})
	defer close(over)
	go heed(interrupts, over, stop, func() { abort(errAborted) })
	a.drain = drain

	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	code := ExitUsage // cobra's own errors are all about flags and arguments
	var coded *exitError
	if errors.As(err, &coded) {
		code = coded.code
	}
	if context.Cause(ctx) == errAborted {
		code = ExitAborted
	}
	if coded == nil || coded.err != nil {
		fmt.Fprintln(stderr, err)
	}
	return code
}

var errAborted = errors.New("stopped at once by a second interrupt")

// app is one run of the command line.
type app struct {
	stdout, stderr io.Writer
	registry       targets.Registry
	hooks          map[string]browser.Hook
	drain          context.Context // ends with the first interrupt
}

// exitError carries an exit code; a nil err says that everything has been
// said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func fail(code int, err error) error { return &exitError{code, err} }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "scrape",
		Short:         "Hold live feeds for days and lose nothing",
		SilenceErrors: true,
		SilenceUsage:  true,
		Long: `scrape holds live feeds (Server-Sent Events) for days: it logs in through a
browser, leaves by the right proxy, notices when a line has silently died, and
goes on exactly where it stopped. What it reads goes through a durable journal
into sinks.

Exit codes: 0 done, limit reached or interrupt drained; 1 other errors, and
coverage while a known gap is open, and
journal verify where something is damaged; 2 wrong flags or target files; 3 something
on this machine is missing or in use; 4 a destination does not belong to the
journal; 5 a stream had to be given up; 130 stopped at once by a second
interrupt.`,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(a.runCommand(), a.reloadCommand(), a.rotateCommand(), a.tailCommand(), a.coverageCommand(), a.deadCommand(), a.journalCommand(), a.checkCommand(), a.loginCommand(), a.sessionsCommand(), a.demoCommand(), a.installCommand(), a.queryCommand(), a.proxiesCommand(), a.versionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this build", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Fprintln(a.stdout, version()) },
	}
}

func version() string {
	text := "scrape (unknown build)"
	if info, ok := debug.ReadBuildInfo(); ok {
		text = "scrape " + info.Main.Version + " " + info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				text += " " + s.Value
			}
		}
	}
	return text
}

func (a *app) checkCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "check FILE…", Short: "Say everything that is wrong with target files", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, paths []string) error {
			files, _, err := a.load(paths, config)
			if err != nil {
				return fail(ExitUsage, err)
			}
			for _, f := range files {
				fmt.Fprintf(a.stdout, "%s: target %s is in order: %d streams, %d sinks\n", f.Path, f.Name, len(f.Streams), len(f.Sinks))
				a.tellColumns(f)
			}
			return nil
		},
	}
	configFlag(c, &config)
	return c
}

// tellColumns prints what columns the records of the streams have.
func (a *app) tellColumns(f *targets.File) {
	for i := range f.Streams {
		var columns []string
		for _, c := range f.Columns(&f.Streams[i]) {
			text := c.Name + " " + string(c.Type)
			if c.Required {
				text += " required"
			}
			columns = append(columns, text)
		}
		if len(columns) > 0 {
			fmt.Fprintf(a.stdout, "  %s: %s\n", f.Streams[i].Name, strings.Join(columns, ", "))
		}
	}
}

func configFlag(c *cobra.Command, config *string) {
	c.Flags().StringVar(config, "config", "", "the worker's file (default scrape.yaml, if it is there)")
}
