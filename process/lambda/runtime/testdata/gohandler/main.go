// Command gohandler is a function as users build them: aws-lambda-go, and nothing of Milepost. Its environment says what it does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing/iotest"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type seen struct {
	Records  int    `json:"records"`
	Bytes    int    `json:"bytes"`
	Request  string `json:"request"`
	ARN      string `json:"arn"`
	Name     string `json:"name"`
	Memory   int    `json:"memory"`
	Deadline bool   `json:"deadline"`
	App      string `json:"app"`
}

func batch(ctx context.Context, e events.KinesisEvent) (events.KinesisEventResponse, error) {
	n := 0
	for i := range e.Records {
		n += len(e.Records[i].Kinesis.Data)
	}
	if n == 0 {
		return events.KinesisEventResponse{}, errors.New("no data")
	}
	return events.KinesisEventResponse{}, nil
}

func about(ctx context.Context, e events.KinesisEvent) (seen, error) {
	lc, _ := lambdacontext.FromContext(ctx)
	s := seen{Records: len(e.Records), Request: lc.AwsRequestID, ARN: lc.InvokedFunctionArn, Name: lambdacontext.FunctionName,
		Memory: lambdacontext.MemoryLimitInMB, App: lc.ClientContext.Client.AppTitle}
	for _, r := range e.Records {
		s.Bytes += len(r.Kinesis.Data)
	}
	d, ok := ctx.Deadline()
	s.Deadline = ok && time.Until(d) > 0 && time.Until(d) <= 5*time.Second
	return s, nil
}

func main() {
	switch os.Getenv("MODE") {
	case "batch":
		lambda.Start(batch)
	case "about":
		lambda.Start(about)
	case "echo":
		lambda.Start(func(_ context.Context, e json.RawMessage) (json.RawMessage, error) { return e, nil })
	case "print":
		lambda.Start(func(_ context.Context, e struct{ Lines int }) error {
			for i := range e.Lines {
				fmt.Println("line", i)
			}
			return nil
		})
	case "error":
		lambda.Start(func(context.Context) error { return errors.New("böse") })
	case "panic":
		lambda.Start(func(context.Context) error { panic("out of cheese") })
	case "stream":
		lambda.Start(func(context.Context) (io.Reader, error) { return strings.NewReader(`"streamed"`), nil })
	case "stream error":
		lambda.Start(func(context.Context) (io.Reader, error) {
			return io.MultiReader(strings.NewReader(`"half`), iotest.ErrReader(errors.New("torn"))), nil
		})
	case "stall":
		lambda.Start(func(context.Context) error { select {} })
	}
}
