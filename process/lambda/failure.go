package lambda

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// A FailureDocument is what an on-failure destination gets, in Lambda's form.
type FailureDocument struct {
	RequestContext  RequestContext   `json:"requestContext"`
	ResponseContext *ResponseContext `json:"responseContext,omitempty"` // none for records that were too old
	Version         string           `json:"version"`
	Timestamp       string           `json:"timestamp"`
	Batch           BatchInfo        `json:"KinesisBatchInfo"`
	Payload         json.RawMessage  `json:"payload,omitempty"` // {"Records": […]}, in buckets alone
}

// A RequestContext says what was called and why it was given up.
type RequestContext struct {
	RequestID   string            `json:"requestId"`
	FunctionARN string            `json:"functionArn"`
	Condition   process.Condition `json:"condition"`
	Invokes     int               `json:"approximateInvokeCount"`
}

// A ResponseContext is what the last invocation said.
type ResponseContext struct {
	StatusCode      int     `json:"statusCode"`
	ExecutedVersion string  `json:"executedVersion"`
	FunctionError   *string `json:"functionError"` // null when the answer itself reported the failed items
}

// A BatchInfo says which records they are.
type BatchInfo struct {
	Shard     stream.ShardID `json:"shardId"`
	First     string         `json:"startSequenceNumber"`
	Last      string         `json:"endSequenceNumber"`
	FirstTime string         `json:"approximateArrivalOfFirstRecord"`
	LastTime  string         `json:"approximateArrivalOfLastRecord"`
	Records   int            `json:"batchSize"`
	StreamARN string         `json:"streamArn"`
}

const version = "$LATEST"

// isoMillis is how the document writes times.
const isoMillis = "2006-01-02T15:04:05.000Z"

func iso(t time.Time) string { return t.UTC().Format(isoMillis) }

// requestID makes a request id of an invocation's: the same records have the same one always (P4), and it looks like AWS'.
func requestID(id string) string {
	sum := sha256.Sum256([]byte(id))
	b := sum[:16]
	b[6] = b[6]&0x0f | 0x80 // version 8: made by its own rule
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// document describes records that were given up.
func document(f *process.Failure, functionARN, streamARN string, shard shardName) FailureDocument {
	d := FailureDocument{
		RequestContext: RequestContext{RequestID: requestID(f.ID), FunctionARN: functionARN, Condition: f.Condition, Invokes: f.Attempts},
		Version:        "1.0", Timestamp: iso(f.At),
	}
	var call *CallError
	if errors.As(f.Err, &call) && call.RequestID != "" {
		d.RequestContext.RequestID = call.RequestID
	}
	if f.Condition != process.AgeExceeded {
		d.ResponseContext = &ResponseContext{StatusCode: 200, ExecutedVersion: version}
		if call != nil && call.Function != "" {
			d.ResponseContext.FunctionError = &call.Function
		}
	}
	d.Batch = BatchInfo{Shard: f.Shard, Records: len(f.Records), StreamARN: streamARN}
	if n := len(f.Records); n > 0 {
		first, last := &f.Records[0], &f.Records[n-1]
		d.Batch.First, d.Batch.Last = shard.sequence(first).String(), shard.sequence(last).String()
		d.Batch.FirstTime, d.Batch.LastTime = iso(first.Time), iso(last.Time)
	}
	return d
}

// A parcel is a failure document on its way: the data of an effect.
type parcel struct {
	Target   string          `json:"target"`
	Name     string          `json:"name,omitempty"` // of the object, in a bucket
	Key      string          `json:"key,omitempty"`  // of the record, in a stream
	At       time.Time       `json:"at"`
	Document json.RawMessage `json:"document"`
}

func failureKind(mapping string) string { return "lambda-failure/" + mapping }

// effect makes the effect that brings a failure to its destination.
func (h *running) effect(f *process.Failure) (state.Effect, error) {
	shard, err := h.shard(h.ctx, f.Shard)
	if err != nil {
		return state.Effect{}, err
	}
	d := document(f, h.functionARN, h.streamARN, shard)
	p := parcel{Target: h.def.OnFailure, At: f.At, Key: string(f.Shard)}
	t, err := parseTarget(h.def.OnFailure, true)
	if err != nil {
		return state.Effect{}, err
	}
	if t.kind == toBucket || t.kind == toDir {
		at := f.At.UTC()
		p.Name = fmt.Sprintf("aws/lambda/%s/%s/%s/%s-%s", h.def.UUID, f.Shard, at.Format("2006/01/02"), at.Format("2006-01-02T15.04.05"), requestID(f.ID))
		payload := append(make([]byte, 0, 1024), `{"Records":`...)
		payload, _ = h.src.appendRecords(payload, nil, shard, f.Records)
		d.Payload = append(payload, '}')
	}
	if p.Document, err = json.Marshal(&d); err != nil {
		return state.Effect{}, fmt.Errorf("write failure document %s: %w", f.ID, err)
	}
	data, err := json.Marshal(&p)
	if err != nil {
		return state.Effect{}, fmt.Errorf("write failure document %s: %w", f.ID, err)
	}
	return state.Effect{ID: f.ID, Kind: failureKind(h.def.UUID), Data: data}, nil
}
