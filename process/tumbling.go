package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A window is a tumbling window that is open on a lane. Once something has been processed in it, it is in the store, moved with the
// checkpoint: version(1), flags(1; 1: to end early), start and end (8 each, Unix milliseconds, big endian), uvarint length of the
// first position, first position, state.
//
// It ends with the first record of a later window; when nothing has come for windowGrace after its end; when its state is too
// large; and when its shard is read out, as the children begin afresh. A record that arrives with an earlier time after all opens a
// window of the same bounds with no state.
type window struct {
	start, end time.Time
	first      stream.Position // of its records: tells windows of the same bounds apart
	state      []byte
	early      bool // to end, as its state has grown too large
	stored     bool // something has been processed in it
}

const (
	maxWindowState = 1 << 20
	windowGrace    = time.Second // records are stamped before they can be read
	windowVersion  = 1
)

func windowOf(t time.Time, size time.Duration, first stream.Position) *window {
	start := time.UnixMilli(t.UnixMilli() - t.UnixMilli()%size.Milliseconds()).UTC()
	return &window{start: start, end: start.Add(size), first: first}
}

func (w *window) append(b []byte) []byte {
	flags := byte(0)
	if w.early {
		flags = 1
	}
	b = append(b, windowVersion, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(w.start.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(w.end.UnixMilli()))
	b = binary.AppendUvarint(b, uint64(len(w.first)))
	b = append(b, w.first...)
	return append(b, w.state...)
}

var errWindow = errors.New("what is stored of it makes no sense; reset the function to go on without it")

func readWindow(b []byte) (*window, error) {
	const head = 1 + 1 + 8 + 8
	if len(b) <= head || b[0] != windowVersion || b[1] > 1 {
		return nil, errWindow
	}
	n, size := binary.Uvarint(b[head:])
	rest := b[head:]
	if size <= 0 || n > uint64(len(rest)-size) {
		return nil, errWindow
	}
	rest = rest[size:]
	return &window{
		start: time.UnixMilli(int64(binary.BigEndian.Uint64(b[2:]))).UTC(),
		end:   time.UnixMilli(int64(binary.BigEndian.Uint64(b[10:]))).UTC(),
		first: stream.Position(rest[:n]), state: append([]byte(nil), rest[n:]...), early: b[1] == 1, stored: true,
	}, nil
}

// passed tells whether nothing more can come for it: seen is the arrival of the last record read, quiet that the last read, which
// waited as wake says, found nothing.
func (w *window) passed(now, seen time.Time, quiet bool) bool {
	return !seen.Before(w.end) || quiet && !now.Before(w.end.Add(windowGrace))
}

// wake is when to stop waiting for a record, to end the window. It waits for the grace time even if the end is long past: there
// may be records of the window that were not read yet.
func (m *mapping) wake() time.Time {
	if m.window == nil {
		return time.Time{}
	}
	at, least := m.window.end.Add(windowGrace), time.Now().Add(windowGrace)
	if at.Before(least) {
		return least
	}
	return at
}

// until ends a batch with the window of its first record.
func (m *mapping) until(t time.Time) time.Time {
	if m.o.Tumbling == 0 {
		return time.Time{}
	}
	return windowOf(t, m.o.Tumbling, "").end.Add(windowGrace)
}

func (m *mapping) open(w *window) {
	m.window = w
	m.l.mu.Lock()
	m.l.stat.Window = w.start
	m.l.mu.Unlock()
}

// close ends the open window by its final invocation, which is tried until it succeeds: nothing else goes on before. A window in
// which nothing was processed ends without.
func (m *mapping) close(early bool) error {
	l, w := m.l, m.window
	for n := 0; w.stored; n++ {
		// The ID does not depend on the checkpoint, which may have moved past filtered records since a crash.
		m.ids = fmt.Appendf(m.prefix(m.ids[:0]), "window\x00%d\x00%d\x00%s", w.start.UnixMilli(), w.end.UnixMilli(), w.first)
		in := Invocation{ID: uuid(m.ids), Attempt: n + 1, Shard: l.shard}
		in.Window = &Window{Start: w.start, End: w.end, State: w.state, Final: true, Early: early}
		res, err := m.call(&in)
		if err == nil && res.Failed != "" {
			err = res.failure()
		}
		if err == nil {
			if err := m.endWindow(&res); err != nil {
				return err
			}
			l.recovered()
			break
		}
		var off *NotRunError
		pause := backoff(m.o.MinBackoff, m.o.MaxBackoff, n)
		switch {
		case errors.Is(err, errStopping), final(err):
			return err
		case errors.As(err, &off):
			m.throttled(off)
			if off.After > 0 {
				pause = off.After
			}
		default:
			l.failed(fmt.Errorf("end of window: %w", err))
			l.retrying()
		}
		if !l.r.sleep(pause) {
			return errStopping
		}
	}
	m.window = nil
	l.mu.Lock()
	l.stat.Window = time.Time{}
	l.mu.Unlock()
	return nil
}

// endWindow commits the end of a window. The step does not move the checkpoint, so the window itself tells whether an earlier try
// has happened.
func (m *mapping) endWindow(res *Result) error {
	emit := m.emit(res.Output, func() string { return fmt.Sprintf("window-%d-%s", m.window.start.UnixMilli(), m.window.first) })
	return m.l.stay(func(tx state.Tx) error {
		v, err := tx.Get(m.key("window"))
		if err != nil || len(v) == 0 {
			return err
		}
		tx.Sync()
		if err := tx.Delete(m.key("window")); err != nil {
			return err
		}
		return emit(tx)
	})
}
