// The measurements of the README, in a module of their own, so that the peers
// measured beside us are no dependency of ours. make bench-peers runs them.
module github.com/holdline/scrape/internal/bench

go 1.26.0

require (
	github.com/holdline/scrape v0.0.0
	github.com/jackc/pgx/v5 v5.12.0
	github.com/launchdarkly/eventsource v1.11.0
	github.com/openai/openai-go/v3 v3.94.0
	github.com/r3labs/sse/v2 v2.10.0
	github.com/tmaxmax/go-sse v0.11.0
)

require (
	github.com/andybalholm/brotli v1.2.7 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/sethvargo/go-retry v0.5.0 // indirect
	github.com/tidwall/gjson v1.20.0 // indirect
	github.com/tidwall/match v1.1.1 // indirect
	github.com/tidwall/pretty v1.2.1 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.16.0 // indirect
	gopkg.in/cenkalti/backoff.v1 v1.1.0 // indirect
)

replace github.com/holdline/scrape => ../..
