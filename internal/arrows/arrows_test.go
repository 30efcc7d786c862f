// Package arrows holds one test: imports in this module point one way.
package arrows

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/holdline/scrape/"

// rooms, the first match counts: a package may import its own floor and those
// below. CONTRIBUTING.md draws the same picture.
var rooms = []struct {
	path  string
	floor int
}{
	{"cmd", 4}, {"examples", 4},
	{"targets", 3}, {"internal/alert", 3}, {"internal/deadletter", 3}, {"internal/journal", 3}, {"internal/mapping", 3}, {"internal/sink", 3}, {"internal/state", 3}, {"internal/web", 3},
	{"framework", 2},
	{"proxies", 1}, {"auth", 1},
	{"internal", 0},
}

// absent is what a program that only uses framework must not link.
var absent = []string{"github.com/nats-io", "github.com/playwright-community", "database/sql", "modernc.org", "github.com/jackc"}

type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

func TestImportsPointOneWay(t *testing.T) {
	seen := map[string]int{}
	for _, p := range list(t) {
		from, floor := room(p.ImportPath)
		seen[from]++
		if from == "" {
			t.Errorf("%s is in no room: name its room in rooms and in CONTRIBUTING.md", p.ImportPath)
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module) {
				continue
			}
			to, below := room(imported)
			switch {
			case below > floor:
				t.Errorf("%s imports %s: %s lies below %s", p.ImportPath, imported, from, to)
			case floor == 1 && below == 1 && from != to:
				t.Errorf("%s imports %s: proxies and auth do not know each other", p.ImportPath, imported)
			case from == "examples" && strings.HasPrefix(imported, module+"internal/"):
				t.Errorf("%s imports %s: examples use what a user can import", p.ImportPath, imported)
			}
		}
		for _, dep := range p.Deps {
			for _, heavy := range absent {
				if from == "framework" && within(dep, heavy) {
					t.Errorf("%s links %s: framework works without it", p.ImportPath, dep)
				}
			}
		}
	}
	for _, must := range []string{"framework", "proxies", "auth", "internal"} {
		if seen[must] == 0 {
			t.Errorf("go list shows no package in %s: this test sees nothing", must)
		}
	}
}

func room(path string) (string, int) {
	path = strings.TrimPrefix(path, module)
	for _, r := range rooms {
		if within(path, r.path) {
			return r.path, r.floor
		}
	}
	return "", 0
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func list(t *testing.T) []pkg {
	root := filepath.Join("..", "..")
	// go test caches a result by the files the test itself looked at, and what
	// go list reads does not count: so look at every source file.
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (d.Name()[0] == '.' || d.Name() == "data"):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go"):
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir, cmd.Stderr = root, t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}
