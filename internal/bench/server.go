package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// corpusSize is how much the server sends to those who ask for the corpus.
const corpusSize = 16 << 20

// servers are the addresses of the process that serves.
type servers struct {
	plain, h1, h2 string
	roots         string // the file of the certificate that the two with TLS have
	stop          func()
}

// serveApart starts this program again as the server: what it takes is not to
// be counted as the client's.
func serveApart() (*servers, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.Command(self, "serve")
	c.Stderr = os.Stderr
	stdin, err := c.StdinPipe() // its end ends the server
	if err != nil {
		return nil, err
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	s := &servers{stop: func() {
		stdin.Close()
		_ = c.Wait() // it was told to end
	}}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("the server does not come up: %w", err)
	}
	if _, err := fmt.Sscan(line, &s.plain, &s.h1, &s.h2, &s.roots); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// serve is the server's process. It ends with its standard input.
func serve() error {
	corpus, _ := prices(corpusSize)
	mux := http.NewServeMux()
	mux.HandleFunc("/whole", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = writeBlocks(w, corpus) // or the reader has enough
	})
	chunked := chunked(corpus)
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer c.Close()
		if _, err := io.WriteString(c, chunkedHead); err == nil {
			_ = writeBlocks(c, chunked)
		}
	})
	mux.HandleFunc("/flushed", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flusher := http.NewResponseController(w)
		for event := range bytes.SplitAfterSeq(corpus, []byte("\n\n")) {
			_, err := w.Write(event)
			if err == nil {
				err = flusher.Flush()
			}
			if err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/idle", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "id: 1\ndata: {\"price\":\"60000.00\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/prices", servePrices)
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cert, err := certificate(dir + "/roots.pem")
	if err != nil {
		return err
	}
	var addresses []string
	for _, protos := range [][]string{nil, {"http/1.1"}, {"h2"}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		scheme := "http://"
		if protos != nil {
			scheme = "https://"
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos})
		}
		addresses = append(addresses, scheme+l.Addr().String())
		go (&http.Server{Handler: mux}).Serve(l)
	}
	fmt.Println(strings.Join(append(addresses, dir+"/roots.pem"), " "))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// chunkedHead begins an answer in the chunked coding, written by hand.
const chunkedHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"

// chunked is the corpus with each event as an HTTP chunk of its own.
func chunked(corpus []byte) []byte {
	var b bytes.Buffer
	for event := range bytes.SplitAfterSeq(corpus, []byte("\n\n")) {
		if len(event) > 0 {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", len(event), event)
		}
	}
	b.WriteString("0\r\n\r\n")
	return b.Bytes()
}

func writeBlocks(w io.Writer, b []byte) error {
	for block := range slices.Chunk(b, 64<<10) {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// certificate makes one for loopback and writes it to the file.
func certificate(file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
