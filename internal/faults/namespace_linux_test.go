package faults

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/holdline/scrape/cmd"
)

// inside marks the process that runs the tests.
const inside = "FAULTS_INSIDE"

// TestMain runs the tests in a network namespace of their own, where they may
// drop packets without anybody else noticing; without root, in a user
// namespace beside it.
func TestMain(m *testing.M) {
	if os.Getenv(asScrape) != "" {
		cmd.Main()
	}
	flag.Parse()
	if os.Getenv(inside) == "" {
		os.Exit(runInside())
	}
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		os.Exit(1)
	}
	// Many rows wait side by side: they use sockets, not cores.
	parallel := "16"
	if *inEarnest {
		parallel = "40"
	}
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func runInside() int {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	}
	fmt.Fprintln(os.Stderr, "a network namespace is needed, as root or with user namespaces allowed:", err)
	return 1
}

// loopbackUp brings up the one interface of a new namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifreq.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifreq)
}

// drop makes the kernel drop what the far end of a connection sends, from now
// on: the packets, not the socket.
func drop(t *testing.T, far net.Conn) {
	t.Helper()
	_, from, err := net.SplitHostPort(far.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, to, err := net.SplitHostPort(far.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "faults"})
	chain := c.AddChain(&nftables.Chain{
		Name: "drop-" + to, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(append(
		port(t, 0, from), port(t, 2, to)...), &expr.Verdict{Kind: expr.VerdictDrop})})
	if err := c.Flush(); err != nil {
		t.Fatal("nftables:", err)
	}
	t.Cleanup(func() {
		c.DelChain(chain)
		if err := c.Flush(); err != nil {
			t.Error("nftables:", err)
		}
	})
}

// port matches one of the two ports at the head of a TCP segment.
func port(t *testing.T, offset uint32, number string) []expr.Any {
	t.Helper()
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(n))},
	}
}
