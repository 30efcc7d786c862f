package framework

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// wire opens connections that bring the texts in order, the last of them
// without an end.
func wire(options SSEOptions, bodies ...func() io.ReadCloser) Target {
	return TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
		body := bodies[0]()
		if len(bodies) > 1 {
			bodies = bodies[1:]
		}
		sess.Client = &http.Client{Transport: answers(body)}
		req, err := http.NewRequest(http.MethodGet, "http://example.com/", nil)
		if err != nil {
			return nil, err
		}
		return OpenSSE(ctx, sess, req, from, options)
	})
}

// once is a body that ends after the texts, each of which is a read.
func once(texts ...string) func() io.ReadCloser {
	return func() io.ReadCloser {
		pr, pw := io.Pipe()
		go func() {
			for _, text := range texts {
				if _, err := io.WriteString(pw, text); err != nil {
					return
				}
			}
			pw.Close()
		}()
		return pr
	}
}

// silent is one that brings the text and then nothing.
func silent(text string) func() io.ReadCloser {
	return func() io.ReadCloser {
		pr, pw := io.Pipe()
		go func() { _, _ = io.WriteString(pw, text) }()
		return pr
	}
}

// TestEventsThatCameTogetherAreToldApart has many events lie in the buffer at
// once, of every make, and cut anywhere.
func TestEventsThatCameTogetherAreToldApart(t *testing.T) {
	const last = 5000
	type event struct{ id, typ, data, cursor string }
	for name, test := range map[string]struct {
		stream  Stream
		options SSEOptions
		text    func(n int) string
		want    func(n int) (e event, kept bool)
	}{
		"ids": {
			text: func(n int) string { return fmt.Sprintf("id: %d\nevent: t%d\ndata: x%d\n\n", n, n%3, n) },
			want: func(n int) (event, bool) {
				return event{strconv.Itoa(n), fmt.Sprint("t", n%3), fmt.Sprint("x", n), strconv.Itoa(n)}, true
			},
		},
		"ids now and then, lines and line ends of every kind": {
			text: func(n int) string {
				end := []string{"\n", "\r\n", "\r"}[n%100/40]
				text := fmt.Sprintf("data: x%d|", n)
				if n%7 == 0 {
					text = fmt.Sprintf("id: %d|", n) + text
				}
				if n%11 == 0 {
					text += "data: \xFF|"
				}
				if n%13 == 0 {
					text += fmt.Sprintf("|id: %d.5|", n)
				}
				return strings.ReplaceAll(text+"|", "|", end)
			},
			want: func(n int) (e event, kept bool) {
				e = event{typ: "message", data: fmt.Sprint("x", n)}
				if e.cursor = strconv.Itoa(n / 7 * 7); n%7 == 0 {
					e.id = e.cursor
				}
				if half := (n - 1) / 13 * 13; half >= n/7*7 {
					e.cursor = fmt.Sprint(half, ".5")
				}
				if n < 7 {
					e.cursor = ""
				}
				if n%11 == 0 {
					e.data += "\n\uFFFD"
				}
				return e, true
			},
		},
		"numbers in the place of ids, and types that are not kept": {
			stream: Stream{Types: []string{"b"}, Sequence: func(ev *Event) (uint64, bool) {
				n, err := strconv.ParseUint(string(ev.Data), 10, 64)
				return n, err == nil
			}},
			text: func(n int) string { return fmt.Sprintf("event: %c\ndata: %d\n\n", 'a'+n%2, n) },
			want: func(n int) (event, bool) { return event{strconv.Itoa(n), "b", strconv.Itoa(n), ""}, n%2 == 1 },
		},
		"cursors in the data": {
			options: SSEOptions{Resume: ResumeBy{From: "json:/n"}},
			text:    func(n int) string { return fmt.Sprintf("data: {\"n\":%d}\n\n", n) },
			want: func(n int) (event, bool) {
				return event{strconv.Itoa(n), "message", fmt.Sprintf(`{"n":%d}`, n), strconv.Itoa(n)}, true
			},
		},
		"base64": {
			options: SSEOptions{Base64: true},
			text:    func(n int) string { return fmt.Sprintf("id: %d\ndata: %s\n\n", n, []string{"YWJj", "eHl6"}[n%2]) },
			want: func(n int) (event, bool) {
				return event{strconv.Itoa(n), "message", []string{"abc", "xyz"}[n%2], strconv.Itoa(n)}, true
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(1, 2))
				var all bytes.Buffer
				var want []event
				for n := 1; n <= last; n++ {
					all.WriteString(test.text(n))
					if e, kept := test.want(n); kept {
						want = append(want, e)
					}
				}
				var cuts []string
				for all.Len() > 0 {
					cuts = append(cuts, string(all.Next(1+rng.IntN(9000))))
				}
				s := test.stream
				s.Name, s.Target, s.Limits = "t/s", wire(test.options, once(cuts...), silent("")), quickly()
				var got []event
				for ev, err := range s.Events(t.Context()) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, event{string(ev.ID), ev.Type, string(ev.Data), string(ev.Cursor)})
					if len(got) == len(want) {
						break
					}
				}
				for i := range want {
					if got[i] != want[i] {
						t.Fatalf("event %d is %q, want %q", i+1, got[i], want[i])
					}
				}
			})
		})
	}
}

// Without ids a connection holds what it brings until its place is found; when
// nothing more comes, a timer delivers it.
func TestWhatATimerDeliversDoesNotWaitForTheNextEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := ""
		for n := range 20 {
			text += fmt.Sprintf("data: %d\n\n", n)
		}
		s := &Stream{Name: "t/s", Target: wire(SSEOptions{}, once(text), silent("data: new\n\n")), Limits: quickly(), StaleAfter: -1}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for ev, err := range s.Events(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if string(ev.Data) == "new" {
				if late := time.Since(ev.Time); late > replayTimeout {
					t.Errorf("delivered after %v", late)
				}
				return
			}
		}
		t.Error("it was not delivered")
	})
}

// What the loop does must not keep the stream from going on: a panic, and an
// end of the goroutine, leave nothing behind in the bubble.
func TestALoopThatDoesNotEndInGoodOrder(t *testing.T) {
	for name, end := range map[string]func(){
		"panic": func() { panic("the loop") }, "goexit": runtime.Goexit,
	} {
		for _, events := range []int{1, 2, 100} {
			t.Run(fmt.Sprint(name, " at event ", events), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &site{every: time.Millisecond, start: time.Now(), replay: true}
					over := make(chan struct{})
					go func() {
						defer close(over)
						defer func() { _ = recover() }()
						n := 0
						for range (&Stream{Name: "t/s", Target: s, Limits: quickly()}).Events(t.Context()) {
							if n++; n == events {
								end()
							}
						}
					}()
					<-over
					synctest.Wait()
					if s.open != 0 {
						t.Errorf("%d connections left open", s.open)
					}
				})
			})
		}
	}
}

// A loop that is slow is no silent server, and loses nothing when the
// connection is replaced meanwhile.
func TestASlowLoopLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: 10 * time.Millisecond, start: time.Now(), replay: true, script: func(n int, _ Cursor) step { return step{events: 200 + 100*n, mute: n%2 == 0} }}
		var got []string
		for ev, err := range (&Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: time.Second}).Events(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, string(ev.Data)); len(got)%50 == 7 {
				time.Sleep(time.Minute)
			}
			if len(got) == 1500 {
				break
			}
		}
		if first, _ := strconv.Atoi(got[0]); !slices.Equal(got, numbers(first, first+1499)) {
			t.Error("lost, doubled or out of order")
		}
	})
}
