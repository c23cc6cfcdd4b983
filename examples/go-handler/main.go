// Command bootstrap is a Lambda handler in Go: the function that runs on AWS, unchanged. It turns fuel levels into litres.
package main

import (
	"context"
	"encoding/json"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
)

type reading struct {
	Vehicle string  `json:"vehicle_id"`
	Fuel    float64 `json:"fuel"` // % of the tank
}

type litres struct {
	Vehicle string  `json:"vehicle_id"`
	Litres  float64 `json:"litres"`
}

type record struct {
	Key  string `json:"key"`
	JSON litres `json:"json"`
}

type answer struct {
	events.KinesisEventResponse
	Output []record `json:"output"`
}

const tank = 400 // litres

func handle(_ context.Context, event events.KinesisEvent) (answer, error) {
	var a answer
	for _, r := range event.Records {
		var in reading
		if err := json.Unmarshal(r.Kinesis.Data, &in); err != nil {
			// The record is at fault, and no retry mends it: report it alone.
			a.BatchItemFailures = append(a.BatchItemFailures, events.KinesisBatchItemFailure{ItemIdentifier: r.Kinesis.SequenceNumber})
			return a, nil //nolint:nilerr // it is reported
		}
		a.Output = append(a.Output, record{in.Vehicle, litres{in.Vehicle, in.Fuel * tank / 100}})
	}
	return a, nil
}

func main() { lambda.Start(handle) }
