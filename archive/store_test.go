package archive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// journal is the smallest state.Store that survives a crash as the contract says: a map, and a file of transactions.
type journal struct {
	mu   sync.Mutex
	f    vfs.File
	kv   map[string]string
	fail func() error // asked before and after each commit

	// While the disk is full, a commit that was under way can be seen and waits for room; it and later ones fail with state.ErrFull.
	full    int    // so many commits
	refused func() // called by each but the first
	waiting *journalEntry
}

type journalEntry struct {
	Set map[string]string
	Del []string
}

func openJournal(fs vfs.FS, path string) (*journal, error) {
	j := &journal{kv: map[string]string{}}
	if old, err := fs.Open(path); err == nil {
		data, err := io.ReadAll(old)
		if err != nil {
			return nil, err
		}
		_ = old.Close()
		sc := bufio.NewScanner(bytes.NewReader(data))
		sc.Buffer(nil, 64<<20)
		for sc.Scan() {
			var e journalEntry
			if json.Unmarshal(sc.Bytes(), &e) != nil {
				break // torn
			}
			j.apply(e)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Rewritten whole, so that a torn end does not precede what follows.
	f, err := fs.Create(path+".new", vfs.Category)
	if err != nil {
		return nil, err
	}
	j.f = f
	if err := errors.Join(j.write(journalEntry{Set: j.kv}, true), fs.Rename(path+".new", path)); err != nil {
		return nil, err
	}
	dir, err := fs.OpenDir(fs.PathDir(path))
	if err != nil {
		return nil, err
	}
	return j, errors.Join(dir.Sync(), dir.Close())
}

func (j *journal) apply(e journalEntry) {
	for _, k := range e.Del {
		delete(j.kv, k)
	}
	maps.Copy(j.kv, e.Set)
}

func (j *journal) write(e journalEntry, sync bool) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		return err
	}
	if sync {
		return j.f.Sync()
	}
	return nil
}

func checkpointKey(fn string, sh stream.ShardID) string { return "checkpoint/" + fn + "/" + string(sh) }

func (j *journal) Checkpoint(_ context.Context, fn string, sh stream.ShardID, _ int) (stream.Position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return stream.Position(j.kv[checkpointKey(fn, sh)]), nil
}

func (j *journal) Advance(_ context.Context, s state.Step, f func(state.Tx) error) error {
	return j.commit(false, func(tx *journalTx) error {
		k := checkpointKey(s.Func, s.Shard)
		if j.kv[k] != string(s.From) {
			return state.ErrMoved
		}
		tx.e.Set[k] = string(s.To)
		return f(tx)
	})
}

func (j *journal) Update(_ context.Context, f func(state.Tx) error) error {
	return j.commit(true, func(tx *journalTx) error { return f(tx) })
}

func (j *journal) commit(sync bool, f func(*journalTx) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	tx := &journalTx{j: j, e: journalEntry{Set: map[string]string{}}}
	if err := f(tx); err != nil {
		return err
	}
	switch {
	case j.full > 0 && j.waiting == nil:
		j.full--
		j.waiting = &tx.e
		j.apply(tx.e)
		return state.ErrFull
	case j.full > 0:
		j.full--
		j.refused()
		return state.ErrFull
	case j.waiting != nil:
		if err := j.write(*j.waiting, true); err != nil {
			return err
		}
		j.waiting = nil
	}
	if j.fail != nil {
		if err := j.fail(); err != nil {
			return err
		}
	}
	if err := j.write(tx.e, sync || tx.sync); err != nil {
		return err
	}
	j.apply(tx.e)
	if j.fail != nil {
		return j.fail()
	}
	return nil
}

func (j *journal) View(_ context.Context, f func(state.Reader) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return f(&journalTx{j: j})
}

func (j *journal) Pending(context.Context, string, int) ([]state.Effect, <-chan struct{}, error) {
	return nil, nil, nil
}
func (j *journal) Done(context.Context, string, ...string) error { return nil }
func (j *journal) Close() error                                  { return j.f.Close() }

type journalTx struct {
	j    *journal
	e    journalEntry
	sync bool
}

func (t *journalTx) Get(k []byte) ([]byte, error) {
	if v, ok := t.j.kv[string(k)]; ok {
		return []byte(v), nil
	}
	return nil, nil
}

func (t *journalTx) Scan(from, to []byte, f func(k, v []byte) error) error {
	for _, k := range slices.Sorted(maps.Keys(t.j.kv)) {
		if k >= string(from) && k < string(to) {
			if err := f([]byte(k), []byte(t.j.kv[k])); err != nil {
				return err
			}
		}
	}
	return nil
}
func (t *journalTx) Set(k, v []byte) error { t.e.Set[string(k)] = string(v); return nil }
func (t *journalTx) Delete(k []byte) error { t.e.Del = append(t.e.Del, string(k)); return nil }
func (t *journalTx) DeleteRange(from, to []byte) error {
	return t.Scan(from, to, func(k, _ []byte) error { return t.Delete(k) })
}
func (t *journalTx) Emit(state.Effect) error { return nil }
func (t *journalTx) Sync()                   { t.sync = true }
