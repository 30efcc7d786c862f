package proxies

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// ListError is what is wrong with a line of a list of exits.
type ListError struct {
	Line int
	Err  error
}

func (e *ListError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap gives Err.
func (e *ListError) Unwrap() error { return e.Err }

// maxList bounds a list of exits, in bytes.
const maxList = 16 << 20

// ParseList reads a list of exits: on each line the URL of a proxy or the word direct; empty lines and those that begin with #
// are passed over. like gives what the exits have in common. An exit is named after host and port, and where several share
// these (sessions of one gateway) after their user names, too, as a digest: so a name does not depend on the other lines'
// order. The error is a *ListError, which quotes nothing, or the reader's.
func ParseList(r io.Reader, like Exit) ([]Exit, error) {
	var exits []Exit
	var lines []int
	shared := map[string]int{}
	scan := bufio.NewScanner(io.LimitReader(r, maxList))
	n := 0
	for scan.Scan() {
		n++
		text := strings.TrimSpace(scan.Text())
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if text == "" || text[0] == '#' {
			continue
		}
		x, err := ParseExit(text)
		if err != nil {
			return nil, &ListError{n, err}
		}
		e := like
		if e.URL = x.URL; x.URL == nil {
			e.Kind = Direct
		}
		exits, lines = append(exits, e), append(lines, n)
		shared[e.label()]++
	}
	switch err := scan.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, &ListError{n + 1, errors.New("the line is too long for the URL of a proxy")}
	case err != nil:
		return nil, err
	case len(exits) == 0:
		return nil, errors.New("the list holds no exit: write the URL of a proxy on each line")
	}
	first := map[string]int{}
	for i := range exits {
		e := &exits[i]
		if line, ok := first[identifier(*e)]; ok {
			return nil, &ListError{lines[i], fmt.Errorf("this exit stands on line %d already", line)}
		}
		first[identifier(*e)] = lines[i]
		if e.Name = e.label(); shared[e.Name] > 1 {
			digest := sha256.Sum256([]byte(identifier(*e)))
			e.Name = fmt.Sprintf("%s#%x", e.Name, digest[:3])
		}
	}
	return exits, nil
}

// ReadList reads the list of exits in a file; see ParseList.
func ReadList(path string, like Exit) ([]Exit, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseList(f, like)
}

// Follow keeps the pool's exits those of a list file until ctx ends: a change is taken up within every (0 means 2 s). A list
// that cannot be read or has a broken line is logged once, and the exits stay as they are.
func (p *Pool) Follow(ctx context.Context, path string, like Exit, every time.Duration) {
	if every <= 0 {
		every = 2 * time.Second
	}
	// The pool was made of the list as it was a moment ago; reading it once more does no harm.
	var seen stamp
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if now := stampOf(path); now != seen {
			seen = now
			exits, err := ReadList(path, like)
			if err == nil {
				err = p.Update(exits)
			}
			if err != nil {
				p.config.Log.Error("the list of exits was not taken up, the exits before it stay", "file", path, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stamp tells versions of a file apart.
type stamp struct {
	size    int64
	changed time.Time
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{size: -1}
	}
	return stamp{info.Size(), info.ModTime()}
}
