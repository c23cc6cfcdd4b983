package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/stream"
)

const (
	// roomRetry and storeRetry are the Retry-After of what mends itself in no time, and of what somebody has to mend.
	roomRetry  = time.Second
	storeRetry = 10 * time.Second
)

// A problem is an answer other than 200, as RFC 9457 writes it.
type problem struct {
	status int
	detail string
	retry  time.Duration // Retry-After; 0: none
	reason ingest.Reason // for the metrics
	*outcome
}

// outcome is what became of a body, in both kinds of answer.
type outcome struct {
	Accepted     int       `json:"accepted"`
	Refused      []refusal `json:"refused"`
	RefusedTotal int       `json:"refused_total"`
	// NotKept says that refused lines are not in the dead-letter stream, and why.
	NotKept string `json:"dead_letters_lost,omitempty"`
}

type refusal struct {
	Line      int    `json:"line"`
	Reason    string `json:"reason"`
	Retryable bool   `json:"retryable,omitempty"`
}

func tooLarge(most int) *problem {
	return &problem{
		status: http.StatusRequestEntityTooLarge, reason: ingest.TooLarge,
		detail: fmt.Sprintf("the body is larger than %d bytes, as sent or decompressed: split it, or raise limits.body", most),
	}
}

func overloaded() *problem {
	return &problem{
		status: http.StatusTooManyRequests, reason: ingest.Overloaded, retry: roomRetry,
		detail: "the server holds as many bytes in flight as it may: send the same again",
	}
}

func (p *problem) write(w http.ResponseWriter) {
	doc := struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		*outcome
	}{"about:blank", http.StatusText(p.status), p.status, p.detail, p.outcome}
	b, err := json.Marshal(doc)
	if err != nil {
		panic("httpapi: bug: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/problem+json")
	if p.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((p.retry+time.Second-1)/time.Second)))
	}
	w.WriteHeader(p.status)
	_, _ = w.Write(b)
}

// respond answers with what the receipt says and returns its scratch.
func respond(w http.ResponseWriter, r *ingest.Receipt, out []byte) []byte {
	if r.Accepted == r.Readings {
		out = append(out, `{"accepted":`...)
		out = strconv.AppendInt(out, int64(r.Accepted), 10)
		out = append(out, `,"refused":[],"refused_total":0}`...)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(out)
		return out
	}
	o := &outcome{Accepted: r.Accepted, Refused: make([]refusal, 0, len(r.Problems)), RefusedTotal: r.Readings - r.Accepted}
	for _, p := range r.Problems {
		o.Refused = append(o.Refused, refusal(p))
	}
	if r.DeadLetterErr != nil {
		o.NotKept = r.DeadLetterErr.Error()
	}
	switch {
	case r.Failed > 0:
		p := problem{status: http.StatusServiceUnavailable, retry: storeRetry, outcome: o, detail: unavailable(r.Err)}
		p.write(w)
	case r.Accepted == 0 && r.Throttled > 0:
		p := problem{
			status: http.StatusTooManyRequests, retry: max(r.RetryAfter, roomRetry), outcome: o,
			detail: "every vehicle in the body is over its rate: send the lines marked retryable again",
		}
		p.write(w)
	case r.Accepted == 0:
		p := problem{status: http.StatusBadRequest, outcome: o, detail: "the body holds no reading: see refused, line by line"}
		p.write(w)
	default:
		b, err := json.Marshal(o)
		if err != nil {
			panic("httpapi: bug: " + err.Error())
		}
		w.Header().Set("Content-Type", "application/json")
		if r.Throttled > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int((max(r.RetryAfter, roomRetry)+time.Second-1)/time.Second)))
		}
		_, _ = w.Write(b)
	}
	return out
}

// unavailable says why readings were not stored. What an operator has to mend is told to senders too: they are often the same.
func unavailable(err error) string {
	switch {
	case errors.Is(err, stream.ErrFull):
		return stream.ErrFull.Error() + "; send the lines marked retryable again"
	case errors.Is(err, stream.ErrFenced):
		return stream.ErrFenced.Error() + "; send the lines marked retryable again"
	case errors.Is(err, stream.ErrClosed):
		return "the server is closing: send the lines marked retryable again"
	}
	return "the log did not store the readings: send the lines marked retryable again"
}
