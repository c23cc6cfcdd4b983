package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"

	"github.com/milepost/milepost/telemetry"
)

// benchHandlerVariable makes this program a Lambda function built on aws-lambda-go: see benchFunctions. Its value says which.
const benchHandlerVariable = "MILEPOST_BENCH_HANDLER"

const (
	benchHandlerEvents = "events" // as users write them
	benchHandlerScan   = "scan"   // a lambda.Handler, which gets the event as it is: what remains is the machinery
)

// benchBootstrap runs the function until its processes are ended.
func benchBootstrap(handler string) {
	d := &benchDecoder{decoder: telemetry.NewDecoder(telemetry.NewCatalog())}
	switch handler {
	case benchHandlerEvents:
		lambda.Start(d.events)
	case benchHandlerScan:
		lambda.Start(d)
	default:
		lambda.Start(func(context.Context) error { return fmt.Errorf("%s: %q is not known", benchHandlerVariable, handler) })
	}
}

func (d *benchDecoder) events(_ context.Context, e events.KinesisEvent) (events.KinesisEventResponse, error) {
	for i := range e.Records {
		d.reading.Vehicle, d.reading.Arrival = "", e.Records[i].Kinesis.ApproximateArrivalTimestamp.UnixMilli()
		if err := d.decoder.JSON(e.Records[i].Kinesis.Data, &d.reading); err != nil {
			return events.KinesisEventResponse{}, err
		}
	}
	if len(e.Records) == 0 {
		return events.KinesisEventResponse{}, errors.New("the event has no records")
	}
	return events.KinesisEventResponse{}, nil
}

// Invoke implements lambda.Handler. It looks for the data of the records alone: the same bytes cannot stand in a JSON string, where
// quotes are escaped.
func (d *benchDecoder) Invoke(_ context.Context, event []byte) ([]byte, error) {
	mark := []byte(`"data":"`)
	records := 0
	d.reading.Arrival = time.Now().UnixMilli()
	for {
		at := bytes.Index(event, mark)
		if at < 0 {
			break
		}
		event = event[at+len(mark):]
		end := bytes.IndexByte(event, '"')
		if end < 0 {
			return nil, errors.New("the event ends in a record's data")
		}
		var err error
		if d.data, err = base64.StdEncoding.AppendDecode(d.data[:0], event[:end]); err != nil {
			return nil, fmt.Errorf("record %d: %w", records, err)
		}
		d.reading.Vehicle = ""
		if err := d.decoder.JSON(d.data, &d.reading); err != nil {
			return nil, fmt.Errorf("record %d: %w", records, err)
		}
		event = event[end:]
		records++
	}
	if records == 0 {
		return nil, errors.New("the event has no records")
	}
	return []byte(`{"batchItemFailures":[]}`), nil
}
