package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestWhatLambdaHas: what the file may say and Lambda's model does not have is shown as the nearest that it has, or left out.
func TestWhatLambdaHas(t *testing.T) {
	r := &Registry{cfg: Config{Region: "us-east-1", Account: "000000000000"}}
	for s, want := range map[string]string{
		"provided": "provided", "provided.al2023": "provided.al2023", "provided.mine": "", "python3": "", "python3.12": "python3.12",
		"nodejs": "nodejs", "nodejs22.x": "nodejs22.x", "": "",
	} {
		f := &function{name: "f", cfg: FunctionConfig{Runtime: s, Timeout: 1500 * time.Millisecond, Memory: 64}}
		if got := r.functionOutput(f, false); got.Runtime != want || got.Timeout != 2 || got.MemorySize != 128 {
			t.Errorf("%s: runtime %q, timeout %d, memory %d; want %q, 2, 128", s, got.Runtime, got.Timeout, got.MemorySize, want)
		}
	}
	for s, want := range map[string]string{
		"stream:failed": "arn:aws:kinesis:us-east-1:000000000000:stream/failed", "s3://bucket": "arn:aws:s3:::bucket",
		"arn:aws:sqs:us-east-1:000000000000:failed": "arn:aws:sqs:us-east-1:000000000000:failed", "https://host/path": "https://host/path",
		"file:///var/failed": "file:///var/failed", "": "",
	} {
		if got := r.destinationARN(s); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

// TestErrorBodies: where the message stands, and what stands beside it, differs from type to type.
func TestErrorBodies(t *testing.T) {
	for _, c := range []struct {
		f    fault
		want map[string]any
	}{
		{fault{400, typeSerial, "m"}, map[string]any{"message": "m"}},
		{fault{400, typeValidation, "m"}, map[string]any{"message": "m"}},
		{fault{404, typeUnknown, "m"}, map[string]any{"message": "m"}},
		{fault{403, typeAccessDenied, "m"}, map[string]any{"Message": "m"}},
		{fault{404, typeNotFound, "m"}, map[string]any{"Type": "User", "Message": "m"}},
		{fault{400, typeInUse, "m"}, map[string]any{"Type": "User", "Message": "m"}},
		{fault{500, typeService, "m"}, map[string]any{"Type": "Service", "Message": "m"}},
		{fault{409, typeConflict, "m"}, map[string]any{"Type": "User", "message": "m"}},
		{fault{413, typeTooLarge, "m"}, map[string]any{"Type": "User", "message": "m"}},
		{fault{429, typeThrottled, "m"}, map[string]any{"Type": "User", "message": "m", "Reason": "ReservedFunctionConcurrentInvocationLimitExceeded"}},
	} {
		var got map[string]any
		if err := json.Unmarshal(c.f.body(), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.f.typ, diff)
		}
	}
	for _, err := range []error{errClosed, context.Canceled, errors.New("disk")} {
		if f := asFault(err); f.status != 500 || f.typ != typeService {
			t.Errorf("%v: %d %s; the model has ServiceException with 500 alone", err, f.status, f.typ)
		}
	}
}
