package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"filippo.io/age"

	"github.com/holdline/scrape/auth"
)

// Key encrypts what is kept. It prints as where it is from.
type Key struct {
	identity *age.X25519Identity
	from     string
}

// String says where the key is from.
func (k Key) String() string { return k.from }

// DefaultKeyFile is where the key lies unless something else is said:
// holdline/key in the user's configuration directory.
func DefaultKeyFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("there is no directory for the key: %w", err)
	}
	return filepath.Join(dir, "holdline", "key"), nil
}

// ParseKey reads a key as age-keygen writes it (AGE-SECRET-KEY-1…); lines that
// begin with # are passed over. from is what the key is called in messages.
func ParseKey(text auth.Secret, from string) (Key, error) {
	key := ""
	for line := range strings.Lines(text.Reveal()) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && key == "" {
			key = line
		}
	}
	identity, err := age.ParseX25519Identity(key)
	if err != nil {
		// The library's error may quote parts of the key.
		return Key{}, fmt.Errorf("%s holds no key: want one line AGE-SECRET-KEY-1…, as age-keygen makes it", from)
	}
	return Key{identity: identity, from: from}, nil
}

// OpenKey reads the key in a file that nobody but its owner may read. Where
// there is no file it makes one with a new key.
func OpenKey(path string) (Key, error) {
	for range 2 {
		text, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
				return Key{}, fmt.Errorf("the key for kept credentials cannot be made: %w", err)
			}
			continue // read what is there now: another program may have been first
		case err != nil:
			return Key{}, fmt.Errorf("the key for kept credentials: %w", err)
		}
		info, err := os.Stat(path)
		if err != nil {
			return Key{}, fmt.Errorf("the key for kept credentials: %w", err)
		}
		if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
			return Key{}, fmt.Errorf("the key for kept credentials in %s can be read by others: chmod 600 %s", path, path)
		}
		return ParseKey(auth.NewSecret(string(text)), path)
	}
	return Key{}, fmt.Errorf("the key for kept credentials in %s comes and goes", path)
}

// makeKey writes a new key, whole or not at all.
func makeKey(path string) error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	text := "# The key for the credentials that scrape keeps between runs. Without it they\n# cannot be read, and scrape logs in anew.\n" + identity.String() + "\n"
	temp, err := writeTemp(filepath.Dir(path), []byte(text))
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	return os.Link(temp, path) // unlike a rename it replaces nothing
}
