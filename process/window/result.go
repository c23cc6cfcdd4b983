package window

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/milepost/milepost/internal/binenc"
)

// A Result is what one window of one key came to.
type Result struct {
	Def       *Def
	Key       string // set by whoever knows it
	Start     int64  // Unix ms, inclusive; sliding by event: exclusive
	End       int64  // exclusive; sliding by event: the event's time, inclusive; session: its last row and the gap
	Rows      uint64
	Values    []Value // by Def.Aggregates
	Final     bool    // its window has closed; false: told early
	Late      bool    // told, or told again, because of rows that came after it had closed
	Revision  int     // how often it was told before, finally
	Withdrawn bool    // session: it became part of another, which begins elsewhere
}

func (r *Result) fill(d *Def, p *pane) {
	r.Rows = p.rows
	r.Values = make([]Value, len(d.Aggregates))
	for i := range d.Aggregates {
		r.Values[i] = d.plan.value(p, &d.Aggregates[i], d.column[i])
	}
}

// ID names the window: the same in every run, and in every revision. Sliding by event is named by its end.
func (r *Result) ID() string {
	var sb strings.Builder
	sb.WriteString(r.Def.Spec.Name)
	sb.WriteByte('/')
	sb.WriteString(r.Key)
	sb.WriteByte('/')
	sb.WriteString(strconv.FormatInt(r.At(), 10))
	return sb.String()
}

// At is the time that names the window: its start, or of sliding by event its end.
func (r *Result) At() int64 {
	if r.Def.perEvent {
		return r.End
	}
	return r.Start
}

// Effect names this telling of the result: the same cause makes the same again.
func (r *Result) Effect() string {
	id := r.ID() + "/" + strconv.Itoa(r.Revision)
	if !r.Final {
		id += "/early-" + strconv.FormatUint(r.Rows, 10)
	}
	if r.Withdrawn {
		id += "/withdrawn"
	}
	return id
}

// AppendJSON appends the result as it goes to a stream: the fields that every result has, and each figure under its name. A figure
// without rows is null.
func (r *Result) AppendJSON(dst []byte) []byte {
	text := func(name, s string) {
		q, _ := json.Marshal(strings.ToValidUTF8(s, "\uFFFD")) //nolint:errchkjson // a string
		dst = append(append(append(append(dst, '"'), name...), `":`...), q...)
		dst = append(dst, ',')
	}
	num := func(name string, n int64) {
		dst = append(append(append(dst, '"'), name...), `":`...)
		dst = append(strconv.AppendInt(dst, n, 10), ',')
	}
	flag := func(name string, b bool) {
		dst = append(append(append(dst, '"'), name...), `":`...)
		dst = append(strconv.AppendBool(dst, b), ',')
	}
	dst = append(dst, '{')
	text("id", r.ID())
	text("window", r.Def.Spec.Name)
	text("key", r.Key)
	num("start", r.Start)
	num("end", r.End)
	num("rows", int64(r.Rows)) //nolint:gosec // a count
	for i := range r.Values {
		dst = append(append(append(dst, '"'), r.Def.Aggregates[i].As...), `":`...)
		dst = append(r.Values[i].appendJSON(dst), ',')
	}
	flag("final", r.Final)
	flag("late", r.Late)
	if r.Withdrawn {
		flag("withdrawn", true)
	}
	num("revision", int64(r.Revision))
	dst[len(dst)-1] = '}'
	return dst
}

func (v *Value) appendJSON(dst []byte) []byte {
	switch v.Kind {
	case Number:
		q, err := json.Marshal(v.Num)
		if err != nil {
			return append(dst, "null"...)
		}
		return append(dst, q...)
	case Text:
		q, _ := json.Marshal(strings.ToValidUTF8(v.Text, "\uFFFD")) //nolint:errchkjson // a string
		return append(dst, q...)
	default:
		return append(dst, "null"...)
	}
}

const (
	flagFinal = 1 << iota
	flagLate
)

// AppendStored encodes a result for the table of results. It carries the names of its figures, so that results of
// before a change of the definition remain readable.
func (r *Result) AppendStored(dst []byte) []byte {
	flags := byte(0)
	if r.Final {
		flags |= flagFinal
	}
	if r.Late {
		flags |= flagLate
	}
	dst = append(dst, stateVersion, flags)
	dst = binary.AppendVarint(dst, r.Start)
	dst = binary.AppendVarint(dst, r.End-r.Start)
	dst = binary.AppendUvarint(dst, uint64(r.Revision)) //nolint:gosec // a count
	dst = binary.AppendUvarint(dst, r.Rows)
	dst = binary.AppendUvarint(dst, uint64(len(r.Values)))
	for i := range r.Values {
		dst = binenc.AppendText(dst, r.Def.Aggregates[i].As)
		v := &r.Values[i]
		dst = append(dst, byte(v.Kind))
		switch v.Kind {
		case Number:
			dst = binenc.AppendFloat(dst, v.Num)
		case Text:
			dst = binenc.AppendText(dst, v.Text)
		case None:
		}
	}
	return dst
}

// A Stored is a result as the table keeps it.
type Stored struct {
	Window, Key string
	Start, End  int64
	Rows        uint64
	Names       []string
	Values      []Value
	Final, Late bool
	Revision    int
}

// DecodeStored reads what AppendStored wrote.
func DecodeStored(b []byte) (Stored, error) {
	r := newReader(b)
	if r.Byte() != stateVersion {
		r.Fail()
	}
	var s Stored
	flags := r.Byte()
	s.Final, s.Late = flags&flagFinal != 0, flags&flagLate != 0
	s.Start = r.Varint()
	s.End = s.Start + r.Varint()
	rev := r.Uvarint()
	if rev > math.MaxInt32 {
		r.Fail()
	}
	s.Revision = int(rev) //nolint:gosec // checked
	s.Rows = r.Uvarint()
	for range r.Count(2) {
		s.Names = append(s.Names, r.Text())
		v := Value{Kind: ValueKind(r.Byte())}
		switch v.Kind {
		case Number:
			v.Num = r.Float()
		case Text:
			v.Text = r.Text()
		case None:
		default:
			r.Fail()
		}
		s.Values = append(s.Values, v)
	}
	if r.Err == nil && len(r.B) > 0 {
		r.Fail()
	}
	return s, r.Err
}
