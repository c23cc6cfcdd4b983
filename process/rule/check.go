package rule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/telemetry"
)

const statusName = "status"

// A checker turns the text of conditions into programs.
type checker struct {
	cat     *telemetry.Catalog
	env     *cel.Env
	figures *figures // nil: conditions here may have no windows
}

func newChecker(cat *telemetry.Catalog) (*checker, error) {
	// No macros: has, all, exists, map and filter are loops, and there is nothing here to loop over.
	env, err := cel.NewEnv(cel.ClearMacros(), cel.ParserRecursionLimit(64), cel.ParserExpressionSizeLimit(maxExpression))
	if err != nil {
		return nil, err
	}
	return &checker{cat: cat, env: env}, nil
}

// condition compiles one expression. field is "when" or "clear", for errors.
func (k *checker) condition(field, text string, params []string) (condition, error) {
	var c condition
	if len(text) > maxExpression {
		return c, fmt.Errorf("%s: longer than %d bytes: split the rule", field, maxExpression)
	}
	parsed, iss := k.env.Parse(text)
	if iss.Err() != nil {
		return c, issue(field, text, iss.Errors())
	}
	rep := parsed.NativeRep()
	w := &walker{k: k, field: field, params: params, info: rep.SourceInfo(), uses: map[string]name{}}
	w.walk(rep.Expr())
	if w.err != nil {
		return c, w.err
	}
	vars := make([]cel.EnvOption, 0, len(w.uses))
	for n, u := range w.uses {
		t := cel.DoubleType
		if u.kind == nameStatus {
			t = cel.StringType
		}
		vars = append(vars, cel.Variable(n, t))
	}
	env, err := k.env.Extend(vars...)
	if err != nil {
		return c, fmt.Errorf("%s: %w", field, err)
	}
	checked, iss := env.Check(parsed)
	if iss.Err() != nil {
		return c, issue(field, text, iss.Errors())
	}
	if checked.OutputType() != cel.BoolType {
		return c, fmt.Errorf("%s: it yields %s, not true or false: compare it with something", field, checked.OutputType())
	}
	c.uses, c.ordered = w.uses, w.ordered
	f := &flattener{w: w}
	f.limits(rep.Expr(), true)
	c.limits = f.found
	if code, ok := f.flat(rep.Expr(), nil, 0); ok {
		c.code = code
		return c, nil
	}
	c.prog, err = env.Program(checked, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return c, fmt.Errorf("%s: %w", field, err)
	}
	return c, nil
}

// issue turns cel-go's first error into ours: the place, what is wrong and how to mend it.
func issue(field, text string, errs []*common.Error) error {
	if len(errs) == 0 {
		return fmt.Errorf("%s: not a condition", field)
	}
	e := errs[0]
	msg := strings.TrimPrefix(e.Message, "Syntax error: ")
	if i := strings.Index(msg, " expecting {"); i > 0 {
		msg = msg[:i]
	}
	hint := ""
	for _, h := range []struct{ has, hint string }{
		{"token recognition error at: '=", "compare with =="},
		{"token recognition error at: '&", "write && for and"},
		{"token recognition error at: '|", "write || for or"},
		{"'and'", "write && for and"},
		{"'or'", "write || for or"},
		{"'not'", "write ! for not"},
		{"'AND'", "write && for and"},
		{"'OR'", "write || for or"},
		{"'<EOF>'", "something is missing at the end"},
		{"no matching overload", "numbers compare with numbers, status with text in quotes"},
		{"expected type 'bool'", "&& and || join comparisons"},
		{"undeclared reference", "conditions know no functions of that name, and no loops"},
	} {
		if strings.Contains(msg, h.has) {
			hint = "; " + h.hint
			break
		}
	}
	if e.Location == nil || e.Location.Line() < 1 {
		return fmt.Errorf("%s: %s%s", field, msg, hint)
	}
	return fmt.Errorf("%s, %s: %s%s", field, place(text, e.Location), msg, hint)
}

// place names a location as people count: columns from 1, the line only if there are several.
func place(text string, l common.Location) string {
	if !strings.Contains(text, "\n") {
		return fmt.Sprintf("column %d", l.Column()+1)
	}
	return fmt.Sprintf("line %d column %d", l.Line(), l.Column()+1)
}

// A walker finds the names in an expression and turns every whole number into a double: all signals are doubles, and people
// write speed > 80.
type walker struct {
	k       *checker
	field   string
	params  []string
	info    *ast.SourceInfo
	uses    map[string]name
	ordered []string
	free    bool // any name is fine: a filter over fields
	err     error
}

func (w *walker) walk(e ast.Expr) {
	if w.err != nil {
		return
	}
	switch e.Kind() {
	case ast.LiteralKind:
		if n, ok := number(e); ok {
			e.SetKindCase(ast.NewExprFactory().NewLiteral(e.ID(), types.Double(n)))
		}
	case ast.IdentKind, ast.SelectKind:
		full, ok := dotted(e)
		if !ok {
			w.walk(e.AsSelect().Operand())
			return
		}
		w.use(full, e)
	case ast.CallKind:
		c := e.AsCall()
		if isWindowCall(c) {
			w.window(e, c)
			return
		}
		if c.IsMemberFunction() {
			w.walk(c.Target())
		}
		for _, a := range c.Args() {
			w.walk(a)
		}
	case ast.ListKind:
		for _, x := range e.AsList().Elements() {
			w.walk(x)
		}
	case ast.MapKind, ast.StructKind, ast.ComprehensionKind, ast.UnspecifiedExprKind:
		w.fail(e, "conditions know numbers, text, lists and functions, no maps or messages: compare signals instead")
	}
}

func (w *walker) use(full string, e ast.Expr) {
	if _, ok := w.uses[full]; ok {
		return
	}
	if w.free {
		w.uses[full] = name{}
		w.ordered = append(w.ordered, full)
		return
	}
	if full == statusName {
		w.uses[full] = name{kind: nameStatus}
		return
	}
	if i, ok := slices.BinarySearch(w.params, full); ok {
		w.uses[full] = name{kind: nameParam, par: i}
		return
	}
	if id, ok := w.k.cat.Lookup([]byte(full)); ok {
		w.uses[full] = name{kind: nameSignal, sig: id}
		w.ordered = append(w.ordered, full)
		return
	}
	known := append([]string{statusName}, w.params...)
	for id := range w.k.cat.Len() {
		known = append(known, w.k.cat.Def(telemetry.SignalID(id)).Name) //nolint:gosec // bounded by MaxSignals
	}
	hint := nearest.Hint(full, known)
	if hint == "" {
		hint = "; declare it as a signal or a parameter"
	}
	w.fail(e, "nothing is called "+full+hint)
}

func (w *walker) fail(e ast.Expr, msg string) {
	for e.Kind() == ast.SelectKind {
		e = e.AsSelect().Operand()
	}
	l := w.info.GetStartLocation(e.ID())
	// SourceInfo has no text, only line offsets: more than one means several lines.
	where := fmt.Sprintf("column %d", l.Column()+1)
	if len(w.info.LineOffsets()) > 1 {
		where = fmt.Sprintf("line %d %s", l.Line(), where)
	}
	w.err = fmt.Errorf("%s, %s: %w", w.field, where, errors.New(msg))
}

// dotted returns the whole name of an identifier or of a chain a.b.c, as VSS names signals.
func dotted(e ast.Expr) (string, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		return e.AsIdent(), true
	case ast.SelectKind:
		s := e.AsSelect()
		head, ok := dotted(s.Operand())
		return head + "." + s.FieldName(), ok && !s.IsTestOnly()
	default:
		return "", false
	}
}

func number(e ast.Expr) (float64, bool) {
	if e.Kind() != ast.LiteralKind {
		return 0, false
	}
	switch v := e.AsLiteral().(type) {
	case types.Double:
		return float64(v), true
	case types.Int:
		return float64(v), true
	case types.Uint:
		return float64(v), true
	}
	return 0, false
}

// A flattener finds the flat form of an expression whose names are known and whose types were checked.
type flattener struct {
	w     *walker
	found []limitSpec
}

// flat appends e in postfix order. False: e needs cel-go.
func (f *flattener) flat(e ast.Expr, code []instrSpec, depth int) ([]instrSpec, bool) {
	if e.Kind() != ast.CallKind || depth >= maxDepth {
		return nil, false
	}
	c := e.AsCall()
	switch c.FunctionName() {
	case operators.LogicalAnd, operators.LogicalOr:
		op, unless := opAnd, opUnlessNo
		if c.FunctionName() == operators.LogicalOr {
			op, unless = opOr, opUnlessYes
		}
		for i, a := range c.Args() {
			at := len(code)
			if i > 0 {
				code = append(code, instrSpec{instr: instr{op: unless}})
			}
			var ok bool
			// While the second operand runs, the first one's result is below it on the stack.
			if code, ok = f.flat(a, code, depth+min(i, 1)); !ok {
				return nil, false
			}
			if i > 0 {
				code = append(code, instrSpec{instr: instr{op: op}})
				code[at].skip = uint16(len(code) - at - 1) //nolint:gosec // bounded by maxExpression
			}
		}
		return code, true
	case operators.LogicalNot:
		code, ok := f.flat(c.Args()[0], code, depth)
		return append(code, instrSpec{instr: instr{op: opNot}}), ok
	}
	in, ok := f.comparison(c)
	if !ok {
		return nil, false
	}
	return append(code, in), true
}

// comparison recognises signal op threshold, threshold op signal, and status ==/!= "text".
func (f *flattener) comparison(c ast.CallExpr) (instrSpec, bool) {
	op, ok := comparisonOp(c.FunctionName())
	if !ok || len(c.Args()) != 2 {
		return instrSpec{}, false
	}
	l, r := c.Args()[0], c.Args()[1]
	if n, ok := f.lookup(l); !ok || n.kind == nameParam {
		l, r, op = r, l, mirrored(op)
	}
	n, ok := f.lookup(l)
	if !ok {
		return instrSpec{}, false
	}
	switch n.kind {
	case nameSignal:
		t, ok := f.threshold(r, 0)
		return instrSpec{instr: instr{op: op, sig: n.sig}, fold: t}, ok
	case nameStatus:
		if r.Kind() != ast.LiteralKind || (op != opEqual && op != opNotEqual) {
			return instrSpec{}, false
		}
		text, ok := r.AsLiteral().(types.String)
		if op == opEqual {
			op = opStatusEqual
		} else {
			op = opStatusNotEqual
		}
		return instrSpec{instr: instr{op: op, status: string(text)}}, ok
	case nameParam:
	}
	return instrSpec{}, false
}

func comparisonOp(fn string) (opcode, bool) {
	switch fn {
	case operators.Less:
		return opLess, true
	case operators.LessEquals:
		return opLessEqual, true
	case operators.Greater:
		return opGreater, true
	case operators.GreaterEquals:
		return opGreaterEqual, true
	case operators.Equals:
		return opEqual, true
	case operators.NotEquals:
		return opNotEqual, true
	}
	return 0, false
}

func mirrored(op opcode) opcode {
	switch op {
	case opLess:
		return opGreater
	case opLessEqual:
		return opGreaterEqual
	case opGreater:
		return opLess
	case opGreaterEqual:
		return opLessEqual
	default:
		return op
	}
}

func (f *flattener) lookup(e ast.Expr) (name, bool) {
	full, ok := dotted(e)
	if !ok {
		return name{}, false
	}
	n, ok := f.w.uses[full]
	return n, ok
}

// threshold recognises arithmetic over numbers and parameters.
func (f *flattener) threshold(e ast.Expr, depth int) (*fold, bool) {
	if x, ok := number(e); ok {
		return &fold{op: 'n', num: x}, true
	}
	if n, ok := f.lookup(e); ok {
		return &fold{op: 'p', par: n.par}, n.kind == nameParam
	}
	if e.Kind() != ast.CallKind || depth > maxDepth {
		return nil, false
	}
	c := e.AsCall()
	var op byte
	switch c.FunctionName() {
	case operators.Add:
		op = '+'
	case operators.Subtract, operators.Negate:
		op = '-'
	case operators.Multiply:
		op = '*'
	case operators.Divide:
		op = '/'
	default:
		return nil, false
	}
	t := &fold{op: op}
	var ok bool
	if t.a, ok = f.threshold(c.Args()[0], depth+1); !ok {
		return nil, false
	}
	if len(c.Args()) == 2 {
		t.b, ok = f.threshold(c.Args()[1], depth+1)
	}
	return t, ok
}

// limits collects what the first signal is compared with, through && || !, so that a peak knows which way is worse. It works
// for conditions that run in cel-go too.
func (f *flattener) limits(e ast.Expr, positive bool) {
	if e.Kind() != ast.CallKind || len(f.w.ordered) == 0 {
		return
	}
	c := e.AsCall()
	switch c.FunctionName() {
	case operators.LogicalAnd, operators.LogicalOr:
		for _, a := range c.Args() {
			f.limits(a, positive)
		}
	case operators.LogicalNot:
		f.limits(c.Args()[0], !positive)
	default:
		in, ok := f.comparison(c)
		if !ok || in.fold == nil || in.sig != f.w.uses[f.w.ordered[0]].sig {
			return
		}
		switch in.op {
		case opGreater, opGreaterEqual:
			f.found = append(f.found, limitSpec{fold: in.fold, above: positive})
		case opLess, opLessEqual:
			f.found = append(f.found, limitSpec{fold: in.fold, above: !positive})
		default: // equality has no worse side
		}
	}
}
