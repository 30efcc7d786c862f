// Command scrape holds live feeds for days and loses nothing.
package main

import "github.com/holdline/scrape/cmd"

func main() { cmd.Main() }
