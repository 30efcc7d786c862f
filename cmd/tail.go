package cmd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/proxies"
)

func (a *app) tailCommand() *cobra.Command {
	var (
		request   framework.Request
		headers   []string
		proxy     string
		lastID    string
		stale     time.Duration
		quiet     time.Duration
		maxEvents uint64
		duration  time.Duration
		raw       bool
		done      string
		once      bool
		wire      string
		resume    framework.ResumeBy
		records   string
	)
	c := &cobra.Command{
		Use:   "tail URL",
		Short: "Print an event stream as JSON lines",
		Long: `tail prints the events of a stream as they come, one JSON object a line:
{"id":"…","event":"…","data":"…","time":"…"}, where id is what the stream would
be resumed from: the last event id in force, or what --resume-from names. It
reads Server-Sent Events and JSON lines, compressed or not, needs no file and
keeps none, reconnects and resumes, and ends when the server answers 204 or a
limit is reached. With --records it prints what a target file makes of the
events, data then being JSON where the record is, and says on stderr what it
refuses.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request.URL = args[0]
			u, err := url.Parse(args[0])
			if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				return fail(ExitUsage, errors.New("the URL must be one such as https://example.com/stream"))
			}
			if duration < 0 {
				return fail(ExitUsage, fmt.Errorf("--for %v: a time to run is not negative", duration))
			}
			options := framework.SSEOptions{Wire: framework.Wire(wire), Done: done, StopAtEnd: once, Resume: resume}
			switch options.Wire {
			case framework.WireAuto, framework.WireSSE, framework.WireNDJSON:
			default:
				return fail(ExitUsage, errors.New("--wire is auto, sse or ndjson"))
			}
			if resume.Name != "" {
				options.Resume.As = "query"
			}
			if err := options.Resume.Check(); err != nil {
				return fail(ExitUsage, fmt.Errorf("--resume-from: %w", err))
			}
			request.Header = map[string]string{}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok || strings.TrimSpace(name) == "" {
					return fail(ExitUsage, errors.New(`-H wants "Name: value"`))
				}
				request.Header[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			if file, ok := strings.CutPrefix(request.Body, "@"); ok {
				body, err := os.ReadFile(file)
				if err != nil {
					return fail(ExitUsage, fmt.Errorf("-d: %w", err))
				}
				request.Body = string(body)
			}
			if request.Method == "" && request.Body != "" {
				request.Method = "POST"
			}
			log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: shortText}))
			identity := framework.IdentityConfig{Key: "tail", Hosts: []string{u.Host}, Log: log}
			if proxy != "" {
				exit, err := proxies.ParseExit(proxy)
				if err != nil {
					return fail(ExitUsage, fmt.Errorf("--proxy: %w", err))
				}
				if identity.Pool, err = proxies.New(proxies.Config{Exits: []proxies.Exit{exit}, Log: log}); err != nil {
					return fail(ExitUsage, fmt.Errorf("--proxy: %w", err))
				}
			}
			identities := framework.NewIdentities(identity)
			defer identities.Close()
			s := &framework.Stream{
				Name:       u.Host,
				Target:     &framework.SSE{Request: request, Options: options},
				Host:       request.Host(),
				Identities: identities,
				StaleAfter: staleAfter(stale, done != "" || once),
				QuietAfter: quiet,
				From:       framework.Cursor(lastID),
				Log:        log,
			}
			if records != "" {
				if err := a.decodeAs(s, records); err != nil {
					return fail(ExitUsage, err)
				}
			}
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			stop := context.AfterFunc(a.drain, cancel)
			defer stop()
			if duration > 0 {
				timer := time.AfterFunc(duration, cancel)
				defer timer.Stop()
			}
			return a.tail(ctx, s, raw, maxEvents)
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&headers, "header", "H", nil, `header to send, "Name: value"; repeatable`)
	f.StringVarP(&request.Method, "request", "X", "", "method (default GET, or POST with -d)")
	f.StringVarP(&request.Body, "data", "d", "", "body to send; @FILE reads it from a file")
	f.StringVar(&proxy, "proxy", "", "leave through this proxy: http, https, socks5 or socks5h URL")
	f.StringVar(&lastID, "last-event-id", "", "resume after this event")
	f.StringVar(&wire, "wire", "auto", "format: sse, ndjson (one JSON value a line), or auto by the content type")
	f.StringVar(&resume.From, "resume-from", "id", `where the cursor stands: id, none, or in the data, as in "json:/sequence_number"`)
	f.StringVar(&resume.Name, "resume-query", "", "send the cursor as this parameter of the query instead of Last-Event-ID")
	f.DurationVar(&stale, "stale-after", 0, "reconnect when no byte has come for so long; 0: learn it from the stream; negative: never")
	f.DurationVar(&quiet, "quiet-after", 0, "reconnect when no event has come for so long, whatever else has; 0: never")
	f.Uint64Var(&maxEvents, "max-events", 0, "end after so many events")
	f.DurationVar(&duration, "for", 0, "end after so long")
	f.BoolVar(&raw, "raw", false, "print only the data of the events, one a line as it is")
	f.StringVar(&records, "records", "", "print the records that FILE makes of the events; FILE#STREAM where it has several streams")
	f.StringVar(&done, "done", "", `data of the event that ends the stream, such as "[DONE]"`)
	f.BoolVar(&once, "once", false, "end when the server ends the answer, instead of reconnecting")
	return c
}

// tailed is one line of tail's output.
type tailed struct {
	ID    string `json:"id"`
	Event string `json:"event"`
	Data  any    `json:"data"` // text, or the JSON of a record
	Time  string `json:"time"`
}

// decodeAs has the stream's events decoded as the file says, FILE#STREAM.
func (a *app) decodeAs(s *framework.Stream, records string) error {
	path, name, chosen := strings.Cut(records, "#")
	files, _, err := a.load([]string{path}, "")
	if err != nil {
		return err
	}
	f := files[0]
	var names []string
	for i := range f.Streams {
		st := &f.Streams[i]
		names = append(names, st.Name)
		if chosen && st.Name == name || !chosen && len(f.Streams) == 1 {
			s.Name, s.Decoder = f.Name+"/"+st.Name, f.Decoder(st)
			if s.Decoder == nil {
				return fmt.Errorf("--records: the stream %s has no records in %s: its events are delivered as they are", st.Name, path)
			}
			return nil
		}
	}
	if chosen {
		return fmt.Errorf("--records: %s has no stream %q; its streams are %s", path, name, strings.Join(names, ", "))
	}
	return fmt.Errorf("--records: %s has several streams: write one of %s#%s", path, path, strings.Join(names, ", "+path+"#"))
}

func (a *app) tail(ctx context.Context, s *framework.Stream, raw bool, most uint64) error {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	n := uint64(0)
	for ev, err := range s.Events(ctx) {
		if err != nil {
			return fail(ExitStream, err)
		}
		line.Reset()
		print := func(rec framework.Record) {
			if raw {
				line.Write(rec.Data)
				line.WriteByte('\n')
				return
			}
			out := tailed{string(ev.Cursor), cmp.Or(rec.Type, ev.Type), string(rec.Data), ev.Time.UTC().Format(time.RFC3339Nano)}
			if s.Decoder != nil && json.Valid(rec.Data) {
				out.Data = json.RawMessage(rec.Data)
			}
			if !rec.Time.IsZero() {
				out.Time = rec.Time.UTC().Format(time.RFC3339Nano)
			}
			_ = enc.Encode(out) // into memory, and Data is valid
		}
		if s.Decoder == nil {
			print(framework.Record{Data: ev.Data})
		} else if err := s.Decoder.Decode(s.Name, ev, print); err != nil {
			line.Reset()
			s.Log.Warn("the event is refused", "id", string(ev.ID), "type", ev.Type, "reason", err)
		}
		// One write an event, so that a reader sees each at once.
		if _, err := a.stdout.Write(line.Bytes()); err != nil {
			return fail(ExitError, err)
		}
		if n++; most > 0 && n >= most {
			return nil
		}
	}
	return nil
}

// readable writes durations for people, in JSON too.
func readable(_ []string, at slog.Attr) slog.Attr {
	if at.Value.Kind() == slog.KindDuration {
		return slog.String(at.Key, at.Value.Duration().Round(time.Millisecond).String())
	}
	return at
}

// shortText also makes a log line's time readable beside others of the same hour.
func shortText(groups []string, at slog.Attr) slog.Attr {
	if len(groups) == 0 && at.Key == slog.TimeKey {
		return slog.String(slog.TimeKey, at.Value.Time().Format("15:04:05.000"))
	}
	return readable(groups, at)
}
