package window

import (
	"bytes"
	"testing"
)

// Whatever is written on a line gives a definition or an error, and a definition that compiles works.
func FuzzParseLine(f *testing.F) {
	for _, l := range append(lines(), "count per 1m", "avg(engine_temp) as t where speed > 5 && (status == \"a ' b\") by vehicle per 5m every 1m late 1m to averages", "p95(a.b-c) from s by x.y per 7d keep 99d") {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := ParseLine(line)
		if err != nil {
			return
		}
		s.Name = "w"
		d, err := Compile(s)
		if err != nil {
			return
		}
		x := &desk{t: t, d: d, k: d.NewKey(), panes: map[int64][]byte{}, rows: map[string]string{}}
		x.at(0).tick(1e9).flush()
		if d.idle >= 0 && len(x.rows) == 0 {
			t.Errorf("%q told nothing of a row", line)
		}
	})
}

// Damaged state is an error, never a panic, and what is accepted is written again as it was.
func FuzzDecodeKey(f *testing.F) {
	var defs []*Def
	for i, l := range lines() {
		x := newDesk(f, l)
		x.at(1, 3.5, "a").at(2, -4, "b").at(20, 5, "").flush().at(21, 1e9, "c")
		_ = x.d.Flush(&x.k, x)
		f.Add(i, x.d.AppendKey(nil, &x.k))
		defs = append(defs, x.d)
	}
	f.Fuzz(func(t *testing.T, i int, b []byte) {
		d := defs[max(i, -i-1)%len(defs)]
		k, err := d.DecodeKey(b)
		if err != nil {
			return
		}
		once := d.AppendKey(nil, &k)
		again, err := d.DecodeKey(once)
		if err != nil {
			t.Fatalf("cannot read again what was accepted: %v", err)
		}
		if twice := d.AppendKey(nil, &again); !bytes.Equal(once, twice) {
			t.Errorf("written %x, then %x", once, twice)
		}
	})
}

// Damaged results are an error, never a panic.
func FuzzDecodeStored(f *testing.F) {
	x := newDesk(f, lines()[0])
	r := Result{Def: x.d, Start: 5, End: 10, Rows: 3, Values: []Value{{Kind: Number, Num: 4}, {Kind: Text, Text: "a"}, {}}, Final: true}
	f.Add(r.AppendStored(nil))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = DecodeStored(b) })
}
