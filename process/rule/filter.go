package rule

import (
	"fmt"
	"math"
	"sync/atomic"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/milepost/milepost/telemetry"
)

// A Filter is a condition over one event alone: nothing is remembered and nothing is too old. It is safe for concurrent use.
type Filter struct {
	program program
	faults  *atomic.Uint64
	names   []string // of a filter over fields
	prog    cel.Program
}

// CompileFilter prepares a condition over a reading's signals and status.
func CompileFilter(text string, cat *telemetry.Catalog) (*Filter, error) {
	k, err := newChecker(cat)
	if err != nil {
		return nil, err
	}
	c, err := k.condition("where", text, nil)
	if err != nil {
		return nil, err
	}
	s := &Set{faults: &atomic.Uint64{}}
	return &Filter{program: c.bind(nil, s), faults: s.faults}, nil
}

// Reading tells whether a reading's own values meet the condition. A signal is there if its time in v is not 0. What depends on
// a signal that is not there is unknown, and unknown is not met.
func (f *Filter) Reading(v *Values) bool { return f.program.eval(v, 1, math.MaxInt64) == yes }

// Faults counts evaluations that ended in an error other than something unknown.
func (f *Filter) Faults() uint64 { return f.faults.Load() }

// CompileFieldFilter prepares a condition over the fields of a JSON object, by path: type == "click" && item.price > 10.
func CompileFieldFilter(text string) (*Filter, error) {
	k, err := newChecker(telemetry.NewCatalog())
	if err != nil {
		return nil, err
	}
	if len(text) > maxExpression {
		return nil, fmt.Errorf("where: longer than %d bytes", maxExpression)
	}
	parsed, iss := k.env.Parse(text)
	if iss.Err() != nil {
		return nil, issue("where", text, iss.Errors())
	}
	rep := parsed.NativeRep()
	w := &walker{k: k, field: "where", info: rep.SourceInfo(), uses: map[string]name{}, free: true}
	w.walk(rep.Expr())
	if w.err != nil {
		return nil, w.err
	}
	vars := make([]cel.EnvOption, 0, len(w.ordered))
	for _, n := range w.ordered {
		vars = append(vars, cel.Variable(n, cel.DynType))
	}
	env, err := k.env.Extend(vars...)
	if err != nil {
		return nil, fmt.Errorf("where: %w", err)
	}
	checked, iss := env.Check(parsed)
	if iss.Err() != nil {
		return nil, issue("where", text, iss.Errors())
	}
	if t := checked.OutputType(); t != cel.BoolType && t != cel.DynType {
		return nil, fmt.Errorf("where: it yields %s, not true or false: compare it with something", t)
	}
	f := &Filter{names: w.ordered, faults: &atomic.Uint64{}}
	if f.prog, err = env.Program(checked, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptOptimize)); err != nil {
		return nil, fmt.Errorf("where: %w", err)
	}
	return f, nil
}

// Fields tells whether an event meets the condition. field returns a number, a text, a truth value, or nil for what is not there.
func (f *Filter) Fields(field func(path string) any) bool {
	out, _, err := f.prog.Eval(&fieldActivation{field})
	if b, ok := out.(types.Bool); ok && err == nil {
		return bool(b)
	}
	if err != nil && !types.IsUnknown(out) {
		f.faults.Add(1) // a number compared with a text, say
	}
	return false
}

type fieldActivation struct{ field func(string) any }

// Parent is nil: an event's fields stand alone.
func (a *fieldActivation) Parent() cel.Activation { return nil }

// ResolveName looks a field up.
func (a *fieldActivation) ResolveName(s string) (any, bool) {
	switch v := a.field(s).(type) {
	case float64:
		return types.Double(v), true
	case string:
		return types.String(v), true
	case bool:
		return types.Bool(v), true
	}
	return types.NewUnknown(1, nil), true
}
