package targets

import (
	"strings"

	"github.com/holdline/scrape/auth"
)

// Alerts says who is told what needs a person: a login that is impossible, a
// proxy that refuses the password, a stream or a sink that is down, a stream
// that was given up, events that are known to be missing, a sink that was
// detached, a disk that is nearly full, too many dead letters. Each is told
// once, and once more when it is over.
type Alerts struct {
	// An http or https address that each alert is posted to as JSON:
	// {"kind": …, "of": …, "text": …, "over": …, "time": …, "worker": …}.
	Webhook auth.Secret `yaml:"webhook"`
	// Headers to send with it.
	Headers map[string]auth.Secret `yaml:"headers"`
	// A program and its arguments, run for each alert; no shell is in between.
	// It finds the JSON on its standard input and SCRAPE_ALERT_KIND, _OF, _TEXT
	// and _OVER in its environment.
	Command []string `yaml:"command"`
	// How long a stream or a sink may be down before that is told.
	DownAfter Duration `yaml:"down_after" default:"10m" min:"1s"`
	// The share of a stream's events in the last five minutes that may become
	// dead letters. Fewer than ten are not told.
	DeadLetterShare float64 `yaml:"dead_letter_share" default:"0.01" min:"0.000001" max:"1"`
	// How much must be free on the disk of the data directory.
	DiskFree Size `yaml:"disk_free" default:"1GiB" min:"1"`
}

func (a *Alerts) check(s *section) {
	if !s.has("webhook") && !s.has("command") {
		s.wrong("", "nobody is told"+in(s.path), "write webhook: or command:")
	}
	if s.good("webhook") && s.has("webhook") {
		// The address is a secret in most chats: it is not quoted.
		if url := a.Webhook.Reveal(); !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://") {
			s.wrong("webhook", `"webhook" is not an http or https address`, "write all of it, as in https://host/path")
		}
	}
	if s.has("command") && s.good("command") && (len(a.Command) == 0 || a.Command[0] == "") {
		s.wrong("command", `"command" names no program`, "write a list: the program, then its arguments")
	}
	checkHeaders(s, "headers", a.Headers)
}
