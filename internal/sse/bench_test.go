package sse

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

// corpora are the inputs of the benchmarks: about 4 MiB each.
func corpora() []struct {
	name string
	in   []byte
	cut  int // bytes per Read at most, 0 for as many as fit
} {
	var prices, tokens, crlf, text strings.Builder
	for i := 0; prices.Len() < 4<<20; i++ {
		e := fmt.Sprintf("id: %d\nevent: price_update\ndata: {\"symbol\":\"BTCUSDT\",\"price\":\"%d.%02d\",\"volume\":\"0.%05d\",\"timestamp\":\"2026-01-02T03:04:05.%06dZ\"", 1000000+i, 60000+i%977, i%100, i%99991, i%1000000)
		e += `,"v":"` + strings.Repeat("x", max(0, 200-len(e)-10)) + "\"}\n\n"
		prices.WriteString(e)
		crlf.WriteString(strings.ReplaceAll(e, "\n", "\r\n"))
	}
	for i := 0; tokens.Len() < 4<<20; i++ {
		fmt.Fprintf(&tokens, "data: {\"id\":\"chatcmpl-123\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" %04d\"}}]}\n\n", i%10000)
		fmt.Fprintf(&text, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" слово %04d, 日本語\"}}],\"object\":\"chat.completion.chunk\"}\n\n", i%10000)
	}
	big := strings.Repeat("id: 1\ndata: "+strings.Repeat("0123456789abcdef", 1<<16)+"\n\n", 4)
	return []struct {
		name string
		in   []byte
		cut  int
	}{
		{"prices", []byte(prices.String()), 0},
		{"tokens", []byte(tokens.String()), 0},
		{"big1400", []byte(big), 1400},
		{"crlf", []byte(crlf.String()), 0},
		{"nonascii", []byte(text.String()), 0},
		{"prices1400", []byte(prices.String()), 1400},
	}
}

// cutReader reads at most cut bytes at a time.
type cutReader struct {
	r   bytes.Reader
	cut int
}

func (c *cutReader) Read(b []byte) (int, error) {
	if c.cut > 0 && len(b) > c.cut {
		b = b[:c.cut]
	}
	return c.r.Read(b)
}

// naive is the decoder that everybody writes by hand.
func naive(r io.Reader) (events int, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 8<<20)
	var id, typ string
	var data []string
	for s.Scan() {
		line := s.Text()
		switch {
		case line == "":
			if len(data) > 0 {
				_ = strings.Join(data, "\n")
				events++
			}
			typ, data = "", data[:0]
		case strings.HasPrefix(line, "data:"):
			data = append(data, strings.TrimPrefix(line[5:], " "))
		case strings.HasPrefix(line, "event:"):
			typ = strings.TrimPrefix(line[6:], " ")
		case strings.HasPrefix(line, "id:"):
			id = strings.TrimPrefix(line[3:], " ")
		}
	}
	_, _ = id, typ
	return events, s.Err()
}

func ours(r io.Reader) (events int, err error) {
	d := NewDecoder(r, Options{})
	defer d.Close()
	var ev Event
	for {
		if err := d.Next(&ev); err == io.EOF {
			return events, nil
		} else if err != nil {
			return events, err
		}
		events++
	}
}

// BenchmarkDecode reads whole streams, beside a bufio.Scanner on the same bytes.
func BenchmarkDecode(b *testing.B) {
	for _, c := range corpora() {
		for _, d := range []struct {
			name   string
			decode func(io.Reader) (int, error)
		}{{"ours", ours}, {"naive", naive}} {
			b.Run(c.name+"/"+d.name, func(b *testing.B) {
				b.SetBytes(int64(len(c.in)))
				b.ReportAllocs()
				events := 0
				for b.Loop() {
					r := &cutReader{cut: c.cut}
					r.r.Reset(c.in)
					n, err := d.decode(r)
					if err != nil {
						b.Fatal(err)
					}
					events = n
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(events), "ns/event")
			})
		}
	}
}
