package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/holdline/scrape/auth"
)

// Way is how alerts reach a person: by a webhook, a command, or both.
type Way struct {
	// Webhook is an http or https address that the alert is posted to as JSON.
	Webhook auth.Secret
	Header  map[string]auth.Secret
	// Command is a program and its arguments. It finds the alert as JSON on its
	// standard input, and as SCRAPE_ALERT_KIND, SCRAPE_ALERT_OF,
	// SCRAPE_ALERT_TEXT and SCRAPE_ALERT_OVER (1, or empty) in its environment.
	Command []string
}

const (
	queued      = 256 // alerts that wait; more are told in the log only
	sendTimeout = 30 * time.Second
	sendTries   = 6
)

// Sender sends alerts in the background, one after the other.
type Sender struct {
	way    Way
	log    *slog.Logger
	queue  chan Alert
	client *http.Client
}

// NewSender returns a sender; Run sends.
func NewSender(w Way, log *slog.Logger) *Sender {
	return &Sender{way: w, log: log, queue: make(chan Alert, queued), client: &http.Client{
		Timeout: sendTimeout,
		// A redirect might carry the headers to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Send hands an alert over without waiting. What does not fit is in the log.
func (s *Sender) Send(a Alert) {
	select {
	case s.queue <- a:
	default:
		s.log.Error("too many alerts wait to be sent: this one is not", "kind", a.Kind, "of", a.Of, "text", a.Text)
	}
}

// Run sends what is handed over until done is closed and nothing waits, or ctx
// ends.
func (s *Sender) Run(ctx context.Context, done <-chan struct{}) {
	for {
		select {
		case a := <-s.queue:
			s.send(ctx, a)
			continue
		default:
		}
		select {
		case a := <-s.queue:
			s.send(ctx, a)
		case <-done:
			if len(s.queue) == 0 {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *Sender) send(ctx context.Context, a Alert) {
	body, err := json.Marshal(a)
	if err != nil {
		s.log.Error("an alert cannot be written as JSON", "kind", a.Kind, "error", err)
		return
	}
	if s.way.Webhook.Reveal() != "" {
		backoff := retry.WithMaxRetries(sendTries-1, retry.WithCappedDuration(time.Minute, retry.NewExponential(time.Second)))
		if err := retry.Do(ctx, backoff, func(ctx context.Context) error { return s.post(ctx, body) }); err != nil {
			s.log.Error("an alert could not be sent to the webhook", "kind", a.Kind, "of", a.Of, "text", a.Text, "error", err)
		}
	}
	if len(s.way.Command) > 0 {
		if err := s.run(ctx, a, body); err != nil {
			s.log.Error("the alert command failed", "command", s.way.Command[0], "kind", a.Kind, "of", a.Of, "text", a.Text, "error", err)
		}
	}
}

// post sends the body to the webhook. Its errors do not show the address, which
// is a secret in most chats.
func (s *Sender) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.way.Webhook.Reveal(), bytes.NewReader(body))
	if err != nil {
		return errors.New("its address is not one")
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range s.way.Header {
		req.Header.Set(name, value.Reveal())
	}
	resp, err := s.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return retry.RetryableError(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	switch {
	case resp.StatusCode < 300:
		return nil
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		return retry.RetryableError(fmt.Errorf("it answers %s", resp.Status))
	}
	return fmt.Errorf("it answers %s", resp.Status)
}

func (s *Sender) run(ctx context.Context, a Alert, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, s.way.Command[0], s.way.Command[1:]...)
	over := ""
	if a.Over {
		over = "1"
	}
	c.Env = append(os.Environ(), "SCRAPE_ALERT_KIND="+string(a.Kind), "SCRAPE_ALERT_OF="+a.Of, "SCRAPE_ALERT_TEXT="+a.Text, "SCRAPE_ALERT_OVER="+over)
	c.Stdin = bytes.NewReader(body)
	c.WaitDelay = time.Second // a child of it may hold its output open
	out, err := c.CombinedOutput()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the command itself ended well
	}
	if err != nil && len(out) > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out[:min(len(out), 1000)]))
	}
	return err
}
