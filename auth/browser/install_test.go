//go:build linux

package browser

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func tarball(t *testing.T, entries ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	zipped := gzip.NewWriter(&b)
	archive := tar.NewWriter(zipped)
	for _, header := range entries {
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(make([]byte, header.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDownloadTakesOnlyThePinnedFile(t *testing.T) {
	other := tarball(t, &tar.Header{Name: "package/cli.js", Typeflag: tar.TypeReg, Size: 3, Mode: 0o644})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/gone/") {
			http.NotFound(w, r)
			return
		}
		w.Write(other)
	}))
	defer server.Close()
	withPassword := strings.Replace(server.URL, "http://", "http://u:pw12345@", 1)
	for address, want := range map[string]string{
		withPassword + "/" + driverTarball:              "not the file that was pinned",
		withPassword + "/gone/" + driverTarball:         "404 Not Found",
		"http://u:pw12345@127.0.0.1:1/" + driverTarball: "refused",
		"http://u:pw12345@%zz.invalid/" + driverTarball: "not a URL",
		"http://u:pw12345@127.0.0.1:x/" + driverTarball: "not a URL",
		"gopher://u:pw12345@127.0.0.1/" + driverTarball: "unsupported protocol",
		withPassword + "/redirect\x00/" + driverTarball: "not a URL",
	} {
		content, err := download(t.Context(), address)
		if err == nil || content != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %d bytes, %v", address, len(content), err)
		} else if strings.Contains(err.Error(), "pw12345") {
			t.Errorf("the error shows the mirror's password: %v", err)
		}
	}
}

func TestUnpackStaysInItsDirectory(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "driver")
	good := tarball(t,
		&tar.Header{Name: "package/", Typeflag: tar.TypeDir, Mode: 0o755},
		&tar.Header{Name: "package/lib/a.js", Typeflag: tar.TypeReg, Size: 5, Mode: 0o644},
		&tar.Header{Name: "package/link", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
	)
	if err := unpack(good, dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "package/lib/a.js")); err != nil || info.Size() != 5 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "package/link")); err == nil {
		t.Error("a link was unpacked")
	}
	for _, name := range []string{"../evil", "package/../../evil", filepath.Join(base, "evil")} {
		if err := unpack(tarball(t, &tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 1}), dir); err == nil {
			t.Errorf("%s was unpacked", name)
		}
	}
	if _, err := os.Stat(filepath.Join(base, "evil")); err == nil {
		t.Error("a file outside was written")
	}
	for name, content := range map[string][]byte{"not gzip": []byte("x"), "cut off": good[:len(good)-20]} {
		if err := unpack(content, dir); err == nil {
			t.Errorf("%s was unpacked", name)
		}
	}
}

func TestRegistryFollowsNPM(t *testing.T) {
	for named, want := range map[string]string{
		"https://mirror.test/npm/": "https://mirror.test/npm",
		"not a registry":           "",
		"file:///etc":              "",
	} {
		t.Setenv("npm_config_registry", named)
		if got := registry(t.Context()); got != want {
			t.Errorf("%q: %v", named, got)
		}
	}
}

// writeDriver writes what looks like a driver.
func writeDriver(t *testing.T, dir, version string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "package"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"package.json": `{"version":"` + version + `"}`, "cli.js": ""} {
		if err := os.WriteFile(filepath.Join(dir, "package", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInstallAcceptsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	writeDriver(t, dir, driverVersion)
	// Not even a Node is needed for that.
	if err := Install(t.Context(), Config{DriverDir: dir, Node: "/nonexistent"}, nil); err != nil {
		t.Error(err)
	}
}

func TestInstallReplacesAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	writeDriver(t, dir, "1.2.3")
	if err := driverAt(dir); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "1.2.3") {
		t.Errorf("%v", err)
	}
	beside := t.TempDir()
	writeDriver(t, beside, driverVersion)
	if err := moveDriver(beside, dir); err != nil {
		t.Fatal(err)
	}
	if err := driverAt(dir); err != nil {
		t.Error(err)
	}
	writeDriver(t, beside, "1.2.3")
	if err := moveDriver(beside, dir); err == nil {
		t.Error("a wrong version was moved into place")
	}
}

func TestInstallSaysWhatIsMissing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Install(ctx, Config{DriverDir: t.TempDir()}, nil); err == nil {
		t.Error("a cancelled installation went well")
	}
	err := Install(t.Context(), Config{DriverDir: t.TempDir(), Node: "/nonexistent/node"}, nil)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "/nonexistent/node") {
		t.Errorf("%v", err)
	}
}

func TestSearch(t *testing.T) {
	dir := t.TempDir()
	program := func(name, script string) string {
		path := filepath.Join(dir, name)
		if err := writeScript(path, script); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := program("old", "echo Chromium 90.0.4430.212 built on Debian")
	stub := program("stub", "echo 'requires the chromium snap to be installed' >&2; exit 1")
	silent := program("silent", "echo hello")
	good := program("good", "echo 'Google Chrome 156.0.8078.79 '")
	node := program("node", "echo v20.20.2")
	t.Setenv("PATH", dir)

	w := wanted{what: "Chromium", oldest: 120, variable: "SCRAPE_CHROMIUM", remedy: "make install"}
	w.places = []string{"nonexistent", "old", "stub", "silent", "good", "node"}
	if path, version, err := search(t.Context(), w); path != good || version != "156.0.8078.79" || err != nil {
		t.Errorf("%s, %s, %v", path, version, err)
	}
	w.places = []string{"old", "stub", "silent"}
	_, _, err := search(t.Context(), w)
	if !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	for _, want := range []string{old + ": version 90.0.4430.212 is too old", stub + ": --version failed", silent + ": --version says", "make install", "SCRAPE_CHROMIUM"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	// A named one that does not do is not replaced in silence.
	w.places, w.named = []string{"good"}, old
	if path, _, err := search(t.Context(), w); path != "" || err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("%s, %v", path, err)
	}
	t.Setenv("SCRAPE_CHROMIUM", old)
	t.Setenv("SCRAPE_NODE", node)
	tools, err := Find(t.Context(), Config{})
	if tools.Node != node || tools.NodeVersion != "20.20.2" || tools.Chromium != "" || err == nil || !strings.Contains(err.Error(), "90.0") {
		t.Errorf("%+v, %v", tools, err)
	}
}

func TestInstallChromium(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	writeDriver(t, dir, driverVersion)
	browser := filepath.Join(cache, "chromium-1200", "chrome-linux64", "chrome")
	node := filepath.Join(t.TempDir(), "node")
	// A Node that knows two things: its version, and how to download.
	if err := writeScript(node, `if [ "$1" = --version ]; then echo v20.0.0; exit; fi
shift
[ "$*" = "install --no-shell chromium" ] || { echo "what is $*?"; exit 1; }
mkdir -p `+quote(filepath.Dir(browser))+` && printf '#!/bin/sh\necho Chromium 150.0.1\n' > `+quote(browser)+` && chmod 700 `+quote(browser)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PLAYWRIGHT_BROWSERS_PATH", cache)
	if tools, _ := Find(t.Context(), Config{Node: node}); tools.Chromium == "" {
		t.Fatal("this machine has no Chromium")
	}
	if err := InstallChromium(t.Context(), Config{Node: "/nonexistent", DriverDir: "/nonexistent"}, nil); err != nil {
		t.Errorf("with a Chromium there: %v", err)
	}
	config := Config{Node: node, DriverDir: dir, Chromium: browser}
	if err := InstallChromium(t.Context(), config, nil); err != nil {
		t.Fatal(err)
	}
	if tools, err := Find(t.Context(), config); tools.Chromium != browser || err != nil {
		t.Errorf("%+v, %v", tools, err)
	}
	if found := playwrightChromiums(); !slices.Equal(found, []string{browser}) {
		t.Errorf("%v", found)
	}
	os.Remove(browser)
	if err := InstallChromium(t.Context(), Config{Node: node, DriverDir: t.TempDir(), Chromium: browser}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("without the driver: %v", err)
	}
}

// What a program leaves behind may hold its output open: it has told its
// version all the same.
func TestAVersionIsToldThoughTheOutputStaysOpen(t *testing.T) {
	dir := t.TempDir()
	path, child := filepath.Join(dir, "chromium"), filepath.Join(dir, "child")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho Chromium 156.0.8078.79\nsleep 600 &\necho $! >"+child+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	version, reason := examine(t.Context(), path, 120)
	if version != "156.0.8078.79" || reason != "" {
		t.Errorf("%q, %s", version, reason)
	}
	text, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}
