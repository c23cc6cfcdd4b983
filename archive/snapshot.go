package archive

import (
	"slices"

	"github.com/milepost/milepost/stream"
)

// A Snapshot is every reading at one moment, each once: those of the files and those of the tail. Its files stay where they
// are until Release.
type Snapshot struct {
	Files []*File // by day and name; shared: do not write
	Tail  []Rows
	Pos   map[stream.ShardID]stream.Position // up to where each shard is complete

	a     *Archive
	epoch uint64
}

// Snapshot takes one. It copies no row. The caller must Release it.
func (a *Archive) Snapshot() *Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &Snapshot{a: a, Files: a.files, epoch: a.epoch, Pos: make(map[stream.ShardID]stream.Position, len(a.lanes))}
	for _, l := range a.lanes {
		l.mu.Lock()
		s.Tail = l.view(s.Tail)
		s.Pos[l.shard] = l.pos
		l.mu.Unlock()
	}
	a.live[s] = struct{}{}
	return s
}

// TailRows is how many rows the tail holds.
func (s *Snapshot) TailRows() int {
	n := 0
	for i := range s.Tail {
		n += s.Tail[i].Len()
	}
	return n
}

// Release lets the files go. The tail stays valid. A second Release does nothing.
func (s *Snapshot) Release() {
	a := s.a
	a.mu.Lock()
	delete(a.live, s)
	waiting := len(a.obsolete) > 0
	a.mu.Unlock()
	if waiting {
		signal(a.wake)
	}
}

// An obsolete file has left files in some epoch: snapshots of earlier epochs may use it.
type obsolete struct {
	f     *File
	epoch uint64
}

// retire takes files out of the list that snapshots get and adds others. The caller has changed the manifest.
func (a *Archive) retire(old, add []*File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	keep := make([]*File, 0, len(a.files)+len(add))
	for _, f := range a.files {
		if !slices.Contains(old, f) {
			keep = append(keep, f)
		}
	}
	a.files = append(keep, add...)
	slices.SortFunc(a.files, byDayAndName)
	a.epoch++
	for _, f := range old {
		a.obsolete = append(a.obsolete, obsolete{f, a.epoch})
	}
}

// removable takes the obsolete files that no snapshot uses.
func (a *Archive) removable() []*File {
	a.mu.Lock()
	defer a.mu.Unlock()
	oldest := a.epoch
	for s := range a.live {
		oldest = min(oldest, s.epoch)
	}
	var out []*File
	a.obsolete = slices.DeleteFunc(a.obsolete, func(o obsolete) bool {
		if o.epoch > oldest {
			return false
		}
		out = append(out, o.f)
		return true
	})
	return out
}
