package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// latency measures the time from the sending of an event to the commit of its
// row, by the database's own commit time stamps.
func latency() error {
	d, err := newDelivery()
	if err != nil {
		return err
	}
	defer d.close()
	fmt.Printf("\n### From byte sent to row committed in PostgreSQL, ms\n\n| events/s | batch.every | p50 | p99 |\n|--:|--:|--:|--:|\n")
	for _, rate := range []int{1, 100, 10_000} {
		for _, every := range []string{"200ms", "10ms"} {
			rows := min(max(30, rate*20), 200_000)
			p50, p99, err := d.latencyAt(rate, rows, every)
			if err != nil {
				return err
			}
			fmt.Printf("| %d | %s | %.1f | %.1f |\n", rate, every, p50, p99)
		}
	}
	return nil
}

func (d *delivery) latencyAt(rate, rows int, every string) (p50, p99 float64, err error) {
	argv, err := d.ours("postgres", rows, "")
	if err != nil {
		return 0, 0, err
	}
	text, err := os.ReadFile(argv[2])
	if err != nil {
		return 0, 0, err
	}
	paced := strings.Replace(string(text), "?n=", "?rate="+strconv.Itoa(rate)+"&n=", 1) + "    batch: {records: 1000, every: " + every + "}\n"
	if err := os.WriteFile(argv[2], []byte(paced), 0o600); err != nil {
		return 0, 0, err
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("%w\n%s", err, out)
	}
	// The first events arrive while the run is still making its table.
	err = d.db.query(`SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) FROM (
		SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1e3 - (data::jsonb->>'sent')::numeric / 1e6 AS ms FROM `+d.table+`
		WHERE id::int > `+strconv.Itoa(min(rows/10, rate))+`) AS l`, &p50, &p99)
	if err != nil {
		return 0, 0, err
	}
	return p50, p99, d.check(rows)
}

// outage measures what a sink that is down costs, and how fast it catches up.
func outage() error {
	const rows = 10_000_000
	d, err := newDelivery()
	if err != nil {
		return err
	}
	defer d.close()
	argv, err := d.ours("postgres", rows, "")
	if err != nil {
		return err
	}
	d.db.stop()
	data := argv[4]
	c := exec.Command(argv[0], append(argv[1:], "--max-events", strconv.Itoa(rows+1))...)
	text, err := os.ReadFile(argv[2])
	if err != nil {
		return err
	}
	// Without an end of its own the run goes on after the last event.
	if err := os.WriteFile(argv[2], []byte(strings.Replace(string(text), "    on_end: stop\n", "", 1)), 0o600); err != nil {
		return err
	}
	c.Dir, c.Stderr = d.dir, os.Stderr
	began := time.Now()
	if err := c.Start(); err != nil {
		return err
	}
	defer c.Process.Kill()
	disk, quiet := int64(0), 0
	for quiet < 10 { // until the journal grows no more
		time.Sleep(500 * time.Millisecond)
		size := sizeOf(filepath.Join(data, "journal"))
		if quiet++; size != disk {
			disk, quiet = size, 0
		}
	}
	read := time.Since(began) - 5*time.Second
	memory := peak(c.Process.Pid)
	if err := d.db.start(); err != nil {
		return err
	}
	began = time.Now()
	n := 0
	for n < rows {
		time.Sleep(500 * time.Millisecond)
		if err := d.db.query("SELECT coalesce((SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = '"+d.table+"'), 0)", &n); err != nil {
			return err
		}
		if n >= rows-1 { // an estimate: now count
			if err := d.db.query("SELECT count(*) FROM "+d.table, &n); err != nil {
				return err
			}
		}
		if time.Since(began) > 20*time.Minute {
			return fmt.Errorf("only %d rows after 20 minutes", n)
		}
	}
	caught := time.Since(began)
	memoryAfter := peak(c.Process.Pid)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	if err := c.Wait(); err != nil {
		return err
	}
	fmt.Printf("\n### A sink that is down for %d events\n\n| | |\n|---|--:|\n", rows)
	fmt.Printf("| read and journaled meanwhile | %.0f events/s |\n| disk | %.2f GB, %.0f bytes/event |\n| memory at the most | %.0f MiB |\n| time to catch up | %.0f s, %.0f rows/s |\n| memory at the most while catching up | %.0f MiB |\n",
		rows/read.Seconds(), float64(disk)/1e9, float64(disk)/rows, memory, caught.Seconds(), rows/caught.Seconds(), memoryAfter)
	return d.check(rows)
}

// sizeOf is how many bytes the files of a directory hold.
func sizeOf(dir string) (n int64) {
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return nil // files come and go
	})
	return n
}

// peak is the most memory that a process has had, in MiB.
func peak(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0
	}
	return kib / 1024
}
