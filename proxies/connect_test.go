package proxies

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
	"time"
)

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-7": 0, "soon": 0, "7.5": 0, "99999999999999999999": (1<<31 - 1) * time.Second,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := parseRetryAfter(v, now); got != want {
			t.Errorf("%q gives %v, want %v", v, got, want)
		}
	}
}

// FuzzReadConnect feeds the reader of CONNECT answers whole and byte by byte: it must say the same, and lose nothing of the
// tunnel.
func FuzzReadConnect(f *testing.F) {
	for _, s := range []string{
		"", "HTTP/1.1 200 OK\r\n\r\nearly", "HTTP/1.0 200 Connection established\r\n\r\n", "HTTP/1.1 407 No\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\x00\x01", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP/1.1 999 \r\n\r\n", "HTTP/1.1 000 \r\n\r\n", "HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "SSH-2.0\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(r io.Reader) (status int, rest []byte) {
			ans, err := readConnect(r)
			if err != nil {
				return 0, nil
			}
			if ans.Status/100 == 2 {
				tail, _ := io.ReadAll(r)
				rest = append(ans.early, tail...)
				if !bytes.HasSuffix(b, rest) {
					t.Fatalf("the tunnel begins with %q, which was not sent", rest)
				}
			} else {
				rest, _ = io.ReadAll(io.LimitReader(ans.body, maxConnectBody))
			}
			if ans.Status < 200 {
				t.Fatalf("status %d", ans.Status)
			}
			return ans.Status, rest
		}
		status, rest := read(bytes.NewReader(b))
		slowly, slowRest := read(iotest.OneByteReader(bytes.NewReader(b)))
		if status != slowly || !bytes.Equal(rest, slowRest) {
			t.Fatalf("at once: %d %q; byte by byte: %d %q", status, rest, slowly, slowRest)
		}
	})
}
