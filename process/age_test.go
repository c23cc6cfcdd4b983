package process_test

import (
	"testing"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
)

// A function whose records are rare is as current as the records that its filter passes over.
func TestIteratorAgeOfRareRecords(t *testing.T) {
	b := newBench(t, 1)
	reached, held := make(chan struct{}), make(chan struct{})
	r := b.start(func(r *process.Runner) error {
		return r.AddHandler(&handler{name: "rare", f: poisoned}, quick(process.Options{Filter: func(rec *stream.Record) bool {
			switch string(rec.Data) {
			case "rare":
				return true
			case "hold":
				close(reached)
				<-held
			}
			return false
		}}))
	})
	counters := func() (lane process.LaneStatus) {
		for _, s := range r.Status(t.Context())[0].Shards {
			for _, l := range s.Lanes {
				lane = l
			}
		}
		return lane
	}
	until := func(f func(process.LaneStatus) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !f(counters()); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%+v", counters())
			}
		}
	}
	b.putAll("rare")
	until(func(s process.LaneStatus) bool { return s.Records == 1 })
	time.Sleep(100 * time.Millisecond) // so that the record is older than what comes now
	before := time.Now()
	b.putAll("other", "other")
	until(func(s process.LaneStatus) bool { return s.Filtered == 2 })
	b.putAll("hold") // what is left to read, so that there is an age
	<-reached
	if age, most := counters().IteratorAgeMS, time.Since(before).Milliseconds()+1; age > most {
		t.Errorf("iterator age %d ms: want at most %d", age, most)
	}
	close(held)
	b.stop(r)
}
