package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/milepost/milepost/process/forest"
)

// Keys in the state store. Vehicle ids have no zero byte.
//
//	anomaly/w/ vehicle                 what a Watch knows, without forests: version 1, see Watch.fields
//	anomaly/f/ vehicle 0 detector      a forest, as forest.Encode writes it, at some moment
//	anomaly/t/ vehicle 0 detector      what was done to it since: 0 a break, 1 an observation and its 4-byte floats, little-endian
//
// A forest is half a megabyte, so it is written once for tailMost operations; the tail brings it up to now, bit by bit, because a
// forest is deterministic. Forest, tail and the rest always move in one step.
const (
	watchPrefix  = "anomaly/w/"
	forestPrefix = "anomaly/f/"
	tailPrefix   = "anomaly/t/"

	stateVersion = 1
	tailMost     = 256
)

var errCorrupt = errors.New("stored anomaly state is damaged")

func detectorKey(prefix, vehicle, detector string) []byte {
	return append(append(append([]byte(prefix), vehicle...), 0), detector...)
}

// A codec writes fields or reads them back: one list of fields serves both.
type codec struct {
	b       []byte
	reading bool
	bad     bool
}

func (c *codec) u64(x *uint64) {
	if !c.reading {
		c.b = binary.LittleEndian.AppendUint64(c.b, *x)
		return
	}
	if len(c.b) < 8 {
		c.b, c.bad = nil, true
		return
	}
	*x = binary.LittleEndian.Uint64(c.b)
	c.b = c.b[8:]
}

func (c *codec) i64(x *int64) {
	u := uint64(*x) //nolint:gosec // bits
	c.u64(&u)
	*x = int64(u) //nolint:gosec // bits
}

func (c *codec) f64(x *float64) {
	u := math.Float64bits(*x)
	c.u64(&u)
	*x = math.Float64frombits(u)
}

func (c *codec) bool(x *bool) {
	var u uint8
	if *x {
		u = 1
	}
	c.u8(&u)
	*x = u != 0
}

func (c *codec) u8(x *uint8) {
	if !c.reading {
		c.b = append(c.b, *x)
		return
	}
	if len(c.b) < 1 {
		c.bad = true
		return
	}
	*x = c.b[0]
	c.b = c.b[1:]
}

func (c *codec) normal(m *normal) {
	c.f64(&m.n)
	c.f64(&m.mean)
	c.f64(&m.vrc)
	c.bad = c.bad || nan(m.n) || nan(m.mean) || nan(m.vrc)
}

// fields lists what a Watch keeps, in order.
func (w *Watch) fields(c *codec) {
	for _, x := range []*int64{&w.last, &w.arrival, &w.bucket, &w.before} {
		c.i64(x)
	}
	c.f64(&w.lat)
	c.f64(&w.lon)
	c.bool(&w.placed)
	for i := range w.sum {
		c.f64(&w.sum[i])
		n := int64(w.count[i])
		c.i64(&n)
		w.count[i] = int32(n) //nolint:gosec // readings in a bucket
		c.f64(&w.held[i])
		c.i64(&w.heldAt[i])
	}
	for i := range w.each {
		m := &w.each[i]
		c.u8(&m.votes)
		c.i64(&m.opened)
		c.i64(&m.closed)
		d := &w.plan.detectors[i]
		c.f64(&w.values.V[d.score])
		c.f64(&w.values.V[d.votes])
		c.i64(&w.values.T[d.score])
		c.i64(&w.values.T[d.votes])
		watched := m.watched
		c.bool(&watched)
		if !watched {
			continue
		}
		if !m.watched { // it was, before the glob was changed
			m = NewWatch(w.plan, w.vehicle).blank(i)
		}
		if t := m.trend; t != nil {
			for k := range t.bins {
				c.normal(&t.bins[k])
			}
			c.normal(&t.rest)
			c.f64(&t.load)
			c.f64(&t.cusum)
			c.bool(&t.ready)
			n := uint64(len(t.r))
			c.u64(&n)
			if c.reading {
				if n > maxWindow {
					c.bad = true
					return
				}
				t.r, t.at = make([]float64, n), make([]int64, n)
			}
			for k := range t.r {
				c.f64(&t.r[k])
				c.i64(&t.at[k])
				c.bad = c.bad || k > 0 && t.at[k] <= t.at[k-1]
			}
		}
		if r := m.rcf; r != nil {
			for k := range r.scale {
				c.normal(&r.scale[k])
			}
			for k := range r.last {
				c.f64(&r.last[k])
			}
			c.f64(&r.mean)
			c.f64(&r.vrc)
			c.bool(&r.broken)
			has := r.f != nil
			c.bool(&has)
			r.has = has
		}
	}
}

// blank makes a memory for a detector that no longer watches the vehicle, to read over what it had.
func (w *Watch) blank(i int) *memory {
	d, m := &w.plan.detectors[i], &w.each[i]
	if d.Kind == Trend {
		m.trend = &trend{}
	} else {
		m.rcf = &rcf{scale: make([]normal, len(d.inputs)), last: make([]float64, len(d.inputs))}
	}
	return m
}

// encode appends a Watch without its forests. The names of what fires come first and outlive a change of the detectors.
func (w *Watch) encode(b []byte) []byte {
	c := codec{b: append(b, stateVersion)}
	c.u64(&w.plan.hash)
	firing, _ := w.plan.set.AppendFiring(nil, w.rules)
	c.b = binary.AppendUvarint(c.b, uint64(len(firing)))
	for _, name := range firing {
		c.b = append(binary.AppendUvarint(c.b, uint64(len(name))), name...)
	}
	w.fields(&c)
	return w.plan.set.AppendState(c.b, w.rules)
}

// decode reads what encode wrote. fresh is true if detectors have been changed since: then the Watch learns anew, and firing names
// those of the old detectors whose alerts are open.
func (w *Watch) decode(b []byte) (fresh bool, firing []string, err error) {
	if len(b) == 0 {
		return false, nil, errCorrupt
	}
	if b[0] != stateVersion {
		return false, nil, fmt.Errorf("stored anomaly state has version %d, this program reads %d: run a newer one", b[0], stateVersion)
	}
	c := codec{b: b[1:], reading: true}
	var hash uint64
	c.u64(&hash)
	for range c.length() {
		n := c.length()
		if n > len(c.b) {
			return false, nil, errCorrupt
		}
		firing = append(firing, string(c.b[:n]))
		c.b = c.b[n:]
	}
	if c.bad {
		return false, nil, errCorrupt
	}
	if hash != w.plan.hash {
		return true, firing, nil
	}
	w.fields(&c)
	if c.bad {
		return false, firing, errCorrupt
	}
	if _, err := w.plan.set.DecodeState(c.b, w.rules); err != nil {
		return false, firing, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return false, firing, nil
}

// length reads a number of bytes or things, each at least a byte.
func (c *codec) length() int {
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > uint64(len(c.b)) {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return int(v) //nolint:gosec // at most len(c.b)
}

// restore brings a forest back: as it was written, and what was done since.
func (r *rcf) restore(d *detector, vehicle string, stored, tail []byte) (err error) {
	cfg := d.forestConfig(vehicle)
	changed := false
	if stored != nil {
		r.f, changed, err = forest.Decode(cfg, stored)
	} else {
		r.f, err = forest.New(cfg)
	}
	if err != nil || changed {
		r.f = nil
		return errCorrupt
	}
	r.tail = append(r.tail[:0], tail...)
	r.added, err = replay(r.f, len(d.inputs), tail)
	return err
}
