package auth_test

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/holdline/scrape/auth"
)

func token(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestJWTExpiry(t *testing.T) {
	for name, test := range map[string]struct {
		token string
		want  time.Time
	}{
		"seconds":          {token(`{"exp":1700000000}`), time.Unix(1700000000, 0)},
		"fraction":         {token(`{"exp":1700000000.5}`), time.Unix(1700000000, 5e8)},
		"among others":     {token(`{"sub":"a","iat":1,"exp":1700000000,"aud":["x"]}`), time.Unix(1700000000, 0)},
		"padded":           {"e30.eyJleHAiOjE3MDAwMDAwMDB9==.c2ln", time.Unix(1700000000, 0)},
		"none":             {token(`{"sub":"a"}`), time.Time{}},
		"null":             {token(`{"exp":null}`), time.Time{}},
		"text":             {token(`{"exp":"1700000000"}`), time.Time{}},
		"negative":         {token(`{"exp":-1}`), time.Time{}},
		"zero":             {token(`{"exp":0}`), time.Time{}},
		"beyond the clock": {token(`{"exp":1e300}`), time.Time{}},
		"not an object":    {token(`[]`), time.Time{}},
		"not base64":       {"a.*.c", time.Time{}},
		"opaque":           {"0123456789abcdef", time.Time{}},
		"empty":            {"", time.Time{}},
		"encrypted":        {"a.b.c.d.e", time.Time{}},
	} {
		got, ok := auth.JWTExpiry(test.token)
		if !got.Equal(test.want) || ok != !test.want.IsZero() {
			t.Errorf("%s: %v, %v, want %v", name, got, ok, test.want)
		}
	}
}

func TestJWTExpiryReadsWhatALibraryWrites(t *testing.T) {
	want := time.Unix(1900000000, 0)
	signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"exp": want.Unix(), "sub": "alice"}).SignedString([]byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := auth.JWTExpiry(signed); !ok || !got.Equal(want) {
		t.Errorf("%v, %v", got, ok)
	}
}

func FuzzJWTExpiry(f *testing.F) {
	for _, seed := range []string{token(`{"exp":1700000000}`), token(`{"exp":1e12}`), "..", "a.b.c", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		if at, ok := auth.JWTExpiry(token); ok && (at.Unix() <= 0 || at.Year() > 9999) {
			t.Errorf("%q ends at %v", token, at)
		}
	})
}
