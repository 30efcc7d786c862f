package login

import (
	"bytes"
	"errors"
	"net/url"
	"strings"

	"golang.org/x/net/html"

	"github.com/holdline/scrape/auth"
)

// page is what matters of a login page.
type page struct {
	address  *url.URL
	base     string
	hidden   map[string]string // of the form
	meta     map[string]string
	action   string
	form     bool
	password bool // some form asks for a password
}

// readPage looks for the form that the fields belong to: the one that has most
// of their names, else one with a password, else the first. A page that is not
// HTML has none.
func readPage(body []byte, fields map[string]auth.Secret) *page {
	p := &page{meta: map[string]string{}}
	best := -1
	var form *candidate
	close := func() {
		if form != nil && form.score > best {
			best = form.score
			p.form, p.hidden, p.action = true, form.hidden, form.action
		}
		form = nil
	}
	for z := html.NewTokenizer(bytes.NewReader(body)); ; {
		switch z.Next() {
		case html.ErrorToken:
			close()
			return p
		case html.EndTagToken:
			if name, _ := z.TagName(); string(name) == "form" {
				close()
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			name, more := z.TagName()
			tag := string(name)
			if tag != "form" && tag != "input" && tag != "meta" && tag != "base" {
				continue
			}
			attrs := map[string]string{}
			for more {
				var key, value []byte
				key, value, more = z.TagAttr()
				if _, doubled := attrs[string(key)]; !doubled {
					attrs[string(key)] = string(value)
				}
			}
			switch tag {
			case "base":
				if p.base == "" {
					p.base = attrs["href"]
				}
			case "meta":
				p.meta[attrs["name"]] = attrs["content"]
			case "form":
				close()
				form = &candidate{action: attrs["action"], hidden: map[string]string{}}
			case "input":
				kind := strings.ToLower(attrs["type"])
				p.password = p.password || kind == "password"
				form.input(kind, attrs["name"], attrs["value"], fields)
			}
		}
	}
}

// candidate is a form that may be the one.
type candidate struct {
	action string
	hidden map[string]string
	score  int
}

// input counts an input element. Outside of a form there is nobody to count.
func (c *candidate) input(kind, name, value string, fields map[string]auth.Secret) {
	if c == nil {
		return
	}
	if _, ours := fields[name]; ours {
		c.score += 10
	}
	if kind == "password" {
		c.score++
	}
	if kind == "hidden" && name != "" {
		c.hidden[name] = value
	}
}

// target is where the page's form goes.
func (p *page) target() (string, error) {
	if !p.form {
		return "", errors.New("there is no form on the page; name the address that the login goes to")
	}
	to := p.address
	for _, ref := range []string{p.base, p.action} {
		u, err := to.Parse(strings.TrimSpace(ref))
		if err != nil {
			return "", errors.New("the form's action cannot be read")
		}
		if ref != "" {
			to = u
		}
	}
	if to.Scheme != "http" && to.Scheme != "https" {
		return "", errors.New("the form goes to no http or https address")
	}
	return to.String(), nil
}
