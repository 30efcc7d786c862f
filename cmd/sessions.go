package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/auth"
)

func (a *app) sessionsCommand() *cobra.Command {
	var data, keyFile string
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List the credentials that are kept, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			none := fmt.Sprintf("No credentials are kept in %s.\n", data)
			if _, err := os.Stat(filepath.Join(data, credentialsDir)); errors.Is(err, fs.ErrNotExist) {
				fmt.Fprint(a.stdout, none) // and no key is made for it
				return nil
			}
			kept, err := openStore(data, keyFile)
			if err != nil {
				return fail(ExitSetup, err)
			}
			entries, err := kept.List()
			if len(entries) == 0 && err == nil {
				fmt.Fprint(a.stdout, none)
				return nil
			}
			now := time.Now()
			table := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "CREDENTIAL\tEXIT\tAGE\tEND\tHOLDS")
			for _, e := range entries {
				exit := e.Credential.Exit
				if exit == "" {
					exit = "any"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.Name, exit, now.Sub(e.Credential.Obtained).Round(time.Second), ends(e.Credential, now), holds(e.Credential))
			}
			if flushed := table.Flush(); flushed != nil {
				return fail(ExitError, flushed)
			}
			if err != nil {
				return fail(ExitError, err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&data, "data", "data", "the data directory")
	keyFlag(c, &keyFile)
	return c
}

// holds names what a credential is made of.
func holds(c *auth.Credential) string {
	var parts []string
	if len(c.Cookies) > 0 {
		var names []string
		for _, cookie := range c.Cookies {
			names = append(names, cookie.Name)
		}
		parts = append(parts, "cookies "+strings.Join(names, ","))
	}
	if len(c.Header) > 0 {
		parts = append(parts, "headers "+strings.Join(slices.Sorted(maps.Keys(c.Header)), ","))
	}
	if !c.Refresh.IsZero() {
		parts = append(parts, "a refresh token")
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}
