package proxies

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxConnectHead = 64 << 10        // bytes of a CONNECT answer before its body
	maxConnectBody = 4 << 10         // bytes kept of the body of a refusal
	bodyPatience   = 1 * time.Second // how long to wait for that body
)

// connectTunnel asks the HTTP proxy at the other end of c for a tunnel to addr (RFC 9110, section 9.3.6).
// seen is the address that the exit leaves from, where the proxy says it.
func connectTunnel(e Exit, c net.Conn, addr string, maxWait time.Duration) (tunnel net.Conn, seen string, derr *DialError) {
	req := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: addr},
		Host:   addr,
		Header: http.Header{"User-Agent": nil}, // nil: send none
	}
	maps.Copy(req.Header, e.Header)
	if auth := e.basicAuth(); auth != "" {
		req.Header.Set("Proxy-Authorization", auth)
	}
	if err := req.Write(c); err != nil {
		return nil, "", broken(fmt.Errorf("send CONNECT: %w", err))
	}
	ans, err := readConnect(c)
	if err != nil {
		return nil, "", broken(err)
	}
	if ans.Status/100 == 2 {
		if e.session != nil {
			// Some failures come as a 200 with a header that says so.
			if _, _, bad := e.session.provider.judge(e.session.strict, ans.Status, ans.Header, ""); bad {
				return nil, "", refusal(e, ans, nil, maxWait)
			}
			seen = ans.Header.Get(e.session.provider.file.ExitHeader)
		}
		if len(ans.early) == 0 {
			return c, seen, nil
		}
		return &earlyConn{Conn: c, early: ans.early}, seen, nil
	}
	c.SetReadDeadline(time.Now().Add(bodyPatience))
	body, _ := io.ReadAll(io.LimitReader(ans.body, maxConnectBody)) // whatever came of it
	return nil, "", refusal(e, ans, body, maxWait)
}

// broken is a proxy that did not answer CONNECT.
func broken(err error) *DialError {
	return &DialError{Err: err, layer: LayerExit, remedy: "the proxy broke off: check that its scheme is right, or take another exit"}
}

// connectAnswer is what a proxy answered to CONNECT.
type connectAnswer struct {
	Status int
	Reason string
	Header http.Header
	early  []byte    // what followed the head of a 2xx: the destination's first bytes
	body   io.Reader // of anything else
}

// errNotHTTP hides what was received: the proxy may have echoed our password.
var errNotHTTP = errors.New("the answer to CONNECT is not HTTP")

// readConnect reads the head of an answer to CONNECT from r, and from a 2xx answer whatever came with it, but no more.
func readConnect(r io.Reader) (*connectAnswer, error) {
	head := &headReader{r: r, n: maxConnectHead}
	br := bufio.NewReader(head)
	for {
		// The request makes ReadResponse treat the answer as one to CONNECT.
		resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
		switch {
		case err != nil && head.err == io.EOF:
			return nil, fmt.Errorf("read the answer to CONNECT: the proxy closed the connection: %w", io.ErrUnexpectedEOF)
		case err != nil && head.err != nil:
			return nil, fmt.Errorf("read the answer to CONNECT: %w", head.err)
		case err != nil:
			return nil, errNotHTTP
		case resp.StatusCode < 100 || resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errNotHTTP
		case resp.StatusCode/100 == 1:
			continue // an interim answer; their number is bounded by the head's size
		}
		ans := &connectAnswer{Status: resp.StatusCode, Header: resp.Header}
		if _, reason, ok := strings.Cut(resp.Status, " "); ok {
			ans.Reason = reason
		}
		if ans.Status/100 != 2 {
			head.n += maxConnectBody
			ans.body = resp.Body
			return ans, nil
		}
		// Content-Length and Transfer-Encoding mean nothing here: what follows belongs to the tunnel. TLS never has it, since
		// there the client speaks first; a plain-text destination may.
		ans.early, _ = br.Peek(br.Buffered())
		return ans, nil
	}
}

// headReader bounds a head and keeps the error of the reader beneath, which ReadResponse hides.
type headReader struct {
	r   io.Reader
	n   int
	err error
}

var errHeadTooLong = fmt.Errorf("the head is longer than %d bytes", maxConnectHead)

func (h *headReader) Read(p []byte) (int, error) {
	if h.n <= 0 {
		h.err = errHeadTooLong
		return 0, h.err
	}
	n, err := h.r.Read(p[:min(len(p), h.n)])
	h.n -= n
	if err != nil {
		h.err = err
	}
	return n, err
}

// earlyConn gives back the bytes that came with the answer to CONNECT.
type earlyConn struct {
	net.Conn
	early []byte
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// refusal turns an answer other than 2xx into an error with its layer and remedy.
func refusal(e Exit, ans *connectAnswer, body []byte, maxWait time.Duration) *DialError {
	scrub := e.scrubber().Replace
	derr := &DialError{Status: ans.Status, Header: http.Header{}, Body: []byte(scrub(string(body)))}
	for k, vs := range ans.Header {
		for _, v := range vs {
			derr.Header[k] = append(derr.Header[k], scrub(v))
		}
	}
	derr.layer, derr.remedy = e.judge(ans, string(body))
	if derr.layer != LayerTarget {
		derr.retryAfter = min(parseRetryAfter(ans.Header.Get("Retry-After"), time.Now()), maxWait)
	}
	text := fmt.Sprintf("the proxy answered %d %s", ans.Status, scrub(ans.Reason))
	if detail := explanation(derr.Header); detail != "" {
		text += " (" + detail + ")"
	}
	derr.Err = errors.New(text)
	return derr
}

// explanation is what the proxy says about the refusal in the headers known for it, on one line.
func explanation(h http.Header) string {
	for _, name := range []string{"Proxy-Status", "X-Squid-Error", "X-Error-Description", "X-Brd-Err-Msg", "X-Brd-Error", "X-Luminati-Error"} {
		if v := h.Get(name); v != "" {
			if len(v) > 200 {
				v = v[:200]
			}
			return strconv.QuoteToASCII(v)
		}
	}
	return ""
}

const (
	remedyAuth     = "the proxy refuses the user name or password: correct them in the exit's URL; exits with the same ones are not tried meanwhile"
	remedyKeys     = "the proxy refuses the user name or password: correct `user` and `password` beside the provider; its sessions are not tried meanwhile"
	remedyAccount  = "the proxy refuses the account (traffic used up, or session settings it does not accept): see the provider's dashboard; its exits are not tried meanwhile"
	remedyCapacity = "the proxy has no room for another connection: lower the exit's cap, or add exits"
	remedyExit     = "the exit does not work: take another"
	remedyDenied   = "the proxy does not allow this destination or port: use another proxy for it"
	remedyIdentity = "the address that the exit had is gone: a new identity is needed, with another address and another login"
	remedyTarget   = "the proxy works and the destination could not be reached: check the destination's name and port"
)

// remedies are those of the layers where a provider's rule names none.
var remedies = map[string]string{
	LayerAuth: remedyAccount, LayerCapacity: remedyCapacity, LayerExit: remedyExit, LayerTarget: remedyTarget, LayerIdentity: remedyIdentity,
}

// judge finds layer and remedy of a refused CONNECT: what the provider's rules say, or else what is common.
func (e Exit) judge(ans *connectAnswer, body string) (layer, remedy string) {
	if e.session != nil {
		if layer, remedy, found := e.session.provider.judge(e.session.strict, ans.Status, ans.Header, body); found {
			return layer, remedy
		}
	}
	layer, remedy = judge(ans.Status, ans.Reason, ans.Header, body)
	return layer, e.setting(remedy)
}

// setting has a remedy name what a person would find in the settings: sessions have no URL there.
func (e Exit) setting(remedy string) string {
	if e.session != nil && remedy == remedyAuth {
		return remedyKeys
	}
	return remedy
}

// judge finds layer and remedy of a refused CONNECT. Where a status is used for both a dead exit and a dead destination, what
// the proxy says beside it decides.
func judge(status int, reason string, h http.Header, body string) (layer, remedy string) {
	switch status {
	case http.StatusProxyAuthRequired, http.StatusUnauthorized, // tinyproxy answers 401 to a wrong password
		597: // proxy-chain: the upstream proxy refused the password
		return LayerAuth, remedyAuth
	case http.StatusPaymentRequired, 452, 454, 455: // providers: no traffic left, location refused, lifetime refused
		return LayerAuth, remedyAccount
	case http.StatusTooManyRequests, 453: // providers: no thread left
		return LayerCapacity, remedyCapacity
	case http.StatusForbidden, http.StatusUnavailableForLegalReasons:
		return LayerTarget, remedyDenied
	}
	if status < 500 {
		return LayerExit, "the proxy does not accept CONNECT as it was sent: check that the URL is that of an HTTP proxy"
	}
	switch proxyStatusError(h) { // RFC 9209, section 2.3
	case "dns_error", "destination_not_found", "destination_unavailable", "destination_ip_unroutable", "connection_refused":
		return LayerTarget, remedyTarget
	case "destination_ip_prohibited", "http_request_denied":
		return LayerTarget, remedyDenied
	case "connection_limit_reached":
		return LayerCapacity, remedyCapacity
	}
	switch squid, _, _ := strings.Cut(h.Get("X-Squid-Error"), " "); squid {
	case "ERR_CONNECT_FAIL", "ERR_DNS_FAIL", "ERR_CANNOT_FORWARD":
		return LayerTarget, remedyTarget
	}
	// tinyproxy answers 500 with this reason; proxies written in Go put the dialler's error into the body.
	for _, said := range []string{"connection refused", "no such host", "unable to connect"} {
		if strings.Contains(strings.ToLower(reason), said) || strings.Contains(strings.ToLower(body), said) {
			return LayerTarget, remedyTarget
		}
	}
	return LayerExit, remedyExit
}

// proxyStatusError is the error parameter of a Proxy-Status header (RFC 9209), empty without one.
func proxyStatusError(h http.Header) string {
	for part := range strings.FieldsFuncSeq(h.Get("Proxy-Status"), func(r rune) bool { return r == ';' || r == ',' }) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(part), "error="); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// parseRetryAfter reads seconds or a date (RFC 9110, section 10.2.3); 0 for anything else or a time gone by.
func parseRetryAfter(v string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(s) * time.Second // the largest number, where it is beyond that
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
