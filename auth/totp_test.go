package auth

import (
	"context"
	"encoding/base32"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The vectors of RFC 6238, appendix B.
func TestTOTPVectors(t *testing.T) {
	const seed = "1234567890123456789012345678901234567890123456789012345678901234"
	for _, v := range []struct {
		seconds              int64
		sha1, sha256, sha512 string
	}{
		{59, "94287082", "46119246", "90693936"},
		{1111111109, "07081804", "68084774", "25091201"},
		{1111111111, "14050471", "67062674", "99943326"},
		{1234567890, "89005924", "91819424", "93441116"},
		{2000000000, "69279037", "90698825", "38618901"},
		{20000000000, "65353130", "77737706", "47863826"},
	} {
		for algorithm, want := range map[string]string{"SHA1": v.sha1, "SHA256": v.sha256, "SHA512": v.sha512} {
			length := map[string]int{"SHA1": 20, "SHA256": 32, "SHA512": 64}[algorithm]
			key := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(seed[:length]))
			totp, err := NewTOTP(NewSecret("otpauth://totp/site:me?secret=" + key + "&digits=8&algorithm=" + algorithm))
			if err != nil {
				t.Fatal(err)
			}
			if got := totp.at(uint64(v.seconds / 30)); got != want {
				t.Errorf("%s at %d: %s, want %s", algorithm, v.seconds, got, want)
			}
		}
	}
}

func TestTOTPGivesEachCodeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		totp, err := NewTOTP(NewSecret("jbsw y3dp-ehpk 3pxp"))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		began := time.Now() // midnight: the beginning of a period
		for range 4 {
			code, err := totp.Code(t.Context())
			if err != nil || len(code) != 6 || seen[code] {
				t.Errorf("%q, %v, after %v", code, err, seen)
			}
			seen[code] = true
		}
		if took := time.Since(began); took != 90*time.Second {
			t.Errorf("four codes took %v", took)
		}
		time.Sleep(29 * time.Second)
		asked := time.Now()
		totp.Code(t.Context())
		if waited := time.Since(asked); waited != time.Second {
			t.Errorf("waited %v: a code that is about to end is no use", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := totp.Code(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestTOTPSecretsThatAreNone(t *testing.T) {
	for _, secret := range []string{
		"", "s3cret!", "otpauth://hotp/a?secret=JBSWY3DPEHPK3PXP", "otpauth://totp/a?secret=s3cret!", "otpauth://totp/a",
		"otpauth://totp/s3cret?secret=JBSWY3DPEHPK3PXP&period=0", "otpauth://totp/a?secret=JBSWY3DPEHPK3PXP&digits=s3cret",
		"otpauth://totp/a?secret=JBSWY3DPEHPK3PXP&algorithm=s3cret", "otpauth://totp/%zz?secret=s3cret",
	} {
		if _, err := NewTOTP(NewSecret(secret)); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", secret, err)
		}
	}
}
