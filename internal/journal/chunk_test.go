package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"time"

	"github.com/holdline/scrape/framework"
)

// goldenFrames are one message of each kind, as version 1 writes them for
// ever. A difference here means that journals and keys in the field break.
func goldenFrames() map[string]*frame {
	id := framework.JournalID("abcdefghij234567")
	sent := time.Unix(1_700_000_000, 123_456_789)
	var g gathering
	g.reset(1)
	a := &streamLog{state: &streamState{name: "a/one"}}
	b := &streamLog{state: &streamState{name: "b/two"}}
	at := time.Unix(1_700_000_000, 0)
	g.event(a, &framework.Event{ID: []byte("7"), Type: "tick", Cursor: "7", Data: []byte("x"), Time: at})
	g.event(b, &framework.Event{Type: "tick", Cursor: "page=2", Data: []byte("yy"), Time: at.Add(-time.Second)})
	g.event(b, &framework.Event{ID: []byte("8"), Type: "message", Cursor: "page=2", Time: at.Add(time.Second)})
	g.note(g.row(a), framework.Note{Kind: 3, Body: []byte("gap")})
	g.move(g.row(b), "page=3")
	raw := g.body()
	var scratch []byte
	head := func(h header) []byte { return appendHeader(nil, &h, &scratch) }
	return map[string]*frame{
		"chunk": {kind: kindChunk, journal: id, partition: 2, seq: 300, sent: sent, rawLen: len(raw),
			header: head(header{rows: g.rows, parts: 1, base: g.base, count: g.count}), body: raw},
		"part": {kind: kindPart, coding: codingNone, journal: id, partition: 2, seq: 299, sent: sent,
			header: head(header{part: 4}), body: []byte("piece")},
		"snapshot": {kind: kindSnapshot, journal: id, partition: 2, seq: 300, sent: sent,
			header: head(header{oldest: 17, rows: []row{{name: "a/one", cursor: "7", moved: true, last: 300, notes: g.rows[0].notes}}})},
		"hole": {kind: kindHole, journal: id, partition: 2, seq: 301, sent: sent},
	}
}

var golden = map[string]string{
	"chunk": "484c4a430101000008995a8c6162636465666768696a323334353637020000002c0100000000000015cd853dfe9c9717" +
		"3a0000003300000001130105612f6f6e6502010103013704040367617001120105622f74776f0201020306706167653d33" +
		"02010104098080d0e2c6bfce972f050103787979000b000137047469636b010104ffa7d6b90706706167653d3202010380" +
		"d0acf30e0138076d657373616765002c000000",
	"part": "484c4a4301020000c7af94786162636465666768696a323334353637020000002b0100000000000015cd853dfe9c9717" +
		"03000000000000000301047069656365",
	"snapshot": "484c4a43010300004a9a95056162636465666768696a323334353637020000002c0100000000000015cd853dfe9c9717" +
		"190000000000000001140105612f6f6e650301370404036761700502ac02060111",
	"hole": "484c4a4301040000c7bf87866162636465666768696a323334353637020000002d0100000000000015cd853dfe9c9717" +
		"0000000000000000",
}

func TestFormatIsFinal(t *testing.T) {
	for name, f := range goldenFrames() {
		if got := hex.EncodeToString(appendFrame(nil, f)); got != golden[name] {
			t.Errorf("%s: the format has changed; it must not.\n got %s\nwant %s", name, got, golden[name])
		}
	}
}

func TestGoldenFramesDecode(t *testing.T) {
	for name, want := range goldenFrames() {
		b := appendFrame(nil, want)
		f, err := parseFrame(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.kind != want.kind || f.journal != want.journal || f.partition != 2 || f.seq != want.seq || !f.sent.Equal(want.sent) || !bytes.Equal(f.body, want.body) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	f := goldenFrames()["chunk"]
	h, err := parseHeader(f.header)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	rows := []row{
		{name: "a/one", count: 1, cursor: "7", moved: true, notes: []framework.Note{{Kind: 3, Body: []byte("gap")}}},
		{name: "b/two", count: 2, cursor: "page=3", moved: true},
	}
	if !reflect.DeepEqual(h, header{rows: rows, parts: 1, base: at.UnixNano(), count: 3}) {
		t.Errorf("header %+v", h)
	}
	events, err := parseEvents(&h, f.body)
	if err != nil {
		t.Fatal(err)
	}
	want := []framework.StoredEvent{
		{Stream: 0, ID: "7", Type: "tick", Cursor: "7", Time: at, Data: []byte("x")},
		{Stream: 1, Type: "tick", Cursor: "page=2", Time: at.Add(-time.Second), Data: []byte("yy")},
		{Stream: 1, ID: "8", Type: "message", Cursor: "page=2", Time: at.Add(time.Second), Data: []byte{}},
	}
	if !reflect.DeepEqual(events, want) {
		t.Errorf("events %+v", events)
	}
	snap, err := parseHeader(goldenFrames()["snapshot"].header)
	if err != nil || snap.oldest != 17 || snap.rows[0].last != 300 || len(snap.rows[0].notes) != 1 {
		t.Errorf("snapshot %+v, %v", snap, err)
	}
}

func TestForeignBytesAreRefused(t *testing.T) {
	good := appendFrame(nil, goldenFrames()["chunk"])
	if _, err := parseFrame(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if _, err := parseFrame(bad); err == nil {
			t.Errorf("a flipped bit in byte %d was not noticed", i)
		}
	}
	for n := range good {
		if _, err := parseFrame(good[:n]); err == nil {
			t.Errorf("%d of %d bytes were accepted", n, len(good))
		}
	}
	newer := bytes.Clone(good)
	newer[4] = 2
	if _, err := parseFrame(newer); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("another version: %v", err)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	f := goldenFrames()["chunk"]
	want, err := parseHeader(f.header)
	if err != nil {
		t.Fatal(err)
	}
	b := appendField(nil, 99, "of a later version")
	got, err := parseHeader(append(b, f.header...))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	r, err := parseRow(appendField(appendField(nil, 77, "?"), tagName, "s"))
	if err != nil || r.name != "s" {
		t.Errorf("%+v, %v", r, err)
	}
	// An event's extension, which nobody writes yet.
	meta := []byte{0, flagExtension, 0}
	meta = appendBytes(meta, appendField(nil, 5, "later"))
	meta = append(meta, 1)
	raw := append(append([]byte{'d'}, meta...), byte(len(meta)), 0, 0, 0)
	events, err := parseEvents(&header{rows: make([]row, 1), count: 1}, raw)
	if err != nil || string(events[0].Data) != "d" {
		t.Errorf("%+v, %v", events, err)
	}
}

// FuzzFrame decodes arbitrary frames all the way down: no panic, no memory out
// of proportion, and what can be decoded is within its bounds.
func FuzzFrame(f *testing.F) {
	n := 0
	for _, fr := range goldenFrames() {
		f.Add(appendFrame(nil, fr))
		n++
	}
	var g gathering
	g.reset(1)
	l := &streamLog{state: &streamState{name: "a/s"}}
	for i := range 50 {
		g.event(l, event(i))
	}
	var scratch []byte
	raw := g.body()
	coding, body := codeBody(make([]byte, codedLen(len(raw))), raw)
	f.Add(appendFrame(nil, &frame{kind: kindChunk, coding: coding, journal: "abcdefghij234567", rawLen: len(raw), body: body,
		header: appendHeader(nil, &header{rows: g.rows, base: g.base, count: g.count}, &scratch)}))
	f.Add(appendFrame(nil, &frame{kind: kindChunk, coding: codingS2, journal: "abcdefghij234567", rawLen: len(raw), body: s2.Encode(nil, raw),
		header: appendHeader(nil, &header{rows: g.rows, base: g.base, count: g.count}, &scratch)}))
	n++
	if n++; n != 6 || coding != codingPieces {
		f.Fatalf("%d seeds, coding %d", n, coding)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= frameFixed { // or the checksum would refuse everything
			b = bytes.Clone(b)
			copy(b, frameMagic)
			b[4] = frameVersion
			binary.LittleEndian.PutUint32(b[8:], frameSum(b))
		}
		fr, err := parseFrame(b)
		if err != nil {
			return
		}
		h, err := parseHeader(fr.header)
		if err != nil {
			return
		}
		if fr.rawLen > 1<<20 {
			fr.rawLen = 1 << 20 // a frame may say 256 MiB: not in every run
		}
		raw, err := plainBody(fr.coding, fr.body, fr.rawLen)
		if err != nil {
			return
		}
		events, err := parseEvents(&h, raw)
		if err != nil {
			return
		}
		if len(events) != h.count {
			t.Fatalf("%d events, header says %d", len(events), h.count)
		}
		size := 0
		for _, ev := range events {
			if ev.Stream >= len(h.rows) {
				t.Fatalf("stream %d of %d", ev.Stream, len(h.rows))
			}
			size += len(ev.Data)
		}
		if size > len(raw) {
			t.Fatalf("%d bytes of data out of %d", size, len(raw))
		}
	})
}

func TestBodiesOfAnySize(t *testing.T) {
	for _, size := range []int{0, 1, 128, 129, pieceBytes - 1, pieceBytes, pieceBytes + 1, 3*pieceBytes + 17, 2 << 20} {
		for name, raw := range map[string][]byte{"text": bytes.Repeat([]byte("price "), size/6+1)[:size], "noise": noise(size, size)} {
			coding, body := codeBody(make([]byte, 0, codedLen(size)), raw)
			if len(body) > size || name == "text" && size > 200 && coding != codingPieces || name == "noise" && coding != codingNone {
				t.Errorf("%d bytes of %s: coding %d, %d bytes", size, name, coding, len(body))
			}
			got, err := plainBody(coding, body, size)
			if err != nil || !bytes.Equal(got, raw) {
				t.Fatalf("%d bytes of %s: %v", size, name, err)
			}
			if coding == codingPieces {
				for _, wrong := range []int{size - 1, size + 1, maxBody} {
					if _, err := plainBody(coding, body, wrong); err == nil {
						t.Errorf("%d bytes of %s were taken for %d", size, name, wrong)
					}
				}
				if _, err := plainBody(coding, body[:len(body)-1], size); err == nil {
					t.Errorf("%d bytes of %s: the end is missing, and nobody noticed", size, name)
				}
			}
		}
	}
}
