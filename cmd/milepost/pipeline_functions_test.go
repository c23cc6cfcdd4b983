package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/anomaly"
	"github.com/milepost/milepost/process/lambda"
	"github.com/milepost/milepost/process/lambda/runtime"
	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/process/window/lane"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/state/local"
	"github.com/milepost/milepost/stream"
)

// What TestPipelineCrash runs beside the fleet: windows over the readings, a function that echoes events to a stream, one that
// tallies them in tumbling windows, and the detectors.
const (
	eventsStream   = "events"
	echoStream     = "echoes"
	failureStream  = "failures"
	tallyStream    = "tallies"
	windowsStream  = "aggregates"
	crashWindow    = 20 * time.Second
	crashLateness  = 5 * time.Second
	crashHorizon   = 10 * 24 * time.Hour // vehicles with a backlog of days are never too late
	crashEchoTries = 2
)

// crashWorld is what functions have done outside: it outlives crashes. crashTest.mu guards it.
type crashWorld struct {
	seen    map[string]string // request ID → the event that came with it, so that another under the same ID is found out
	echoed  map[string]bool   // request IDs whose effect has been done
	effects map[string]int    // event, by shard and sequence number → how often the function did what it does outside
	events  map[string]string // those: what they are
	again   int               // invocations that were recognised as done before
}

func newCrashWorld() *crashWorld {
	return &crashWorld{seen: map[string]string{}, echoed: map[string]bool{}, effects: map[string]int{}, events: map[string]string{}}
}

// A crashEvent is a record of the stream of events.
type crashEvent struct {
	N       int    `json:"n"`
	Vehicle string `json:"vehicle"`
	Kind    string `json:"kind"` // good; poison, which echo never gets done; bitter, which tally never does; ignored
}

// functions configures them.
func (c *crashTest) functions(cfg *Config) {
	cfg.Streams = map[string]UserStream{}
	for name, shards := range map[string]int{eventsStream: 2, echoStream: 2, failureStream: 1, tallyStream: 1, windowsStream: 2} {
		cfg.Streams[name] = UserStream{Shards: shards, Retention: conf.Duration(24 * time.Hour)}
	}
	cfg.Windows = map[string]window.Spec{}
	for _, key := range []string{window.ByVehicle, window.ByFleet} {
		cfg.Windows["of_"+key] = window.Spec{
			Key: key, Size: crashWindow, Aggregates: []string{"count", "sum(speed) as speed", "max(engine_temp) as hot", "distinct(vehicle) as vehicles"},
			Lateness: crashLateness, Retain: crashHorizon, Keep: 2 * crashHorizon, Idle: -1, Output: windowsStream,
		}
	}
	on := lambda.MappingConfig{
		Stream: eventsStream, Enabled: true, Start: "TRIM_HORIZON", BatchSize: 7, MaxRetries: crashEchoTries - 1, Bisect: true, Parallel: 1,
		Filters: []string{`{"data":{"kind":["good","poison"]}}`, `{"data":{"kind":["bitter"]}}`},
	}
	echo, tally := on, on
	echo.Parallel, echo.ReportFailures, echo.OnFailure, echo.Output = 4, true, "stream:"+failureStream, echoStream
	tally.Tumbling, tally.Output = time.Second, tallyStream
	base := lambda.FunctionConfig{Timeout: 3 * time.Second, Concurrency: 10, Memory: 128}
	e, y := base, base
	e.Func, e.On = c.echo, []lambda.MappingConfig{echo}
	y.Func, y.On = c.tally, []lambda.MappingConfig{tally}
	cfg.Functions = lambda.Functions{"echo": e, "tally": y}
}

// A lambdaEvent is what a function is handed.
type lambdaEvent struct {
	Records []struct {
		Kinesis struct {
			Key      string `json:"partitionKey"`
			Sequence string `json:"sequenceNumber"`
			Data     []byte `json:"data"`
		} `json:"kinesis"`
		ID string `json:"eventID"`
	}
	State struct{ Count int }
	Final bool `json:"isFinalInvokeForWindow"`
	Shard string
}

func readLambdaEvent(req *runtime.Request) (ev lambdaEvent, data []crashEvent, err error) {
	if err := json.Unmarshal(req.Payload, &ev); err != nil {
		return ev, nil, err
	}
	for _, r := range ev.Records {
		var d crashEvent
		if err := json.Unmarshal(r.Kinesis.Data, &d); err != nil {
			return ev, nil, err
		}
		data = append(data, d)
	}
	return ev, data, nil
}

var errNoMood = errors.New("not in the mood")

// mood decides by the request ID, so that a repetition goes as the first time went.
func mood(id string, n uint64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	return h.Sum64() >> 7 % n
}

// echo does something outside for each event, once by request ID, and puts each out. It reports the first poison, or fails whole.
func (c *crashTest) echo(_ context.Context, req *runtime.Request) ([]byte, error) {
	ev, data, err := readLambdaEvent(req)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cloned {
		return nil, errors.New("the power is off")
	}
	w := c.world
	if was, ok := w.seen[req.ID]; ok && was != string(req.Payload) {
		c.t.Errorf("request %s was\n%s\nand is\n%s", req.ID, was, req.Payload)
	}
	w.seen[req.ID] = string(req.Payload)
	if len(data) > 1 && mood(req.ID, 6) == 0 {
		return nil, errNoMood // it is split until it is let through
	}
	done := slices.IndexFunc(data, func(d crashEvent) bool { return d.Kind == "poison" })
	if done == 0 && mood(req.ID, 2) == 0 {
		return nil, errors.New("poison")
	}
	var answer struct {
		Failures []map[string]string `json:"batchItemFailures"`
		Output   []map[string]any    `json:"output"`
	}
	if done >= 0 {
		answer.Failures = append(answer.Failures, map[string]string{"itemIdentifier": ev.Records[done].Kinesis.Sequence})
		data = data[:done]
	}
	if w.echoed[req.ID] {
		w.again++
	}
	for i, d := range data {
		id := ev.Records[i].ID
		w.events[id] = string(ev.Records[i].Kinesis.Data)
		if !w.echoed[req.ID] {
			w.effects[id]++
		}
		answer.Output = append(answer.Output, map[string]any{"key": d.Vehicle, "json": map[string]any{"n": d.N, "id": id}})
	}
	w.echoed[req.ID] = true
	return json.Marshal(answer)
}

// tally counts in its window's state.
func (c *crashTest) tally(_ context.Context, req *runtime.Request) ([]byte, error) {
	ev, data, err := readLambdaEvent(req)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(data, func(d crashEvent) bool { return d.Kind == "bitter" }) {
		return nil, errors.New("bitter")
	}
	answer := map[string]any{}
	count := ev.State.Count + len(data)
	answer["state"] = map[string]int{"Count": count}
	if ev.Final && count > 0 {
		answer["output"] = []map[string]any{{"key": "all", "json": count}}
	}
	return json.Marshal(answer)
}

// event makes a payload for the stream of events.
func (c *crashTest) event(v *crashVehicle) string {
	kind := "good"
	switch c.rng.IntN(24) {
	case 0:
		kind = "poison"
	case 1:
		kind = "bitter"
	case 2, 3:
		kind = "ignored"
	}
	c.events++
	return fmt.Sprintf(`{"n":%d,"vehicle":%q,"kind":%q}`, c.events, v.id, kind)
}

// reshard splits or merges the shards of a stream now and then, while everything runs.
func (c *crashTest) reshard(ctx context.Context, s *server, name string, rng *rand.Rand) {
	if rng.IntN(4) > 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(rng.IntN(40)) * time.Millisecond):
	}
	l, err := s.logs.Stream(name)
	if err != nil {
		c.t.Error(err)
		return
	}
	all, err := l.Shards(context.WithoutCancel(ctx))
	if err != nil {
		c.t.Error(err)
		return
	}
	all = slices.DeleteFunc(all, func(sh stream.Shard) bool { return sh.Closed })
	pick := all[rng.IntN(len(all))]
	if len(all) < 5 && rng.IntN(2) == 0 {
		_, err = l.Split(context.WithoutCancel(ctx), pick.ID, stream.Hash{Hi: pick.From.Hi + (pick.To.Hi-pick.From.Hi)/2})
	} else if i := slices.IndexFunc(all, func(sh stream.Shard) bool { return pick.To != stream.MaxHash && pick.To.Next() == sh.From }); i >= 0 {
		_, err = l.Merge(context.WithoutCancel(ctx), pick.ID, all[i].ID)
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		c.t.Errorf("reshard %s: %v", name, err)
	}
}

// checkFunctions compares what functions, windows and detectors did with what the logs hold.
func (c *crashTest) checkFunctions(s *server, when string) {
	c.t.Helper()
	c.checkEchoes(s, when)
	c.checkTally(s, when)
	c.checkWindows(s, when)
	c.checkDetectors(s, when)
}

// logged is every event in the log by shard and sequence number, in the log's order.
func (c *crashTest) logged(s *server) (ids []string, events map[string]crashEvent) {
	c.t.Helper()
	l := userStream(c, s, eventsStream)
	shards, err := l.Shards(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	events = map[string]crashEvent{}
	for _, r := range readLog(c.t, l) {
		i := slices.IndexFunc(shards, func(sh stream.Shard) bool { return sh.ID == r.Shard })
		if i < 0 {
			c.t.Fatalf("record of shard %q", r.Shard)
		}
		n, _ := sequence.ParseShard(string(r.Shard))
		created := shards[i].Created.Unix()
		num := sequence.Number{Created: created, Number: sequence.Of(r.Pos), Arrived: max(r.Time.Unix(), created), Shard: n}
		var e crashEvent
		if err := json.Unmarshal(r.Data, &e); err != nil {
			c.t.Fatal(err)
		}
		id := string(r.Shard) + ":" + num.String()
		ids = append(ids, id)
		events[id] = e
	}
	return ids, events
}

func userStream(c *crashTest, s *server, name string) tippedLog {
	l, err := s.logs.Stream(name)
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

// eventually looks until there is no difference, or for too long.
func (c *crashTest) eventually(look func() string) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		diff := look()
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			c.t.Error(diff)
			return
		}
		time.Sleep(5 * time.Millisecond) // functions tell nobody that they have caught up
	}
}

// checkEchoes: each event that no filter holds back is echoed once, in the order of its key; its effect was done once by request ID;
// and each poison is one failure document.
func (c *crashTest) checkEchoes(s *server, when string) {
	c.t.Helper()
	ids, events := c.logged(s)
	want, poison := map[string][]string{}, []string{}
	for _, id := range ids {
		switch e := events[id]; e.Kind {
		case "good", "bitter":
			want[e.Vehicle] = append(want[e.Vehicle], fmt.Sprintf(`{"id":%q,"n":%d}`, id, e.N))
		case "poison":
			poison = append(poison, id)
		}
	}
	slices.Sort(poison)
	c.eventually(func() string {
		got := map[string][]string{}
		for _, r := range readLog(c.t, userStream(c, s, echoStream)) {
			got[r.Key] = append(got[r.Key], string(r.Data))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return when + ": echoes (-want +got):\n" + diff
		}
		told := map[string]string{} // by request ID: it may come twice under one
		for _, r := range readLog(c.t, userStream(c, s, failureStream)) {
			var d lambda.FailureDocument
			if err := json.Unmarshal(r.Data, &d); err != nil {
				c.t.Fatal(err)
			}
			id := string(d.Batch.Shard) + ":" + d.Batch.First
			if d.Batch.First != d.Batch.Last || d.Batch.Records != 1 || d.RequestContext.Condition != process.AttemptsExhausted || d.RequestContext.Invokes != crashEchoTries {
				c.t.Errorf("%s: failure document %s, want of one record after %d invocations", when, r.Data, crashEchoTries)
			}
			told[d.RequestContext.RequestID] = id
		}
		if diff := cmp.Diff(poison, slices.Sorted(maps.Values(told))); diff != "" {
			return when + ": failure documents (-want +got):\n" + diff
		}
		return ""
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		n, e := c.world.effects[id], events[id]
		if done := e.Kind == "good" || e.Kind == "bitter"; done != (n == 1) || n > 1 {
			c.t.Errorf("%s: %s (%+v) had its effect %d times", when, id, e, n)
		}
	}
	for _, v := range c.vehicles {
		for once := range v.answer {
			var e crashEvent
			if json.Unmarshal([]byte(once), &e) == nil && e.N > 0 && !slices.ContainsFunc(ids, func(id string) bool { return events[id] == e }) {
				c.t.Errorf("%s: event %s was acknowledged and is not in the log", when, once)
			}
		}
	}
	c.t.Logf("%s: %d events, %d of them poison; %d invocations, %d of them again", when, len(ids), len(poison), len(c.world.seen), c.world.again)
}

// checkTally: the windows of arrival time have counted each event but the bitter ones once, and those are dead letters.
func (c *crashTest) checkTally(s *server, when string) {
	c.t.Helper()
	ids, events := c.logged(s)
	want, bitter := 0, []string{}
	for _, id := range ids {
		switch e := events[id]; e.Kind {
		case "good", "poison":
			want++
		case "bitter":
			bitter = append(bitter, fmt.Sprintf(`{"n":%d,"vehicle":%q,"kind":"bitter"}`, e.N, e.Vehicle))
		}
	}
	slices.Sort(bitter)
	c.eventually(func() string {
		got := 0
		for _, r := range readLog(c.t, userStream(c, s, tallyStream)) {
			var n int
			if err := json.Unmarshal(r.Data, &n); err != nil {
				c.t.Fatal(err)
			}
			got += n
		}
		if got != want {
			return fmt.Sprintf("%s: tallies count %d events, want %d", when, got, want)
		}
		letters := map[string]string{} // by ID
		for _, r := range readLog(c.t, s.dead) {
			var d stream.DeadLetter
			if err := json.Unmarshal(r.Data, &d); err != nil {
				c.t.Fatal(err)
			}
			if d.Stream == eventsStream {
				letters[d.ID] = string(d.Data)
			}
		}
		if diff := cmp.Diff(bitter, slices.Sorted(maps.Values(letters))); diff != "" {
			return when + ": dead letters of tally (-want +got):\n" + diff
		}
		return ""
	})
}

// A crashFigure is what a window must come to.
type crashFigure struct {
	Rows, Speed, Hot, Vehicles float64
}

// checkWindows: the windows are what the log alone says, and the stream has each telling once, the last one being what is stored.
func (c *crashTest) checkWindows(s *server, when string) {
	t := c.t
	t.Helper()
	type key struct {
		window, key string
		start       int64
	}
	size := crashWindow.Milliseconds()
	vehicles := map[key]map[string]bool{}
	want := map[key]crashFigure{}
	newest := map[string]int64{} // by vehicle, and by shard
	shardOf := map[string]bool{}
	seen := map[readingKey]bool{}
	for _, r := range readLog(t, s.readings) {
		if !bytes.HasPrefix(r.Data, []byte("{")) {
			continue // foreign
		}
		var x struct {
			Vehicle string    `json:"vehicle_id"`
			Time    time.Time `json:"ts"`
			Speed   float64   `json:"speed"`
			Hot     float64   `json:"engine_temp"`
		}
		if err := json.Unmarshal(r.Data, &x); err != nil {
			t.Fatal(err)
		}
		at := x.Time.UnixMilli()
		shardOf[string(r.Shard)] = true
		newest[x.Vehicle], newest[string(r.Shard)] = max(newest[x.Vehicle], at), max(newest[string(r.Shard)], at)
		if seen[readingKey{x.Vehicle, at}] {
			continue
		}
		seen[readingKey{x.Vehicle, at}] = true
		for _, k := range []key{{"of_vehicle", x.Vehicle, at - at%size}, {"of_fleet", "fleet", at - at%size}} {
			if vehicles[k] == nil {
				vehicles[k] = map[string]bool{}
			}
			vehicles[k][x.Vehicle] = true
			w := want[k]
			w.Rows++
			w.Speed += x.Speed
			w.Hot = max(w.Hot, x.Hot)
			w.Vehicles = float64(len(vehicles[k]))
			want[k] = w
		}
	}
	low := int64(math.MaxInt64) // of the shards that may still grow
	shards, err := s.readings.Shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sh := range shards {
		if !sh.Closed && shardOf[string(sh.ID)] {
			low = min(low, newest[string(sh.ID)])
		}
	}
	for k := range want {
		mark := low
		if k.window == "of_vehicle" {
			mark = newest[k.key]
		}
		if k.start+size > mark-crashLateness.Milliseconds() {
			delete(want, k) // it is open
		}
	}
	c.eventually(func() string {
		got, stored := map[key]crashFigure{}, map[string]window.Stored{}
		if err := lane.Each(t.Context(), s.state, "", 0, 0, func(r *window.Stored) bool {
			f := crashFigure{Rows: float64(r.Rows)}
			for i, name := range r.Names {
				switch name {
				case "count":
					if r.Values[i].Num != f.Rows {
						t.Errorf("%s: window %+v", when, r)
					}
				case "speed":
					f.Speed = r.Values[i].Num
				case "hot":
					f.Hot = r.Values[i].Num
				case "vehicles":
					f.Vehicles = r.Values[i].Num
				}
			}
			k := key{r.Window, r.Key, r.Start}
			if _, ok := want[k]; ok || k.window == "of_vehicle" {
				got[k] = f // of the fleet others may have been told while shards were fewer, and wait for a slower shard now
			}
			stored[fmt.Sprintf("%s/%s/%d", r.Window, r.Key, r.Start)] = *r
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(key{})); diff != "" {
			return when + ": windows (-want +got):\n" + diff
		}
		told := map[string]int{} // ID → revisions so far
		for _, r := range readLog(t, userStream(c, s, windowsStream)) {
			var x struct {
				ID       string
				Rows     uint64
				Final    bool
				Revision int
			}
			if err := json.Unmarshal(r.Data, &x); err != nil {
				t.Fatal(err)
			}
			if x.Revision != told[x.ID] || !x.Final {
				t.Errorf("%s: %s was told %d times before: %s", when, x.ID, told[x.ID], r.Data)
			}
			told[x.ID]++
			if x.Revision == stored[x.ID].Revision && x.Rows != stored[x.ID].Rows {
				t.Errorf("%s: the stream has %s, the store %+v", when, r.Data, stored[x.ID])
			}
		}
		for id, r := range stored {
			if told[id] != r.Revision+1 {
				return fmt.Sprintf("%s: %s is on the stream %d times, want %d", when, id, told[id], r.Revision+1)
			}
		}
		if len(told) != len(stored) {
			return fmt.Sprintf("%s: the stream has %d windows, the store %d", when, len(told), len(stored))
		}
		return ""
	})
	t.Logf("%s: %d windows", when, len(want))
}

// checkDetectors: what detectors know of each vehicle is what they learn from the log alone, in one go.
func (c *crashTest) checkDetectors(s *server, when string) {
	t := c.t
	t.Helper()
	for _, b := range s.beside {
		if err := b.runner.WaitCaughtUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fresh, err := local.Open(local.Config{Dir: "state", FS: vfs.NewCrashable()})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	r, err := process.New(process.Config{Log: s.readings, StreamName: readingsStream, Store: fresh})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddFolder(anomaly.New(anomaly.Config{Plan: s.plan, Catalog: s.catalog}), process.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Start(), r.WaitCaughtUp(t.Context()), r.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	known := func(store state.Store) map[string]string {
		out := map[string]string{}
		if err := store.View(t.Context(), func(rd state.Reader) error {
			return rd.Scan([]byte("anomaly/w/"), state.PrefixEnd([]byte("anomaly/w/")), func(k, v []byte) error {
				out[string(k)] = string(v)
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	want, got := known(fresh), known(s.state)
	if len(want) != len(c.vehicles) {
		t.Errorf("%s: detectors know %d vehicles, want %d", when, len(want), len(c.vehicles))
	}
	for k := range want {
		if want[k] != got[k] {
			t.Errorf("%s: detectors know of %s\n%x, want\n%x", when, strings.TrimPrefix(k, "anomaly/w/"), got[k], want[k])
		}
	}
}
