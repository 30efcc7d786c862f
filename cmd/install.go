package cmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/auth/browser"
)

func (a *app) installCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "install",
		Short: "Put the browser driver in place and look for a browser",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			tools, err := browser.Find(c.Context(), browser.Config{})
			if err != nil {
				return fail(ExitSetup, err)
			}
			fmt.Fprintf(a.stdout, "Chromium %s: %s\nNode %s: %s\n", tools.ChromiumVersion, tools.Chromium, tools.NodeVersion, tools.Node)
			if err := browser.Install(c.Context(), browser.Config{}, func(line string) { fmt.Fprintln(a.stdout, line) }); err != nil {
				return fail(ExitSetup, err)
			}
			return nil
		},
	}
}
