package browser

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/playwright-community/playwright-go"
)

// The driver that playwright-go v0.6000.0 demands: the npm package and its
// dist.integrity.
const (
	driverVersion   = "1.60.0"
	driverIntegrity = "9bW6zvX/m0lEbgTKJ6YppOKx8H3VOPBMOCFh2irXFOT4BbHgrx5hPjwJYLT40Lu+4qtD36qKc/Hn56StUW57IA=="
	driverTarball   = "playwright-core/-/playwright-core-" + driverVersion + ".tgz"

	maxTarball  = 64 << 20
	maxUnpacked = 512 << 20
)

// Install puts the Playwright driver into config's driver directory, unless it
// is there already: from the npm registry that npm's settings name, checked
// against a fixed SHA-512, else from where playwright-go gets it. Any number of processes may call it at once. It needs Node, but
// neither a browser nor npm. progress, if not nil, is told in a few lines what
// is being done. The error joins what each way failed on.
func Install(ctx context.Context, config Config, progress func(string)) error {
	if progress == nil {
		progress = func(string) {}
	}
	dir, err := config.driverDir()
	if err != nil {
		return err
	}
	if driverAt(dir) == nil {
		return nil
	}
	tools, err := Find(ctx, config)
	if tools.Node == "" {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("driver directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, ".lock"))
	if locked, err := lock.TryLockContext(ctx, 100*time.Millisecond); !locked {
		return fmt.Errorf("another process installs the driver into %s: %w", dir, err)
	}
	defer lock.Unlock()
	if driverAt(dir) == nil {
		return nil // the other process was faster
	}
	// Everything happens beside its place, and is moved there at the end.
	beside, err := os.MkdirTemp(dir, ".unpack-")
	if err != nil {
		return fmt.Errorf("driver directory: %w", err)
	}
	defer os.RemoveAll(beside)

	npmErr := installFromNPM(ctx, filepath.Join(beside, "npm"), tools.Node, progress)
	if npmErr == nil {
		return moveDriver(filepath.Join(beside, "npm"), dir)
	}
	progress("the npm registry did not do: " + npmErr.Error())
	playwrightErr := installFromPlaywright(ctx, filepath.Join(beside, "playwright"), progress)
	if playwrightErr == nil {
		return moveDriver(filepath.Join(beside, "playwright"), dir)
	}
	return fmt.Errorf("%w: the Playwright driver %s: neither way to install it worked; unpack %s to %s by hand, or name a registry in npm_config_registry: %w",
		ErrNotFound, driverVersion, driverTarball, dir, errors.Join(npmErr, playwrightErr))
}

// InstallChromium has the driver, which Install put in place before, download
// Playwright's own build of Chromium (170 MB) into Playwright's cache, where
// Find looks; it does nothing when Find finds a browser already. It is for
// systems whose packages have none that would do, and brings none of the
// libraries that a browser needs from the system.
func InstallChromium(ctx context.Context, config Config, progress func(string)) error {
	tools, err := Find(ctx, config)
	if err == nil || tools.Chromium != "" {
		return nil
	}
	if tools.Node == "" {
		return err
	}
	dir, err := config.driverDir()
	if err == nil {
		err = driverAt(dir)
	}
	if err != nil {
		return err
	}
	if progress != nil {
		progress("downloading Chromium from Playwright (170 MB)")
	}
	cmd := exec.CommandContext(ctx, tools.Node, filepath.Join(dir, "package", "cli.js"), "install", "--no-shell", "chromium")
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("downloading Chromium: %w: %s", err, firstLines(string(out), 3))
	}
	if _, err := Find(ctx, config); err != nil {
		return fmt.Errorf("what was downloaded does not do: %w", err)
	}
	return nil
}

// driverAt returns nil when the driver in dir is whole and of our version.
func driverAt(dir string) error {
	var manifest struct{ Name, Version string }
	content, err := os.ReadFile(filepath.Join(dir, "package", "package.json"))
	if err == nil {
		err = json.Unmarshal(content, &manifest)
	}
	if err == nil && manifest.Version != driverVersion {
		err = fmt.Errorf("its version is %s", manifest.Version)
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "package", "cli.js"))
	}
	if err != nil {
		return fmt.Errorf("%w: the Playwright driver %s in %s; install it by `make install`: %w", ErrNotFound, driverVersion, dir, err)
	}
	return nil
}

func moveDriver(from, dir string) error {
	if err := driverAt(from); err != nil {
		return err
	}
	to := filepath.Join(dir, "package")
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("driver directory: %w", err)
	}
	if err := os.Rename(filepath.Join(from, "package"), to); err != nil {
		return fmt.Errorf("driver directory: %w", err)
	}
	return nil
}

// installFromNPM unpacks the package from the first registry that has it.
func installFromNPM(ctx context.Context, dir, node string, progress func(string)) error {
	from := registry(ctx)
	if from == "" {
		return errors.New("no npm registry is known: npm is not installed, and npm_config_registry is not set")
	}
	progress("downloading the Playwright driver " + driverVersion + " (3 MB)")
	tarball, err := download(ctx, from+"/"+driverTarball)
	if err != nil {
		return err
	}
	if err := unpack(tarball, dir); err != nil {
		return fmt.Errorf("unpacking the driver: %w", err)
	}
	// playwright-go mends a fault of the driver when it looks it over; it
	// wants a node beside it for that.
	if err := os.Symlink(node, filepath.Join(dir, "node")); err != nil {
		return err
	}
	return lookOver(dir)
}

// lookOver has playwright-go check the driver in dir, which it does without
// the network when the version is right.
func lookOver(dir string) error {
	playwrightGlobals.Lock()
	defer playwrightGlobals.Unlock()
	return playwright.Install(&playwright.RunOptions{
		DriverDirectory:     dir,
		SkipInstallBrowsers: true,
		Stdout:              io.Discard,
		Stderr:              io.Discard,
		Logger:              slog.New(slog.DiscardHandler),
	})
}

// installFromPlaywright lets playwright-go download the driver. Its download
// knows no limit, so it is left behind when it takes too long: it then ends
// by itself and fails, because its directory is gone.
func installFromPlaywright(ctx context.Context, dir string, progress func(string)) error {
	progress("downloading the Playwright driver " + driverVersion + " from Playwright (50 MB)")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- lookOver(dir) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("playwright's own download: %w", context.Cause(ctx))
	}
}

// registry is where npm packages are to be had, as npm's settings say; empty
// when there is nothing to say it.
func registry(ctx context.Context) string {
	named := os.Getenv("npm_config_registry")
	if named == "" {
		if npm, err := exec.LookPath("npm"); err == nil {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if out, err := exec.CommandContext(ctx, npm, "config", "get", "registry").Output(); err == nil {
				named = strings.TrimSpace(string(out))
			}
		}
	}
	if u, err := url.Parse(named); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return ""
	}
	return strings.TrimRight(named, "/")
}

// download returns the tarball when it is the one that was pinned.
func download(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	host := "of an unreadable address"
	if u, err := url.Parse(address); err == nil {
		host = u.Hostname() // a mirror's address may hold a password
	}
	fail := func(err error) ([]byte, error) {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return nil, fmt.Errorf("npm registry %s: %w", host, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fail(errors.New("its address is not a URL"))
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("%s for %s", response.Status, driverTarball))
	}
	content, err := io.ReadAll(io.LimitReader(response.Body, maxTarball))
	if err != nil {
		return fail(err)
	}
	sum := sha512.Sum512(content)
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != driverIntegrity {
		return fail(fmt.Errorf("%s is not the file that was pinned: sha512-%s, want sha512-%s", driverTarball, got, driverIntegrity))
	}
	return content, nil
}

// unpack writes the tarball's files below dir, and nowhere else.
func unpack(tarball []byte, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	unzipped, err := gzip.NewReader(bytes.NewReader(tarball))
	if err != nil {
		return err
	}
	left := int64(maxUnpacked)
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if left -= header.Size; left < 0 {
			return fmt.Errorf("it unpacks to more than %d bytes", maxUnpacked)
		}
		if err := unpackFile(root, header, archive); err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, header *tar.Header, content io.Reader) error {
	name := filepath.FromSlash(header.Name)
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, header.FileInfo().Mode().Perm()|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}
