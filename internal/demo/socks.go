package demo

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// socks is a SOCKS5 server (RFC 1928) with user and password (RFC 1929). It
// knows CONNECT only.
type socks struct {
	guard guard
	log   *slog.Logger
}

const (
	socksVersion     = 5
	socksPassword    = 2    // authentication method
	socksNoMethod    = 0xff // no acceptable method
	socksConnect     = 1
	socksGranted     = 0
	socksNotAllowed  = 2
	socksRefused     = 5
	socksBadCommand  = 7
	socksBadAddress  = 8
	socksIPv4        = 1
	socksName        = 3
	socksIPv6        = 4
	socksAuthVersion = 1
)

func (s *socks) serve(ctx context.Context, ln net.Listener) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		client, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				client.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, or a client that left at once
			time.Sleep(10 * time.Millisecond)
			continue
		}
		busy.Go(func() {
			defer client.Close()
			defer context.AfterFunc(ctx, func() { client.Close() })()
			if err := s.converse(ctx, client); err != nil {
				s.log.Debug("socks proxy refuses", "reason", err)
			}
		})
	}
}

// converse speaks with one client, from its greeting to the end of its tunnel.
func (s *socks) converse(ctx context.Context, client net.Conn) error {
	client.SetDeadline(time.Now().Add(30 * time.Second))
	in := bufio.NewReader(client)
	rt, err := s.authenticate(in, client)
	if err != nil {
		return err
	}
	target, code, err := readTarget(in)
	if err != nil {
		answer(client, code)
		return err
	}
	ctx, stop := rt.within(ctx)
	defer stop()
	server, err := dialFrom(ctx, rt.from, target)
	if err != nil {
		code := byte(socksRefused)
		if errors.Is(err, errTarget) {
			code = socksNotAllowed
		}
		answer(client, code)
		return err
	}
	if err := answer(client, socksGranted); err != nil {
		server.Close()
		return err
	}
	client.SetDeadline(time.Time{})
	tunnel(ctx, client, in, server)
	return nil
}

// answer ends the request; the bound address is of no use to anybody and zero.
func answer(client net.Conn, code byte) error {
	_, err := client.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

func (s *socks) authenticate(in *bufio.Reader, client net.Conn) (route, error) {
	version, err := in.ReadByte()
	if err != nil {
		return route{}, err
	}
	if version != socksVersion {
		return route{}, errors.New("not SOCKS5")
	}
	methods, err := readShort(in)
	if err != nil {
		return route{}, err
	}
	offered := false
	for _, m := range methods {
		offered = offered || m == socksPassword
	}
	if !offered {
		client.Write([]byte{socksVersion, socksNoMethod})
		return route{}, errors.New("client offers no password")
	}
	if _, err := client.Write([]byte{socksVersion, socksPassword}); err != nil {
		return route{}, err
	}
	if version, err = in.ReadByte(); err != nil {
		return route{}, err
	}
	if version != socksAuthVersion {
		return route{}, errors.New("unknown version of password authentication")
	}
	user, err := readShort(in)
	if err != nil {
		return route{}, err
	}
	password, err := readShort(in)
	if err != nil {
		return route{}, err
	}
	rt, no := s.guard(string(user), string(password))
	if no != nil {
		client.Write([]byte{socksAuthVersion, 1})
		return route{}, errors.New(no.reason)
	}
	_, err = client.Write([]byte{socksAuthVersion, 0})
	return rt, err
}

// readShort reads a length byte and as many bytes.
func readShort(in *bufio.Reader) ([]byte, error) {
	n, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return b, err
}

// readTarget reads the request. With an error comes the code to answer with.
func readTarget(in *bufio.Reader) (target string, code byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return "", socksBadCommand, err
	}
	if head[0] != socksVersion || head[1] != socksConnect {
		return "", socksBadCommand, errors.New("only CONNECT is served")
	}
	var host string
	switch head[3] {
	case socksName:
		b, err := readShort(in)
		if err != nil {
			return "", socksBadAddress, err
		}
		host = string(b)
	case socksIPv4, socksIPv6:
		b := make([]byte, map[byte]int{socksIPv4: 4, socksIPv6: 16}[head[3]])
		if _, err := io.ReadFull(in, b); err != nil {
			return "", socksBadAddress, err
		}
		ip, _ := netip.AddrFromSlice(b)
		host = ip.Unmap().String()
	default:
		return "", socksBadAddress, errors.New("unknown kind of address")
	}
	var port [2]byte
	if _, err := io.ReadFull(in, port[:]); err != nil {
		return "", socksBadAddress, err
	}
	return net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(port[:])))), socksGranted, nil
}
