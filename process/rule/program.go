package rule

import (
	"math"
	"sync/atomic"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/milepost/milepost/telemetry"
)

// A truth is a value of Kleene's logic, ordered so that && is min, || is max and ! is yes-t.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// Flat programs: comparisons of one signal with a number, joined by && || !, in postfix order. They need no allocation and
// about 2 ns an instruction; cel-go needs some 200 ns and 5 allocations for one comparison. Everything else runs in cel-go.
type opcode uint8

const (
	opLess opcode = iota
	opLessEqual
	opGreater
	opGreaterEqual
	opEqual
	opNotEqual
	opStatusEqual
	opStatusNotEqual
	opAnd
	opOr
	opNot
	opUnlessNo  // skip the second operand of && if the first is no
	opUnlessYes // skip the second operand of || if the first is yes
)

// maxDepth bounds a flat program's stack; a deeper condition runs in cel-go.
const maxDepth = 8

type instr struct {
	limit  float64 // comparisons: folded from constants and the vehicle's parameters
	status string  // opStatus…
	sig    telemetry.SignalID
	skip   uint16 // opUnless…: how many instructions
	op     opcode
}

// A program is a condition bound to one set of parameters. Exactly one of code and prog is set.
type program struct {
	code []instr
	prog *slow
}

// known returns a signal's value if the vehicle sent it not more than maxAge before now.
func (v *Values) known(id telemetry.SignalID, now, maxAge int64) (float64, bool) {
	i := int(id)
	if i >= len(v.T) || i >= len(v.V) || v.T[i] == 0 || now-v.T[i] > maxAge {
		if isFigure(id) {
			return v.figure(id, now)
		}
		return 0, false
	}
	x := v.V[i]
	return x, x == x // a NaN compares with nothing
}

func (v *Values) knownStatus(now, maxAge int64) bool {
	return v.Status != "" && v.StatusT != 0 && now-v.StatusT <= maxAge
}

func (p *program) eval(v *Values, now, maxAge int64) truth {
	switch {
	case len(p.code) == 1: // most rules
		return p.code[0].compare(v, now, maxAge)
	case p.prog != nil:
		return p.prog.eval(v, now, maxAge)
	}
	var stack [maxDepth]truth
	n := 0
	for i := 0; i < len(p.code); i++ {
		c := &p.code[i]
		switch c.op {
		case opUnlessNo:
			if stack[(n-1)&(maxDepth-1)] == no {
				i += int(c.skip)
			}
		case opUnlessYes:
			if stack[(n-1)&(maxDepth-1)] == yes {
				i += int(c.skip)
			}
		case opAnd:
			n--
			stack[(n-1)&(maxDepth-1)] = min(stack[(n-1)&(maxDepth-1)], stack[n&(maxDepth-1)])
		case opOr:
			n--
			stack[(n-1)&(maxDepth-1)] = max(stack[(n-1)&(maxDepth-1)], stack[n&(maxDepth-1)])
		case opNot:
			stack[(n-1)&(maxDepth-1)] = yes - stack[(n-1)&(maxDepth-1)]
		default:
			stack[n&(maxDepth-1)] = c.compare(v, now, maxAge)
			n++
		}
	}
	return stack[0]
}

func (c *instr) compare(v *Values, now, maxAge int64) truth {
	if c.op >= opStatusEqual {
		if !v.knownStatus(now, maxAge) {
			return unknown
		}
		return truthOf((v.Status == c.status) == (c.op == opStatusEqual))
	}
	x, ok := v.known(c.sig, now, maxAge)
	if !ok {
		return unknown
	}
	switch c.op {
	case opLess:
		return truthOf(x < c.limit)
	case opLessEqual:
		return truthOf(x <= c.limit)
	case opGreater:
		return truthOf(x > c.limit)
	case opGreaterEqual:
		return truthOf(x >= c.limit)
	case opEqual:
		return truthOf(x == c.limit)
	default: // opNotEqual: the operators of a status are above, and the rest compare nothing
		return truthOf(x != c.limit)
	}
}

// costLimit bounds one evaluation in cel-go: about a thousand times what a reasonable condition needs. Conditions have no
// loops (the macros that make them are off), so only long strings and regular expressions over status come near.
const costLimit = 100_000

// A slow condition runs in cel-go. It is shared by all vehicles; params are one vehicle's.
type slow struct {
	prog   cel.Program
	names  map[string]name
	params []float64
	faults *atomic.Uint64
}

// A name is what an identifier in a condition stands for.
type name struct {
	kind nameKind
	sig  telemetry.SignalID
	par  int // index into the rule's sorted parameters
}

type nameKind uint8

const (
	nameSignal nameKind = iota
	nameStatus
	nameParam
)

func (s *slow) eval(v *Values, now, maxAge int64) truth {
	out, _, err := s.prog.Eval(&activation{s: s, v: v, now: now, maxAge: maxAge})
	if b, ok := out.(types.Bool); ok && err == nil {
		return truthOf(bool(b))
	}
	if err != nil && !types.IsUnknown(out) {
		s.faults.Add(1) // a cost limit, a conversion that failed: unknown, but someone should see it
	}
	return unknown
}

// An activation answers cel-go's questions about one reading.
type activation struct {
	s           *slow
	v           *Values
	now, maxAge int64
}

// Parent is nil: a reading's names stand alone.
func (a *activation) Parent() cel.Activation { return nil }

// ResolveName looks a signal, the status or a parameter up.
func (a *activation) ResolveName(s string) (any, bool) {
	n, ok := a.s.names[s]
	if !ok {
		return nil, false
	}
	switch n.kind {
	case nameParam:
		return types.Double(a.s.params[n.par]), true
	case nameStatus:
		if a.v.knownStatus(a.now, a.maxAge) {
			return types.String(a.v.Status), true
		}
	case nameSignal:
		if x, ok := a.v.known(n.sig, a.now, a.maxAge); ok {
			return types.Double(x), true
		}
	}
	// cel-go carries unknowns through operators as we do: true || unknown is true, everything else that needs it is unknown.
	return types.NewUnknown(1, nil), true
}

// A fold is an expression over constants and parameters: what may stand on the other side of a flat comparison.
type fold struct {
	op   byte // 'n' number, 'p' parameter, '-' with one operand negates, and + - * /
	num  float64
	par  int
	a, b *fold
}

func (f *fold) value(params []float64) float64 {
	switch f.op {
	case 'n':
		return f.num
	case 'p':
		return params[f.par]
	}
	x := f.a.value(params)
	if f.b == nil {
		return -x
	}
	y := f.b.value(params)
	switch f.op {
	case '+':
		return x + y
	case '-':
		return x - y
	case '*':
		return x * y
	case '/':
		return x / y
	}
	return math.NaN()
}
