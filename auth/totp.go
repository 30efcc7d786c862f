package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// TOTP makes time-based one-time codes (RFC 6238). Its methods may be called
// from any number of goroutines.
type TOTP struct {
	key    []byte
	digits int
	period time.Duration
	hash   func() hash.Hash

	mu   sync.Mutex
	last uint64 // the time step whose code was given out
}

// NewTOTP reads the secret that a site shows when two-factor authentication is
// set up: the key in base32, with 6 digits, 30 seconds and SHA-1, or an
// otpauth://totp/ URL that says all of these. Errors do not quote it.
func NewTOTP(secret Secret) (*TOTP, error) {
	t := &TOTP{digits: 6, period: 30 * time.Second, hash: sha1.New}
	key := secret.Reveal()
	if strings.HasPrefix(key, "otpauth:") {
		u, err := url.Parse(key)
		if err != nil || u.Host != "totp" {
			return nil, errors.New("the one-time code's secret is no otpauth://totp/ address")
		}
		if key, err = t.read(u.Query()); err != nil {
			return nil, err
		}
	}
	key = strings.ToUpper(strings.NewReplacer(" ", "", "-", "", "=", "").Replace(key))
	var err error
	if t.key, err = base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(key); err != nil || len(t.key) == 0 {
		return nil, errors.New("the one-time code's secret is not base32: letters and the digits 2 to 7, as the site shows it when the codes are set up")
	}
	return t, nil
}

// read takes the parameters of an otpauth URL and returns its key.
func (t *TOTP) read(q url.Values) (key string, err error) {
	switch algorithm := strings.ToUpper(q.Get("algorithm")); algorithm {
	case "", "SHA1":
	case "SHA256":
		t.hash = sha256.New
	case "SHA512":
		t.hash = sha512.New
	default:
		return "", errors.New("the one-time code's algorithm is none of SHA1, SHA256 and SHA512")
	}
	for name, into := range map[string]func(int){
		"digits": func(n int) { t.digits = n },
		"period": func(n int) { t.period = time.Duration(n) * time.Second },
	} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || name == "digits" && n > 10 || n > 3600 {
			return "", fmt.Errorf("the one-time code's %s cannot be", name)
		}
		into(n)
	}
	return q.Get("secret"), nil
}

// Code returns a code that was not given out before: a site takes each only
// once (RFC 6238, section 5.2). It waits for the next one where it must, and
// where the present one is about to end. The error is ctx's.
func (t *TOTP) Code(ctx context.Context) (string, error) {
	for {
		now := time.Now()
		step := uint64(now.UnixNano()) / uint64(t.period)
		left := t.period - time.Duration(uint64(now.UnixNano())%uint64(t.period))
		t.mu.Lock()
		fresh := step > t.last && left > min(2*time.Second, t.period/4)
		if fresh {
			t.last = step
		}
		t.mu.Unlock()
		if fresh {
			return t.at(step), nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return "", context.Cause(ctx)
		}
	}
}

// Period is how long a code lasts, and so the longest wait for the next one.
func (t *TOTP) Period() time.Duration { return t.period }

// at is the code of a time step (RFC 4226, section 5.3).
func (t *TOTP) at(step uint64) string {
	mac := hmac.New(t.hash, t.key)
	binary.Write(mac, binary.BigEndian, step)
	sum := mac.Sum(nil)
	offset := sum[len(sum)-1] & 0xf
	code := uint64(binary.BigEndian.Uint32(sum[offset:]) & 0x7fffffff)
	modulo := uint64(1)
	for range t.digits {
		modulo *= 10
	}
	return fmt.Sprintf("%0*d", t.digits, code%modulo)
}
