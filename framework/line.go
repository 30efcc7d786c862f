package framework

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/splice"
	"github.com/holdline/scrape/internal/watch"
	"github.com/holdline/scrape/proxies"
)

// line is one way in which a stream is read: a connection, and the ones that
// follow it. A handover puts another line in its place.
type line struct {
	seam splice.Line // guarded by runner.mu

	slot int         // its place among the stream's lines
	ids  *Identities // where its identities come from

	// Guarded by runner.mu: what the ledger says of the connection's seam.
	again    bool // it brought events that had been delivered
	joined   bool // it has added an event
	reaches  bool // what it held goes on to what had been delivered
	count    counting
	opened   int   // how much had been delivered when it was opened
	resumes  bool  // it was asked to go on from a cursor
	succeeds Cause // why it was opened anew beside another one; empty when it was not
	// back is where its next connection begins in place of the cursor, since a
	// line that was ahead of it has joined; empty when none has.
	back Cursor
	// refusal is what is known of a cursor that the site refuses, and anew that
	// the connection was opened without it.
	refusal refusal
	anew    bool

	// Guarded by runner.mu.
	exit     string // of its connection
	live     bool   // it counts as a live line in the statistics
	waiting  bool   // its events are held until its place is found: see seam.go
	remains  bool   // that is all there is of it: its connection has ended
	doubted  bool   // that is since it is not known whether its numbers are those of the others
	held     held
	pursuit  *pursuit    // what it has to do with the past; nil for nothing
	side     bool        // it has waited beside another line
	since    int         // how much had been delivered when the wait began
	heard    int         // how much the connection has brought, but for what is held
	deadline *time.Timer // the end of the wait
	old      *line       // the line that it takes over from, until it does
	doubtful int         // what it delivers may begin with so many events delivered before
	missed   bool        // it has read events that were not taken: its cursor is ahead
	surplus  bool        // there are enough lines without it
	// change begins a planned change of its connection, or once more when the
	// successor came to nothing; nil while it has none.
	change func(cause Cause, again bool)

	guest bool // the goroutine that reads it ranges over the stream: see feed.go

	mu      sync.Mutex
	conn    Connection
	planned Cause // why the connection is being closed on purpose
	silence watch.Kind
	waited  time.Duration
	failure error // what it held could not be delivered

	replaced atomic.Bool // another line has taken over
	news     atomic.Bool // its connection has brought what happened since it was opened, or what was missed
}

// beside is a line that delivers beside another one.
type beside struct {
	*line
	number uint32 // of its connection
	heard  int    // what it had brought
}

var (
	errReplaced = errors.New("another connection has taken over")
	errSilent   = errors.New("the line has gone silent")
	errQuiet    = errors.New("the feed has gone quiet")
	errPlanned  = errors.New("closed for a planned change")
)

func (r *runner) newLine(slot int, ids *Identities) *line {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.anotherLine(slot, ids)
}

// anotherLine is newLine under r.mu.
func (r *runner) anotherLine(slot int, ids *Identities) *line {
	l := &line{slot: slot, ids: ids}
	r.renumber(l)
	return l
}

// renumber begins a new connection of the line: what it brings is told apart
// from what the others brought.
func (r *runner) renumber(l *line) {
	r.lines++
	l.seam = splice.Line{Number: r.lines}
	l.again, l.joined, l.reaches, l.missed, l.heard = false, false, false, false, 0
	l.pursuit = nil
	r.parts(l)
	l.news.Store(false)
}

func (l *line) closed() bool { return l.replaced.Load() }

// brought notes whether an event of the connection was new when it was opened.
// (Most are: the cheaper look comes first.)
func (l *line) brought(isNew bool) {
	if isNew && !l.news.Load() {
		l.news.Store(true)
	}
}

// shut closes the line's connection on purpose.
func (l *line) shut(cause Cause, replaced bool) {
	if replaced {
		l.replaced.Store(true)
	}
	l.mu.Lock()
	l.planned = cause
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// fail closes the line's connection because what it held could not be delivered.
func (l *line) fail(err error) {
	l.mu.Lock()
	l.failure = err
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// silent closes the line's connection because the watch asked for it.
func (l *line) silent(k watch.Kind, waited time.Duration) {
	l.mu.Lock()
	l.silence, l.waited = k, waited
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		abandon(conn)
	}
}

// attempt is one connection of a line, from choosing its identity to its end.
type attempt struct {
	def   *definition
	id    *identity  // nil while none could be made
	conn  Connection // nil while it is not open
	watch *watch.Watch
	began time.Time
	from  Cursor
	// latest: that was the stream's cursor; carried: the site was asked for it.
	latest, carried bool

	burst  []slot // what was read; the first one …
	read   bool   // … has not been taken yet
	told   uint64 // of events, how many the watch knows of
	events uint64 // of the kept types
	missed bool   // an event was read that was not taken: the connection's cursor is ahead
	awake  bool   // it has brought something new
	places []func()
}

// free gives back the places that the attempt holds among the open streams of
// its host and its credential.
func (a *attempt) free() {
	for _, leave := range a.places {
		leave()
	}
	a.places = nil
}

// streak is what a line remembers from one connection to the next.
type streak struct {
	backoff  retry.Backoff // nil until it is needed
	failures int           // connections in a row without a new event
	silences int           // those of them that ended in silence
	cured    bool          // a cure was tried at once since the last new event

	hold    *auth.HoldError // what the next connection waits for; nil for anything but a login
	brought bool            // somebody else has brought it

	// prev is the identity of the last connection, still held, and fix what
	// has to be done about it before the next one.
	prev    *identity
	fix     Remedy
	outcome *Outcome // what fix is for
}

func (r *runner) newBackoff() retry.Backoff {
	def := r.now()
	b := retry.NewExponential(def.MinWait)
	if r.jitter != nil {
		b = r.jitter(b)
	} else {
		b = retry.WithJitterPercent(25, b)
	}
	return retry.WithCappedDuration(def.MaxWait, b)
}

// hold is the life of a line: it reads connection after connection until the
// stream ends, another line takes over, or there are enough without it. a is a
// connection that is open already, or nil.
func (r *runner) hold(ctx context.Context, cancel context.CancelFunc, l *line, a *attempt) {
	s := &streak{}
	defer func() {
		if s.prev != nil {
			s.prev.release()
		}
		r.over(l)
	}()
	for !r.enough(l) {
		var err error
		if a == nil {
			apart(func() { a, err = r.choose(ctx, l, s) })
			if err == nil {
				err = r.queue(ctx, l, a)
			}
			if err == nil {
				apart(func() { err = r.open(ctx, l, a, s.silences) })
			}
		}
		if err == nil {
			err = r.pump(ctx, cancel, l, a)
		}
		var wait time.Duration
		over := true
		apart(func() { wait, over = r.settle(ctx, cancel, l, a, err, s) })
		if over || r.rest(ctx, wait, a.def, s) != nil {
			return
		}
		r.renew(l)
		a = nil
	}
}

// apart runs f on a stack of its own. Logins, handshakes and log lines need
// several times the stack of a line that waits for its next event, and a stack
// that has grown stays so as long as it is used.
func apart(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// settle ends an attempt. It tells how long to wait before the next one, or
// that the line is over.
func (r *runner) settle(ctx context.Context, cancel context.CancelFunc, l *line, a *attempt, err error, s *streak) (wait time.Duration, over bool) {
	over, failed := r.parted(ctx, l)
	if failed != nil {
		err = failed
	}
	if over || l.closed() || ctx.Err() != nil {
		r.leave(l, a, s, "")
		return 0, true
	}
	if journal := (*journalError)(nil); errors.As(err, &journal) || errors.Is(err, errEnough) {
		r.leave(l, a, s, "")
		if journal != nil {
			r.stats.failed(journal)
			r.end(cancel, journal)
		} else {
			r.end(cancel, nil)
		}
		return 0, true
	}
	outcome, verdict := r.judge(l, a, err, s)
	s.hold, _ = errors.AsType[*auth.HoldError](outcome.Err)
	r.lost(l, verdict.Cause)
	asked := a.retry()
	r.leave(l, a, s, verdict.Cause)
	switch verdict.Remedy {
	case Stop:
		r.stats.set("done", outcome.Err.Error())
		r.end(cancel, nil)
		return 0, true
	case Fail:
		r.stats.failed(outcome.Err)
		r.end(cancel, outcome.Err)
		return 0, true
	case Reauthenticate, Rotate:
		s.fix, s.outcome = verdict.Remedy, outcome
	case Forget:
		r.letGo(l, a, outcome)
	}
	r.stats.reconnect(verdict.Cause)
	if verdict.Remedy == Reauthenticate {
		r.stats.expired()
	}
	return r.pause(ctx, outcome, verdict, s, asked), false
}

// renew makes the line ready for its next connection.
func (r *runner) renew(l *line) {
	l.mu.Lock()
	l.planned, l.silence, l.conn = "", 0, nil
	l.mu.Unlock()
	r.mu.Lock()
	r.renumber(l)
	r.mu.Unlock()
}

// choose begins an attempt with an identity, mending the last one if it must.
func (r *runner) choose(ctx context.Context, l *line, s *streak) (*attempt, error) {
	a := &attempt{def: r.now(), began: time.Now()}
	if ids := a.def.Identities.slot(l.slot); ids != l.ids {
		l.ids = ids
		if s.prev != nil {
			s.prev.release() // the others have no cure for it
			s.prev = nil
		}
	}
	var err error
	brought := s.brought
	s.brought = false
	switch {
	case s.prev != nil && brought:
		a.id, err = l.ids.takeOver(ctx, s.prev)
	case s.prev != nil && s.fix == Reauthenticate:
		r.stats.set("logging in", "")
		a.id, err = r.reauthenticate(ctx, l, s)
	case s.prev != nil && s.fix == Rotate:
		r.stats.set("rotating", "")
		a.id, err = l.ids.rotate(ctx, s.prev, poolOutcome(s.outcome))
	default:
		r.stats.set("logging in", "")
		a.id, err = l.ids.acquire(ctx)
	}
	if err != nil {
		return a, err
	}
	r.stats.rotated(s.prev, a.id)
	if s.prev != nil {
		s.prev.release()
		s.prev = nil
	}
	s.fix = Auto
	return a, nil
}

// reauthenticate mends the identity of a line whose credential is of no use, or
// has ended by its clock. Of the latter the site has the last word: as long as
// no login brings another one, the connection is tried with it.
func (r *runner) reauthenticate(ctx context.Context, l *line, s *streak) (*identity, error) {
	o := s.outcome
	byClock := o.CredentialExpired && (o.Layer == LayerSilence || o.Layer == LayerStream)
	id, err := l.ids.reauthenticate(ctx, s.prev, !byClock)
	if err == nil || !byClock || ctx.Err() != nil {
		return id, err
	}
	r.Log.Warn("the credential has ended by its clock and there is no other one: the site is asked whether it still takes it", "error", err)
	return s.prev.again(), nil
}

// queue waits for a place and for its turn. It runs on the stack of the line:
// of thousands that begin together most are here.
func (r *runner) queue(ctx context.Context, l *line, a *attempt) error {
	r.mu.Lock()
	successor := l.old != nil
	r.mu.Unlock()
	for _, g := range []*gate{a.def.Limits.gate(a.def.Host), &a.def.Identities.gate} {
		// A successor does not wait for the place that its old line has.
		leave, err := g.enter(ctx, r.Name, !successor)
		if err != nil {
			return err
		}
		a.places = append(a.places, leave)
	}
	return a.def.Limits.Wait(ctx, a.def.Host)
}

// open opens the connection of an attempt that has its identity and its turn.
func (r *runner) open(ctx context.Context, l *line, a *attempt, silences int) error {
	// Others may have learnt meanwhile that the credential is refused.
	if latest := l.ids.latest(a.id); latest != nil {
		r.stats.rotated(a.id, latest)
		a.id.release()
		a.id = latest
	}
	r.mu.Lock()
	a.from = r.begins(l)
	a.latest = a.from == r.cursor
	l.opened, l.resumes, l.anew = r.splice.End(), a.from != "", false
	l.exit = a.id.lease.exit()
	successor := l.old != nil
	if !successor && !r.abreast(l) {
		l.succeeds = ""
	}
	r.mu.Unlock()
	a.watch = watch.New(watch.Config{
		Stale: r.stale(a.def, silences), Rhythm: r.learning(a.def), Quiet: patient(a.def.QuietAfter, silences),
		Fire: l.silent, Buffered: func(every time.Duration) { r.buffered(a, every) },
	})
	if !successor {
		r.stats.set("connecting", a.id.lease.exit())
	}
	session := &Session{
		Client:  a.id.clientFor(a.def.Page),
		Stream:  r.Name,
		Exit:    a.id.lease.exit(),
		Log:     r.Log,
		watch:   a.watch,
		traffic: r.stats.through(a.id.lease.exit()),
		budget:  a.def.Budget,
		odd:     r.odd,
		moved:   func(c Cursor) { r.moved(l, c) },
	}
	conn, err := a.def.Target.Open(ctx, session, a.from)
	a.carried = a.from != "" && !session.unasked
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // the URL may hold a secret
		}
		return err
	}
	if err := r.answered(l); err != nil {
		conn.Close()
		return err
	}
	a.conn, a.began = conn, time.Now()
	l.mu.Lock()
	l.conn = conn
	late := l.silence != 0 || l.closed() || l.planned != "" // before there was a conn to close
	l.mu.Unlock()
	if late {
		conn.Close()
	}
	return nil
}

// stale is the limit of the byte clock until the first new event.
func (r *runner) stale(def *definition, silences int) time.Duration {
	// A fresh line has answered already: while the limit is learnt, one
	// heartbeat of the night is waited for before exits and logins are
	// spent on a feed that kept another rhythm by day.
	const patience = 20 * time.Second
	least := def.StaleAfter
	if least == 0 {
		least = max(patience, r.rhythm.Limit())
	}
	return patient(least, silences)
}

// patient is the limit of a clock after so many silences. After a fresh line
// and another exit were silent, too, the feed is quiet rather than dead: the
// clock doubles.
func patient(least time.Duration, silences int) time.Duration {
	const ceiling = 10 * time.Minute
	d := least
	for range silences - 2 {
		if d = 2 * d; d > ceiling {
			return max(ceiling, least)
		}
	}
	return d
}

// learning is the stream's rhythm, or nil where its limit is given.
func (r *runner) learning(def *definition) *watch.Rhythm {
	if def.StaleAfter != 0 {
		return nil
	}
	return &r.rhythm
}

// buffered notes that somebody on the way gathers what the site sends.
func (r *runner) buffered(a *attempt, every time.Duration) {
	r.stats.buffered.Add(1)
	r.Log.Warn("a server or proxy on the way buffers: events come late and in bursts", "exit", a.id.lease.exit(), "every", every.Round(10*time.Millisecond).String())
}

// retry is the reconnection time that the site asked for, or 0.
func (a *attempt) retry() time.Duration {
	if c, ok := a.conn.(interface{ Retry() (time.Duration, bool) }); ok {
		d, _ := c.Retry()
		return d
	}
	return 0
}

// leave ends an attempt, writes what was held into the ledger, and keeps its
// identity in s for the next one to look at.
func (r *runner) leave(l *line, a *attempt, s *streak, cause Cause) {
	if a.watch != nil {
		a.watch.Stop()
	}
	if a.id != nil {
		if s.prev != nil {
			s.prev.release()
		}
		s.prev = a.id
	}
	if a.conn == nil {
		a.free()
		return
	}
	a.conn.Close()
	a.free()
	if c, ok := a.conn.(interface{ Cursor() Cursor }); ok && !a.missed {
		r.moved(l, c.Cursor())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// A failing journal is met at the next event; here the ledger loses a line.
	h := a.held()
	h.To, h.Events, h.Cause = time.Now().UTC(), a.events, cause
	_ = r.note(context.Background(), NoteHeld, h)
	_ = r.accountAll(context.Background())
}

// moved stores a cursor that went on without an event.
func (r *runner) moved(l *line, c Cursor) {
	if !r.lock(l) {
		return // the connection will tell again when it ends
	}
	defer r.mu.Unlock()
	leads := r.head == l.seam.Number || !r.abreast(l) && !l.seam.Behind()
	if c == "" || c == r.cursor || l.waiting || l.missed || l.closed() || !leads {
		return // nothing new, or another line knows better
	}
	if err := r.log.Move(context.Background(), c); err == nil {
		r.cursor = c
	}
}

// judge turns the end of an attempt into a verdict, and counts.
func (r *runner) judge(l *line, a *attempt, err error, s *streak) (*Outcome, Verdict) {
	l.mu.Lock()
	planned, silence, waited := l.planned, l.silence, l.waited
	l.mu.Unlock()
	held := time.Since(a.began)
	if l.news.Load() { // what is sent again to everybody who comes is no sign of life
		s.failures, s.silences, s.cured = 0, 0, false
		if held >= a.def.HealthyAfter {
			s.backoff = nil
		}
	}
	r.mu.Lock()
	if f := &l.refusal; f.reach != reachNone && (planned != "" || l.news.Load()) {
		*f = refusal{} // the site went on from the cursor
	}
	r.mu.Unlock()
	if planned != "" {
		return &Outcome{Layer: LayerStream, Err: errPlanned}, Verdict{Remedy: Reconnect, Cause: planned}
	}
	if errors.Is(err, errNewcomer) {
		return &Outcome{Layer: LayerStream, Err: err}, Verdict{Remedy: Reconnect, Cause: CauseCursor}
	}
	s.failures++
	o := outcomeOf(err)
	if silence != 0 {
		o.Layer = LayerSilence
		s.silences++
		r.stats.silence(waited)
	}
	o.Held, o.Events = held, a.events
	o.Failures, o.Silences = s.failures, s.silences
	o.CredentialExpired = a.id != nil && a.id.expired()
	r.mu.Lock()
	o.Refused = l.refusal.refused(o, a.carried)
	r.mu.Unlock()
	v := a.def.verdict(o)
	if silence == watch.Quiet && v.Cause == CauseSilence {
		v.Cause = CauseQuiet
	}
	return o, v
}

// verdict is the engine's verdict about the outcome, and the target's before
// it.
func (d *definition) verdict(o *Outcome) Verdict {
	v := Judge(o)
	c, ok := d.Target.(Classifier)
	if !ok {
		return v
	}
	own := c.Classify(o)
	switch {
	case own.Remedy == Auto, own.Remedy == Forget && o.Refused == 0:
	case own.Remedy == Forget && v.Remedy != Forget:
		v.Remedy, v.Cause = Forget, CauseCursor
	default:
		v.Remedy = own.Remedy
	}
	if own.Cause != "" {
		v.Cause = own.Cause
	}
	v.Wait = max(v.Wait, own.Wait)
	if own.Reason != "" {
		o.Err = fmt.Errorf("%s: %w", own.Reason, o.Err)
	}
	return v
}

// lost notes when and why events stopped, until they flow again.
func (r *runner) lost(l *line, cause Cause) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.succeeds = ""; r.abreast(l) {
		l.succeeds = cause
		return // they have not stopped
	}
	if r.lostAt.IsZero() {
		r.lostAt, r.lostCause = time.Now(), cause
	}
}

// pause is as long as the verdict, the site and the backoff ask for.
func (r *runner) pause(ctx context.Context, o *Outcome, v Verdict, s *streak, asked time.Duration) time.Duration {
	planned := errors.Is(o.Err, errPlanned) || errors.Is(o.Err, errNewcomer)
	// What a new identity or another try will most likely cure is tried at
	// once; what fails again and again is not. A quiet feed is waited for with
	// a connection, whose clock doubles: without one its first event is missed.
	prompt := planned || v.Remedy != Reconnect && !s.cured || v.Cause == CauseGoAway && s.failures <= 1 || o.Layer == LayerSilence
	s.cured = s.cured || v.Remedy != Reconnect
	var wait time.Duration
	if !prompt {
		if s.backoff == nil {
			s.backoff = r.newBackoff()
		}
		wait, _ = s.backoff.Next()
		wait = max(wait, min(asked, r.now().MaxWait))
	}
	if v.Cause == CauseProxyAuth && !prompt {
		wait = r.now().MaxWait // asking often locks accounts
	}
	wait = max(wait, v.Wait)
	level := slog.LevelWarn
	switch {
	case planned:
		level = slog.LevelDebug
	case (v.Cause == CauseEOF || v.Cause == CauseGoAway) && s.failures <= 1:
		level = slog.LevelInfo // many sites end their streams now and then, and the standard foresees it
	case v.Cause == CauseProxyAuth, v.Cause == CauseLogin:
		level = slog.LevelError // a person is needed
	}
	r.Log.Log(ctx, level, "connection ended", "cause", v.Cause, "remedy", v.Remedy.String(), "wait", wait.Round(time.Millisecond).String(), "error", o.Err)
	r.stats.waiting(v, wait, o.Err, planned)
	return wait
}

// sleep waits. Its error is ctx's.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// poolOutcome tells the pool what was seen of an exit.
func poolOutcome(o *Outcome) proxies.Outcome {
	switch {
	case o == nil:
		return proxies.Healthy
	case o.Layer == LayerSilence:
		return proxies.ExitSilent
	case o.Layer == LayerTarget:
		return proxies.TargetRefused
	case o.Layer == LayerExit:
		return proxies.ExitFailed
	case o.Layer == LayerIdentity:
		return proxies.Unused
	default:
		return proxies.Healthy
	}
}
