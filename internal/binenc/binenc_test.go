package binenc

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var errDamaged = errors.New("damaged")

func write() []byte {
	b := []byte{7}
	b = binary.AppendUvarint(b, math.MaxUint64)
	b = binary.AppendVarint(b, math.MinInt64)
	b = AppendText(b, "Größe")
	b = AppendFloat(b, -1.5)
	b = binary.LittleEndian.AppendUint32(b, 0xfedcba98)
	b = AppendText(b, "")
	b = binary.AppendUvarint(b, 2)
	return append(b, 1, 2, 3, 4)
}

func read(r *Reader) []any {
	out := []any{r.Byte(), r.Uvarint(), r.Varint(), r.Text(), r.Float(), r.Fixed32(), r.Text()}
	n := r.Count(2)
	out = append(out, n)
	for range 2 * n {
		out = append(out, r.Byte())
	}
	return out
}

// TestGolden: these bytes are on people's disks.
func TestGolden(t *testing.T) {
	want := append([]byte{7}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)
	want = append(want, 7, 'G', 'r', 0xc3, 0xb6, 0xc3, 0x9f, 'e', 0, 0, 0, 0, 0, 0, 0xf8, 0xbf, 0x98, 0xba, 0xdc, 0xfe, 0, 2, 1, 2, 3, 4)
	if d := cmp.Diff(want, write()); d != "" {
		t.Error(d)
	}
	r := Reader{B: want, Damaged: errDamaged}
	fields := []any{byte(7), uint64(math.MaxUint64), int64(math.MinInt64), "Größe", -1.5, uint32(0xfedcba98), "", 2, byte(1), byte(2), byte(3), byte(4)}
	if d := cmp.Diff(fields, read(&r)); d != "" || r.Err != nil || len(r.B) != 0 {
		t.Error(d, r.Err, r.B)
	}
}

// TestCut: cut anywhere it is damaged, once and for good.
func TestCut(t *testing.T) {
	b := write()
	for n := range b {
		r := Reader{B: b[:n], Damaged: errDamaged}
		read(&r)
		if !errors.Is(r.Err, errDamaged) || r.Uvarint() != 0 || r.Fixed64() != 0 || len(r.Bytes()) != 0 {
			t.Errorf("cut at %d: %v", n, r.Err)
		}
	}
}

// FuzzReader: whatever the bytes say, reading ends, within them.
func FuzzReader(f *testing.F) {
	f.Add(write())
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Reader{B: b, Damaged: errDamaged}
		for len(r.B) > 0 && r.Err == nil {
			before := len(r.B)
			if n := r.Count(3); 3*n > before {
				t.Fatalf("%d things of 3 bytes in %d", n, before)
			}
			if r.Err == nil && len(r.Bytes()) > before {
				t.Fatal("more than there is")
			}
		}
	})
}
