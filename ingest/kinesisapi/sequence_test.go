package kinesisapi

import (
	"fmt"
	"math/big"
	"regexp"
	"testing"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

func FuzzHash(f *testing.F) {
	f.Add("340282366920938463463374607431768211455")
	f.Add("18446744073709551616")
	f.Add("0")
	f.Fuzz(func(t *testing.T, text string) {
		h, ok := parseHash(text)
		want, isNumber := new(big.Int).SetString(text, 10)
		digits := regexp.MustCompile(`^[0-9]{1,39}$`).MatchString(text)
		if fits := isNumber && digits && want.BitLen() <= 128; ok != fits {
			t.Fatalf("%q: got %v, want %v", text, ok, fits)
		}
		if ok && formatHash(h) != want.String() {
			t.Errorf("%q became %s", text, formatHash(h))
		}
	})
}

func TestSlice(t *testing.T) {
	ring := new(big.Int).Lsh(big.NewInt(1), 128)
	for _, n := range []int{1, 2, 3, 5, 7, 64, 1000, 9999, 10_000} {
		width := new(big.Int).Div(ring, big.NewInt(int64(n)))
		for _, i := range []int{0, 1, n / 2, n - 1} {
			if i >= n {
				continue
			}
			want := new(big.Int).Mul(width, big.NewInt(int64(i)))
			if got := formatHash(slice(i, n)); got != want.String() {
				t.Errorf("part %d of %d begins at %s, want %s", i, n, got, want)
			}
		}
	}
	if m := middle(stream.Shard{To: stream.MaxHash}); formatHash(m) != "170141183460469231731687303715884105728" {
		t.Errorf("the middle of all is %s", formatHash(m))
	}
	if m := middle(stream.Shard{From: stream.Hash{Hi: 1}, To: stream.Hash{Hi: 1, Lo: 1}}); m != (stream.Hash{Hi: 1, Lo: 1}) {
		t.Errorf("the middle of two is %+v", m)
	}
}

func TestIterator(t *testing.T) {
	fsys := vfs.NewCrashable()
	tok, err := openTokens(fsys, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 13, 14, 30, 128} {
		it := iterator{stream: fmt.Sprintf("%0*d", n, 7), created: 1, shard: 2, after: 3, at: 4}
		text := string(tok.iterator(nil, it))
		again, err := openTokens(fsys, "") // as after a restart
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{text, `"` + text + `"`} {
			if got, ok := again.readIterator(text); !ok || got != it {
				t.Errorf("%+v became %+v", it, got)
			}
		}
		if raw := len(text) / 4 * 3; raw-raw%3 < iteratorLen(n)-2 || len(text) > 512 {
			t.Errorf("name of %d: %d characters", n, len(text))
		}
		if _, err := tok.readPage(text, "ListShards", time.Now()); err == nil {
			t.Error("an iterator passes for a page")
		}
		bad := []byte(text)
		bad[len(bad)/2] ^= 1
		if _, ok := tok.readIterator(string(bad)); ok {
			t.Error("a damaged iterator is taken")
		}
	}
}

func FuzzIterator(f *testing.F) {
	tok, err := openTokens(vfs.NewCrashable(), "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("AAAAAAAAAAE=")
	f.Fuzz(func(t *testing.T, text string) {
		if it, ok := tok.readIterator(text); ok {
			t.Errorf("%q is taken for %+v", text, it)
		}
	})
}
