package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// prices are events of 200 bytes with id, type and JSON data.
func prices(size int) (in []byte, events int) {
	var b bytes.Buffer
	for b.Len() < size {
		e := fmt.Sprintf("id: %d\nevent: price_update\ndata: {\"symbol\":\"BTCUSDT\",\"price\":\"%d.%02d\",\"volume\":\"0.%05d\",\"timestamp\":\"2026-01-02T03:04:05.%06dZ\"",
			1000000+events, 60000+events%977, events%100, events%99991, events%1000000)
		b.WriteString(e + `,"v":"` + strings.Repeat("x", 200-len(e)-10) + "\"}\n\n")
		events++
	}
	return b.Bytes(), events
}

// tokens are events of 110 bytes with nothing but data, as language models
// send them.
func tokens(size int) (in []byte, events int) {
	var b bytes.Buffer
	for ; b.Len() < size; events++ {
		fmt.Fprintf(&b, "data: {\"id\":\"chatcmpl-123\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{\"content\":\" %04d\"}}]}\n\n", events%10000)
	}
	return b.Bytes(), events
}

// huge is events of 1 MiB.
func huge(n int) []byte {
	return bytes.Repeat([]byte("id: 1\ndata: "+strings.Repeat("0123456789abcdef", 1<<16)+"\n\n"), n)
}

// cutReader reads at most cut bytes at a time, if it is not 0.
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

func cut(in []byte, n int) io.Reader {
	c := &cutReader{cut: n}
	c.r.Reset(in)
	return c
}
