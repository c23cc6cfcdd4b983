package archive

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// chunkRows is how many rows one chunk of a tail holds: its columns of 8 bytes are then 32 KiB, Go's largest size class.
const chunkRows = 4096

// A dictionary holds at most so many names or bytes of them; then the lane starts another, so that a device which invents
// texts cannot keep memory: a dictionary dies with the chunks that use it.
const (
	dictNames = 64 << 10
	dictBytes = 4 << 20
)

// A Lane takes the readings of one shard. Add, Advance and Rewind belong to one goroutine.
//
// Rows become visible at Advance, which also says how far the shard is complete: readings of one record share a position, so
// only the caller knows when a record is whole.
type Lane struct {
	a     *Archive
	shard stream.ShardID

	// Owned by the caller's goroutine.
	cur  *chunk
	n    int             // rows in cur, those not yet visible included
	done stream.Position // Add ignores this position and those before it
	next []*chunk        // chunks begun since the last Advance, cur among them unless it was visible before

	mu     sync.Mutex // guards what follows, and in chunks what says so
	chunks []*chunk   // with visible rows that are in no committed object
	head   uint64     // rows before it are in committed objects
	end    uint64     // rows before it are visible; rows are counted since Open
	pos    stream.Position
	at     stream.Position // the checkpoint
	oldest time.Time       // when the row at head became visible

	unsure *commit // guarded by Archive.flushing
}

// A chunk is a fixed number of rows in columns. Its owner appends; rows below a count that was published under the lane's mu
// never change, so readers need no lock for them.
type chunk struct {
	base    uint64 // number of its first row
	dict    *dict
	vehicle []uint32
	status  []uint32
	event   []int64
	arrival []int64
	lat     []float64
	lon     []float64
	flags   []telemetry.Flags
	has     []uint32 // bit s: well-known signal s is present
	// Columns that appear with their first value: written by the owner, under the lane's mu.
	signal   [telemetry.WellKnown][]float64
	otherEnd []uint32           // where the other signals of a row end in other
	other    []telemetry.Signal // owner only

	// Guarded by the lane's mu.
	rows     int                // visible
	names    []string           // of dict, as far as visible rows need them
	pubOther []telemetry.Signal // of other, likewise
	bytes    int64              // as counted in Archive.tailBytes
}

// A dict numbers the texts of some chunks. Owner only; readers use chunk.names.
type dict struct {
	ids   map[string]uint32
	names []string
	bytes int
}

func newDict() *dict {
	return &dict{ids: map[string]uint32{"": 0}, names: []string{""}}
}

func (d *dict) id(s string) uint32 {
	if id, ok := d.ids[s]; ok {
		return id
	}
	s = strings.Clone(s)
	id := uint32(len(d.names)) //nolint:gosec // at most dictNames and a chunk's worth
	d.ids[s] = id
	// One byte that is not UTF-8 makes engines refuse the whole object.
	d.names = append(d.names, strings.ToValidUTF8(s, "\uFFFD"))
	d.bytes += len(s)
	return id
}

func (d *dict) full() bool { return len(d.names) >= dictNames || d.bytes >= dictBytes }

func newLane(a *Archive, shard stream.ShardID, at stream.Position) *Lane {
	return &Lane{a: a, shard: shard, done: at, pos: at, at: at}
}

const chunkBytes = chunkRows * (4 + 4 + 8 + 8 + 8 + 8 + 4 + 4)

func newChunk(base uint64, d *dict) *chunk {
	u := make([]uint32, 3*chunkRows)
	t := make([]int64, 2*chunkRows)
	f := make([]float64, 2*chunkRows)
	return &chunk{
		base: base, dict: d, bytes: chunkBytes,
		vehicle: u[:chunkRows:chunkRows], status: u[chunkRows : 2*chunkRows : 2*chunkRows], has: u[2*chunkRows:],
		event: t[:chunkRows:chunkRows], arrival: t[chunkRows:],
		lat: f[:chunkRows:chunkRows], lon: f[chunkRows:],
		flags: make([]telemetry.Flags, chunkRows),
	}
}

// Done returns the position up to which the lane already has the shard, in objects or in its tail.
func (l *Lane) Done() stream.Position { return l.done }

// Add takes a reading of the record at pos, unless the lane has that record already. It copies what it keeps. It blocks when
// the tails are full, until a flush makes room or ctx ends.
func (l *Lane) Add(ctx context.Context, pos stream.Position, r *telemetry.Reading) error {
	if pos <= l.done {
		return nil
	}
	if l.cur == nil || l.n == chunkRows || l.cur.dict.full() {
		if err := l.grow(ctx); err != nil {
			return err
		}
	}
	c, i := l.cur, l.n
	c.vehicle[i] = c.dict.id(r.Vehicle)
	// Most devices repeat their status.
	if i > 0 && c.dict.names[c.status[i-1]] == r.Status {
		c.status[i] = c.status[i-1]
	} else {
		c.status[i] = c.dict.id(r.Status)
	}
	c.event[i], c.arrival[i] = r.Time, r.Arrival
	c.lat[i], c.lon[i] = r.Lat, r.Lon
	c.flags[i] = r.Flags
	has := uint32(0)
	for _, s := range r.Signals {
		if int(s.ID) >= telemetry.WellKnown {
			if c.otherEnd == nil {
				l.addOthers(c)
			}
			c.other = append(c.other, s)
			continue
		}
		if c.signal[s.ID] == nil {
			l.addColumn(c, s.ID)
		}
		c.signal[s.ID][i] = s.Value
		has |= 1 << s.ID
	}
	c.has[i] = has
	if c.otherEnd != nil {
		c.otherEnd[i] = uint32(len(c.other)) //nolint:gosec // chunkRows times a reading's signals
	}
	l.n++
	return nil
}

func (l *Lane) addColumn(c *chunk, id telemetry.SignalID) {
	col := make([]float64, chunkRows)
	l.mu.Lock()
	c.signal[id] = col
	c.bytes += 8 * chunkRows
	l.mu.Unlock()
	l.a.tailBytes.Add(8 * chunkRows)
}

func (l *Lane) addOthers(c *chunk) {
	col := make([]uint32, chunkRows)
	l.mu.Lock()
	c.otherEnd = col
	c.bytes += 4 * chunkRows
	l.mu.Unlock()
	l.a.tailBytes.Add(4 * chunkRows)
}

// grow begins a chunk, and first waits for room if the tails are full. A lane without a visible row does not wait: what it
// has cannot be flushed before its next Advance, so the bound is exceeded by at most one batch a lane.
func (l *Lane) grow(ctx context.Context) error {
	for l.a.tailBytes.Load() >= l.a.cfg.MaxTailBytes {
		if rows, _ := l.waiting(); rows == 0 {
			break
		}
		if err := l.a.waitRoom(ctx); err != nil {
			return err
		}
	}
	var d *dict
	base := uint64(0)
	if l.cur != nil {
		d, base = l.cur.dict, l.cur.base+uint64(l.n) //nolint:gosec // n ≥ 0
	}
	if d == nil || d.full() {
		d = newDict()
	}
	l.cur, l.n = newChunk(base, d), 0
	l.next = append(l.next, l.cur)
	l.a.tailBytes.Add(chunkBytes)
	return nil
}

// Advance makes what was added visible and says that the shard is complete up to pos: records at or before it are ignored
// from now on. A position that does not go forward is ignored.
func (l *Lane) Advance(pos stream.Position) {
	if pos <= l.done {
		return
	}
	l.done = pos
	l.mu.Lock()
	l.pos = pos
	if len(l.chunks) > 0 {
		// The chunk that was current at the last Advance may have got rows since, and may be full now.
		c := l.chunks[len(l.chunks)-1]
		n := l.n
		if len(l.next) > 0 {
			n = int(l.next[0].base - c.base) //nolint:gosec // ≤ chunkRows
		}
		l.publish(c, n)
	}
	for i, c := range l.next {
		n := l.n
		if i+1 < len(l.next) {
			n = int(l.next[i+1].base - c.base) //nolint:gosec // ≤ chunkRows
		}
		l.publish(c, n)
		l.chunks = append(l.chunks, c)
	}
	if l.cur != nil {
		end := l.cur.base + uint64(l.n) //nolint:gosec // n ≥ 0
		if l.end == l.head && end > l.end {
			l.oldest = time.Now()
		}
		l.end = end
	}
	due := l.end-l.head >= uint64(l.a.cfg.FlushRows) //nolint:gosec // positive
	l.mu.Unlock()
	clear(l.next)
	l.next = l.next[:0]
	if due || l.a.tailBytes.Load() > l.a.cfg.MaxTailBytes/2 {
		signal(l.a.kick)
	}
}

// publish makes n rows of a chunk visible. The caller holds l.mu.
func (l *Lane) publish(c *chunk, n int) {
	grown := int64(cap(c.other)-cap(c.pubOther)) * 16
	c.rows, c.names, c.pubOther = n, c.dict.names, c.other
	c.bytes += grown
	l.a.tailBytes.Add(grown)
}

// Rewind forgets the rows added since the last Advance: the caller will add them again.
func (l *Lane) Rewind() {
	for _, c := range l.next {
		l.a.tailBytes.Add(-c.bytes)
	}
	clear(l.next)
	l.next = l.next[:0]
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.chunks) == 0 {
		// Numbering goes on after the rows that objects hold, at an empty chunk of the same place.
		l.cur, l.n = nil, 0
		if l.end > 0 {
			l.cur = newChunk(l.end, newDict())
			l.next = append(l.next, l.cur)
			l.a.tailBytes.Add(chunkBytes)
		}
		return
	}
	l.cur = l.chunks[len(l.chunks)-1]
	l.n = l.cur.rows
	l.cur.other = l.cur.pubOther
}

// waiting returns how many visible rows are in no committed object, and since when the first.
func (l *Lane) waiting() (int, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.end - l.head), l.oldest //nolint:gosec // bounded by memory
}

func (l *Lane) checkpoint() stream.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

// A batch is what one flush takes from a lane.
type batch struct {
	rows     []Rows
	n        int
	from, to stream.Position
	end      uint64
	oldest   time.Time
}

func (l *Lane) take() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return batch{
		rows: l.view(nil), n: int(l.end - l.head), //nolint:gosec // bounded by memory
		from: l.at, to: l.pos, end: l.end, oldest: l.oldest,
	}
}

// drop forgets rows that a committed object holds. The caller holds Archive.mu, so that no snapshot sees them twice or not
// at all.
func (l *Lane) drop(b batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = b.to
	l.head = b.end
	l.oldest = time.Now()
	i, freed := 0, int64(0)
	for ; i < len(l.chunks); i++ {
		c := l.chunks[i]
		// The last chunk may still be filled by its owner: it stays until it is full or another has followed.
		if c.base+uint64(c.rows) > l.head || (i == len(l.chunks)-1 && c.rows < chunkRows) { //nolint:gosec // rows ≥ 0
			break
		}
		freed += c.bytes
	}
	// A copy, not a slice of the old array: that would keep the dropped chunks.
	l.chunks = append([]*chunk(nil), l.chunks[i:]...)
	l.a.tailBytes.Add(-freed)
}

// view appends the visible rows to dst. The caller holds l.mu.
func (l *Lane) view(dst []Rows) []Rows {
	for _, c := range l.chunks {
		lo := 0
		if c.base < l.head {
			lo = int(l.head - c.base) //nolint:gosec // below it for chunks that were not dropped
		}
		if lo < c.rows {
			dst = append(dst, c.view(lo, c.rows))
		}
	}
	return dst
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
