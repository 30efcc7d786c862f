package auth

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"
)

// Stack is the Source of credentials that are used together, such as a
// browser's clearance and a bearer token. Each part has a Keeper of its own,
// with its own limits, store and binding; where parts send the same header or
// cookie, the later one counts. The whole is bound to an exit when a part is,
// and ends with the part that ends first. To renew it renews that part alone,
// and all of them when the site refuses the whole before that.
//
// The Keeper of a Stack needs no store and no limit of attempts, and a
// LoginTimeout as long as those of the parts together.
func Stack(parts ...*Keeper) Source { return stack(parts) }

type stack []*Keeper

func (s stack) Bound() Binding {
	if slices.ContainsFunc(s, func(k *Keeper) bool { return k.config.Source.Bound() == BoundToExit }) {
		return BoundToExit
	}
	return BoundToNone
}

func (s stack) Obtain(ctx context.Context, via Via, old *Credential) (*Credential, error) {
	due := s.due(old, time.Now())
	whole := &Credential{Header: http.Header{}}
	for i, k := range s {
		var part *Credential
		var err error
		if due[i] {
			was := old.parts[i]
			if due.all() {
				k.Reject(via, was.Generation)
			}
			part, err = k.Renew(ctx, via, was.Generation)
		} else {
			part, err = k.Get(ctx, via)
		}
		if err != nil {
			return nil, err
		}
		whole.add(part, k)
	}
	return whole, nil
}

type dueParts []bool

func (d dueParts) all() bool { return !slices.Contains(d, false) }

// due tells which parts of old are to be renewed.
func (s stack) due(old *Credential, now time.Time) dueParts {
	due := make(dueParts, len(s))
	if old == nil || len(old.parts) != len(s) {
		return due // Get knows what is good
	}
	first := time.Time{}
	ends := make([]time.Time, len(s))
	for i, part := range old.parts {
		ends[i] = s[i].endOf(part)
		first = Earlier(first, ends[i])
	}
	for i, part := range old.parts {
		// The clock's doing, and not the site's: no renewal is planned in the
		// first half of a life.
		half := part.Obtained.Add(ends[i].Sub(part.Obtained) / 2)
		due[i] = part.Expired(now) || !first.IsZero() && ends[i].Equal(first) && !now.Before(half)
	}
	if !slices.Contains(due, true) {
		for i := range due {
			due[i] = true
		}
	}
	return due
}

// preferredExit is that of the first part that has one.
func (s stack) preferredExit() string {
	for _, k := range s {
		if exit := k.PreferredExit(); exit != "" {
			return exit
		}
	}
	return ""
}

// add puts a part on top of the others.
func (c *Credential) add(part *Credential, k *Keeper) {
	c.parts = append(c.parts, part)
	for name, values := range part.Header {
		c.Header[http.CanonicalHeaderKey(name)] = values
	}
	for _, cookie := range part.Cookies {
		c.Cookies = slices.DeleteFunc(c.Cookies, func(o *http.Cookie) bool {
			return o.Name == cookie.Name && o.Domain == cookie.Domain && o.Path == cookie.Path
		})
		c.Cookies = append(c.Cookies, cookie)
	}
	if part.UserAgent != "" {
		c.UserAgent, c.BrowserHeader = part.UserAgent, part.BrowserHeader
	}
	c.Expires = Earlier(c.Expires, k.endOf(part))
	c.Skew = cmp.Or(c.Skew, part.Skew)
}
