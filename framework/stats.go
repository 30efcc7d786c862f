package framework

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is the account of a worker: what a summary file holds and a progress
// table shows. Its JSON form is stable: fields are added, never changed.
type Stats struct {
	Streams []StreamStats `json:"streams"`
	Sinks   []SinkStats   `json:"sinks"`
	// Elapsed is in seconds.
	Elapsed float64 `json:"elapsed_s"`
}

// StreamStats is the account of one stream, of this run.
type StreamStats struct {
	Name string `json:"name"`
	// State is one word ("live", "connecting", "logging in", "waiting",
	// "rotating", "blocked", "done", "failed"), Detail a few more, Exit the exit in use
	// and Error the last failure.
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	Exit   string `json:"exit,omitempty"`
	Error  string `json:"error,omitempty"`
	// Events were taken into the journal, Records were made of those that
	// sinks have read, Delivered of these have been committed by every sink.
	Events    uint64 `json:"events"`
	Records   uint64 `json:"records"`
	Delivered uint64 `json:"delivered"`
	// Ignored events were of types that are not kept.
	Ignored           uint64 `json:"ignored"`
	DuplicatesDropped uint64 `json:"duplicates_dropped"`
	// Filled events were missed and fetched from the site's history; Events
	// counts them, too.
	Filled      uint64 `json:"filled,omitempty"`
	DeadLetters uint64 `json:"dead_letters"`
	// Oddities counts what the feed's format drops without a word,
	// OdditiesByKind the same by kind. Events that were too large are among
	// the dead letters, too.
	Oddities       uint64            `json:"oddities"`
	OdditiesByKind map[string]uint64 `json:"oddities_by_kind,omitempty"`
	// Buffered counts the connections on which a server or proxy on the way
	// gathered events and sent them late, in bursts.
	Buffered uint64 `json:"buffered"`
	// Bytes is what was received, after decompression, WireBytes what came
	// over the wire for that: the bodies of the feed's answers, without their
	// heads and the framing of HTTP and TLS. Exits has both by exit.
	Bytes     uint64             `json:"bytes"`
	WireBytes uint64             `json:"wire_bytes"`
	Exits     map[string]Traffic `json:"exits,omitempty"`
	// Reconnects counts the connections after the first, by why the one
	// before ended.
	Reconnects map[Cause]uint64 `json:"reconnects"`
	// Logins is of the credential, which the streams of a target share.
	Logins uint64 `json:"logins"`
	// Renewals counts credentials replaced before their end, Expiries those
	// found dead and replaced after it.
	Renewals  uint64 `json:"renewals"`
	Expiries  uint64 `json:"expiries"`
	Silences  uint64 `json:"silences"`
	Rotations uint64 `json:"rotations"`
	// Gaps are the first 1,000; GapsOmitted counts the others.
	Gaps        []Gap  `json:"gaps"`
	GapsOmitted uint64 `json:"gaps_omitted,omitempty"`
	// Coverage is the share of this run's time outside of its gaps, 0 to 1;
	// 0 when no connection could be opened, or no event has ever come: then
	// nothing shows that anything was covered.
	Coverage float64 `json:"coverage"`
	// FirstID and LastID are the ids of the first and the last event of this
	// run; LastID is that of the last run when this one brought none.
	FirstID string `json:"first_id"`
	LastID  string `json:"last_id"`
	// LastEvent is when the last event was received.
	LastEvent time.Time `json:"last_event,omitzero"`
	// SilenceDetect is how long a line had been silent when that was noticed,
	// Resume how long it took from the end of a connection to the next event.
	SilenceDetect Spread `json:"silence_detect_ms"`
	Resume        Spread `json:"resume_ms"`
}

// Traffic is what a stream received through one exit.
type Traffic struct {
	Bytes     uint64 `json:"bytes"`
	WireBytes uint64 `json:"wire_bytes"`
}

// SinkStats is the account of one sink, of this run.
type SinkStats struct {
	ID    string `json:"id"`
	State string `json:"state"` // "delivering", "level", "waiting", "detached", "failed"
	Error string `json:"error,omitempty"`
	// Records were committed by the sink in Batches.
	Records uint64 `json:"records"`
	Batches uint64 `json:"batches"`
	Retries uint64 `json:"retries"`
	// DeadLetters could not be made into records or stored.
	DeadLetters uint64 `json:"dead_letters"`
	// Lost chunks could not be read, or were dropped before the sink had read
	// them: their events have not reached it.
	Lost uint64 `json:"lost_chunks,omitempty"`
	// Position is the last one committed.
	Position string `json:"position"`
	// Behind is how many chunks of the journal the sink has not read yet.
	Behind uint64 `json:"behind"`
}

// Spread is the distribution of a duration, in milliseconds.
type Spread struct {
	P50 float64 `json:"p50"`
	Max float64 `json:"max"`
}

// samples keeps the last durations of a kind. It is guarded by its owner. Nil
// keeps none yet.
type samples struct {
	kept []time.Duration
	next int
	max  time.Duration
}

// add makes the samples if it must.
func (s *samples) add(d time.Duration) *samples {
	if s == nil {
		s = &samples{}
	}
	const keep = 512
	d = max(d, 0)
	s.max = max(s.max, d)
	if len(s.kept) < keep {
		s.kept = append(s.kept, d)
		return s
	}
	s.kept[s.next] = d
	s.next = (s.next + 1) % keep
	return s
}

func (s *samples) spread() Spread {
	if s == nil {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(s.kept))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return Spread{P50: ms(sorted[(len(sorted)-1)/2]), Max: ms(s.max)}
}

// maxGaps bounds the gaps kept in memory; the ledger in the journal has all.
const maxGaps = 1000

// streamStats counts what a stream lives through. It is safe for concurrent
// use.
type streamStats struct {
	name       string
	events     atomic.Uint64
	dead       atomic.Uint64
	asides     atomic.Uint64 // events beside the feed's own
	ignored    atomic.Uint64
	duplicates atomic.Uint64
	buffered   atomic.Uint64

	// Guarded by runner.mu: the events that publish has not shown yet, the id
	// and the time of the last one.
	taken   uint64
	takenID []byte
	takenAt time.Time

	mu sync.Mutex
	// What follows is guarded by mu. The fields that StreamStats has are kept
	// in it.
	is              StreamStats
	exits           []*traffic
	lastID          []byte
	began, over     time.Time
	opened          bool // there has been a connection
	lines           int  // live ones: while there are any, the stream is live
	missed          time.Duration
	detect, resumes *samples
}

func (s *streamStats) begin(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = at
	s.is.State = "connecting"
}

// resumed notes the last event of the run before.
func (s *streamStats) resumed(e TailEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID = append(s.lastID[:0], e.ID...)
	s.is.LastEvent = e.Time
}

func (s *streamStats) end(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = at
	if s.is.State != "done" && s.is.State != "failed" {
		s.is.State, s.is.Detail = "stopped", ""
	}
}

// event counts an event, which publish shows. Both run under runner.mu.
func (s *streamStats) event(ev *Event) {
	if s.taken == 0 && s.events.Load() == 0 {
		s.first(ev)
	}
	s.taken++
	if s.takenAt = ev.Time; len(ev.ID) > 0 {
		s.takenID = append(s.takenID[:0], ev.ID...)
	}
}

func (s *streamStats) first(ev *Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.FirstID = string(ev.ID)
}

func (s *streamStats) publish() {
	if s.taken == 0 {
		return
	}
	s.events.Add(s.taken)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.is.LastEvent = s.takenAt; len(s.takenID) > 0 {
		s.lastID, s.takenID = s.takenID, s.lastID[:0]
	}
	s.taken = 0
}

func (s *streamStats) set(state, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines == 0 || state == "done" {
		s.is.State, s.is.Detail = state, detail
	}
}

func (s *streamStats) live(exit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.State, s.is.Detail, s.is.Exit, s.opened = "live", "", exit, true
	s.lines++
}

// left takes back one live.
func (s *streamStats) left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines--
}

func (s *streamStats) waiting(v Verdict, wait time.Duration, err error, planned bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines == 0 {
		s.is.State, s.is.Detail = "waiting", string(v.Cause)
		if wait > 0 {
			s.is.Detail += ", " + wait.Round(100*time.Millisecond).String()
		}
	}
	if !planned {
		s.is.Error = err.Error()
	}
}

func (s *streamStats) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.State, s.is.Detail, s.is.Error = "failed", "", err.Error()
}

func (s *streamStats) reconnect(c Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.is.Reconnects == nil {
		s.is.Reconnects = map[Cause]uint64{}
	}
	s.is.Reconnects[c]++
}

// rotated counts a change of exit between one identity and the next.
func (s *streamStats) rotated(from, to *identity) {
	if from == nil || from.lease.exit() == to.lease.exit() {
		return
	}
	s.count(&s.is.Rotations)
}

func (s *streamStats) renewed() { s.count(&s.is.Renewals) }
func (s *streamStats) expired() { s.count(&s.is.Expiries) }

func (s *streamStats) count(n *uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

// odd counts an oddity and tells whether it is the first of its kind.
func (s *streamStats) odd(kind string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.is.OdditiesByKind == nil {
		s.is.OdditiesByKind = map[string]uint64{}
	}
	s.is.Oddities++
	s.is.OdditiesByKind[kind]++
	return s.is.OdditiesByKind[kind] == 1
}

// maxExits bounds the exits told apart: a pool may know any number.
const maxExits = 256

// through is the account of an exit.
func (s *streamStats) through(exit string) *traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := func() *traffic {
		for _, t := range s.exits {
			if t.exit == exit {
				return t
			}
		}
		return nil
	}
	t := of()
	if t == nil && len(s.exits) >= maxExits {
		exit = "others"
		t = of()
	}
	if t == nil {
		t = &traffic{exit: exit}
		s.exits = append(s.exits, t)
	}
	return t
}

func (s *streamStats) silence(waited time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.Silences++
	s.detect = s.detect.add(waited)
}

func (s *streamStats) resume(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resumes = s.resumes.add(took)
}

func (s *streamStats) gap(g Gap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed += s.length(g)
	if len(s.is.Gaps) < maxGaps {
		s.is.Gaps = append(s.is.Gaps, g)
	} else {
		s.is.GapsOmitted++
	}
}

// filled notes what has become of a gap.
func (s *streamStats) filled(g Gap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.is.Gaps {
		if have := &s.is.Gaps[i]; have.To.Equal(g.To) && have.FirstID == g.FirstID {
			if !g.State.Open() && have.State.Open() {
				s.missed -= s.length(*have)
			}
			*have = g
		}
	}
}

func (s *streamStats) fetched(n uint64) {
	s.events.Add(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.Filled += n
}

// length is how much of this run a gap takes.
func (s *streamStats) length(g Gap) time.Duration {
	if g.From.IsZero() {
		return 0
	}
	if g.From.Before(s.began) { // what was missed before this run began is not this run's
		g.From = s.began
	}
	return max(g.To.Sub(g.From), 0)
}

func (s *streamStats) snapshot(now time.Time) StreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.is
	out.Name = s.name
	out.Events = s.events.Load() + s.asides.Load()
	out.DeadLetters, out.Ignored = s.dead.Load(), s.ignored.Load()
	out.DuplicatesDropped = s.duplicates.Load()
	out.OdditiesByKind = maps.Clone(s.is.OdditiesByKind)
	out.Exits = make(map[string]Traffic, len(s.exits))
	for _, t := range s.exits {
		x := Traffic{Bytes: t.decoded.Load(), WireBytes: t.wire.Load()}
		out.Exits[t.exit] = x
		out.Bytes += x.Bytes
		out.WireBytes += x.WireBytes
	}
	out.Buffered = s.buffered.Load()
	out.Reconnects = map[Cause]uint64{}
	for c, n := range s.is.Reconnects {
		out.Reconnects[c] = n
	}
	out.Gaps = append([]Gap{}, s.is.Gaps...)
	out.LastID = string(s.lastID)
	out.SilenceDetect, out.Resume = s.detect.spread(), s.resumes.spread()
	if !s.over.IsZero() {
		now = s.over
	}
	if s.opened && !out.LastEvent.IsZero() {
		out.Coverage = 1
		if held := now.Sub(s.began); !s.began.IsZero() && held > 0 {
			out.Coverage = max(0, 1-s.missed.Seconds()/held.Seconds())
		}
	}
	return out
}
