package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/holdline/scrape/framework"
)

// Names on the server. Each partition has a JetStream stream that holds
// nothing but its chunks, so that a chunk's number is its sequence and the
// subject's last sequence fences the writer; snapshots live beside them.
const (
	snapshotStream = "SCRAPE_SNAPSHOTS"

	metaJournal    = "scrape.journal"
	metaPartitions = "scrape.partitions"
)

func chunkStream(p int) string     { return "SCRAPE_CHUNKS_" + strconv.Itoa(p) }
func chunkSubject(p int) string    { return "scrape.chunks." + strconv.Itoa(p) }
func snapshotSubject(p int) string { return "scrape.snapshots." + strconv.Itoa(p) }

// Error codes of the JetStream API.
const (
	codeWrongLast = 10071
	codeNoMessage = 10037
)

// store is the journal on a NATS server: the embedded server, its two
// connections (writing must not wait behind reading) and its streams.
type store struct {
	// ctx ends when the server can no longer write.
	ctx    context.Context
	srv    *embedded
	writer *nats.Conn
	reader *nats.Conn
	js     jetstream.JetStream
}

// openStore starts the embedded server over dir and connects to it.
func openStore(dir string, d Durability, log *slog.Logger) (*store, error) {
	srv, err := startServer(dir, d, log)
	if err != nil {
		return nil, err
	}
	s := &store{ctx: srv.ctx, srv: srv}
	if s.writer, err = srv.connect("writer", log); err == nil {
		if s.reader, err = srv.connect("reader", log); err == nil {
			s.js, err = jetstream.New(s.writer)
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *store) close() {
	for _, nc := range []*nats.Conn{s.writer, s.reader} {
		if nc != nil {
			nc.Close()
		}
	}
	s.srv.stop()
}

// identify returns the journal's id and number of partitions, making a journal
// of that many partitions where there is none.
func (s *store) identify(ctx context.Context, partitions int) (framework.JournalID, int, error) {
	id := framework.NewJournalID()
	info, err := s.stream(ctx, chunkStream(0))
	switch {
	case err == nil:
		meta := info.Config.Metadata
		id = framework.JournalID(meta[metaJournal])
		partitions, err = strconv.Atoi(meta[metaPartitions])
		if err != nil || partitions < 1 || len(id) != journalIDLen {
			return "", 0, fmt.Errorf("journal: stream %s is not a journal of this program", chunkStream(0))
		}
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return "", 0, fmt.Errorf("journal: %w", err)
	}
	meta := map[string]string{metaJournal: string(id), metaPartitions: strconv.Itoa(partitions)}
	// Partition 0 is made last: it is what says that the journal is complete.
	configs := []jetstream.StreamConfig{{Name: snapshotStream, Subjects: []string{"scrape.snapshots.*"}, MaxMsgsPerSubject: 2}}
	for p := partitions - 1; p >= 0; p-- {
		configs = append(configs, jetstream.StreamConfig{Name: chunkStream(p), Subjects: []string{chunkSubject(p)}})
	}
	for _, c := range configs {
		c.Metadata = meta
		c.Storage = jetstream.FileStorage
		c.Discard = jetstream.DiscardOld
		if c.Name != snapshotStream {
			// Without limits nothing is ever discarded; with DiscardNew a
			// limit that somebody sets by hand blocks instead of losing.
			c.Discard = jetstream.DiscardNew
		}
		c.DenyDelete = true
		c.AllowDirect = true
		c.Duplicates = time.Second // not used: the expected sequence does it
		have, err := s.stream(ctx, c.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			if _, err := s.js.CreateStream(ctx, c); err != nil {
				return "", 0, fmt.Errorf("journal: make stream %s: %w", c.Name, err)
			}
		case err != nil:
			return "", 0, fmt.Errorf("journal: %w", err)
		case have.Config.Metadata[metaJournal] != string(id) && have.State.LastSeq > 0 && c.Name != snapshotStream:
			return "", 0, fmt.Errorf("journal: stream %s belongs to journal %s, not %s: parts of two journals are mixed in this directory",
				c.Name, have.Config.Metadata[metaJournal], id)
		}
	}
	return id, partitions, nil
}

func (s *store) stream(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	st, err := s.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	return st.CachedInfo(), nil
}

// errWrongLast says that the subject's last message is not the expected one.
var errWrongLast = errors.New("the last chunk is not the one written before")

// publish stores one message and returns its sequence once it is as durable as
// the server was told to make it. With check it is stored only as the
// successor of the sequence last on its subject.
func (s *store) publish(ctx context.Context, subject string, check bool, last uint64, data []byte) (uint64, error) {
	msg := nats.Msg{Subject: subject, Data: data}
	if check {
		msg.Header = nats.Header{"Nats-Expected-Last-Subject-Sequence": {strconv.FormatUint(last, 10)}}
	}
	re, err := s.writer.RequestMsgWithContext(ctx, &msg)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return 0, err
	}
	var ack struct {
		Seq   uint64
		Error *jetstream.APIError
	}
	if err := json.Unmarshal(re.Data, &ack); err != nil {
		return 0, fmt.Errorf("answer of the server: %w", err)
	}
	if ack.Error != nil {
		if ack.Error.ErrorCode == codeWrongLast {
			return 0, errWrongLast
		}
		return 0, ack.Error
	}
	return ack.Seq, nil
}

// refused tells whether the server answered, and said no: it is alive, and a
// later attempt may succeed.
func refused(err error) bool {
	var e *jetstream.APIError
	return errors.As(err, &e)
}

// message is one stored message.
type message struct {
	seq  uint64
	data []byte
}

// last returns the newest message on the subject, from the stream's leader;
// seq is 0 when there is none.
func (s *store) last(ctx context.Context, stream, subject string) (message, error) {
	return s.get(ctx, stream, map[string]any{"last_by_subj": subject})
}

// before returns the subject's newest message with a sequence below seq, out of
// a stream that holds few messages; seq is 0 when there is none.
func (s *store) before(ctx context.Context, seq uint64, stream, subject string) (message, error) {
	var found message
	for n := uint64(1); ; n = found.seq + 1 {
		m, err := s.get(ctx, stream, map[string]any{"seq": n, "next_by_subj": subject})
		if err != nil || m.seq == 0 || m.seq >= seq {
			return found, err
		}
		found = m
	}
}

func (s *store) get(ctx context.Context, stream string, what map[string]any) (message, error) {
	req, err := json.Marshal(what)
	if err != nil {
		return message{}, err
	}
	re, err := s.reader.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, req)
	if err != nil {
		return message{}, err
	}
	var answer struct {
		Message struct {
			Seq  uint64
			Data []byte
		}
		Error *jetstream.APIError
	}
	if err := json.Unmarshal(re.Data, &answer); err != nil {
		return message{}, fmt.Errorf("answer of the server: %w", err)
	}
	if e := answer.Error; e != nil {
		if e.ErrorCode == codeNoMessage {
			return message{}, nil
		}
		return message{}, e
	}
	return message{answer.Message.Seq, answer.Message.Data}, nil
}

// Limits of one batch of messages read from the server.
const (
	batchMessages = 256
	batchBytes    = 4 << 20
	readTimeout   = 30 * time.Second
)

// batch returns messages of the partition from seq on, in order, as many as
// fit into the limits; none means that nothing at or after seq can be read.
// Messages that the server cannot read are left out without a word.
func (s *store) batch(ctx context.Context, p int, seq uint64, most int) ([]message, error) {
	return s.direct(ctx, p, fmt.Sprintf(`"seq":%d,"batch":%d`, seq, most))
}

// since returns the partition's first message stored at that time or later;
// seq is 0 when there is none.
func (s *store) since(ctx context.Context, p int, t time.Time) (message, error) {
	msgs, err := s.direct(ctx, p, fmt.Sprintf(`"start_time":%q,"batch":1`, t.UTC().Format(time.RFC3339Nano)))
	if err != nil || len(msgs) == 0 {
		return message{}, err
	}
	return msgs[0], nil
}

func (s *store) direct(ctx context.Context, p int, what string) ([]message, error) {
	inbox := s.reader.NewInbox()
	sub, err := s.reader.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only on a closed connection
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	req := fmt.Appendf(nil, `{%s,"next_by_subj":%q,"max_bytes":%d}`, what, chunkSubject(p), batchBytes)
	if err := s.reader.PublishRequest("$JS.API.DIRECT.GET."+chunkStream(p), inbox, req); err != nil {
		return nil, err
	}
	var out []message
	for {
		wait, cancel := context.WithTimeout(ctx, readTimeout)
		msg, err := sub.NextMsgWithContext(wait)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("read chunks: %w", err)
		}
		switch status := msg.Header.Get("Status"); status {
		case "":
			n, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("answer of the server: %w", err)
			}
			out = append(out, message{n, msg.Data})
		case "204", "404":
			return out, nil
		default:
			return nil, fmt.Errorf("server: status %s %s", status, msg.Header.Get("Description"))
		}
	}
}

// purge drops the partition's messages before seq. The newest one must stay:
// its sequence is what fences writers.
func (s *store) purge(ctx context.Context, p int, seq uint64) error {
	st, err := s.js.Stream(ctx, chunkStream(p))
	if err != nil {
		return err
	}
	return st.Purge(ctx, jetstream.WithPurgeSequence(seq))
}

// same tells whether the message is what was sent as number seq.
func (m message) same(seq uint64, data []byte) bool {
	return m.seq == seq && bytes.Equal(m.data, data)
}
