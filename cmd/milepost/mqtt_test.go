package main

import (
	"strings"
	"testing"
	"time"

	"github.com/MobilityData/gtfs-realtime-bindings/golang/gtfs"
	"google.golang.org/protobuf/proto"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// A message that was not stored comes again over MQTT, and its readings must count then: nothing tells the converter which it is.
func TestMessageThatComesAgain(t *testing.T) {
	log := struct{ stream.Log }{} // nothing comes to it
	admit, err := ingest.New(ingest.Config{Log: log, DeadLetters: log, Catalog: telemetry.NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	ts, err := topics(nil, map[string]string{"buses": "gtfs-rt"}, new(Config).formats(), admit, func(format.Message) {})
	if err != nil {
		t.Fatal(err)
	}
	m, err := mqtt.NewMapping(ts)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(&gtfs.FeedMessage{
		Header: &gtfs.FeedHeader{GtfsRealtimeVersion: new("2.0")},
		Entity: []*gtfs.FeedEntity{{Id: new("e"), Vehicle: &gtfs.VehiclePosition{
			Vehicle: &gtfs.VehicleDescriptor{Id: new("2105")}, Timestamp: new(uint64(time.Now().Unix())), //nolint:gosec // not before 1970
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, lines, _, ok, err := m.Readings("buses", data)
		if err != nil || !ok || strings.Count(string(lines), "2105") != 1 {
			t.Errorf("readings %q, %v, %v", lines, ok, err)
		}
	}
}
