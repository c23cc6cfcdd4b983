package lambda

import (
	"strings"

	"github.com/milepost/milepost/process/pattern"
	"github.com/milepost/milepost/stream"
)

// newFilter returns what tells which records a function is to see: those that match one of its patterns. nil: everything. shard says
// what sequence numbers are made of, for patterns that ask for them; if it cannot, the record is seen rather than lost.
func newFilter(patterns []string, src *source, region, role string, shard func(stream.ShardID) (shardName, error)) (func(*stream.Record) bool, error) {
	if len(patterns) == 0 {
		return nil, nil //nolint:nilnil // no filter
	}
	compiled, err := pattern.CompileAny(patterns...)
	if err != nil {
		return nil, err
	}
	all := strings.Join(patterns, "")
	numbers := strings.Contains(all, `"sequenceNumber"`) || strings.Contains(all, `"eventID"`)
	same := pattern.Meta{
		KinesisSchemaVersion: "1.0", EventSource: "aws:kinesis", EventVersion: "1.0", EventName: "aws:kinesis:record",
		AWSRegion: region, EventSourceARN: src.arn, InvokeIdentityARN: role,
	}
	return func(r *stream.Record) bool {
		meta := same
		meta.PartitionKey, meta.ApproximateArrivalTimestamp = r.Key, r.Time
		if numbers {
			s, err := shard(r.Shard)
			if err != nil {
				return true
			}
			meta.SequenceNumber = s.sequence(r).String()
			meta.EventID = string(r.Shard) + ":" + meta.SequenceNumber
		}
		return compiled.MatchRecord(&meta, r.Data)
	}, nil
}
