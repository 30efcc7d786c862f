package cmd

import (
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// queryCommand reads a SQLite file on machines without a SQLite client.
func (a *app) queryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "query FILE SQL",
		Short: "Run a statement on a SQLite file, reading only",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return fail(ExitUsage, err)
			}
			u := url.URL{Scheme: "file", Path: path, RawQuery: "mode=rw&_pragma=busy_timeout(5000)&_pragma=query_only(1)"}
			db, err := sql.Open("sqlite", u.String())
			if err != nil {
				return fail(ExitError, err)
			}
			defer db.Close()
			rows, err := db.QueryContext(c.Context(), args[1])
			if err != nil {
				return fail(ExitError, fmt.Errorf("%s: %w", args[0], err))
			}
			defer rows.Close()
			names, err := rows.Columns()
			if err != nil {
				return fail(ExitError, err)
			}
			fmt.Fprintln(a.stdout, strings.Join(names, "|"))
			values, into := make([]sql.NullString, len(names)), make([]any, len(names))
			for i := range values {
				into[i] = &values[i]
			}
			for rows.Next() {
				if err := rows.Scan(into...); err != nil {
					return fail(ExitError, err)
				}
				for i, v := range values {
					if i > 0 {
						fmt.Fprint(a.stdout, "|")
					}
					fmt.Fprint(a.stdout, v.String)
				}
				fmt.Fprintln(a.stdout)
			}
			if err := rows.Err(); err != nil {
				return fail(ExitError, err)
			}
			return nil
		},
	}
}
