package ingest

import (
	"fmt"
	"testing"
	"time"
)

// However many ids are invented, the rate limit remembers a bounded number, and a vehicle that is over its rate is not the
// one forgotten while others with more left are there.
func TestRatesAreBounded(t *testing.T) {
	r := newRates(1, 2, 640) // 10 a part
	now := time.Now().UnixNano()
	for i := range 10_000 {
		r.take(fmt.Sprint("invented-", i), 1, now, false)
	}
	if n := r.size(); n > 640 {
		t.Errorf("%d vehicles remembered, want at most 640", n)
	}
	for range 2 {
		r.take("busy", 1, now, false)
	}
	for i := range 1000 {
		r.take(fmt.Sprint("more-", i), 1, now, false)
	}
	if r.take("busy", 1, now, false) == 0 {
		t.Error("a busy vehicle was forgotten and has its burst again")
	}
}

func TestClockSteppingBackGivesNothing(t *testing.T) {
	r := newRates(1, 1, 100)
	now := time.Now().UnixNano()
	r.take("a", 1, now, false)
	if r.take("a", 1, now-int64(time.Hour), false) == 0 || r.take("a", 1, now, false) == 0 {
		t.Error("stepping back and forth gave a token")
	}
}

func BenchmarkRate(b *testing.B) {
	r := newRates(1e9, 1e9, 200_000)
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprint("vehicle-", i)
	}
	now := time.Now().UnixNano()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r.take(ids[i%len(ids)], 1, now, false)
		i++
	}
}
