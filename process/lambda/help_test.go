package lambda

import (
	"github.com/milepost/milepost/ingest/kinesisapi/sequence"
	"github.com/milepost/milepost/stream"
)

func position(n int) stream.Position { return sequence.Position(uint64(n)) }
