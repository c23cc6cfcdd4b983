package window

import (
	"cmp"
	"encoding/binary"
	"math"
	"strings"

	"github.com/DataDog/sketches-go/ddsketch/mapping"

	"github.com/milepost/milepost/internal/binenc"
	"github.com/milepost/milepost/telemetry"
)

// A Func is an aggregate function.
type Func string

// The aggregate functions.
const (
	Count    Func = "count" // rows, or those that have the column
	SumOf    Func = "sum"
	Avg      Func = "avg"
	Min      Func = "min"
	Max      Func = "max"
	First    Func = "first" // by event time
	Last     Func = "last"
	Distinct Func = "distinct"
	P50      Func = "p50"
	P90      Func = "p90"
	P95      Func = "p95"
	P99      Func = "p99"
)

// Funcs are all aggregate functions, in the order of the documentation.
func Funcs() []Func {
	return []Func{Count, SumOf, Avg, Min, Max, First, Last, Distinct, P50, P90, P95, P99}
}

func (f Func) quantile() float64 {
	switch f {
	case P50:
		return 0.5
	case P90:
		return 0.9
	case P95:
		return 0.95
	case P99:
		return 0.99
	default:
		return 0
	}
}

// takesText tells the functions that make sense of text.
func (f Func) takesText() bool { return f == Count || f == First || f == Last || f == Distinct }

// An Aggregate is one figure of a window.
type Aggregate struct {
	Func   Func
	Column string // "": count of rows
	As     string // its name in results
}

// A ValueKind says what a Value holds.
type ValueKind uint8

// The kinds.
const (
	None ValueKind = iota
	Number
	Text
)

// A Value is one value of a row or of a result.
type Value struct {
	Text string
	Num  float64
	Kind ValueKind
}

// A Row is one event. A machine borrows it.
type Row struct {
	Time   int64   // event time, Unix ms
	Hash   uint64  // of what the event says: breaks ties between rows of one time
	Values []Value // by Def.Columns
}

// A plan says where a pane keeps what for each column.
type plan struct {
	cells   []cell
	words   int
	objects int
	mapping mapping.IndexMapping
}

// A cell is what is kept of one column. Offsets are -1 for what nobody asked for.
type cell struct {
	count               int // word
	sum                 int // three words
	min, max            int // a word each
	first, last         int // three words each: time, tie, number; text in an object of their own
	firstText, lastText int
	set, sketch         int // objects
	row                 int // which of Row.Values
}

// An object is what does not fit into words. One of its fields is used.
type object struct {
	text   string
	set    *set
	sketch *sketch
}

// A pane is what is kept of the rows of one stretch of time.
type pane struct {
	start   int64
	end     int64 // sessions: time of the last row
	rows    uint64
	words   []uint64
	objects []object
	emitted bool // sessions: a result with this start has been written
	dirty   bool // changed since the last early result
	unsaved bool // changed since the last PutOpen
}

func newPlan(aggs []Aggregate, columns []string) *plan {
	p := &plan{}
	word := func(at *int, n int) {
		if *at < 0 {
			*at = p.words
			p.words += n
		}
	}
	obj := func(at *int) {
		if *at < 0 {
			*at = p.objects
			p.objects++
		}
	}
	for i, col := range columns {
		c := cell{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, i}
		for _, a := range aggs {
			if a.Column != col {
				continue
			}
			switch a.Func {
			case Count:
				word(&c.count, 1)
			case SumOf, Avg:
				word(&c.count, 1)
				word(&c.sum, 3)
			case Min:
				word(&c.count, 1)
				word(&c.min, 1)
			case Max:
				word(&c.count, 1)
				word(&c.max, 1)
			case First:
				word(&c.first, 3)
				obj(&c.firstText)
			case Last:
				word(&c.last, 3)
				obj(&c.lastText)
			case Distinct:
				obj(&c.set)
			case P50, P90, P95, P99:
				obj(&c.sketch)
				if p.mapping == nil {
					p.mapping = newMapping()
				}
			}
		}
		p.cells = append(p.cells, c)
	}
	return p
}

func (p *plan) pane(start int64) pane {
	q := pane{start: start, end: start}
	if p.words > 0 {
		q.words = make([]uint64, p.words)
	}
	if p.objects > 0 {
		q.objects = make([]object, p.objects)
	}
	return q
}

func (p *plan) add(q *pane, row *Row) {
	q.rows++
	q.dirty, q.unsaved = true, true
	for i := range p.cells {
		c := &p.cells[i]
		v := &row.Values[c.row]
		if v.Kind == None || (v.Kind == Number && !Usable(v.Num)) {
			continue
		}
		p.addValue(q, c, v, row)
	}
}

func (p *plan) addValue(q *pane, c *cell, v *Value, row *Row) {
	w := q.words
	if v.Kind == Number || (c.sum < 0 && c.min < 0 && c.max < 0) {
		if c.count >= 0 {
			w[c.count]++
		}
	}
	if v.Kind == Number {
		x := v.Num
		if x == 0 {
			x = 0 // the negative zero too
		}
		if c.sum >= 0 {
			s := Sum{w[c.sum], w[c.sum+1], w[c.sum+2]}
			s.Add(x)
			w[c.sum], w[c.sum+1], w[c.sum+2] = s.hi, s.mid, s.lo
		}
		if c.min >= 0 && (w[c.count] == 1 || x < math.Float64frombits(w[c.min])) {
			w[c.min] = math.Float64bits(x)
		}
		if c.max >= 0 && (w[c.count] == 1 || x > math.Float64frombits(w[c.max])) {
			w[c.max] = math.Float64bits(x)
		}
		if c.sketch >= 0 {
			o := &q.objects[c.sketch]
			if o.sketch == nil {
				o.sketch = &sketch{}
			}
			o.sketch.add(keyOf(p.mapping, x), 1)
		}
	}
	if c.set >= 0 {
		o := &q.objects[c.set]
		if o.set == nil {
			o.set = &set{}
		}
		o.set.add(v.hash())
	}
	if c.first >= 0 {
		q.pick(c.first, c.firstText, -1, row.Time, row.Hash, v)
	}
	if c.last >= 0 {
		q.pick(c.last, c.lastText, 1, row.Time, row.Hash, v)
	}
}

// pick keeps the first (want -1) or last (1) of two values: by time, then by tie, then by the value, so that it never matters which
// was there before. A tie of 0 with no text and no number set is told from nothing by the low bit of the tie, always 1.
func (q *pane) pick(at, obj, want int, t int64, tie uint64, v *Value) {
	w, o := q.words[at:at+3], &q.objects[obj]
	tie |= 1
	num := uint64(0)
	switch {
	case v.Kind == Number:
		num = math.Float64bits(v.Num)
	case v.Text == "":
		num = emptyText
	}
	if w[1] != 0 {
		c := cmp.Compare(t, int64(w[0])) //nolint:gosec // bits
		if c == 0 {
			c = cmp.Compare(tie, w[1])
		}
		if c == 0 {
			c = cmp.Compare(num, w[2])
		}
		if c == 0 {
			c = strings.Compare(v.Text, o.text)
		}
		if c != want {
			return
		}
	}
	w[0], w[1], w[2] = uint64(t), tie, num //nolint:gosec // bits
	switch {
	case v.Kind != Text:
		o.text = ""
	case o.text != v.Text:
		o.text = strings.Clone(v.Text)
	}
}

// emptyText stands where a number would, for a text that is empty: a NaN that no sender can send.
const emptyText = 0x7ff8_6d69_6c65_0001

func (v *Value) hash() uint64 {
	if v.Kind == Text {
		return mix(telemetry.HashName(v.Text))
	}
	x := v.Num
	if x == 0 {
		x = 0
	}
	return mix(math.Float64bits(x) ^ 0x9e3779b97f4a7c15)
}

// mix spreads a hash over all 64 bits (splitmix64): a set reads density from it.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// merge adds what o holds to q.
func (p *plan) merge(q, o *pane) {
	q.rows += o.rows
	q.end = max(q.end, o.end)
	for i := range p.cells {
		c := &p.cells[i]
		if c.count >= 0 && o.words[c.count] > 0 {
			had := q.words[c.count] > 0
			q.words[c.count] += o.words[c.count]
			if c.sum >= 0 {
				s := Sum{q.words[c.sum], q.words[c.sum+1], q.words[c.sum+2]}
				s.Merge(Sum{o.words[c.sum], o.words[c.sum+1], o.words[c.sum+2]})
				q.words[c.sum], q.words[c.sum+1], q.words[c.sum+2] = s.hi, s.mid, s.lo
			}
			if c.min >= 0 && (!had || math.Float64frombits(o.words[c.min]) < math.Float64frombits(q.words[c.min])) {
				q.words[c.min] = o.words[c.min]
			}
			if c.max >= 0 && (!had || math.Float64frombits(o.words[c.max]) > math.Float64frombits(q.words[c.max])) {
				q.words[c.max] = o.words[c.max]
			}
		}
		if c.sketch >= 0 && o.objects[c.sketch].sketch != nil {
			if q.objects[c.sketch].sketch == nil {
				q.objects[c.sketch].sketch = &sketch{}
			}
			q.objects[c.sketch].sketch.merge(o.objects[c.sketch].sketch)
		}
		if c.set >= 0 && o.objects[c.set].set != nil {
			if q.objects[c.set].set == nil {
				q.objects[c.set].set = &set{}
			}
			q.objects[c.set].set.merge(o.objects[c.set].set)
		}
		for _, x := range []struct{ at, obj, want int }{{c.first, c.firstText, -1}, {c.last, c.lastText, 1}} {
			if x.at >= 0 && o.words[x.at+1] != 0 {
				v := o.picked(x.at, x.obj)
				q.pick(x.at, x.obj, x.want, int64(o.words[x.at]), o.words[x.at+1], &v) //nolint:gosec // bits
			}
		}
	}
}

// picked returns a first or last.
func (q *pane) picked(at, obj int) Value {
	switch {
	case q.words[at+1] == 0:
		return Value{}
	case q.objects[obj].text != "" || q.words[at+2] == emptyText:
		return Value{Kind: Text, Text: q.objects[obj].text}
	}
	return Value{Kind: Number, Num: math.Float64frombits(q.words[at+2])}
}

// value returns one figure of a pane. None: no row had the column.
func (p *plan) value(q *pane, a *Aggregate, column int) Value {
	num := func(f float64, ok bool) Value {
		if !ok {
			return Value{}
		}
		return Value{Kind: Number, Num: f}
	}
	if column < 0 {
		return num(float64(q.rows), true)
	}
	c := &p.cells[column]
	n := uint64(0)
	if c.count >= 0 {
		n = q.words[c.count]
	}
	switch a.Func {
	case Count:
		return num(float64(n), true)
	case SumOf, Avg:
		s := Sum{q.words[c.sum], q.words[c.sum+1], q.words[c.sum+2]}
		f := s.Float()
		if a.Func == Avg && n > 0 {
			f /= float64(n)
		}
		return num(f, n > 0)
	case Min:
		return num(math.Float64frombits(q.words[c.min]), n > 0)
	case Max:
		return num(math.Float64frombits(q.words[c.max]), n > 0)
	case First:
		return q.picked(c.first, c.firstText)
	case Last:
		return q.picked(c.last, c.lastText)
	case Distinct:
		if s := q.objects[c.set].set; s != nil {
			return num(s.estimate(), true)
		}
		return num(0, true)
	case P50, P90, P95, P99:
		if s := q.objects[c.sketch].sketch; s != nil {
			return num(s.quantile(p.mapping, a.Func.quantile()))
		}
	}
	return Value{}
}

// append encodes a pane without its start.
func (p *plan) append(dst []byte, q *pane) []byte {
	dst = binary.AppendUvarint(dst, q.rows)
	for i := range p.cells {
		c := &p.cells[i]
		has := true
		if c.count >= 0 {
			dst = binary.AppendUvarint(dst, q.words[c.count])
			has = q.words[c.count] > 0
		}
		if has && c.sum >= 0 {
			s := Sum{q.words[c.sum], q.words[c.sum+1], q.words[c.sum+2]}
			dst = s.Append(dst)
		}
		if has && c.min >= 0 {
			dst = binary.LittleEndian.AppendUint64(dst, q.words[c.min])
		}
		if has && c.max >= 0 {
			dst = binary.LittleEndian.AppendUint64(dst, q.words[c.max])
		}
		for _, x := range [2][2]int{{c.first, c.firstText}, {c.last, c.lastText}} {
			if x[0] < 0 {
				continue
			}
			w := q.words[x[0] : x[0]+3]
			dst = binary.LittleEndian.AppendUint64(dst, w[1])
			if w[1] != 0 {
				dst = binary.AppendVarint(dst, int64(w[0])-q.start) //nolint:gosec // bits
				dst = binary.LittleEndian.AppendUint64(dst, w[2])
				dst = binenc.AppendText(dst, q.objects[x[1]].text)
			}
		}
		if c.set >= 0 {
			s := q.objects[c.set].set
			if s == nil {
				s = &set{}
			}
			dst = s.append(dst)
		}
		if c.sketch >= 0 {
			s := q.objects[c.sketch].sketch
			if s == nil {
				s = &sketch{}
			}
			dst = s.append(dst)
		}
	}
	return dst
}

func (p *plan) read(r *reader, start int64) pane {
	q := p.pane(start)
	q.rows = r.Uvarint()
	for i := range p.cells {
		c := &p.cells[i]
		has := true
		if c.count >= 0 {
			q.words[c.count] = r.Uvarint()
			has = q.words[c.count] > 0
		}
		if has && c.sum >= 0 {
			s := r.sum()
			q.words[c.sum], q.words[c.sum+1], q.words[c.sum+2] = s.hi, s.mid, s.lo
		}
		if has && c.min >= 0 {
			q.words[c.min] = r.Fixed64()
		}
		if has && c.max >= 0 {
			q.words[c.max] = r.Fixed64()
		}
		for _, x := range [2][2]int{{c.first, c.firstText}, {c.last, c.lastText}} {
			if x[0] < 0 {
				continue
			}
			w := q.words[x[0] : x[0]+3]
			if w[1] = r.Fixed64(); w[1] != 0 {
				w[0] = uint64(start + r.Varint()) //nolint:gosec // bits
				w[2] = r.Fixed64()
				q.objects[x[1]].text = r.Text()
			}
		}
		if c.set >= 0 {
			if s := r.set(); len(s.hashes) > 0 {
				q.objects[c.set].set = &s
			}
		}
		if c.sketch >= 0 {
			if s := r.sketch(); len(s.bins) > 0 {
				q.objects[c.sketch].sketch = &s
			}
		}
	}
	return q
}
