// Package store keeps credentials between runs, encrypted.
//
// The main type is Store: a directory with a file for each credential and one
// for the history of each Keeper, encrypted by age with a Key that lies
// elsewhere. Store.For gives the auth.Store of one Keeper.
//
// It deliberately decides nothing: what is good, renewed or dropped is the
// Keeper's to say.
package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/holdline/scrape/auth"
)

const (
	suffix     = ".age"
	pastSuffix = ".history"
	tempPrefix = ".tmp-"
	// oldTemp is when a temporary file is nobody's any more.
	oldTemp = time.Minute
	// version is of the form of files. A file of another is not read.
	version = 1
	// largest bounds what is read of a file.
	largest = 4 << 20
)

// Store is a directory of encrypted credentials. Any number of programs may
// use it at once, and any number of goroutines its methods.
type Store struct {
	dir string
	key Key
}

// New returns the Store in dir, which is made when something is kept.
func New(dir string, key Key) *Store { return &Store{dir: dir, key: key} }

// ReadError says which files cannot be read, and what to do.
type ReadError struct {
	// Dir is the store's directory, Key where the key is from.
	Dir, Key string
	// WrongKey are files that the key does not open, Damaged those that are
	// not what was written.
	WrongKey, Damaged []string
}

// Error names the files and the remedy.
func (e *ReadError) Error() string {
	var said []string
	if n := len(e.WrongKey); n > 0 {
		said = append(said, fmt.Sprintf("the key in %s does not open %s in %s: bring back the key that they were kept with (SCRAPE_KEY, --key-file), or delete them", e.Key, list(e.WrongKey), e.Dir))
	}
	if n := len(e.Damaged); n > 0 {
		said = append(said, fmt.Sprintf("%s in %s cannot be read: delete them", list(e.Damaged), e.Dir))
	}
	return strings.Join(said, "; ")
}

func list(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

// Entry is one kept credential.
type Entry struct {
	// Name is the Keeper's.
	Name       string
	Credential *auth.Credential
}

// List returns everything that is kept, in the order of names and exits, also
// beside an error that tells of the rest: a *ReadError, or one of the file
// system.
func (s *Store) List() ([]Entry, error) {
	kept, err := s.read("")
	var entries []Entry
	for _, k := range kept {
		entries = append(entries, Entry{k.Name, k.credential()})
	}
	return entries, err
}

// For returns what a Keeper of this name uses. settings stands for everything
// that a credential depends on, such as the user's name and the steps of the
// login: what was kept with others is not used.
func (s *Store) For(name string, settings []byte) auth.Store {
	sum := sha256.Sum256(settings)
	return &view{store: s, name: name, settings: hex.EncodeToString(sum[:])}
}

type view struct {
	store          *Store
	name, settings string
}

func (v *view) Load() ([]*auth.Credential, error) {
	kept, err := v.store.read(v.name)
	var good []*auth.Credential
	for _, k := range kept {
		if k.Name == v.name && k.Settings == v.settings {
			good = append(good, k.credential())
		}
	}
	return good, err
}

func (v *view) Save(c *auth.Credential) error {
	err := v.store.seal(v.store.path(v.name, c.Exit), record{
		Version: version, Name: v.name, Settings: v.settings,
		Exit: c.Exit, ExitID: c.ExitID, Obtained: c.Obtained.Round(0), Expires: c.Expires.Round(0), Skew: c.Skew,
		Cookies: c.Cookies, Header: c.Header, UserAgent: c.UserAgent, BrowserHeader: c.BrowserHeader,
		Refresh: c.Refresh.Reveal(),
	})
	if err != nil {
		return fmt.Errorf("keeping a credential: %w", err)
	}
	return nil
}

func (v *view) Recall() (auth.History, error) {
	var r pastRecord
	path := v.store.pastPath(v.name)
	err := v.store.open(path, &r)
	var locked *age.NoIdentityMatchError
	switch {
	case errors.Is(err, os.ErrNotExist):
		return auth.History{}, nil
	case errors.As(err, &locked):
		return auth.History{}, &ReadError{Dir: v.store.dir, Key: v.store.key.from, WrongKey: []string{filepath.Base(path)}}
	case err != nil || r.Version != version:
		return auth.History{}, &ReadError{Dir: v.store.dir, Key: v.store.key.from, Damaged: []string{filepath.Base(path)}}
	case r.Name != v.name || r.Settings != v.settings:
		return auth.History{}, nil // of another account, or of a password that was corrected since
	}
	return r.History, nil
}

func (v *view) Remember(h auth.History) error {
	return v.store.seal(v.store.pastPath(v.name), pastRecord{Version: version, Name: v.name, Settings: v.settings, History: h})
}

// seal encrypts a record into a file, whole or not at all.
func (s *Store) seal(path string, record any) error {
	plain, err := json.Marshal(record)
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.key.identity.Recipient())
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err != nil {
		return err
	}
	temp, err := writeTemp(s.dir, sealed.Bytes())
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return err
	}
	return nil
}

func (v *view) Remove(exit string) error {
	err := os.Remove(v.store.path(v.name, exit))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// path is the file of a credential. Exits are not named by it: their names may
// be long, and hold any character.
func (s *Store) path(name, exit string) string {
	sum := sha256.Sum256([]byte(exit))
	return filepath.Join(s.dir, prefix(name)+hex.EncodeToString(sum[:8])+suffix)
}

// pastPath is the file of a Keeper's history.
func (s *Store) pastPath(name string) string {
	return filepath.Join(s.dir, url.QueryEscape(name)+pastSuffix)
}

func prefix(name string) string { return url.QueryEscape(name) + "@" }

// read opens the files of a name, or all of them for "".
func (s *Store) read(name string) (kept []record, err error) {
	files, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kept credentials: %w", err)
	}
	failed := &ReadError{Dir: s.dir, Key: s.key.from}
	for _, f := range files {
		path := filepath.Join(s.dir, f.Name())
		if strings.HasPrefix(f.Name(), tempPrefix) {
			if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > oldTemp {
				os.Remove(path)
			}
			continue
		}
		if !strings.HasSuffix(f.Name(), suffix) || name != "" && !strings.HasPrefix(f.Name(), prefix(name)) {
			continue
		}
		var r record
		err := s.open(path, &r)
		var locked *age.NoIdentityMatchError
		switch {
		case errors.Is(err, os.ErrNotExist): // removed meanwhile
		case errors.As(err, &locked):
			failed.WrongKey = append(failed.WrongKey, f.Name())
		case err != nil || r.Version != version:
			failed.Damaged = append(failed.Damaged, f.Name())
		default:
			kept = append(kept, r)
		}
	}
	if len(failed.WrongKey)+len(failed.Damaged) > 0 {
		return kept, failed
	}
	return kept, nil
}

func (s *Store) open(path string, record any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := age.Decrypt(io.LimitReader(f, largest), s.key.identity)
	if err != nil {
		return err
	}
	return json.NewDecoder(plain).Decode(record)
}

// pastRecord is the plain text of a file with a history.
type pastRecord struct {
	Version  int
	Name     string
	Settings string // a hash
	History  auth.History
}

// record is the plain text of a file.
type record struct {
	Version       int
	Name          string
	Settings      string // a hash
	Exit, ExitID  string
	Obtained      time.Time
	Expires       time.Time
	Skew          time.Duration
	Cookies       []*http.Cookie
	Header        http.Header
	UserAgent     string
	BrowserHeader http.Header
	Refresh       string
}

func (r record) credential() *auth.Credential {
	return &auth.Credential{
		Cookies: r.Cookies, Header: r.Header, UserAgent: r.UserAgent, BrowserHeader: r.BrowserHeader,
		Obtained: r.Obtained, Expires: r.Expires, Skew: r.Skew, Exit: r.Exit, ExitID: r.ExitID,
		Refresh: auth.NewSecret(r.Refresh),
	}
}

// writeTemp writes a file that only its owner can read, and sees it on the
// disk.
func writeTemp(dir string, content []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}
