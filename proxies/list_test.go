package proxies

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseList(t *testing.T) {
	exits, err := ParseList(strings.NewReader("\ufeff# mine\r\nhttp://a:b@h:1\r\n\r\n  socks5://a:b@h:2  \nhttp://s1:b@gw:9\nhttp://s2:b@gw:9\ndirect\n"), Exit{Kind: ISP, MaxConns: 3})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range exits {
		got = append(got, e.Name+" "+string(e.Kind))
		if e.MaxConns != 3 {
			t.Errorf("%v has the cap %d", e, e.MaxConns)
		}
	}
	if want := "h:1 isp, h:2 isp, gw:9#87cfb7 isp, gw:9#e5a663 isp, direct direct"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
	// Names of sessions do not depend on the lines' order.
	again, err := ParseList(strings.NewReader("http://s2:b@gw:9\nhttp://s1:b@gw:9\n"), Exit{})
	if err != nil || again[0].Name != exits[3].Name || again[1].Name != exits[2].Name {
		t.Errorf("%v %v", again, err)
	}
	for text, want := range map[string]string{
		"\n\nhttp://s3cret@h\n":                        "line 3: proxy URL: the port",
		"http://a:1\n#\nhttp://a:1":                    "line 3: this exit stands on line 1 already",
		"# nothing\n":                                  "holds no exit",
		"http://a:1\n" + strings.Repeat("s3cret", 1e5): "line 2: the line is too long",
	} {
		if _, err := ParseList(strings.NewReader(text), Exit{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("http://a:b@h:1\nsocks5h://x@[::1]:2\n\n# c\ndirect\n")
	f.Add("http://a:b@h:1\nhttp://c:d@h:1")
	f.Fuzz(func(t *testing.T, text string) {
		exits, err := ParseList(strings.NewReader(text), Exit{})
		if err != nil {
			var line *ListError
			if errors.As(err, &line) && (line.Line < 1 || line.Line > strings.Count(text, "\n")+1) {
				t.Errorf("%v", err)
			}
			return
		}
		if _, err := New(Config{Exits: exits}); err != nil {
			t.Errorf("a list that was read makes no pool: %v", err)
		}
	})
}

func TestFollowTakesUpChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exits.txt")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("http://10.0.0.0:1\n")
	synctest.Test(t, func(t *testing.T) {
		exits, err := ReadList(path, Exit{})
		if err != nil {
			t.Fatal(err)
		}
		var log lockedBuffer
		p, _ := wired(t, Config{Exits: exits, Log: slog.New(slog.NewTextHandler(&log, nil))}, works)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { p.Follow(ctx, path, Exit{MaxConns: 2}, time.Second) })
		next := func() (names string) {
			time.Sleep(3 * time.Second)
			synctest.Wait()
			for _, s := range p.Stats() {
				names += s.Name + " "
			}
			return names
		}
		if got := next(); got != "10.0.0.0:1 " || log.String() != "" {
			t.Errorf("%s %s", got, log.String())
		}
		write("http://10.0.0.0:1\nhttp://10.0.0.2:2\n")
		if got := next(); got != "10.0.0.0:1 10.0.0.2:2 " || p.Stats()[1].Cap != 2 {
			t.Errorf("%s", got)
		}
		log.reset()
		write("http://10.0.0.0:1\nhttp//u:s3cret@10.0.0.2:2\n")
		if got := next(); got != "10.0.0.0:1 10.0.0.2:2 " {
			t.Errorf("a broken list was taken: %s", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "line 2") || strings.Contains(text, "s3cret") || !strings.Contains(text, path) {
			t.Errorf("the log says %s", text)
		}
		os.Remove(path)
		if got := next(); got != "10.0.0.0:1 10.0.0.2:2 " {
			t.Errorf("%s", got)
		}
		write("http://10.0.0.3:3\n")
		if got := next(); got != "10.0.0.3:3 " {
			t.Errorf("%s", got)
		}
		cancel()
		wg.Wait()
	})
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}
func (b *lockedBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.text.String() }
func (b *lockedBuffer) reset()         { b.mu.Lock(); defer b.mu.Unlock(); b.text.Reset() }
