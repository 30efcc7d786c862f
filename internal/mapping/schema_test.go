package mapping

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdline/scrape/framework"
)

const tradeSchema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "properties": {
    "symbol": {"type": "string", "pattern": "^[A-Z]+$"},
    "price": {"type": ["number", "null"]},
    "at": {"type": "string", "format": "date-time"},
    "volume": {"type": "integer"},
    "open": {"type": "boolean"},
    "a b": {"$ref": "#/$defs/level"},
    "levels": {"type": "array", "items": {"$ref": "#/$defs/level"}},
    "any": {}
  },
  "required": ["symbol", "price", "volume"],
  "additionalProperties": false,
  "$defs": {"level": {"type": "object", "properties": {"bid": {"type": "number"}}}}
}`

func TestColumnsOfASchema(t *testing.T) {
	m := mapping(t, Spec{Schema: writeFile(t, "trade.json", tradeSchema)})
	want := []framework.Column{
		{Name: "symbol", Type: "text", Required: true}, {Name: "price", Type: "number"}, {Name: "at", Type: "time"}, {Name: "volume", Type: "integer", Required: true},
		{Name: "open", Type: "boolean"}, {Name: "a b", Type: "json"}, {Name: "levels", Type: "json"}, {Name: "any", Type: "text"},
	}
	if got := m.Columns(""); !reflect.DeepEqual(got, want) {
		t.Errorf("columns are\n%v", got)
	}
	for data, want := range map[string]string{
		`{"volume":3, "price":1.10, "symbol":"A", "a b":{"bid":2.50}, "any":[1.0]}`: `{"symbol":"A","price":1.10,"at":null,"volume":3,"open":null,"a b":{"bid":2.50},"levels":null,"any":[1.0]}`,
		`{"volume":3, "price":"1", "symbol":"A"}`:                                   `refused: the schema does not allow it: /price: got string, want null or number`,
		`{"volume":3.5, "price":1, "symbol":"a"}`:                                   `and 1 more`,
		`{"price":1, "symbol":"A"}`:                                                 `refused: the schema does not allow it: the whole: missing property 'volume'`,
		`{"volume":3, "price":1, "symbol":"A", "other":1}`:                          `refused: the schema does not allow it: the whole: additional properties 'other' not allowed`,
		`7`: `refused: the schema does not allow it: the whole: got number, want object`,
	} {
		if got := datas(m, event("trade", data)); !strings.Contains(got, want) {
			t.Errorf("%s\n got %s\nwant %s", data, got, want)
		}
	}
	for _, long := range []string{"1e401", "1E-401", "1e99999999999999999999", strings.Repeat("9", 401)} {
		if got := datas(m, event("trade", `{"volume":1,"price":`+long+`,"symbol":"A"}`)); !strings.HasPrefix(got, "refused: the number ") || !strings.HasSuffix(got, " is too long for a schema") {
			t.Errorf("%s: %s", long, got)
		}
	}
	if got := datas(m, event("trade", `{"volume":1,"price":1.0e+400,"symbol":"A"}`)); !strings.Contains(got, "1.0e+400") {
		t.Error(got)
	}
}

func TestSchemaKnowsTypes(t *testing.T) {
	m := mapping(t, Spec{Schema: writeFile(t, "trade.json", tradeSchema), Columns: columns("p", "price", "t", "this.at", "bid", "levels[0].bid", "n", "event.data.volume", "who", "event.id")})
	want := []framework.Column{{Name: "p", Type: "number"}, {Name: "t", Type: "time"}, {Name: "bid", Type: "number"}, {Name: "n", Type: "integer"}, {Name: "who", Type: "text"}}
	if got := m.Columns(""); !reflect.DeepEqual(got, want) {
		t.Errorf("columns are\n%v", got)
	}
	_, problems := NewRule(Spec{Schema: writeFile(t, "trade.json", tradeSchema), Columns: columns("p", "prise", "q", "levels[0].ask"), Where: "this.vol > 3"})
	if len(problems) != 2 || problems[0].Key != "where" || problems[1].Name != "prise" || len(problems[1].Valid) != 8 {
		t.Errorf("problems are %v", problems)
	}
}

// TestSchemaOfEntries checks each entry of a list, not the event around it.
func TestSchemaOfEntries(t *testing.T) {
	m := mapping(t, Spec{Each: "list", Schema: writeFile(t, "s.json", `{"type":"integer"}`)})
	if got := datas(m, event("x", `{"list":[1,2]}`)); got != "1\n2" {
		t.Error(got)
	}
	if got := datas(m, event("x", `{"list":[1,"2"]}`)); got != "refused: entry 1 of list: the schema does not allow it: the whole: got string, want integer" {
		t.Error(got)
	}
}

func TestSchemaInSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.json":  `{"$ref": "sub/part.json#/$defs/top"}`,
		"draft.json": `{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"b":{"type":"integer"},"a":{"type":"string"}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "part.json"), []byte(`{"$defs":{"top":{"properties":{"z":{"type":"number"},"y":{"type":"string"}}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"main.json": "[{z number false} {y text false}]", "draft.json": "[{b integer false} {a text false}]"} {
		if got := sprint(mapping(t, Spec{Schema: filepath.Join(dir, name)}).Columns("")); got != want {
			t.Errorf("%s: columns are %s", name, got)
		}
	}
}

func TestBrokenSchemas(t *testing.T) {
	for text, want := range map[string]string{
		"{\n  \"type\": object}": "s.json:2:11 is not JSON: invalid character 'o' looking for beginning of value",
		"{\n  \"type\": ":        "s.json:2:10 is not JSON: unexpected end of JSON input",
		"{}\n{}":                 "s.json:2:1 is not JSON",
		"{\n  \"properties\": {\n    \"a\": {\"type\": \"text\"}}}": "s.json:3:19 is not a JSON Schema: /properties/a/type: value must be one of",
		`{"$ref": "https://example.com/s.json"}`:                    "the schema https://example.com/s.json cannot be read: it is not a file, and nothing is fetched from the network",
		`{"$ref": "other.json"}`:                                    "other.json cannot be read: no such file or directory",
		`{"$ref": "#/$defs/none"}`:                                  "does not compile: json-pointer in",
		`{"pattern": "(?=x)"}`:                                      "s.json:1:13 is not a JSON Schema: /pattern: ",
		`{"$schema": "https://example.com/none"}`:                   "nothing is fetched from the network",
		`[]`: "s.json:1:1 is not a JSON Schema: the whole: got array, want boolean or object",
	} {
		_, problems := NewRule(Spec{Schema: writeFile(t, "s.json", text)})
		if len(problems) != 1 || problems[0].Key != "schema" || !strings.Contains(problems[0].Message, want) || strings.Contains(problems[0].Message, "\n") || strings.Contains(problems[0].Message, "file://") {
			t.Errorf("%s:\n got %v\nwant %s", text, problems, want)
		}
	}
	_, problems := NewRule(Spec{Schema: "nowhere.json"})
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "nowhere.json cannot be read: no such file or directory") {
		t.Errorf("problems are %v", problems)
	}
}
