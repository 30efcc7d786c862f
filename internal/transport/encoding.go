package transport

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// AcceptEncoding names the content encodings that are decoded.
const AcceptEncoding = "gzip, deflate, br, zstd"

const (
	// maxCodings bounds how many encodings may lie over each other.
	maxCodings = 3
	// maxZstdWindow is the largest window of the content encoding (RFC 9659).
	maxZstdWindow = 8 << 20
)

// codings lists the encodings of an answer in the order in which they were
// applied (RFC 9110, section 8.4).
func codings(h http.Header) (list []string) {
	for _, value := range h.Values("Content-Encoding") {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name != "" && name != "identity" {
				list = append(list, name)
			}
		}
	}
	return list
}

// decode undoes the encodings. Nothing is read before the first Read, which
// then returns what has arrived so far: a server that flushes is not held back
// by a buffer of ours.
func decode(r io.Reader, encodings []string) (io.Reader, error) {
	if len(encodings) > maxCodings {
		return nil, fmt.Errorf("the answer has %d content encodings over each other; the most is %d", len(encodings), maxCodings)
	}
	for i := len(encodings) - 1; i >= 0; i-- {
		var open func(io.Reader) (io.Reader, error)
		switch encodings[i] {
		case "gzip", "x-gzip":
			open = openGzip
		case "deflate":
			open = openDeflate
		case "br":
			open = openBrotli
		case "zstd":
			open = openZstd
		default:
			return nil, fmt.Errorf("the answer has the content encoding %q, which is not known: known are %s", encodings[i], AcceptEncoding)
		}
		r = &decoded{name: encodings[i], open: open, from: r}
	}
	return r, nil
}

// decoded undoes one encoding. Its reader is made by the first Read, since
// that waits for the first bytes.
type decoded struct {
	name string
	open func(io.Reader) (io.Reader, error)
	from io.Reader
	r    io.Reader
	err  error
}

func (d *decoded) Read(p []byte) (n int, err error) {
	if d.r == nil && d.err == nil {
		d.r, d.err = d.open(d.from)
	}
	if d.err == nil {
		n, d.err = d.r.Read(p)
	}
	if d.err == nil || d.err == io.EOF {
		return n, d.err
	}
	return n, fmt.Errorf("content encoding %s: %w", d.name, d.err)
}

// openGzip reads members behind each other (RFC 1952, section 2.2): some
// servers make one of each event.
func openGzip(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &members{z: z, from: b}, nil
}

// members reads them. The library's own way waits for the beginning of the next
// one before it hands out the end of the last.
type members struct {
	z    *gzip.Reader
	from *bufio.Reader
	over bool // this one is
}

// Read implements io.Reader.
func (m *members) Read(p []byte) (n int, err error) {
	for n == 0 && err == nil && len(p) > 0 {
		if m.over {
			if err := m.z.Reset(m.from); err != nil {
				return 0, err // io.EOF where there is no next one
			}
			m.z.Multistream(false)
			m.over = false
		}
		if n, err = m.z.Read(p); err == io.EOF {
			m.over, err = true, nil
		}
	}
	return n, err
}

// openBrotli reads nothing as nothing, as the others do: an answer without a
// body, such as 304, may name its encoding.
func openBrotli(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 16)
	if _, err := b.Peek(1); err != nil {
		return nil, err
	}
	return brotli.NewReader(b), nil
}

// openDeflate reads zlib, which is what the name stands for, or bare deflate,
// which some servers send under it (RFC 9110, section 8.4.1.2).
func openDeflate(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	head, err := b.Peek(2)
	if err == io.EOF && len(head) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	// RFC 1950, section 2.2: method 8, and a multiple of 31.
	if head[0]&0x0f == 8 && (int(head[0])<<8|int(head[1]))%31 == 0 {
		return zlib.NewReader(b)
	}
	return flate.NewReader(b), nil
}

func openZstd(r io.Reader) (io.Reader, error) {
	// One block at a time on the goroutine that reads: a stream that waits
	// costs no goroutines of the decoder's. It asks for three bytes before each,
	// which would be reads of the socket.
	return zstd.NewReader(bufio.NewReader(r), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
}
