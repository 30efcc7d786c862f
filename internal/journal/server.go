package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	// startTimeout bounds how long the embedded server, and then the journal,
	// may take to read back what was stored (3.7 GB after kill -9 took one
	// second).
	startTimeout = 2 * time.Minute
	// maxPayload is the largest message of the embedded server. Chunks stay
	// far below it; snapshots of very many streams need not.
	maxPayload = 64 << 20
)

// InUseError says that another process holds the journal's directory.
type InUseError struct {
	Dir string
	PID int // 0 when it is not known
}

func (e *InUseError) Error() string {
	who := "another run"
	if e.PID > 0 {
		who = fmt.Sprintf("another run (pid %d)", e.PID)
	}
	return fmt.Sprintf("data directory %s is in use by %s: stop it, or choose another directory", e.Dir, who)
}

// lockDir takes the directory for this process. The kernel lets go of it when
// the process dies, however it dies.
func lockDir(dir string) (*flock.Flock, error) {
	path := filepath.Join(dir, "lock")
	l := flock.New(path, flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		return nil, fmt.Errorf("journal: lock %s: %w", path, err)
	}
	if !ok {
		text, _ := os.ReadFile(path)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return nil, &InUseError{Dir: dir, PID: pid}
	}
	// The number only helps the other process's error message.
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: write %s: %w", path, err), l.Close())
	}
	return l, nil
}

// embedded is a nats-server inside this process, with no socket.
type embedded struct {
	srv *server.Server
	// ctx ends when the server says that it can no longer write. It then
	// answers no publish any more and has to be started anew.
	ctx  context.Context
	fail context.CancelCauseFunc
}

// startServer starts the server over dir.
func startServer(dir string, d Durability, log *slog.Logger) (*embedded, error) {
	e := &embedded{}
	e.ctx, e.fail = context.WithCancelCause(context.Background())
	srv, err := server.NewServer(&server.Options{
		ServerName:             "scrape",
		DontListen:             true,
		NoSigs:                 true,
		NoSystemAccount:        true,
		DisableJetStreamBanner: true,
		JetStream:              true,
		StoreDir:               filepath.Join(dir, "nats"),
		JetStreamMaxMemory:     1 << 20,
		// Free space is watched here, before each commit: the server's own
		// limit is computed once, when it starts.
		JetStreamMaxStore: 1 << 50,
		SyncAlways:        d == SyncAlways,
		SyncInterval:      time.Second,
		MaxPayload:        maxPayload,
		MaxPending:        4 * maxPayload,
	})
	if err != nil {
		return nil, fmt.Errorf("journal: embedded server: %w", err)
	}
	srv.SetLoggerV2(&serverLog{log: log, fail: e.fail}, false, false, false)
	srv.Start()
	e.srv = srv
	if !srv.ReadyForConnections(startTimeout) || !srv.JetStreamEnabled() {
		e.stop()
		return nil, fmt.Errorf("journal: the embedded server cannot use %s: see the log; is the disk full or not writable?", dir)
	}
	return e, nil
}

// connect makes an in-process connection. It is not made again when it breaks:
// the whole server is started anew then.
func (e *embedded) connect(name string, log *slog.Logger) (*nats.Conn, error) {
	nc, err := nats.Connect("", nats.InProcessServer(e.srv), nats.Name(name), nats.NoReconnect(), nats.Timeout(startTimeout),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("journal: connection to the embedded server", "name", name, "err", err)
		}))
	if err != nil {
		return nil, fmt.Errorf("journal: connect to the embedded server: %w", err)
	}
	return nc, nil
}

// stop ends the server and waits for its goroutines.
func (e *embedded) stop() {
	e.fail(errors.New("the server was stopped"))
	e.srv.Shutdown()
	e.srv.WaitForShutdown()
}

// serverLog hands the server's log on. What the server calls an error is a
// warning here: the journal decides by itself what is one.
type serverLog struct {
	log  *slog.Logger
	fail context.CancelCauseFunc
}

func (l *serverLog) Noticef(format string, v ...any) { l.debug(format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.debug(format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.debug(format, v) }
func (l *serverLog) Tracef(format string, v ...any)  { l.debug(format, v) }
func (l *serverLog) Fatalf(format string, v ...any)  { l.Errorf(format, v...) }

func (l *serverLog) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	for _, sign := range []string{"ritical write error", "failed to store", "DISABLED", "disabling JetStream"} {
		if strings.Contains(text, sign) {
			// The partition that cannot write says so, once.
			l.fail(errors.New("the server cannot write: " + text))
			l.debug("%s", []any{text})
			return
		}
	}
	l.log.Warn("journal: " + text)
}

func (l *serverLog) debug(format string, v []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("journal: " + fmt.Sprintf(format, v...))
	}
}
