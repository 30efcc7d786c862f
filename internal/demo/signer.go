package demo

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"
	"time"
)

// signer makes values that only this exchange can have made. What they are
// bound to is signed with them and not stored, so they outlive a restart.
type signer []byte

// mac signs the parts; their lengths are signed too, so that none can borrow
// from its neighbour.
func (s signer) mac(parts ...string) string {
	h := hmac.New(sha256.New, s)
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18])
}

// seal makes "<expiry>.<signature>" for a purpose and what it is bound to.
func (s signer) seal(expires time.Time, bound ...string) string {
	at := strconv.FormatInt(expires.UnixMilli(), 36)
	return at + "." + s.mac(append(bound, at)...)
}

// opens tells whether sealed was made by seal with the same bound and is still good.
func (s signer) opens(sealed string, now time.Time, bound ...string) bool {
	at, mac, _ := strings.Cut(sealed, ".")
	ms, err := strconv.ParseInt(at, 36, 64)
	return err == nil && now.UnixMilli() < ms && hmac.Equal([]byte(mac), []byte(s.mac(append(bound, at)...)))
}
