package alert

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
)

// sent runs a sender until it has sent the alerts, and returns its log.
func sent(t *testing.T, w Way, alerts ...Alert) string {
	t.Helper()
	var log bytes.Buffer
	s := NewSender(w, slog.New(slog.NewTextHandler(&log, nil)))
	for _, a := range alerts {
		s.Send(a)
	}
	done := make(chan struct{})
	close(done)
	s.Run(t.Context(), done)
	return log.String()
}

func TestWebhookIsTriedAgain(t *testing.T) {
	var asked atomic.Int32
	got := make(chan Alert, 1)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		var a Alert
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil || r.Method != http.MethodPost || r.Header.Get("X-Key") != "k3y" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v, %v", r.Method, r.Header, err)
		}
		got <- a
	}))
	defer site.Close()
	a := Alert{Kind: Gap, Of: "t/s", Text: "3 events", Time: time.Unix(5, 0).UTC(), Worker: "box"}
	log := sent(t, Way{Webhook: auth.NewSecret(site.URL + "/hook"), Header: map[string]auth.Secret{"X-Key": auth.NewSecret("k3y")}}, a)
	if b := <-got; b != a || log != "" {
		t.Errorf("got %+v, log %s", b, log)
	}
}

// A webhook that refuses is not asked again, and its address stays secret.
func TestWebhookThatRefuses(t *testing.T) {
	var asked atomic.Int32
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.Error(w, "no", http.StatusForbidden)
	}))
	defer site.Close()
	log := sent(t, Way{Webhook: auth.NewSecret(site.URL + "/s3cret")}, Alert{Kind: Gap, Of: "t/s", Text: "3 events"})
	if asked.Load() != 1 || !strings.Contains(log, "403") || !strings.Contains(log, "3 events") || strings.Contains(log, "s3cret") {
		t.Errorf("asked %d times, log %s", asked.Load(), log)
	}
	dead := httptest.NewServer(nil)
	dead.Close()
	s := NewSender(Way{Webhook: auth.NewSecret(dead.URL + "/s3cret")}, slog.New(slog.DiscardHandler))
	if err := s.post(t.Context(), nil); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("an address that does not answer: %v", err)
	}
}

func TestCommandGetsTheAlert(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Log("there is no sh: the command is cmd's own matter")
		return
	}
	out := filepath.Join(t.TempDir(), "out")
	a := Alert{Kind: Login, Of: "t/s", Text: "a person is needed", Over: true, Worker: "box"}
	log := sent(t, Way{Command: []string{"sh", "-c", `echo "$1 $SCRAPE_ALERT_KIND $SCRAPE_ALERT_OF $SCRAPE_ALERT_TEXT $SCRAPE_ALERT_OVER" > "$0"; cat >> "$0"`, out, "first"}}, a)
	b, err := os.ReadFile(out)
	if err != nil || log != "" {
		t.Fatalf("%v, log %s", err, log)
	}
	head, body, _ := strings.Cut(string(b), "\n")
	var same Alert
	if err := json.Unmarshal([]byte(body), &same); err != nil || same != a || head != "first login_impossible t/s a person is needed 1" {
		t.Errorf("the command got %q and %s, %v", head, body, err)
	}
	log = sent(t, Way{Command: []string{"sh", "-c", "echo oh >&2; exit 3"}}, a)
	if !strings.Contains(log, "exit status 3") || !strings.Contains(log, "oh") {
		t.Errorf("a command that fails: log %s", log)
	}
}

// What a command leaves behind may hold its output open for longer than anybody
// waits: the command has taken the alert all the same.
func TestACommandThatLeavesAChildBehind(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Log("there is no sh: the command is cmd's own matter")
		return
	}
	out := filepath.Join(t.TempDir(), "child")
	log := sent(t, Way{Command: []string{"sh", "-c", `sleep 600 & echo $! > "$0"`, out}}, Alert{Kind: Gap, Of: "t/s", Text: "3 events"})
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if child, err := os.FindProcess(pid); err != nil || child.Kill() != nil {
		t.Errorf("the child %d is not there, %v", pid, err)
	}
	if log != "" {
		t.Errorf("log %s", log)
	}
}

// The worker never waits for a webhook: what is too much is in the log.
func TestSendNeverBlocks(t *testing.T) {
	var log bytes.Buffer
	s := NewSender(Way{}, slog.New(slog.NewTextHandler(&log, nil)))
	for range queued + 2 {
		s.Send(Alert{Kind: Gap, Text: "lost"})
	}
	if n := strings.Count(log.String(), "lost"); n != 2 {
		t.Errorf("%d alerts in the log, want the 2 that did not fit", n)
	}
}
