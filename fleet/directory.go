package fleet

import (
	"sync"

	"github.com/milepost/milepost/stream"
)

// directory finds a vehicle whichever lane owns it.
//
// Lock order: a lane's mu before the directory's mu. with() must go the other way round (the directory says which lane), so it
// reads the owner, lets go, locks the owner, and looks again: between the two the vehicle may have been handed to a child
// shard's lane or read anew after a reset.
type directory struct {
	mu   sync.RWMutex
	all  map[string]*vehicle
	cold sync.RWMutex // held to read a vehicle that no lane owns, and to give it to one
	next uint32       // live index of the next new vehicle
	idx  map[string]uint32
}

// put enters a vehicle or replaces what was known under its id.
func (d *directory) put(v *vehicle) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.idx == nil {
		d.idx = map[string]uint32{}
	}
	i, ok := d.idx[v.id]
	if !ok {
		i = d.next
		d.next++
		d.idx[v.id] = i
	}
	v.index = i
	d.all[v.id] = v
}

// hand gives a vehicle to a lane, which holds its own lock.
func (d *directory) hand(v *vehicle, l *lane) {
	d.cold.Lock()
	v.lane.Store(l)
	d.cold.Unlock()
	d.put(v)
}

// adopt enters vehicles that have lost their lane.
func (d *directory) adopt(vs map[string]*vehicle) {
	for _, v := range vs {
		d.put(v)
	}
}

// unowned returns the vehicles in a shard's range that no lane owns.
func (d *directory) unowned(sh *stream.Shard) []*vehicle {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var vs []*vehicle
	for id, v := range d.all {
		if v.lane.Load() == nil && sh.Contains(stream.KeyHash(id)) {
			vs = append(vs, v)
		}
	}
	return vs
}

// with runs f on a vehicle while nobody writes it; false: there is no such vehicle.
func (d *directory) with(id string, f func(*vehicle)) bool {
	for {
		d.mu.RLock()
		v, ok := d.all[id]
		d.mu.RUnlock()
		if !ok {
			return false
		}
		l := v.lane.Load()
		if l == nil {
			// Nobody writes a vehicle without a lane, and a lane that takes it over waits for cold.
			d.cold.RLock()
			if v.lane.Load() == nil {
				f(v)
				d.cold.RUnlock()
				return true
			}
			d.cold.RUnlock()
			continue
		}
		l.mu.RLock()
		if v.lane.Load() == l {
			f(v)
			l.mu.RUnlock()
			return true
		}
		l.mu.RUnlock()
	}
}

func (d *directory) ids() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	ids := make([]string, 0, len(d.all))
	for id := range d.all {
		ids = append(ids, id)
	}
	return ids
}

func (d *directory) len() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.all)
}
