package rule

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/telemetry"
)

// Windows in conditions: avg(engine_temp, "5m") is the average of the signal over the five minutes that end with the reading which is
// judged. A vehicle keeps one window.Moving for each signal and length that a rule mentions, in its Values; Eval moves them.
//
// To the rest of the package such a figure is a signal with an ID beyond all real ones: programs, peaks and limits work
// as they do for signals, and conditions without windows never come here.

// movingBase is the first ID of figures. telemetry.MaxSignals is far below.
const movingBase telemetry.SignalID = 1 << 15

// maxFigures bounds what a vehicle keeps for rules.
const maxFigures = 64

// A moving is a signal's window that some rule mentions.
type moving struct {
	sig      telemetry.SignalID
	size     int64 // ms
	hash     uint64
	min, max float64 // what is plausible; equal: anything
}

// A figure is a function of a moving.
type figure struct {
	moving int
	fn     window.Func
	text   string // as people write it
}

// figures are what a set's conditions mention, each once.
type figures struct {
	moving []moving
	all    []figure
}

const figurePrefix = "__figure"

func isFigure(id telemetry.SignalID) bool { return id >= movingBase }

// isWindowCall tells whether a call is a window, or was meant to be one.
func isWindowCall(c ast.CallExpr) bool {
	if c.IsMemberFunction() {
		return false
	}
	for _, f := range window.Funcs() {
		if c.FunctionName() == string(f) {
			return true
		}
	}
	if args := c.Args(); len(args) == 2 && args[1].Kind() == ast.LiteralKind && args[0].Kind() == ast.IdentKind {
		_, text := args[1].AsLiteral().(types.String)
		return text && isIdent(c.FunctionName()) && c.FunctionName() != "matches"
	}
	return false
}

// window replaces a call such as avg(engine_temp, "5m") by a name of its own.
func (w *walker) window(e ast.Expr, c ast.CallExpr) {
	var known []string
	for _, f := range window.MovingFuncs() {
		known = append(known, string(f))
	}
	fn := c.FunctionName()
	if !slices.Contains(known, fn) {
		w.fail(e, fmt.Sprintf("there is no window function %s%s; there are %s", fn, nearest.Hint(fn, known), strings.Join(known, ", ")))
		return
	}
	if w.k.figures == nil {
		w.fail(e, "windows are for rules: here one event is judged by itself")
		return
	}
	args := c.Args()
	if len(args) != 2 {
		w.fail(e, fmt.Sprintf("%s takes a signal and a duration: %s(speed, \"5m\")", fn, fn))
		return
	}
	full, ok := dotted(args[0])
	id, known2 := w.k.cat.Lookup([]byte(full))
	if !ok || !known2 {
		if ok {
			var names []string
			for i := range w.k.cat.Len() {
				names = append(names, w.k.cat.Def(telemetry.SignalID(i)).Name) //nolint:gosec // bounded by MaxSignals
			}
			full += nearest.Hint(full, names)
		}
		w.fail(args[0], "no signal is called "+full)
		return
	}
	var size time.Duration
	text := types.String("")
	if args[1].Kind() == ast.LiteralKind {
		text, _ = args[1].AsLiteral().(types.String)
	}
	size, err := time.ParseDuration(string(text))
	if err != nil || size < window.MinMoving || size > window.MaxMoving {
		w.fail(args[1], fmt.Sprintf("the second argument is a duration in quotes from %v to %v, such as \"5m\"", window.MinMoving, window.MaxMoving))
		return
	}
	n, err := w.k.figures.figure(w.k.cat, id, size.Milliseconds(), window.Func(fn), fmt.Sprintf("%s(%s, %q)", fn, full, string(text)))
	if err != nil {
		w.fail(e, err.Error())
		return
	}
	ident := fmt.Sprint(figurePrefix, n)
	e.SetKindCase(ast.NewExprFactory().NewIdent(e.ID(), ident))
	if _, has := w.uses[ident]; !has {
		w.uses[ident] = name{kind: nameSignal, sig: movingBase + telemetry.SignalID(n)} //nolint:gosec // at most maxFigures
		w.ordered = append(w.ordered, ident)
	}
}

func (f *figures) figure(cat *telemetry.Catalog, id telemetry.SignalID, size int64, fn window.Func, text string) (int, error) {
	m := slices.IndexFunc(f.moving, func(m moving) bool { return m.sig == id && m.size == size })
	if m < 0 {
		d := cat.Def(id)
		m = len(f.moving)
		f.moving = append(f.moving, moving{sig: id, size: size, hash: d.Hash, min: d.Min, max: d.Max})
	}
	n := slices.IndexFunc(f.all, func(g figure) bool { return g.moving == m && g.fn == fn })
	if n < 0 {
		if n = len(f.all); n == maxFigures {
			return 0, fmt.Errorf("more than %d different windows in all rules: share some", maxFigures)
		}
		f.all = append(f.all, figure{moving: m, fn: fn, text: text})
	}
	return n, nil
}

// shown is how a name in a condition is written.
func (f *figures) shown(name string) string {
	for i := range f.all {
		if name == fmt.Sprint(figurePrefix, i) {
			return f.all[i].text
		}
	}
	return name
}

// observe moves a vehicle's windows by one reading.
func (s *Set) observe(v *Values, in *Input) {
	f := &s.figures
	v.figures, v.now = f, in.Time
	if len(v.moving) != len(f.moving) {
		v.moving = make([]window.Moving, len(f.moving))
	}
	for i := range in.Changed {
		c := &in.Changed[i]
		for j := range f.moving {
			m := &f.moving[j]
			if m.sig == c.ID && (m.min == m.max || (c.Value >= m.min && c.Value <= m.max)) {
				v.moving[j].Add(in.Time, c.Value, m.size)
			}
		}
	}
}

// figure is a figure's value at a moment.
func (v *Values) figure(id telemetry.SignalID, now int64) (float64, bool) {
	if v.figures == nil {
		return 0, false
	}
	g := &v.figures.all[id-movingBase]
	return v.moving[g.moving].Value(g.fn, now, v.figures.moving[g.moving].size)
}

// HasWindows tells whether a rule mentions a window: then vehicles have more to store.
func (s *Set) HasWindows() bool { return len(s.figures.moving) > 0 }

// AppendWindows appends a vehicle's windows to dst. They are named by signal and length, so that rules may come and go.
//
//	windows   uvarint
//	per window: hash of the signal's name 8 bytes, length in ms varint, bytes uvarint, and its panes
func (s *Set) AppendWindows(dst []byte, v *Values) []byte {
	if len(v.moving) != len(s.figures.moving) {
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(v.moving)))
	var one []byte
	for i := range v.moving {
		m := &s.figures.moving[i]
		one = v.moving[i].Append(one[:0])
		dst = binary.LittleEndian.AppendUint64(dst, m.hash)
		dst = binary.AppendVarint(dst, m.size)
		dst = append(binary.AppendUvarint(dst, uint64(len(one))), one...)
	}
	return dst
}

// DecodeWindows reads what AppendWindows wrote, in this run or by a program with other rules, and returns what follows.
func (s *Set) DecodeWindows(b []byte, v *Values) ([]byte, error) {
	v.moving = make([]window.Moving, len(s.figures.moving))
	count, n := binary.Uvarint(b)
	if n <= 0 || count > uint64(len(b)) {
		return nil, ErrState
	}
	b = b[n:]
	for range count {
		if len(b) < 8 {
			return nil, ErrState
		}
		hash := binary.LittleEndian.Uint64(b)
		size, n := binary.Varint(b[8:])
		if n <= 0 {
			return nil, ErrState
		}
		b = b[8+n:]
		length, n := binary.Uvarint(b)
		if n <= 0 || length > uint64(len(b)-n) {
			return nil, ErrState
		}
		m, rest, err := window.DecodeMoving(b[n : n+int(length)]) //nolint:gosec // checked
		if err != nil || len(rest) > 0 {
			return nil, ErrState
		}
		b = b[n+int(length):] //nolint:gosec // checked
		for i := range s.figures.moving {
			if f := &s.figures.moving[i]; f.hash == hash && f.size == size {
				v.moving[i] = m
			}
		}
	}
	return b, nil
}
