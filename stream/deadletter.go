package stream

import (
	"encoding/json"
	"time"
)

// A DeadLetter is what became of data that could not be used, kept whole so that it can be mended and sent again (P7).
// It is the JSON payload of a record in the dead-letter stream, keyed by the vehicle or device if known.
type DeadLetter struct {
	ID       string    `json:"id,omitempty"`       // stable for what has one: function/shard/position
	Reason   string    `json:"reason"`             // what, where and how to mend it
	Source   string    `json:"source"`             // the door or function: "mqtt", "http", "function fleet", "sink webhook"
	From     string    `json:"from,omitempty"`     // remote address, client id or topic
	Key      string    `json:"key,omitempty"`      // vehicle or partition key
	Stream   string    `json:"stream,omitempty"`   // for records that were in the log
	Shard    ShardID   `json:"shard,omitempty"`    //
	Position Position  `json:"position,omitempty"` //
	At       time.Time `json:"at"`                 // when it was refused
	Data     []byte    `json:"data"`               // the bytes as they came (base64 in JSON)
	Cut      int       `json:"cut,omitempty"`      // how many bytes were left out of Data because it was too large
}

// MaxDeadLetterData is how much of a refused payload is kept.
const MaxDeadLetterData = 256 << 10

// Record returns the letter as a record for the dead-letter stream. Data beyond MaxDeadLetterData is cut, and Cut says so.
func (d DeadLetter) Record() (Record, error) {
	if n := len(d.Data) - MaxDeadLetterData; n > 0 {
		d.Data, d.Cut = d.Data[:MaxDeadLetterData], n
	}
	b, err := json.Marshal(d)
	if err != nil {
		return Record{}, err
	}
	key := d.Key
	if key == "" || len(key) > 256 {
		key = d.Source
	}
	return Record{Key: key, Data: b}, nil
}
