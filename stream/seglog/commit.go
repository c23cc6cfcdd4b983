package seglog

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// A committer is the one writer of a stream. It gathers all requests that wait, writes them as one group, syncs once, makes the
// group visible, and answers. Whatever else changes the stream (a split, retention, a roll) it does between two groups, as an op.
type committer struct {
	l    *Log
	file vfs.File // of the active segment
	seg  *segment // the active segment
	seed seed
	off  int64 // durable end of the segment, where the next group goes
	room int64 // preallocated up to here
	held int   // blocks in the active segment
	torn bool  // behind off lies the torn tail of an earlier life: a new segment is begun before anything is written

	first, last int64 // ms; of the active segment's first group (0: none), and of the newest group ever

	taken   []*request
	touched []*shard
	blocks  []tableBlock
	buf     []byte
	fullNow bool
}

const (
	groupBytes   = 8 << 20   // a group takes no further requests beyond this size
	blockBytes   = 256 << 10 // a block takes no further pieces beyond this size, so that readers need little memory
	segmentMost  = 1 << 18   // blocks of a segment: bounds the index of the active one to 8 MiB
	firstReserve = 1 << 20   // preallocated at first; then as much as the segment has, up to mostReserve
	mostReserve  = 16 << 20
)

// op is work for the committer between two groups.
type op struct {
	f    func(*committer) error
	done chan error // capacity 1
}

// do has the committer run f.
func (l *Log) do(ctx context.Context, f func(*committer) error) error {
	o := &op{f: f, done: make(chan error, 1)}
	select {
	case l.ops <- o:
	case <-l.stop:
		return stream.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("outcome unknown: %w", ctx.Err())
	}
}

// ask has the committer run f and returns what f returned. When ctx ends first f may still be running, so its result comes over a
// channel: a variable of the caller would be read here while the committer writes it.
func ask[T any](ctx context.Context, l *Log, f func(*committer) (T, error)) (T, error) {
	result := make(chan T, 1)
	err := l.do(ctx, func(c *committer) error {
		v, err := f(c)
		result <- v
		return err
	})
	select {
	case v := <-result:
		return v, err
	default: // never run, or not known
		var none T
		return none, err
	}
}

// run works until the log is stopped, and then stores what still waits.
func (c *committer) run() {
	for {
		select {
		case <-c.l.queue.ready:
			c.gather()
		case o := <-c.l.ops:
			o.done <- o.f(c)
		case <-c.l.stop:
			for c.l.queue.len() > 0 {
				c.step()
			}
			return
		}
	}
}

// gather lets company arrive, then commits a group.
func (c *committer) gather() {
	if d := c.l.store.cfg.SyncDelay; d > 0 {
		time.Sleep(d)
	}
	// The producers of the last group were woken a moment ago and many are about to append again. Without letting them run the
	// next group holds the first of them alone, the others wait for its sync, and every second sync is for almost nobody.
	for last := len(c.taken); last > 1; {
		before := c.l.queue.len()
		runtime.Gosched()
		if n := c.l.queue.len(); n >= last || n == before {
			break
		}
	}
	if c.step() {
		c.l.queue.wake()
	}
}

// step commits one group and tells whether more waits.
func (c *committer) step() (more bool) {
	clear(c.taken)
	c.taken, more = c.l.queue.take(groupBytes, c.taken[:0])
	c.l.met.queue.Set(float64(c.l.queue.waiting()))
	if fenced := c.l.fenced(); fenced != nil {
		for _, r := range c.taken {
			c.answer(r, fenced)
		}
		return more
	}
	live := c.taken[:0:len(c.taken)]
	for _, r := range c.taken {
		switch {
		case r.state.Load() == stateAbandoned: // nobody waits for it, so nothing of it is stored
			c.answer(r, nil)
		case c.stale(r):
			c.answer(r, errReroute)
		default:
			live = append(live, r)
		}
	}
	c.taken = live
	if len(live) == 0 {
		return more
	}
	err := c.commit(live)
	c.setFull(errors.Is(err, stream.ErrFull))
	for _, r := range live {
		c.answer(r, err)
	}
	return more
}

// answer gives a request back to its producer, or to the pool if the producer has left.
func (c *committer) answer(r *request, err error) {
	room := r.room // r is not ours after the send
	r.err = err
	if r.state.CompareAndSwap(stateWaiting, stateAnswered) {
		r.done <- struct{}{}
	} else {
		c.l.store.requests.put(r)
	}
	c.l.room.Release(room)
}

// stale tells whether a request was routed to a shard that has closed since.
func (c *committer) stale(r *request) bool {
	if r.routes == c.l.routes.Load() {
		return false
	}
	for i := range r.pieces {
		if r.routes.shards[r.pieces[i].slot].closed {
			return true
		}
	}
	return false
}

// commit makes the requests durable and visible. After an error nothing of them is, unless the log is fenced.
func (c *committer) commit(reqs []*request) error {
	begin := time.Now()
	payload := c.arrange(reqs)
	defer c.tidy()
	head := groupHead(len(c.blocks))
	size := padded(head + payload)
	if c.torn || c.held > 0 && (c.off+int64(size) > c.l.store.cfg.SegmentBytes || c.held+len(c.blocks) > segmentMost) {
		if err := c.roll(); err != nil {
			return err
		}
	}
	if err := c.reserve(int64(size)); err != nil {
		return err
	}
	c.last = max(c.last, begin.UnixMilli())
	c.fill(reqs, head, size)
	if _, err := c.file.WriteAt(c.buf, c.off); err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			// Nothing was synced since, so the pages of this group are all that is unknown, and the next group
			// overwrites them. What a longer group leaves behind a shorter one never looks like a group.
			return fmt.Errorf("%w (write %s: %w)", stream.ErrFull, c.seg.path, err)
		}
		return c.fence(fmt.Errorf("write %s at %d: %w", c.seg.path, c.off, err))
	}
	if err := c.file.SyncData(); err != nil {
		// Fence, don't retry: after a failed fsync the kernel may have dropped the pages and a second one succeed over
		// a hole (P1).
		return c.fence(fmt.Errorf("sync %s: %w", c.seg.path, err))
	}
	c.publish()
	c.l.met.sync.Observe(time.Since(begin).Seconds())
	return nil
}

// arrange collects the pieces by shard and lays out the blocks; it returns the size of all payloads.
func (c *committer) arrange(reqs []*request) (payload int) {
	c.blocks, c.touched = c.blocks[:0], c.touched[:0]
	for _, r := range reqs {
		for i := range r.pieces {
			s := r.routes.shards[r.pieces[i].slot]
			if len(s.pend) == 0 {
				c.touched = append(c.touched, s)
			}
			s.pend = append(s.pend, pendingPiece{r, i})
		}
	}
	for _, s := range c.touched {
		seq := s.next
		var b *tableBlock
		for _, p := range s.pend {
			pc := &p.r.pieces[p.i]
			if b == nil || int(b.size)+pc.size > blockBytes {
				c.blocks = append(c.blocks, tableBlock{shard: s.num, block: block{seq: seq}})
				b = &c.blocks[len(c.blocks)-1]
			}
			pc.seq = seq
			seq += uint64(pc.count)
			b.count += pc.count
			b.size += uint32(pc.size)
			payload += pc.size
		}
	}
	return payload
}

// fill builds the group in c.buf.
func (c *committer) fill(reqs []*request, head, size int) {
	if cap(c.buf) < size {
		c.buf = make([]byte, size, max(size, 2*cap(c.buf)))
	}
	c.buf = c.buf[:size]
	at := head
	for _, s := range c.touched {
		for _, p := range s.pend {
			pc := &p.r.pieces[p.i]
			at += copy(c.buf[at:], p.r.buf[pc.off:pc.end])
		}
	}
	clear(c.buf[at:])
	off := c.off + int64(head)
	for i := range c.blocks {
		c.blocks[i].off = uint32(off)
		off += int64(c.blocks[i].size)
	}
	putGroup(c.buf, c.seed, c.off, c.last, c.blocks)
	for _, r := range reqs {
		r.time = c.last
	}
}

// publish lets readers see the group, which is durable.
func (c *committer) publish() {
	l := c.l
	blocks, records := c.blocks, 0
	for _, s := range c.touched {
		s.mu.Lock()
		for len(blocks) > 0 && blocks[0].shard == s.num {
			s.blocks = append(s.blocks, blocks[0].block)
			s.next = blocks[0].end()
			s.newest = s.next - 1
			records += int(blocks[0].count)
			blocks = blocks[1:]
		}
		s.last = c.last
		s.wake()
		s.mu.Unlock()
	}
	if c.first == 0 {
		c.first = c.last
	}
	c.off += int64(len(c.buf))
	c.held += len(c.blocks)
	l.activeSize.Store(c.off)
	l.activeFirst.Store(c.first)
	l.newest.Store(c.last)
	l.met.records.Add(float64(records))
	l.met.bytes.Add(float64(len(c.buf)))
	l.met.groups.Inc()
	l.met.stored.Add(float64(len(c.buf)))
	if cap(c.buf) > 4*groupBytes {
		c.buf = nil
	}
}

// tidy forgets the pieces, of which the producers are about to be owners again.
func (c *committer) tidy() {
	for _, s := range c.touched {
		clear(s.pend)
		s.pend = s.pend[:0]
	}
}

// reserve makes sure that the disk has room for n more bytes of the active segment, some chunks ahead, so that a full disk is
// noticed before anything is written.
func (c *committer) reserve(n int64) error {
	if c.off+n <= c.room {
		return nil
	}
	least := c.off + n
	ahead := max(least, min(c.off+min(max(c.off, firstReserve), mostReserve), c.l.store.cfg.SegmentBytes))
	var err error
	for _, upTo := range []int64{ahead, least} {
		err = c.l.free(upTo - c.room)
		c.l.short.Store(err != nil)
		if err != nil {
			continue
		}
		if err = c.file.Preallocate(c.room, upTo-c.room); errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("%w (reserve %s: %w)", stream.ErrFull, c.seg.path, err)
			continue
		}
		// Any other error: the file system cannot preallocate. The write itself then says whether there was room.
		c.room = upTo
		return nil
	}
	return err
}

// free returns stream.ErrFull if writing n bytes would leave less free than is to be kept.
func (l *Log) free(n int64) error {
	u, err := l.fs.GetDiskUsage(l.dir)
	known := err == nil && u != (vfs.DiskUsage{}) // if not, the write will tell
	if keep := l.store.cfg.ReserveBytes; known && int64(min(u.AvailBytes, 1<<62)) < n+keep {
		return fmt.Errorf("%w (%d MiB are free, %d MiB are kept free)", stream.ErrFull, u.AvailBytes>>20, keep>>20)
	}
	return nil
}

// isFull tells whether the last append found no room, and there still is none: whoever stays away because the disk was full must
// learn of new room without trying. What only the write itself could tell, only another write can take back.
func (l *Log) isFull() bool {
	return l.full.Load() && (!l.short.Load() || l.free(1) != nil)
}

func (c *committer) setFull(full bool) {
	if full == c.fullNow {
		return
	}
	c.fullNow = full
	c.l.full.Store(full)
	if full {
		c.l.met.full.Set(1)
		c.l.log.Warn("the disk is full: appends are refused until there is room", "stream", c.l.name, "path", c.l.dir)
		return
	}
	c.l.met.full.Set(0)
	c.l.log.Info("the disk has room again: appends go on", "stream", c.l.name)
}

// fence refuses everything from now on that would write.
func (c *committer) fence(cause error) error {
	// The cause is told and not wrapped: a fence that a full disk caused must not pass for a full disk, of which retention makes
	// room by removing a segment.
	err := fmt.Errorf("%w (%s)", stream.ErrFenced, cause.Error())
	c.l.fence.CompareAndSwap(nil, &err)
	c.l.queue.close(err)
	c.l.met.fenced.Set(1)
	c.l.log.Error("a write failed: appends are refused until a restart", "stream", c.l.name, "error", cause)
	return err
}

// roll seals the active segment and begins the next. After an error other than a fence nothing has changed.
func (c *committer) roll() error {
	l := c.l
	next := &segment{id: c.seg.id + 1, path: l.fs.PathJoin(l.dir, segmentName(c.seg.id+1))}
	err := l.free(firstReserve)
	l.short.Store(err != nil)
	if err != nil {
		return err
	}
	h := segmentHeader{id: next.id, salt: l.salt, created: time.Now().UnixMilli(), prev: c.off, shards: l.starts()}
	file, written, err := l.createSegment(next, &h)
	switch {
	case err != nil && written:
		// The header may be durable and says that the old segment ends here: appending to that one could be lost.
		return c.fence(err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w (%w)", stream.ErrFull, err)
	case err != nil:
		return err
	}
	old, oldFile := c.seg, c.file
	l.mu.Lock()
	mem := make(memIndex, len(l.shards))
	old.size, old.first, old.last = c.off, c.first, c.last
	for _, s := range l.shards {
		s.mu.Lock()
		mem[s.num] = shardIndex{start: s.start, next: s.next, last: s.last, blocks: s.blocks}
		s.seg, s.start, s.blocks = next, s.next, nil
		s.mu.Unlock()
	}
	old.mem.Store(&mem)
	l.segments = append(l.segments, old)
	l.active = next
	l.mu.Unlock()
	c.begin(next, file, int64(segmentHeaderSize(len(h.shards))))
	l.met.segments.Inc()
	l.met.stored.Add(float64(c.off))
	select {
	case l.sealed <- struct{}{}: // the keeper writes the index file
	default:
	}
	if err := oldFile.Close(); err != nil {
		return c.fence(fmt.Errorf("close %s: %w", old.path, err))
	}
	return nil
}

// begin makes a segment the active one, with nothing but its header.
func (c *committer) begin(seg *segment, file vfs.File, head int64) {
	c.seg, c.file, c.seed = seg, file, newSeed(c.l.salt, seg.id)
	c.off, c.room, c.held, c.torn, c.first = head, head, 0, false, 0
	c.l.activeSize.Store(head)
	c.l.activeFirst.Store(0)
}

// createSegment makes a segment's file with its header, durable. written: the header may be there although err is not nil.
func (l *Log) createSegment(seg *segment, h *segmentHeader) (file vfs.File, written bool, err error) {
	f, err := l.fs.Create(seg.path, vfs.Category)
	if err != nil {
		return nil, false, fmt.Errorf("create %s: %w", seg.path, err)
	}
	if err := f.Close(); err != nil {
		return nil, false, fmt.Errorf("create %s: %w", seg.path, err)
	}
	// WriteAt works only on files from OpenReadWrite.
	if f, err = l.fs.OpenReadWrite(seg.path, vfs.Category); err != nil {
		return nil, false, fmt.Errorf("open %s: %w", seg.path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
			file = nil
		}
	}()
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		// With ENOSPC it is there in part at most, which is no header.
		return f, !errors.Is(err, syscall.ENOSPC), fmt.Errorf("write %s: %w", seg.path, err)
	}
	if err := f.Sync(); err != nil {
		return f, true, fmt.Errorf("sync %s: %w", seg.path, err)
	}
	return f, true, syncDir(l.fs, l.dir)
}

// starts returns where each shard is now, for the header of a new segment.
func (l *Log) starts() []shardStart {
	st := make([]shardStart, 0, len(l.shards))
	for _, s := range l.shards { // written by the committer alone, which is who asks
		st = append(st, shardStart{num: s.num, skipped: uint32(s.next - 1 - s.newest), next: s.next, last: s.last})
	}
	return st
}
