package kpl

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplit(t *testing.T) {
	want := []Record{{"a", "", []byte("one")}, {"b", "340282366920938463463374607431768211455", []byte{}}, {"a", "", []byte("three")}}
	got, ok := Split(nil, Append(nil, want))
	if !ok || !cmp.Equal(got, want) {
		t.Errorf("got %v %+v", ok, got)
	}
}

func TestSplitFixedBytes(t *testing.T) {
	// Written by hand from the format: one key "k", one record of it with data "hi" and a tag, which is passed over.
	data, err := hex.DecodeString("f3899ac2" + "0a016b" + "1a0b" + "0800" + "1a026869" + "22030a0174" + "8ec1206e624e31634a88defefff0be02")
	if err != nil {
		t.Fatal(err)
	}
	got, ok := Split(nil, data)
	if want := []Record{{"k", "", []byte("hi")}}; !ok || !cmp.Equal(got, want) {
		t.Errorf("got %v %+v", ok, got)
	}
}

func TestDamagedAggregateIsAPlainRecord(t *testing.T) {
	whole := Append(nil, []Record{{"a", "", []byte("one")}, {"b", "7", []byte("two")}})
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 1
		if got, ok := Split(nil, bad); ok || got != nil {
			t.Errorf("byte %d changed: got %v", i, got)
		}
	}
	for n := range whole {
		if _, ok := Split(nil, whole[:n]); ok {
			t.Errorf("cut to %d bytes it still splits", n)
		}
	}
	// A checksum that agrees does not help a record that names a key which is not there.
	if got, ok := Split(nil, sealed([]byte{1<<3 | 2, 1, 'k', 3<<3 | 2, 4, 1 << 3, 1, 3<<3 | 2, 0})); ok {
		t.Errorf("a record of a key that is not there: %v", got)
	}
}

// sealed puts a message between the magic and its checksum.
func sealed(message []byte) []byte {
	sum := md5.Sum(message)
	return append(append([]byte(magic), message...), sum[:]...)
}

func FuzzSplit(f *testing.F) {
	f.Add(Append(nil, []Record{{"a", "", []byte("one")}, {"b", "7", []byte("two")}}), []byte("x"))
	f.Add([]byte("\xf3\x89\x9a\xc2"), []byte{})
	f.Fuzz(func(t *testing.T, data, message []byte) {
		keep := []Record{{Key: "before"}}
		if got, ok := Split(keep, data); !ok && len(got) != 1 {
			t.Errorf("a plain record left %v", got)
		}
		// Any message under a checksum that agrees: either it splits, and then writing it again gives the same records, or it is plain.
		got, ok := Split(nil, sealed(message))
		if !ok {
			return
		}
		again, ok := Split(nil, Append(nil, got))
		if !ok || !cmp.Equal(len(got), len(again)) {
			t.Fatalf("%v became %v", got, again)
		}
		for i := range got {
			if got[i].Key != again[i].Key || got[i].HashKey != again[i].HashKey || !bytes.Equal(got[i].Data, again[i].Data) {
				t.Errorf("record %d: %v became %v", i, got[i], again[i])
			}
		}
	})
}

func BenchmarkPlain(b *testing.B) {
	data := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Split(nil, data); ok {
			b.Fatal("zeros are no aggregate")
		}
	}
}
