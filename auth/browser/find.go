package browser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The oldest that do: Chromium with the headless mode that behaves as the
// headed one, and Node as Playwright 1.60 demands it.
const (
	minChromium = 120
	minNode     = 18
)

// nodeVariable is playwright-go's own way to be told of a Node.
const nodeVariable = "PLAYWRIGHT_NODEJS_PATH"

// ErrNotFound is in the chain when a Chromium, a Node or the driver that would
// do is not on this machine.
var ErrNotFound = errors.New("not found")

// Tools is what was found on this machine.
type Tools struct {
	Chromium, Node               string // paths
	ChromiumVersion, NodeVersion string
}

// Find looks for a Chromium and a Node that will do: those that config names,
// else the environment's SCRAPE_CHROMIUM and SCRAPE_NODE, else the places
// where systems keep them. A named one that will not do is an error, not a
// reason to take another. The error lists all that is missing with what was
// looked at and what to install; Tools holds what was found all the same.
func Find(ctx context.Context, config Config) (Tools, error) {
	var tools Tools
	var chromiumErr, nodeErr error
	tools.Chromium, tools.ChromiumVersion, chromiumErr = search(ctx, wanted{
		what: "Chromium", oldest: minChromium,
		named: cmp.Or(config.Chromium, os.Getenv("SCRAPE_CHROMIUM")), variable: "SCRAPE_CHROMIUM", places: chromiumPlaces(),
		remedy: "`make install`, or `apt-get install chromium` on Debian, or Google Chrome's package",
	})
	tools.Node, tools.NodeVersion, nodeErr = search(ctx, wanted{
		what: "Node.js", oldest: minNode,
		named: cmp.Or(config.Node, os.Getenv("SCRAPE_NODE"), os.Getenv(nodeVariable)), variable: "SCRAPE_NODE", places: []string{"node", "nodejs"},
		remedy: "`make install`, or `apt-get install nodejs`, or https://nodejs.org",
	})
	return tools, errors.Join(chromiumErr, nodeErr)
}

// wanted is a program and where it may be.
type wanted struct {
	what     string
	oldest   int
	named    string
	variable string
	places   []string // paths, or names to be looked up
	remedy   string
}

func search(ctx context.Context, w wanted) (path, version string, err error) {
	if w.named != "" {
		path, err := filepath.Abs(w.named)
		if err != nil {
			return "", "", err
		}
		version, reason := examine(ctx, path, w.oldest)
		if reason != "" {
			return "", "", fmt.Errorf("%w: the %s that the settings or %s name does not do: %s: %s", ErrNotFound, w.what, w.variable, path, reason)
		}
		return path, version, nil
	}
	var seen []string
	for _, place := range w.places {
		path, err := exec.LookPath(place)
		if err != nil {
			continue
		}
		version, reason := examine(ctx, path, w.oldest)
		if reason == "" {
			return path, version, nil
		}
		if entry := path + ": " + reason; !slices.Contains(seen, entry) {
			seen = append(seen, entry)
		}
	}
	looked := ""
	if len(seen) > 0 {
		looked = " (" + strings.Join(seen, "; ") + ")"
	}
	return "", "", fmt.Errorf("%w: no %s of version %d or newer on this machine%s; install it by %s, or name it in %s",
		ErrNotFound, w.what, w.oldest, looked, w.remedy, w.variable)
}

var versionNumber = regexp.MustCompile(`(\d+)(?:\.\d+)+`)

// examine runs the program and returns its version, or why it does not do.
func examine(ctx context.Context, path string, oldest int) (version, reason string) {
	if real, err := filepath.EvalSymlinks(path); err == nil && strings.HasPrefix(real, "/snap/") || strings.HasSuffix(path, "/bin/snap") {
		return "", "a snap package, which cannot use our private directory"
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	// Where only its output was not closed in time it has ended well, and said
	// what it had to say: a child holds it, or we were not given the processor.
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Sprintf("--version failed: %v", err)
	}
	match := versionNumber.FindStringSubmatch(string(out))
	if match == nil {
		return "", fmt.Sprintf("--version says %.60q", out)
	}
	if major, err := strconv.Atoi(match[1]); err != nil || major < oldest {
		return "", fmt.Sprintf("version %s is too old", match[0])
	}
	return match[0], ""
}

// chromiumPlaces lists the browser itself before the wrapper scripts in the
// PATH, which add flags of their own.
func chromiumPlaces() []string {
	var places []string
	switch runtime.GOOS {
	case "darwin":
		places = []string{
			"/Applications/Chromium.app/Contents/MacOS/Chromium",
			"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
		}
	default:
		places = []string{
			"/usr/lib/chromium/chromium",
			"/usr/lib/chromium-browser/chromium-browser",
			"/usr/lib64/chromium-browser/chromium-browser",
			"/opt/google/chrome/chrome",
		}
	}
	places = append(places, "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
	return append(places, playwrightChromiums()...)
}

// playwrightChromiums lists the browsers that Playwright downloaded, newest
// first.
func playwrightChromiums() []string {
	dir := os.Getenv("PLAYWRIGHT_BROWSERS_PATH")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil
		}
		dir = filepath.Join(cache, "ms-playwright")
	}
	var found []string
	for _, pattern := range []string{"chrome-linux*/chrome", "chrome-mac*/*.app/Contents/MacOS/*"} {
		matches, _ := filepath.Glob(filepath.Join(dir, "chromium-*", pattern))
		found = append(found, matches...)
	}
	slices.Sort(found)
	slices.Reverse(found)
	return found
}
