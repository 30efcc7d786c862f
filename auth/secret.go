package auth

import (
	"fmt"
	"io"
	"log/slog"
)

// hidden is what stands in place of every secret in output.
const hidden = "***"

// Secret is a value that must reach no log, error, metric or page. It prints
// as *** through every verb of fmt, slog, JSON, YAML and text; a Secret that
// was never set prints as nothing, so that a missing one can be seen. Only
// Reveal gives the value. The zero Secret is empty; a Secret may be copied and
// used by any number of goroutines.
//
// There is no way back from the printed form: a Secret that is marshalled and
// read again is the text ***.
type Secret struct {
	// A pointer, because fmt does not call the methods of a value that it
	// reaches through an unexported field: it then prints an address.
	value *string
}

// NewSecret hides value.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{value: &value}
}

// Reveal returns the value itself.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether nothing is hidden here.
func (s Secret) IsZero() bool { return s.value == nil }

// String returns ***, or nothing for an empty Secret.
func (s Secret) String() string {
	if s.value == nil {
		return ""
	}
	return hidden
}

// Format makes every verb print what String returns.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue is what slog prints.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is what JSON, YAML and XML print.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText hides the text that a settings file gave.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}
