package browser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/holdline/scrape/auth"
)

const (
	defaultStepTimeout = 20 * time.Second
	// patience is how much longer than its deadline a call to the browser may
	// take before the page is closed over it, and then how long that may take
	// before the browser is killed.
	patience = 5 * time.Second
)

// SourceConfig is one login as data. Runtime and Steps are required.
type SourceConfig struct {
	Runtime *Runtime
	Steps   []Step
	// FailOn are selectors as Step.ErrorSelector, for all steps.
	FailOn []string
	// Header is what is handed on besides the site's cookies: header names and
	// templates with ${storage.KEY} and ${cookie.NAME}, such as
	// "Bearer ${storage.access_token}".
	Header map[string]string
	// Person says that somebody sits before the browser, whose window Config
	// shows: what a step cannot do is left to them, captchas and refusals too,
	// and the last step, which must wait for something, waits as long as the
	// login may take.
	Person bool
	// StepTimeout limits a step that has no limit of its own; zero means 20
	// seconds.
	StepTimeout time.Duration
	// ArtifactsDir is where a failed login leaves a screenshot, the page's
	// text and its error, secrets blanked, in a directory of its own; the
	// newest ten are kept. Empty means that nothing is left.
	ArtifactsDir string
	// KeepOpen leaves the page of a good login open, for the streams that a
	// Reader reads in it: until its identity is given up, or for a minute when
	// no identity takes it.
	KeepOpen bool
	// Log may be nil.
	Log *slog.Logger
}

// Source is an auth.Source that logs in through a browser. What it obtains is
// bound to the exit. It expires with the first of: the cookies that the steps
// wait for or that a header refers to, and the exp of any of these values, and
// of the storage values in headers, that is a JSON Web Token. Its methods may
// be called from any number of goroutines.
type Source struct {
	config  SourceConfig
	hosts   []string // of the pages that are opened
	secrets []string // what must not be seen in messages
	matter  []string // names of the cookies that the end depends on

	mu   sync.Mutex
	kept map[string]*stay // the last login's, by exit
}

// NewSource checks config and says all that is wrong with it.
func NewSource(config SourceConfig) (*Source, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.StepTimeout <= 0 {
		config.StepTimeout = defaultStepTimeout
	}
	s := &Source{config: config}
	var errs []error
	if config.Runtime == nil {
		errs = append(errs, errors.New("no browser runtime"))
	}
	if len(config.Steps) == 0 || config.Steps[0].Do != Open {
		errs = append(errs, errors.New("the first step must open a page"))
	}
	for i, step := range config.Steps {
		if err := step.check(); err != nil {
			errs = append(errs, fmt.Errorf("step %d: %w", i+1, err))
			continue
		}
		switch step.Do {
		case Open:
			u, _ := url.Parse(step.Target)
			s.hosts = append(s.hosts, u.Hostname())
		case WaitCookie:
			s.matter = append(s.matter, step.Target)
		case Fill:
			s.secrets = append(s.secrets, step.Value.Reveal())
		}
	}
	if n := len(config.Steps); config.Person && n > 0 && !strings.HasPrefix(string(config.Steps[n-1].Do), "wait_") {
		errs = append(errs, errors.New("the last step must wait for what shows that the login is done"))
	}
	for name, template := range config.Header {
		refs, err := references(template)
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s: %w", name, err))
		}
		for _, ref := range refs {
			if ref[0] == "cookie" {
				s.matter = append(s.matter, ref[1])
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("browser login: %w", err)
	}
	return s, nil
}

// Bound is always auth.BoundToExit.
func (*Source) Bound() auth.Binding { return auth.BoundToExit }

// Obtain logs in through via. Every failure but that of ctx is a
// *auth.LoginError.
func (s *Source) Obtain(ctx context.Context, via auth.Via, _ *auth.Credential) (*auth.Credential, error) {
	ctx, l, leave, err := s.config.Runtime.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	own, err := newSpace(l, via, s.config.Log)
	if err != nil {
		return nil, err
	}
	v := &visit{space: own, source: s, secrets: s.secrets}
	kept := false
	defer func() {
		if !kept {
			v.close()
		}
	}()
	credential, err := v.run(ctx)
	kept = err == nil && s.keep(ctx, v, via, credential)
	return credential, err
}
