package auth_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/holdline/scrape/auth"
)

const password = "correct-horse-battery"

// everyPrintedForm prints v in every way that the project prints things.
func everyPrintedForm(t *testing.T, v any) map[string]string {
	t.Helper()
	forms := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T"} {
		forms["fmt "+verb] = fmt.Sprintf(verb, v)
	}
	forms["fmt.Errorf"] = fmt.Errorf("wrapped: %v", v).Error()
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("m", "v", v)
		forms[name] = b.String()
	}
	marshalled, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	forms["json"] = string(marshalled)
	if marshalled, err = yaml.Marshal(v); err != nil {
		t.Fatal(err)
	}
	forms["yaml"] = string(marshalled)
	var b bytes.Buffer
	if err := template.Must(template.New("").Parse("{{.}}")).Execute(&b, v); err != nil {
		t.Fatal(err)
	}
	forms["template"] = b.String()
	return forms
}

func TestSecretPrintsAsStars(t *testing.T) {
	secret := auth.NewSecret(password)
	type settings struct {
		User     string
		Password auth.Secret
	}
	type private struct{ password auth.Secret }
	for name, v := range map[string]any{
		"value":      secret,
		"pointer":    &secret,
		"struct":     settings{User: "u", Password: secret},
		"slice":      []auth.Secret{secret},
		"map":        map[string]auth.Secret{"k": secret},
		"unexported": private{password: secret},
	} {
		for form, got := range everyPrintedForm(t, v) {
			if strings.Contains(got, password) || strings.Contains(got, fmt.Sprintf("%x", password)) {
				t.Errorf("%s by %s shows the password: %s", name, form, got)
			}
		}
	}
	for form, got := range everyPrintedForm(t, secret) {
		if form != "fmt %T" && !strings.Contains(got, "***") {
			t.Errorf("by %s: %q, want ***", form, got)
		}
	}
	// fmt asks nobody about this verb.
	if got := fmt.Sprintf(strings.Join([]string{"%", "p"}, ""), secret); strings.Contains(got, password) {
		t.Errorf("%%p: %s", got)
	}
	if b, err := xml.Marshal(secret); err != nil || strings.Contains(string(b), password) {
		t.Errorf("xml: %s, %v", b, err)
	}
	// Also for a handler that takes values apart by itself.
	if got := slog.AnyValue(secret).Resolve(); got.Kind() != slog.KindString || got.String() != "***" {
		t.Errorf("slog value: %v", got)
	}
	if secret.Reveal() != password {
		t.Error("Reveal does not give the value")
	}
}

func TestEmptySecretPrintsAsNothing(t *testing.T) {
	if got := fmt.Sprintf("[%v]", auth.NewSecret("")); got != "[]" {
		t.Errorf("got %s", got)
	}
	if !auth.NewSecret("").IsZero() || auth.NewSecret("x").IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestSecretIsReadFromSettings(t *testing.T) {
	var fromYAML, fromJSON struct{ Password auth.Secret }
	if err := yaml.Unmarshal([]byte("password: "+password), &fromYAML); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"Password":"`+password+`"}`), &fromJSON); err != nil {
		t.Fatal(err)
	}
	if fromYAML.Password.Reveal() != password || fromJSON.Password.Reveal() != password {
		t.Errorf("yaml %q, json %q", fromYAML.Password.Reveal(), fromJSON.Password.Reveal())
	}
}

func TestCredentialPrintsNamesOnly(t *testing.T) {
	c := auth.Credential{
		Cookies:    []*http.Cookie{{Name: "session", Value: password}},
		Header:     http.Header{"Authorization": {"Bearer " + password}},
		Exit:       "exit-1",
		Generation: 7,
		Expires:    time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	for name, v := range map[string]any{
		"value": c, "pointer": &c, "struct": struct{ C *auth.Credential }{&c}, "slice": []auth.Credential{c},
	} {
		for form, got := range everyPrintedForm(t, v) {
			if strings.Contains(got, password) {
				t.Errorf("%s by %s shows the secret: %s", name, form, got)
			}
		}
	}
	if got := everyPrintedForm(t, c)["slog json"]; !strings.Contains(got, `"generation":7`) || !strings.Contains(got, `"cookies":["session"]`) {
		t.Errorf("log line without its parts: %s", got)
	}
	for _, want := range []string{"session", "Authorization", "exit-1", "7", "2030-01-02"} {
		if got := c.String(); !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}
