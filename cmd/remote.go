package cmd

import (
	"bufio"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
)

// sentChunk is a chunk on its way from a worker to a command.
type sentChunk struct {
	Seq       uint64
	Committed time.Time
	Streams   []string
	Events    []framework.StoredEvent
	Count     int
	// DamagedFrom and Why say that Seq is the last chunk of a stretch that
	// cannot be read.
	DamagedFrom uint64
	Why         string
}

// journalState is the answer to /journal.
type journalState struct {
	Journal framework.JournalID
	First   []uint64 // by partition
	Last    []uint64
}

// serveJournal answers what commands ask of the journal.
func serveJournal(mux *http.ServeMux, j *journal.Journal) {
	mux.HandleFunc("GET /journal", func(rw http.ResponseWriter, _ *http.Request) {
		s := journalState{Journal: j.ID()}
		for p := range j.Partitions() {
			first, last := j.Bounds(p)
			s.First, s.Last = append(s.First, first), append(s.Last, last)
		}
		answer(rw, s, nil)
	})
	mux.HandleFunc("GET /journal/survey", func(rw http.ResponseWriter, r *http.Request) {
		s, err := j.Survey(r.Context(), r.FormValue("deep") == "true")
		answer(rw, s, err)
	})
	mux.HandleFunc("GET /journal/since", func(rw http.ResponseWriter, r *http.Request) {
		at, err := time.Parse(time.RFC3339Nano, r.FormValue("time"))
		partition, err2 := strconv.Atoi(r.FormValue("partition"))
		if err := errors.Join(err, err2); err != nil || partition < 0 || partition >= j.Partitions() {
			http.Error(rw, "wrong time or partition", http.StatusBadRequest)
			return
		}
		pos, err := j.Since(r.Context(), partition, at)
		answer(rw, pos, err)
	})
	mux.HandleFunc("GET /journal/chunks", func(rw http.ResponseWriter, r *http.Request) {
		after, err := parsePlace(r.FormValue("after"))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		sendChunks(r.Context(), rw, j, after, r.Form["stream"])
	})
}

func parsePlace(text string) (p framework.Position, err error) {
	err = json.Unmarshal([]byte(text), &p)
	return p, err
}

// sendChunks sends the chunks after the position, without end.
func sendChunks(ctx context.Context, rw http.ResponseWriter, j *journal.Journal, after framework.Position, only []string) {
	out := bufio.NewWriterSize(rw, 64<<10)
	enc := gob.NewEncoder(out)
	// What is being read is kept for as long.
	holder := fmt.Sprintf("reading command %d", readers.Add(1))
	defer j.Forget(holder)
	j.Release(holder, after)
	for c, err := range j.Read(ctx, after, named(only)) {
		if err != nil {
			return // the worker ends, or the reader has gone
		}
		sent := sentChunk{Seq: c.Seq, Committed: c.Committed, Streams: c.Streams, Events: c.Events, Count: c.Count}
		if damage := (*framework.DamageError)(nil); errors.As(c.Err, &damage) {
			sent.DamagedFrom, sent.Why = damage.From, damage.Err.Error()
		}
		if enc.Encode(sent) != nil || out.Flush() != nil || http.NewResponseController(rw).Flush() != nil {
			return
		}
		j.Release(holder, framework.Position{Journal: j.ID(), Partition: after.Partition, Seq: c.Seq})
	}
}

// readers counts the commands that have read from this worker.
var readers atomic.Uint64

// remoteJournal reads the journal of a running worker.
type remoteJournal struct {
	client *http.Transport
	state  journalState
	only   []string
}

// controlClient talks to the worker that runs with the data directory.
func controlClient(data string) *http.Transport {
	socket := filepath.Join(data, controlFile)
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, fmt.Errorf("%w %s: %w", errNoWorker, data, err)
			}
			return c, nil
		},
	}
}

func dialJournal(ctx context.Context, data string, only []string) (*remoteJournal, error) {
	j := &remoteJournal{client: controlClient(data), only: only}
	asking, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return j, j.ask(asking, "/journal", nil, &j.state)
}

func (j *remoteJournal) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://worker"+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := j.client.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("the worker: %s", text)
	}
	return resp, nil
}

func (j *remoteJournal) ask(ctx context.Context, path string, query url.Values, into any) error {
	resp, err := j.get(ctx, path, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

func (j *remoteJournal) ID() framework.JournalID { return j.state.Journal }
func (j *remoteJournal) Partitions() int         { return len(j.state.Last) }
func (j *remoteJournal) Close() error            { return nil }

// Release and Forget have nothing to do: the worker keeps what is being read.
func (j *remoteJournal) Release(string, framework.Position) {}
func (j *remoteJournal) Forget(string)                      {}

// Partition is that of journal.Journal.
func (j *remoteJournal) Partition(stream string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(stream)) // never fails
	return int(h.Sum64() % uint64(j.Partitions()))
}

// Bounds returns what they were when the worker was asked first.
func (j *remoteJournal) Bounds(partition int) (first, last uint64) {
	return j.state.First[partition], j.state.Last[partition]
}

func (j *remoteJournal) Survey(ctx context.Context, deep bool) (*journal.Survey, error) {
	s := new(journal.Survey)
	return s, j.ask(ctx, "/journal/survey", url.Values{"deep": {strconv.FormatBool(deep)}}, s)
}

func (j *remoteJournal) Since(ctx context.Context, partition int, t time.Time) (pos framework.Position, err error) {
	return pos, j.ask(ctx, "/journal/since", url.Values{"partition": {strconv.Itoa(partition)}, "time": {t.Format(time.RFC3339Nano)}}, &pos)
}

// Read yields the chunks after the position; want is decided by the worker,
// for the streams given to dialJournal.
func (j *remoteJournal) Read(ctx context.Context, after framework.Position, _ func(string) bool) iter.Seq2[*framework.Chunk, error] {
	return func(yield func(*framework.Chunk, error) bool) {
		place, err := json.Marshal(after)
		if err != nil {
			yield(nil, err)
			return
		}
		resp, err := j.get(ctx, "/journal/chunks", url.Values{"after": {string(place)}, "stream": j.only})
		if err != nil {
			yield(nil, err)
			return
		}
		defer resp.Body.Close()
		dec := gob.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10))
		for {
			var sent sentChunk
			if err := dec.Decode(&sent); err != nil {
				yield(nil, fmt.Errorf("the worker has stopped sending: %w", err))
				return
			}
			c := &framework.Chunk{Journal: j.state.Journal, Partition: after.Partition, Seq: sent.Seq, Committed: sent.Committed, Streams: sent.Streams, Events: sent.Events, Count: sent.Count}
			if sent.Why != "" {
				c.Err = &framework.DamageError{Journal: c.Journal, Partition: c.Partition, From: sent.DamagedFrom, To: sent.Seq, Err: errors.New(sent.Why)}
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}
