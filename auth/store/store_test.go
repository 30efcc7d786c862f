package store_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/store"
)

const secret = "s3cret-value"

func credential(exit string) *auth.Credential {
	return &auth.Credential{
		Cookies:   []*http.Cookie{{Name: "session", Value: secret, Domain: ".site.test", Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, Expires: time.Now().Add(time.Hour).Round(0).UTC()}},
		Header:    http.Header{"Authorization": {"Bearer " + secret}},
		UserAgent: "agent " + secret, BrowserHeader: http.Header{"Accept-Language": {"en"}},
		Obtained: time.Now().Round(0).UTC(), Expires: time.Now().Add(time.Hour).Round(0).UTC(), Skew: time.Minute,
		Refresh: auth.NewSecret(secret), Exit: exit, ExitID: "id-" + exit,
	}
}

func newKey(t *testing.T) store.Key {
	t.Helper()
	key, err := store.OpenKey(filepath.Join(t.TempDir(), "holdline", "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsKeptComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "credentials")
	key := newKey(t)
	kept := store.New(dir, key).For("prices", []byte("user a"))
	if all, err := kept.Load(); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	want := credential("host:1#2")
	must(t, kept.Save(credential("host:1#2"))) // replaced by the next
	must(t, kept.Save(want))
	must(t, kept.Save(credential("")))

	again := store.New(dir, key)
	all, err := again.For("prices", []byte("user a")).Load()
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for _, got := range all {
		if got.Exit == want.Exit {
			if got.Refresh.Reveal() != secret {
				t.Error("no refresh token")
			}
			got.Refresh, want.Refresh = auth.Secret{}, auth.Secret{} // pointers
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %#v\nwant %#v", *got, *want)
			}
		}
	}
	// Neither another target nor another user gets them.
	for _, other := range []auth.Store{again.For("price", []byte("user a")), again.For("prices", []byte("user b"))} {
		if all, err := other.Load(); err != nil || len(all) != 0 {
			t.Errorf("got %v, %v", all, err)
		}
	}
	must(t, kept.Remove("host:1#2"))
	must(t, kept.Remove("host:1#2"))
	if entries, err := again.List(); err != nil || len(entries) != 1 || entries[0].Name != "prices" {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestAHistoryComesBackToItsAccountAlone(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	kept := store.New(dir, key).For("prices", []byte("user a"))
	if h, err := kept.Recall(); err != nil || !reflect.DeepEqual(h, auth.History{}) {
		t.Fatal(h, err)
	}
	now := time.Now().Round(0).UTC()
	want := auth.History{
		Attempts: []time.Time{now.Add(-time.Minute), now}, Took: time.Second, Lived: time.Hour, Lifetime: time.Hour,
		Refusal: auth.Hold{Times: 2, Since: now, Until: now.Add(time.Minute), Why: "no"},
		Holds:   map[string]auth.Hold{"exit": {Times: 1, Since: now, Until: now.Add(time.Second), Why: "captcha"}},
	}
	must(t, kept.Remember(auth.History{Took: time.Minute}))
	must(t, kept.Remember(want))
	must(t, kept.Save(credential("exit")))
	again := store.New(dir, key)
	if h, err := again.For("prices", []byte("user a")).Recall(); err != nil || !reflect.DeepEqual(h, want) {
		t.Errorf("%+v, %v", h, err)
	}
	// A corrected password begins anew, and so does another target.
	for _, other := range []auth.Store{again.For("price", []byte("user a")), again.For("prices", []byte("user b"))} {
		if h, err := other.Recall(); err != nil || !reflect.DeepEqual(h, auth.History{}) {
			t.Errorf("%+v, %v", h, err)
		}
	}
	// It is no credential.
	if entries, err := again.List(); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	fails := func(kept auth.Store, says string) {
		t.Helper()
		if h, err := kept.Recall(); !errors.As(err, new(*store.ReadError)) || !strings.Contains(err.Error(), says) || len(h.Attempts) > 0 {
			t.Errorf("%+v, %v", h, err)
		}
	}
	fails(store.New(dir, newKey(t)).For("prices", []byte("user a")), "does not open prices.history")
	path := filepath.Join(dir, "prices.history")
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, text[:len(text)-9], 0o600))
	fails(kept, "prices.history in "+dir+" cannot be read")
}

func TestNothingReadableLiesInTheDirectory(t *testing.T) {
	data := t.TempDir()
	dir := filepath.Join(data, "credentials")
	kept := store.New(dir, newKey(t)).For("../prices", nil)
	must(t, kept.Save(credential("gw-user-"+secret+":1")))
	must(t, kept.Remember(auth.History{Refusal: auth.Hold{Times: 1, Why: "session site.test " + secret}}))
	files := 0
	err := filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 && path != data {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.Contains(path, secret) {
			t.Errorf("a secret in the name %s", path)
		}
		if !d.IsDir() {
			files++
			text, err := os.ReadFile(path)
			must(t, err)
			for _, part := range []string{secret, "session", "site.test", "AGE-SECRET"} {
				if bytes.Contains(text, []byte(part)) {
					t.Errorf("%s shows %q", path, part)
				}
			}
		}
		return nil
	})
	if err != nil || files != 2 {
		t.Errorf("%d files, %v", files, err)
	}
	if all, err := kept.Load(); err != nil || len(all) != 1 {
		t.Error(all, err)
	}
}

func TestAnotherKey(t *testing.T) {
	dir := t.TempDir()
	old := store.New(dir, newKey(t)).For("prices", nil)
	must(t, old.Save(credential("a")))
	must(t, old.Save(credential("b")))
	key := newKey(t)
	kept := store.New(dir, key).For("prices", nil)
	all, err := kept.Load()
	failed, ok := errors.AsType[*store.ReadError](err)
	if !ok || len(all) != 0 || len(failed.WrongKey) != 2 || len(failed.Damaged) != 0 {
		t.Fatalf("%v, %v", all, err)
	}
	for _, want := range []string{key.String(), "--key-file", "SCRAPE_KEY", dir} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	// A new login takes its place.
	must(t, kept.Save(credential("a")))
	if all, err = kept.Load(); len(all) != 1 || err == nil {
		t.Errorf("%v, %v", all, err)
	}
	if all, err := old.Load(); len(all) != 1 || err == nil {
		t.Errorf("with the old key: %v, %v", all, err)
	}
}

func TestDamagedFilesAreNamedAndPassedOver(t *testing.T) {
	dir := t.TempDir()
	kept := store.New(dir, newKey(t)).For("prices", nil)
	for i, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return nil },
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { b[len(b)-20] ^= 1; return b },
		func(b []byte) []byte { b[len("age-encryption.org/v1\n-> X25519 ")+3] ^= 1; return b },
		func(b []byte) []byte { return []byte("not age at all") },
	} {
		exit := string(rune('a' + i))
		must(t, kept.Save(credential(exit)))
		files, err := filepath.Glob(filepath.Join(dir, "*.age"))
		must(t, err)
		for _, f := range files {
			text, err := os.ReadFile(f)
			must(t, err)
			if info, err := os.Stat(f); err != nil || info.Size() == 0 || !bytes.HasPrefix(text, []byte("age-")) {
				continue
			}
			if _, err := os.Stat(f + ".done"); err == nil {
				continue
			}
			must(t, os.WriteFile(f, damage(text), 0o600))
			must(t, os.WriteFile(f+".done", nil, 0o600))
		}
	}
	must(t, kept.Save(credential("good")))
	all, err := kept.Load()
	failed, ok := errors.AsType[*store.ReadError](err)
	if !ok || len(all) != 1 || all[0].Exit != "good" || len(failed.Damaged)+len(failed.WrongKey) != 6 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "holdline", "key")
	var keys [8]store.Key
	var wg sync.WaitGroup
	for i := range keys { // several programs start at once
		wg.Go(func() {
			var err error
			if keys[i], err = store.OpenKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	text, err := os.ReadFile(path)
	must(t, err)
	dir := t.TempDir()
	must(t, store.New(dir, keys[0]).For("a", nil).Save(credential("x")))
	given, err := store.ParseKey(auth.NewSecret(string(text)), "SCRAPE_KEY")
	must(t, err)
	for i, key := range append(keys[:], given) {
		if all, err := store.New(dir, key).For("a", nil).Load(); err != nil || len(all) != 1 {
			t.Errorf("key %d: %v, %v", i, all, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
		must(t, os.Chmod(path, 0o644))
		if _, err := store.OpenKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("%v", err)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad")
	must(t, os.WriteFile(bad, []byte("AGE-SECRET-KEY-1"+strings.ToUpper(secret)), 0o600))
	if _, err := store.OpenKey(bad); err == nil || strings.Contains(strings.ToLower(err.Error()), secret) || !strings.Contains(err.Error(), bad) {
		t.Errorf("%v", err)
	}
	if _, err := store.OpenKey(t.TempDir()); err == nil {
		t.Error("a directory is taken for a key")
	}
}

func TestOldTemporaryFilesAreSwept(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{".tmp-old": time.Hour, ".tmp-new": 0} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, nil, 0o600))
		must(t, os.Chtimes(path, time.Now(), time.Now().Add(-age)))
	}
	if _, err := store.New(dir, newKey(t)).List(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")); len(left) != 1 || filepath.Base(left[0]) != ".tmp-new" {
		t.Errorf("left: %v", left)
	}
}
