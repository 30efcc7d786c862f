package cmd

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var o demo.Options
	var data string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Serve the demo exchange until interrupted",
		Long: `demo serves a price exchange that behaves as hard real sites do, and the
proxies through which it is reached, on loopback addresses only. Target files
with "demo: exchange" start it by themselves.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Dir = filepath.Join(data, "demo")
			o.Log = slog.New(slog.NewTextHandler(a.stderr, nil))
			site, err := demo.New(o)
			if err != nil {
				return fail(ExitUsage, err)
			}
			stop, err := serve(c.Context(), site, o.Log)
			if err != nil {
				return fail(ExitSetup, err)
			}
			defer stop()
			fmt.Fprintf(a.stdout, "exchange  %s  (user trader, password correct-horse)\n", site.URL())
			for _, x := range site.Exits() {
				user := x.URL.User.Username()
				password, _ := x.URL.User.Password()
				fmt.Fprintf(a.stdout, "%-8s  %s  (user %s, password %s)\n", x.Kind, x, user, password)
			}
			<-a.drain.Done()
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8700", "address of the site; its proxies take the three ports after it")
	f.StringVar(&data, "data", "data", "directory that remembers when the market began")
	f.Uint64Var(&o.Seed, "seed", 1, "what decides everything that happens by chance")
	f.Float64Var(&o.Rate, "rate", 20, "events a second")
	f.DurationVar(&o.TokenLife, "token-life", 0, "life of an access token (default 20s)")
	f.DurationVar(&o.FirstSilence, "first-silence", 0, "when the line first falls silent (default 24s, negative never)")
	f.DurationVar(&o.Silence, "silence", 0, "mean time between silences (default 2m, negative never)")
	return c
}
