// Command plugin is a build of scrape that knows one site more: the whole
// program, its commands and built-in plugins, and the plugin `exchange` from
// the folder beside this file. Try it with
//
//	go run ./examples/plugin run examples/plugin/prices.yaml --for 20s
//
// To make one of your own, in ten minutes:
//
//  1. Copy the package exchange and name it after your site. Its Open sends
//     the request; Decode makes records of an event and Classify judges
//     failures, and both may be left out.
//  2. Write a main like this one, with a WithTarget for each of your plugins.
//  3. Name the plugin in a target file: prices.yaml shows one. `check` says
//     what is wrong with it, in the plugin's options too; `run` runs it.
package main

import (
	"github.com/holdline/scrape/cmd"
	"github.com/holdline/scrape/examples/plugin/exchange"
)

func main() { cmd.Main(cmd.WithTarget("exchange", exchange.Plugin)) }
