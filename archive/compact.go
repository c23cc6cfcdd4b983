package archive

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
)

// keeper compacts, applies retention and removes what no query uses any more, until Close.
func (a *Archive) keeper() {
	tick := time.NewTicker(a.cfg.Compaction.Every)
	defer tick.Stop()
	for {
		work := false
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
			work = true
		case <-a.wake:
		}
		if err := a.removeObsolete(a.ctx); err != nil && a.ctx.Err() == nil {
			a.cfg.Log.Warn("replaced archive objects not removed yet", "err", err)
		}
		if !work {
			continue
		}
		if err := a.expire(a.ctx, time.Now()); err != nil && a.ctx.Err() == nil {
			a.cfg.Log.Error("archive retention failed; it will be tried again", "err", err)
		}
		if a.cfg.Compaction.Off {
			continue
		}
		for {
			merged, err := a.Compact(a.ctx, time.Now())
			if err != nil && a.ctx.Err() == nil {
				a.met.mergeFailed.Inc()
				a.cfg.Log.Error("archive compaction failed; it will be tried again", "err", err)
			}
			if err != nil || merged == 0 {
				break
			}
		}
	}
}

// Compact does the most useful merge there is at the moment now, and returns how many objects it replaced; 0: nothing to do.
func (a *Archive) Compact(ctx context.Context, now time.Time) (int, error) {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	for files := a.Files(); len(files) > 0; {
		n := 1
		for n < len(files) && files[n].Date == files[0].Date {
			n++
		}
		if pick := a.cfg.Compaction.pick(files[:n], now); len(pick) > 1 {
			return len(pick), a.merge(ctx, pick)
		}
		files = files[n:]
	}
	return 0, nil
}

// pick chooses the files of one day to merge, nil if there is nothing worth it.
//
// While a day is open, files of about one size (a power of four of rows) are merged when FanIn of them exist: each row is
// then rewritten once per factor FanIn of growth. A finished day becomes one run sorted by vehicle and time; late rows that
// follow are merged among themselves until they are a tenth of the day.
func (c *Compaction) pick(day []*File, now time.Time) []*File {
	if len(day) < 2 {
		return nil
	}
	over, err := time.Parse(time.DateOnly, day[0].Date)
	if err != nil {
		return nil
	}
	newest, total := int64(0), int64(0)
	for _, f := range day {
		newest = max(newest, f.Written)
		total += f.Rows
	}
	finished := !now.Before(over.Add(24*time.Hour)) && now.Sub(time.UnixMilli(newest)) >= c.Settle
	small := slices.DeleteFunc(slices.Clone(day), func(f *File) bool { return f.Run })
	slices.SortFunc(small, func(a, b *File) int {
		return cmp.Or(cmp.Compare(a.Rows, b.Rows), cmp.Compare(a.Name, b.Name))
	})
	most, outside := 2*c.FanIn, int64(0)
	for _, f := range small {
		outside += f.Rows
	}
	if finished && 10*outside >= total {
		if len(small) > most {
			return small[:most]
		}
		return day
	}
	for lo := 0; lo < len(small); {
		class := bits.Len64(uint64(small[lo].Rows)) / 2 //nolint:gosec // positive
		hi := lo
		for hi < len(small) && bits.Len64(uint64(small[hi].Rows))/2 == class { //nolint:gosec // positive
			hi++
		}
		if hi-lo >= c.FanIn && small[lo].Rows < c.MaxRows/2 {
			return small[lo:min(hi, lo+most)]
		}
		lo = hi
	}
	return nil
}

// merge replaces files of one day by sorted ones with the same rows.
func (a *Archive) merge(ctx context.Context, old []*File) error {
	began := time.Now()
	whole := true
	for _, f := range a.Files() {
		whole = whole && (f.Date != old[0].Date || slices.Contains(old, f))
	}
	add, err := a.mergeFiles(ctx, old)
	for _, f := range add {
		f.Run = whole
	}
	if err != nil {
		a.discard(add)
		return fmt.Errorf("merge %d objects of %s: %w", len(old), old[0].Date, err)
	}
	err = a.cfg.Store.Update(ctx, func(tx state.Tx) error {
		for _, f := range old {
			if err := errors.Join(tx.Delete([]byte(filePrefix+f.Name)), tx.Set([]byte(gonePrefix+f.Name), []byte{1})); err != nil {
				return err
			}
		}
		for _, f := range add {
			if err := setFile(tx, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		// As in a flush, only the store knows whether it happened.
		done, verr := a.named(context.WithoutCancel(ctx), add[0])
		if verr != nil {
			// Both sets of files stay: the next Open keeps the one that the manifest names.
			return errors.Join(err, verr)
		}
		if !done {
			a.discard(add)
			return err
		}
		// It can be seen; but while the disk is full that does not mean that it is on it, and the old objects are all there is until then.
		if derr := a.durably(ctx); derr != nil {
			return errors.Join(err, derr)
		}
	}
	a.settle(add)
	a.retire(old, add)
	a.met.mergedFiles.Add(float64(len(old)))
	for _, f := range add {
		a.met.mergedRows.Add(float64(f.Rows))
	}
	a.met.mergeSeconds.Add(time.Since(began).Seconds())
	signal(a.wake)
	return nil
}

// durably waits until what the store shows is on disk, as long as the disk is full. After another error, or when the archive closes,
// nothing more is written by us, and the next Open keeps what the manifest names.
func (a *Archive) durably(ctx context.Context) error {
	for {
		err := a.cfg.Store.Update(ctx, func(state.Tx) error { return nil }) // synced, and with it all before
		if !errors.Is(err, state.ErrFull) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(fullPause):
		}
	}
}

// fullPause is how long to wait for room on a full disk before looking again.
const fullPause = 100 * time.Millisecond

func (a *Archive) named(ctx context.Context, f *File) (ok bool, err error) {
	err = a.cfg.Store.View(ctx, func(r state.Reader) error {
		v, err := r.Get([]byte(filePrefix + f.Name))
		ok = v != nil
		return err
	})
	return ok, err
}

// mergeFiles writes the merged objects under temporary names, synced. With an error it returns those it began. It holds one
// page of each column of each input, and one row group of the output.
func (a *Archive) mergeFiles(ctx context.Context, old []*File) (add []*File, err error) {
	var groups, run []parquet.RowGroup
	want := int64(0)
	for _, f := range old {
		in, size, err := a.openObject(f)
		if err != nil {
			return nil, err
		}
		defer func() { _ = in.Close() }() // read only
		pf, err := parquet.OpenFile(in, size, parquet.SkipBloomFilters(true), parquet.FileSchema(a.schema.parquet),
			parquet.ReadBufferSize(64<<10))
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", f.Name, err)
		}
		if pf.NumRows() != f.Rows {
			return nil, fmt.Errorf("object %s has %d rows, its manifest row says %d", f.Name, pf.NumRows(), f.Rows)
		}
		want += f.Rows
		// The row groups of one object follow each other in order, and so do the objects of a run: their names are numbered.
		if f.Run {
			run = append(run, pf.RowGroups()...)
			continue
		}
		groups = append(groups, parquet.MultiRowGroup(pf.RowGroups()...))
	}
	if len(run) > 0 {
		groups = append(groups, parquet.MultiRowGroup(run...))
	}
	merged, err := parquet.MergeRowGroups(groups, a.schema.parquet, parquet.SortingRowGroupConfig(parquet.SortingColumns(sorting()...)))
	if err != nil {
		return nil, err
	}
	rows := merged.Rows()
	defer func() { err = errors.Join(err, rows.Close()) }()
	m := &merger{a: a, ctx: ctx, old: old, w: newWriter(a.schema, a.cfg.Catalog), id: mergeID(old)}
	if err := m.copy(rows); err != nil {
		return m.add, err
	}
	got := int64(0)
	for _, f := range m.add {
		got += f.Rows
	}
	if got != want {
		return m.add, fmt.Errorf("merged %d rows of %d", got, want)
	}
	return m.add, a.syncDirs(a.cfg.FS.PathDir(a.temporary(m.add[0].Name)))
}

// mergeID is the same for the same inputs.
func mergeID(old []*File) string {
	h := sha256.New()
	for _, f := range old {
		_, _ = io.WriteString(h, f.Name+"\n") // a hash never fails
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

type merger struct {
	a   *Archive
	ctx context.Context //nolint:containedctx // lives as long as one call
	old []*File
	id  string
	w   *writer
	add []*File
	cur *File
	f   vfs.File
}

func (m *merger) copy(rows parquet.Rows) (err error) {
	defer func() {
		if m.f != nil { // with an error: the merge goes no further, the file will be removed
			_ = m.f.Close()
		}
	}()
	buf := make([]parquet.Row, 1024)
	for {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		n, err := rows.ReadRows(buf)
		for at := 0; at < n; {
			if m.cur == nil {
				if err := m.begin(buf[at]); err != nil {
					return err
				}
			}
			inGroup := int(m.cur.Rows % rowGroupRows)
			k := min(n-at, rowGroupRows-inGroup, int(min(m.a.cfg.Compaction.MaxRows-m.cur.Rows, 1<<20)))
			if _, err := m.w.w.WriteRows(buf[at : at+k]); err != nil {
				return err
			}
			m.count(buf[at : at+k])
			at += k
			if m.cur.Rows%rowGroupRows == 0 {
				if err := m.w.w.Flush(); err != nil {
					return err
				}
			}
			if m.cur.Rows >= m.a.cfg.Compaction.MaxRows {
				if err := m.end(); err != nil {
					return err
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if m.cur != nil {
				return m.end()
			}
			return nil
		case err != nil:
			return err
		}
	}
}

func (m *merger) begin(first parquet.Row) error {
	date := m.old[0].Date
	f := &File{
		Name: fmt.Sprintf("date=%s/merged-%s-%03d.parquet", date, m.id, len(m.add)), Date: date,
		Written: time.Now().UnixMilli(), Schema: SchemaVersion,
		MinVehicle: string(first[colVehicle].ByteArray()), MinTime: first[colEvent].Int64(), MaxTime: first[colEvent].Int64(),
	}
	for _, o := range m.old {
		f.Merged = max(f.Merged, o.Merged+1)
	}
	m.add = append(m.add, f)
	var err error
	m.f, err = m.w.create(m.a.cfg.FS, m.a.temporary(f.Name))
	m.cur = f
	return err
}

func (m *merger) count(rows []parquet.Row) {
	for _, r := range rows {
		ms := r[colEvent].Int64()
		m.cur.MinTime, m.cur.MaxTime = min(m.cur.MinTime, ms), max(m.cur.MaxTime, ms)
	}
	m.cur.Rows += int64(len(rows))
	m.cur.MaxVehicle = string(rows[len(rows)-1][colVehicle].ByteArray())
}

func (m *merger) end() (err error) {
	f := m.f
	m.f = nil
	m.cur.Bytes, err = m.w.finish(f)
	m.cur = nil
	return err
}

func (a *Archive) openObject(f *File) (vfs.File, int64, error) {
	in, err := a.cfg.FS.Open(f.path)
	if err != nil {
		return nil, 0, err
	}
	st, err := in.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, in.Close())
	}
	return in, st.Size(), nil
}

// removeObsolete deletes objects that were replaced or have expired, once no snapshot uses them.
func (a *Archive) removeObsolete(ctx context.Context) error {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	files := a.removable()
	if len(files) == 0 {
		return nil
	}
	var errs []error
	done := files[:0]
	for _, f := range files {
		if err := a.cfg.FS.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err) // its gone row stays: the next Open removes it
			continue
		}
		done = append(done, f)
	}
	dirs := map[string]bool{}
	for _, f := range done {
		dirs[a.cfg.FS.PathDir(f.path)] = true
	}
	for dir := range dirs {
		// An empty directory (its day expired) goes too; another is not removable, which is the answer wanted.
		if left, err := a.cfg.FS.List(dir); err == nil && len(left) == 0 {
			a.flushing.Lock() // a flush may be about to write into it
			if left, err := a.cfg.FS.List(dir); err == nil && len(left) == 0 {
				clear(a.durable)
				errs = append(errs, a.cfg.FS.Remove(dir), a.syncDirs(a.root))
			}
			a.flushing.Unlock()
			continue
		}
		errs = append(errs, a.syncDirs(dir))
	}
	if len(errs) == 0 || errors.Join(errs...) == nil {
		// Only after the removal is durable: a gone row that is forgotten too early leaves an unknown file.
		errs = append(errs, a.cfg.Store.Update(ctx, func(tx state.Tx) error {
			for _, f := range done {
				if err := tx.Delete([]byte(gonePrefix + f.Name)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}

// expire removes the event days that retention gives up.
func (a *Archive) expire(ctx context.Context, now time.Time) error {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	old := expired(a.Files(), now, a.cfg.Retention, a.cfg.RetentionBytes)
	if len(old) == 0 {
		return nil
	}
	err := a.cfg.Store.Update(ctx, func(tx state.Tx) error {
		for _, f := range old {
			if err := errors.Join(tx.Delete([]byte(filePrefix+f.Name)), tx.Set([]byte(gonePrefix+f.Name), []byte{1})); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.retire(old, nil)
	a.met.expired.Add(float64(len(old)))
	a.cfg.Log.InfoContext(ctx, "archive retention removed objects", "objects", len(old), "from", old[0].Date, "to", old[len(old)-1].Date)
	signal(a.wake)
	return nil
}

// expired returns the files, a prefix of the list, whose whole days are too old or too much.
func expired(files []*File, now time.Time, age time.Duration, size int64) []*File {
	n := 0
	if age > 0 {
		// A day is given up when its last moment is older than the retention.
		keep := now.Add(-age).UTC().Format(time.DateOnly)
		for n < len(files) && files[n].Date < keep {
			n++
		}
	}
	if size > 0 {
		total := int64(0)
		for _, f := range files[n:] {
			total += f.Bytes
		}
		for n < len(files) && total > size && files[n].Date != files[len(files)-1].Date {
			for day := files[n].Date; n < len(files) && files[n].Date == day; n++ {
				total -= files[n].Bytes
			}
		}
	}
	return files[:n]
}
