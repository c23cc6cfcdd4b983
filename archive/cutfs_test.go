package archive

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/milepost/milepost/internal/vfs"
)

var errCut = errors.New("power is off")

// cutFS loses power after a number of operations: it takes the crash clone at that moment, and everything fails from then on.
type cutFS struct {
	vfs.FS
	left  *atomic.Int64
	state *cutState
}

type cutState struct {
	disk   *vfs.MemFS
	rng    *rand.Rand
	cloned atomic.Pointer[vfs.MemFS]
}

func newCutFS(disk *vfs.MemFS, after int, rng *rand.Rand) *cutFS {
	left := &atomic.Int64{}
	left.Store(int64(after))
	return &cutFS{FS: disk, left: left, state: &cutState{disk: disk, rng: rand.New(rand.NewPCG(rng.Uint64(), 2))}}
}

func (c *cutFS) op() error {
	switch n := c.left.Add(-1); {
	case n == 0:
		c.state.cloned.Store(c.state.disk.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: c.state.rng.IntN(3) * 40, RNG: c.state.rng,
		}))
		return errCut
	case n < 0:
		return errCut
	}
	return nil
}

// clone is the disk after the crash; if the power never went off, it goes off now.
func (c *cutFS) clone(disk *vfs.MemFS) *vfs.MemFS {
	if d := c.state.cloned.Load(); d != nil {
		return d
	}
	return disk.CrashClone(vfs.CrashCloneCfg{})
}

func (c *cutFS) Create(name string, cat pebblevfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.op(); err != nil {
		return nil, err
	}
	f, err := c.FS.Create(name, cat)
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

func (c *cutFS) OpenDir(name string) (vfs.File, error) {
	f, err := c.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

func (c *cutFS) Rename(from, to string) error {
	if err := c.op(); err != nil {
		return err
	}
	return c.FS.Rename(from, to)
}

func (c *cutFS) Remove(name string) error {
	if err := c.op(); err != nil {
		return err
	}
	return c.FS.Remove(name)
}

type cutFile struct {
	vfs.File
	fs *cutFS
}

func (f *cutFile) Write(p []byte) (int, error) {
	if err := f.fs.op(); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *cutFile) Sync() error {
	if err := f.fs.op(); err != nil {
		return err
	}
	return f.File.Sync()
}
