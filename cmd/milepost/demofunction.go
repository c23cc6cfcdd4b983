package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
)

// demoHandlerVariable makes this program the demo's Lambda function, which is written as users write theirs.
const demoHandlerVariable = "MILEPOST_DEMO_HANDLER"

func demoHandler() { lambda.Start(speeding) }

// A speedingAnswer is the state for the window's next invocation, and what goes to the stream "speeding".
type speedingAnswer struct {
	events.TimeWindowEventResponseProperties

	Output []speedingRecord `json:"output,omitempty"`
}

type speedingRecord struct {
	Key  string          `json:"key"`
	JSON speedingVehicle `json:"json"`
}

// A speedingVehicle was fast in a window. The filter lets only fast readings through.
type speedingVehicle struct {
	Vehicle  string    `json:"vehicle_id"`
	Until    time.Time `json:"until"`
	Readings int       `json:"readings"`
}

// speeding counts each vehicle's readings over a window and tells them when it ends. Windows are a shard's, and a vehicle is in one shard.
func speeding(_ context.Context, e events.KinesisTimeWindowEvent) (*speedingAnswer, error) {
	counts := e.State
	if counts == nil {
		counts = map[string]string{}
	}
	for i := range e.Records {
		vehicle := e.Records[i].Kinesis.PartitionKey
		n, err := strconv.Atoi(cmp.Or(counts[vehicle], "0"))
		if err != nil {
			return nil, fmt.Errorf("state of %s: %w", vehicle, err)
		}
		counts[vehicle] = strconv.Itoa(n + 1)
	}
	if !e.IsFinalInvokeForWindow {
		return &speedingAnswer{TimeWindowEventResponseProperties: events.TimeWindowEventResponseProperties{State: counts}}, nil
	}
	var out []speedingRecord
	for _, vehicle := range slices.Sorted(maps.Keys(counts)) {
		n, err := strconv.Atoi(counts[vehicle])
		if err != nil {
			return nil, fmt.Errorf("state of %s: %w", vehicle, err)
		}
		out = append(out, speedingRecord{Key: vehicle, JSON: speedingVehicle{Vehicle: vehicle, Until: e.Window.End.Time, Readings: n}})
	}
	return &speedingAnswer{Output: out}, nil
}
