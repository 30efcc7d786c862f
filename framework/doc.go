// Package framework holds live streams for days and loses nothing on the way.
//
// A [Worker] reads any number of streams: for each it makes an identity (exit
// and credential), opens a [Connection] through its [Target], watches it,
// splices it to the one before, appends what arrives to the [Journal], and
// delivers from there in batches to every [Sink]. A Go program that wants the
// events themselves ranges over [Stream.Events] and needs no journal, no YAML
// and no browser.
//
// The package knows neither how a journal is stored nor how a sink writes nor
// how a browser logs in: those are contracts here ([Journal], [Sink],
// [github.com/holdline/scrape/auth.Source]) and live in other rooms.
package framework
