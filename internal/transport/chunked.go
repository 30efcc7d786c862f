package transport

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/textproto"
)

const (
	// maxChunkLine is the longest line before a chunk and maxTrailers the
	// longest trailer section, in bytes, their ends included.
	maxChunkLine = 4 << 10
	maxTrailers  = 4 << 10
	// maxDigits is how many digits the size of a chunk may have, maxChunk how
	// large it may be: what is larger cannot be added up.
	maxDigits = 16
	maxChunk  = 1<<60 - 1
	// A body may bring chunkOverhead bytes of framing for each chunk and twice
	// as many as it has data; what is more than that adds up to maxExcess. (A
	// site may send each byte as a chunk, but not an endless extension with it.)
	chunkOverhead = 16
	maxExcess     = 16 << 10
)

var (
	errChunkLine = errors.New("chunked coding: what should be the size of a chunk is none")
	errChunkSize = errors.New("chunked coding: a chunk is said to be larger than any can be")
	errChunkLong = errors.New("chunked coding: the line before a chunk is too long")
	errChunkEnd  = errors.New("chunked coding: a chunk does not end where its size says")
	errExcess    = errors.New("chunked coding: there is too much that is no data")
	errTrailers  = errors.New("chunked coding: the trailers are malformed or too long")
)

// place is where in the framing the next byte lies.
type place uint8

const (
	inSize      place = iota // the digits
	inPadding                // whitespace behind them, up to the line's end
	inExtension              // what follows a semicolon, up to the line's end
	atLineEnd                // the LF of that line
	inData
	afterData    // the CR
	afterDataEnd // the LF
	inTrailers
)

// chunked undoes the chunked transfer coding (RFC 9112, section 7.1). It reads
// straight into its caller's slice and takes the framing out there: one read
// from the socket brings as many chunks as have arrived and fit, and nothing is
// kept between reads but where it is. It is as strict as net/http's reader,
// which needs a buffer of its own.
type chunked struct {
	from     io.Reader
	left     int64 // data of this chunk that has not come
	excess   int64 // framing beyond what is allowed for
	line     int   // how much of the line before the chunk has come
	at       place
	digits   uint8
	behind   bool   // more was read than belongs to the body
	trailers []byte // so far
	err      error  // how it ended
}

// Read implements io.Reader. It returns what has arrived; the error at the end
// may come with the last of it. It does not look at what lies behind the end,
// except that it may have been read (behind).
func (c *chunked) Read(p []byte) (n int, err error) {
	for n == 0 && c.err == nil && len(p) > 0 {
		read, err := c.from.Read(p)
		n = c.strip(p[:read])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if c.err == nil {
			c.err = err
		}
	}
	return n, c.err
}

// strip moves the data in p to its front, over the framing, and tells how much
// that is.
func (c *chunked) strip(p []byte) (n int) {
	i := 0
	for i < len(p) && c.err == nil {
		if c.at != inData {
			used := c.plain(p[i:])
			if used == 0 {
				c.err = c.frame(p[i])
				used = 1
			}
			i += used
			continue
		}
		size := int(min(c.left, int64(len(p)-i)))
		if i > n {
			copy(p[n:], p[i:i+size])
		}
		n, i = n+size, i+size
		if c.left -= int64(size); c.left == 0 {
			c.at = afterData
		}
	}
	c.behind = i < len(p)
	return n
}

// plain takes what lies between the data of two chunks where it is all there
// and but a size, as it mostly is: busy feeds bring millions a second. It tells
// how much that was, and 0 where frame has to look at it.
func (c *chunked) plain(p []byte) int {
	const most = len("\r\n12345678\r\n")
	if c.at != afterData || len(p) < most || p[0] != '\r' || p[1] != '\n' {
		return 0
	}
	n, size := 2, int64(0)
	for ; n < most-2; n++ {
		digit, ok := hexadecimal(p[n])
		if !ok {
			break
		}
		size = size<<4 | digit
	}
	if size == 0 || p[n] != '\r' || p[n+1] != '\n' {
		return 0
	}
	c.at, c.left = inData, size
	c.excess = max(0, c.excess+int64(n)-chunkOverhead-2*size)
	return n + 2
}

// frame takes a byte that is no data. At the end of the body it returns io.EOF.
func (c *chunked) frame(b byte) error {
	switch c.at {
	case afterData:
		if b != '\r' {
			return errChunkEnd
		}
		c.at = afterDataEnd
	case afterDataEnd:
		if b != '\n' {
			return errChunkEnd
		}
		c.at = inSize
	case atLineEnd:
		if b != '\n' {
			return errChunkLine
		}
		return c.begin()
	case inTrailers:
		return c.trailer(b)
	default:
		return c.head(b)
	}
	return nil
}

// head takes a byte of the line before a chunk: its size, and an extension that
// nobody wants. A line must end in CRLF, and have no CR before: who takes a
// bare LF for its end sees other chunks than those who do not.
func (c *chunked) head(b byte) error {
	if c.line++; c.line == maxChunkLine {
		return errChunkLong
	}
	switch {
	case b == '\r' && c.digits > 0:
		c.at = atLineEnd
	case b == '\r' || b == '\n':
		return errChunkLine
	case c.at == inExtension:
	case b == ' ' || b == '\t':
		c.at = inPadding
	case c.at == inPadding:
		return errChunkLine
	case b == ';':
		c.at = inExtension
	default:
		return c.digit(b)
	}
	return nil
}

// digit takes one of the size.
func (c *chunked) digit(b byte) error {
	value, ok := hexadecimal(b)
	if !ok {
		return errChunkLine
	}
	if c.digits++; c.digits > maxDigits || c.left > maxChunk>>4 {
		return errChunkSize
	}
	c.left = c.left<<4 | value
	return nil
}

// hexadecimal is the value of a digit.
func hexadecimal(b byte) (value int64, ok bool) {
	switch {
	case '0' <= b && b <= '9':
		return int64(b - '0'), true
	case 'a' <= b && b <= 'f':
		return int64(b-'a') + 10, true
	case 'A' <= b && b <= 'F':
		return int64(b-'A') + 10, true
	}
	return 0, false
}

// begin begins the chunk whose line has ended.
func (c *chunked) begin() error {
	overhead := int64(c.line) + 1 // its LF
	c.line, c.digits = 0, 0
	if c.left == 0 {
		c.at = inTrailers
		return nil
	}
	c.at = inData
	c.excess = max(0, c.excess+overhead-chunkOverhead-2*c.left)
	if c.excess > maxExcess {
		return errExcess
	}
	return nil
}

// trailer takes a byte of what follows the last chunk: mostly an empty line.
// Trailers before that are read, since what they are not must not be taken for
// one, and left out.
func (c *chunked) trailer(b byte) error {
	c.trailers = append(c.trailers, b)
	switch {
	case string(c.trailers) == "\r\n":
		return io.EOF
	case bytes.HasSuffix(c.trailers, []byte("\r\n\r\n")):
		r := bufio.NewReaderSize(bytes.NewReader(c.trailers), maxTrailers)
		if _, err := textproto.NewReader(r).ReadMIMEHeader(); err != nil || r.Buffered() > 0 {
			return errTrailers
		}
		return io.EOF
	case len(c.trailers) == maxTrailers:
		return errTrailers
	}
	return nil
}

// sized reads a body whose length is known.
type sized struct {
	from io.Reader
	left int64
}

// Read implements io.Reader.
func (s *sized) Read(p []byte) (int, error) {
	n, err := s.from.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	switch {
	case s.left == 0:
		err = io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
