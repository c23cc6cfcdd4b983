package webtest

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/web"
)

// Status implements web.Pipeline.
func (f *Fleet) Status(context.Context) (web.PipelineStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.accepted
	st := web.PipelineStatus{
		Time: f.now, Started: f.started, Version: "test",
		Doors: []web.DoorStatus{
			{Name: "mqtt", Address: ":1883", Connections: len(f.cars), Accepted: n * 9 / 10, Bytes: n * 180, Refused: map[string]uint64{"bad JSON": 12, "rate limit": 3}},
			{Name: "http", Address: ":8080", Connections: 4, Accepted: n / 10, Bytes: n * 20, Refused: map[string]uint64{"no vehicle id": 5}},
		},
		Streams: []web.StreamStatus{{Name: "readings", Records: n, Bytes: n * 200, Stored: n * 210}, {Name: "dead-letters", Records: uint64(len(f.letters)), Bytes: 9000, Stored: 9000}},
		Functions: []web.FunctionStatus{
			{Name: "fleet", Stream: "readings", Processed: n},
			{Name: "rules", Stream: "readings", Processed: n - min(n, 40), Errors: 2, Dead: 1, LastError: "record 000001: " + Hostile},
			{Name: "archive", Stream: "readings", Processed: n - min(n, 900)},
		},
		Archive: &web.ArchiveStatus{Files: 14, Rows: 1_204_331 + n, Bytes: 31_400_000, TailRows: 4210, Newest: f.now.Add(-40 * time.Second)},
		Sinks:   []web.SinkStatus{{Name: "webhook ops", Sent: 41, Failed: 1, Pending: 0}, {Name: "e-mail dispatch", Sent: 12}},
		Dead:    uint64(len(f.letters)),
	}
	for s := range 8 {
		id := stream.ShardID(fmt.Sprintf("shardId-%012d", s))
		st.Streams[0].Shards = append(st.Streams[0].Shards, web.ShardStatus{ID: id, Records: n / 8, Tip: f.now.Add(-time.Duration(s*20) * time.Millisecond), Oldest: f.now.Add(-23 * time.Hour)})
		for i := range st.Functions {
			lag := int64(i*i*s + s%2)
			st.Functions[i].Shards = append(st.Functions[i].Shards, web.FunctionLag{Shard: id, Lag: lag, Seconds: float64(lag) / 40})
		}
	}
	st.Streams[1].Shards = []web.ShardStatus{{ID: "shardId-000000000000", Records: uint64(len(f.letters)), Tip: f.now.Add(-time.Hour)}}
	return st, nil
}

func (f *Fleet) seedLetters() {
	payloads := []struct{ reason, source, key, data string }{
		{"not JSON: unexpected end at byte 18: send one object or NDJSON", "mqtt", "T0117", `{"truck_id":"T117"`},
		{"no vehicle id: send vehicle_id or truck_id", "http", "", `{"ts":"2026-11-21T02:15:03Z","lat":40.7,"long":-74.0,"speed":63}`},
		{Hostile, "mqtt", Hostile, `{"truck_id":"` + Hostile + `"}` + "\x00\xff\x01"},
		{"time is 3 h in the future: set the device's clock", "function fleet", "T0200", `{"truck_id":"T200","ts":"2030-01-01T00:00:00Z"}`},
		{"webhook answered 500 ten times: mend the endpoint, then send again", "sink webhook", "T0300", strings.Repeat(`{"alert":"engine-hot"} `, 60)},
	}
	for i := range 24 {
		p := payloads[i%len(payloads)]
		f.letters = append(f.letters, web.StoredLetter{
			Ref: "dl-" + strconv.Itoa(100-i),
			DeadLetter: stream.DeadLetter{
				Reason: p.reason, Source: p.source, From: "10.0.4.7:51230", Key: p.key, Data: []byte(p.data),
				At: f.now.Add(-time.Duration(i*i) * time.Minute),
			},
		})
	}
}

// DeadLetters implements web.DeadLetters.
func (f *Fleet) DeadLetters(_ context.Context, limit int, before string) ([]web.StoredLetter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	started := before == ""
	var out []web.StoredLetter
	for i := range f.letters {
		if started && len(out) < limit {
			out = append(out, f.letters[i])
		}
		started = started || f.letters[i].Ref == before
	}
	return out, nil
}

// DeadLetter implements web.DeadLetters.
func (f *Fleet) DeadLetter(_ context.Context, ref string) (web.StoredLetter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.letters {
		if f.letters[i].Ref == ref {
			return f.letters[i], nil
		}
	}
	return web.StoredLetter{}, web.ErrNotFound
}

// SQL is an engine with two answers: a table of vehicles for any SELECT, and made-up history for the queries of package
// history, told apart by their parameters. Package history tests the real SQL against a real engine.
type SQL struct{ Fleet *Fleet }

// Close implements query.Engine.
func (s SQL) Close() error { return nil }

// Query implements query.Engine.
func (s SQL) Query(_ context.Context, sql string, format query.Format, lim query.Limits, w io.Writer) (query.Result, error) {
	if !strings.HasPrefix(strings.ToUpper(strings.TrimSpace(sql)), "SELECT") {
		return query.Result{}, &query.UserError{Msg: "line 1: only SELECT is allowed here, found " + strings.Fields(sql)[0]}
	}
	cols := []query.Column{{Name: "vehicle_id", Type: "VARCHAR"}, {Name: "speed", Type: "DOUBLE"}, {Name: "seen", Type: "TIMESTAMP"}, {Name: "status", Type: "VARCHAR"}}
	s.Fleet.mu.Lock()
	defer s.Fleet.mu.Unlock()
	rows := [][]any{}
	truncated := false
	for _, c := range s.Fleet.cars {
		if len(rows) == min(lim.Rows, 500) {
			truncated = true
			break
		}
		var status any = c.status
		if c.point.Index%7 == 3 {
			status = nil
		}
		rows = append(rows, []any{c.point.ID, math.Round(c.speed*10) / 10, c.arrival.UTC().Format("2006-01-02 15:04:05.000"), status})
	}
	res := query.Result{Columns: cols, Rows: len(rows), Truncated: truncated, Elapsed: 12 * time.Millisecond}
	if format == query.CSV {
		cw := csv.NewWriter(w)
		_ = cw.Write([]string{"vehicle_id", "speed", "seen", "status"})
		for _, r := range rows {
			_ = cw.Write([]string{fmt.Sprint(r[0]), fmt.Sprint(r[1]), fmt.Sprint(r[2]), fmt.Sprint(r[3])})
		}
		cw.Flush()
		return res, cw.Error()
	}
	err := json.NewEncoder(w).Encode(map[string]any{"columns": cols, "rows": rows, "truncated": truncated, "elapsed_ms": 12.4})
	return res, err
}

// Rows implements query.Engine for the queries of package history.
func (s SQL) Rows(_ context.Context, _ query.Limits, each func([]any) error, sql string, args ...any) error {
	id, ok0 := args[0].(string)
	since, ok1 := args[1].(time.Time)
	until, ok2 := args[2].(time.Time)
	start, ok3 := args[3].(int64)
	step, ok4 := args[4].(int64)
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 {
		return fmt.Errorf("arguments %v: want a vehicle, two times and two numbers", args)
	}
	from, to := since.UnixMilli(), until.UnixMilli()
	signals := strings.Count(sql, ", count(s")
	s.Fleet.mu.Lock()
	c := s.Fleet.byID[id]
	s.Fleet.mu.Unlock()
	if c == nil {
		return nil
	}
	a, b := cities[c.from], cities[c.to]
	for i := int64(0); start+i*step < to; i++ {
		t := max(from, start+i*step)
		share := float64(t-from) / float64(to-from)
		if share > 0.42 && share < 0.5 { // a tunnel, or a lunch
			continue
		}
		wave := math.Sin(share*20) + 0.4*math.Sin(share*77)
		if signals == 0 {
			back := 1 - share
			bend := 0.2 * math.Sin(back*math.Pi*2)
			if err := each([]any{t, c.point.Lat - (b.lat-a.lat)*0.8*back + bend*(b.lon-a.lon)*0.3, c.point.Lon - (b.lon-a.lon)*0.8*back - bend*(b.lat-a.lat)*0.3, 70 + 12*wave}); err != nil {
				return err
			}
			continue
		}
		row := []any{i}
		for k := range signals {
			base := []float64{70, 60 - 30*share, 90, 4, 310, 8}[k%6]
			swing := []float64{12, 0.2, 3, 0.6, 9, 0.1}[k%6]
			row = append(row, int64(30), base+swing*(wave-0.5), base+swing*wave, base+swing*(wave+0.5))
		}
		if err := each(row); err != nil {
			return err
		}
	}
	return nil
}

// Config returns a configuration with every source in place.
func (f *Fleet) Config() web.Config {
	return web.Config{Vehicles: f, Live: f, Alerts: f, SQL: SQL{f}, Pipeline: f, DeadLetters: f}
}
