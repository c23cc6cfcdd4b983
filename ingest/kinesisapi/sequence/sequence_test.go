package sequence

import (
	"fmt"
	"math/big"
	"regexp"
	"testing"
)

func TestSequenceShape(t *testing.T) {
	s := Number{Created: 0x5e2f0a11, Number: 0xabcdef0123456789 >> 1, Arrived: 0x5e2f0a22, Shard: 0x12345}
	text := s.String()
	n, ok := new(big.Int).SetString(text, 10)
	if !ok || len(text) != 56 {
		t.Fatalf("got %q", text)
	}
	hex := n.Text(16)
	want := fmt.Sprintf("2%09x%x%016x00%09x%08x2", s.Created, s.Shard&15, s.Number, s.Arrived, s.Shard)
	if hex != want {
		t.Errorf("got %s\nwant %s", hex, want)
	}
	first := Number{Created: 1700000000, Arrived: 1700000000}.String()
	m, _ := new(big.Int).SetString(first, 10)
	if shape := regexp.MustCompile(`^20[0-9a-f]{8}0[0-9a-f]{16}000[0-9a-f]{8}000000002$`); !shape.MatchString(m.Text(16)) || first[:2] != "49" {
		t.Errorf("%s is %s", first, m.Text(16))
	}
}

func FuzzSequence(f *testing.F) {
	f.Add(int64(1700000000), uint64(1), int64(1700000001), uint32(3), "49590338271490256608559692538361571095921575989136588898")
	f.Fuzz(func(t *testing.T, created int64, number uint64, arrived int64, shard uint32, text string) {
		s := Number{created & MaxSeconds, number & Last, arrived & MaxSeconds, shard & (1<<31 - 1)}
		if got, ok := Parse(s.String()); !ok || got != s {
			t.Errorf("%+v: %s became %+v", s, s, got)
		}
		var run Run
		for i, n := range []Number{s, {s.Created, s.Number + 1, s.Arrived, s.Shard}, {s.Created, s.Number + 2, s.Arrived, s.Shard}, s} {
			if got, want := string(run.Append(nil, n)), n.String(); got != want && s.Number < Last && s.Created >= 1<<30 {
				t.Errorf("%d: %+v is %s in a run, want %s", i, n, got, want)
			}
		}
		next := s
		next.Number++
		next.Arrived = (s.Arrived + 5) & MaxSeconds
		a, _ := new(big.Int).SetString(s.String(), 10)
		b, _ := new(big.Int).SetString(next.String(), 10)
		if s.Number < Last && a.Cmp(b) >= 0 {
			t.Errorf("%s does not precede %s", s, next)
		}
		if got, ok := Parse(text); ok && got.String() != text {
			t.Errorf("%q became %s", text, got)
		}
	})
}

func TestRun(t *testing.T) {
	var run Run
	s := Number{Created: 1.7e9, Number: 1, Arrived: 1.8e9, Shard: 7}
	for range 100_000 { // carries into every part
		if got, want := string(run.Append(nil, s)), s.String(); got != want {
			t.Fatalf("%+v is %s in a run, want %s", s, got, want)
		}
		s.Number++
	}
}

func BenchmarkRun(b *testing.B) {
	s := Number{Created: 1.8e9, Arrived: 1.8e9, Number: 123456, Shard: 3}
	var text [57]byte
	var run Run
	for b.Loop() {
		s.Number++
		run.Append(text[:0], s)
	}
}

func BenchmarkNumber(b *testing.B) {
	s := Number{Created: 1.8e9, Arrived: 1.8e9, Number: 123456, Shard: 3}
	var text [57]byte
	for b.Loop() {
		s.Number++
		s.Append(text[:0])
	}
}

func TestPosition(t *testing.T) {
	for _, n := range []uint64{0, 1, 9, 10, 15, 16, 1<<63 + 10} {
		if got := Of(Position(n)); got != n {
			t.Errorf("%d became %q became %d", n, Position(n), got)
		}
	}
	if n, ok := ParseShard(string(ShardName(120))); !ok || n != 120 || ShardName(120) != "shardId-000000000120" {
		t.Error(n, ok, ShardName(120))
	}
}
