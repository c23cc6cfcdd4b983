package kinesisapi

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/wire"
)

const target = "Kinesis_20131202."

// A call is one request on its way through the door.
type call struct {
	op   *operation
	enc  wire.Encoding
	key  string // ID of the access key that signed it; "" without keys
	now  time.Time
	w    http.ResponseWriter
	r    *http.Request
	body []byte
}

// An operation is one of the API.
type operation struct {
	name    string
	maxBody int64
	rate    float64                                   // calls a second, for Throttle; 0: none
	account bool                                      // the rate is for the account, not for each stream
	raw     func(context.Context, *Door, *call) error // answers by itself
	typed   func(context.Context, *Door, *call) (any, error)
}

const (
	controlBody = 1 << 20
	// A PutRecords of 10 MiB in base64, and 500 times names, quotes, and a key of 256 characters in escapes.
	putBody = maxPutBytes/3*4 + maxPutRecords*2048 + 64<<10
)

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !d.gate.TryRLock() { // Close waits for the gate, or has it
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer d.gate.RUnlock()
	if d.beside != nil && r.URL.Path != "/" && r.URL.Path != "" {
		d.beside.ServeHTTP(w, r)
		return
	}
	if d.begin(w, r) {
		return
	}
	c := &call{now: time.Now(), w: w, r: r}
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	known := true
	switch strings.TrimSpace(kind) {
	case "application/x-amz-json-1.1":
	case "application/x-amz-cbor-1.1":
		c.enc = wire.CBOR
	default:
		known = false
	}
	name, ours := strings.CutPrefix(r.Header.Get("X-Amz-Target"), target)
	switch c.op = d.ops[name]; {
	case r.Method != http.MethodPost || (!known && name == ""):
		plainError(w, http.StatusForbidden, typeAccessDenied, "Unable to determine service/operation name to be authorized")
		return
	case !known:
		plainError(w, http.StatusNotFound, typeUnknown, "")
		return
	case c.op == nil || !ours:
		c.op = nil
		d.fail(c, faultf(typeUnknown, ""))
		return
	}
	d.metrics.requests[c.op.name].Add(1)
	buf := d.buffers.get()
	defer d.buffers.done(buf)
	held, err := d.read(c, buf)
	defer d.bodies.Add(-held)
	if err == nil {
		err = d.serve(c)
	}
	if err != nil {
		d.fail(c, err)
	}
}

// begin sets the headers that every answer has, and answers what a browser asks before it sends a request; done if it did.
func (d *Door) begin(w http.ResponseWriter, r *http.Request) (done bool) {
	h := w.Header()
	h.Set("X-Amzn-Requestid", requestID())
	origin := r.Header.Get("Origin") != ""
	if r.Method != http.MethodOptions || !origin {
		var id [72]byte
		for i := 0; i < len(id); i += 8 {
			binary.LittleEndian.PutUint64(id[i:], rand.Uint64())
		}
		h.Set("X-Amz-Id-2", base64.StdEncoding.EncodeToString(id[:]))
	}
	if !origin {
		return false
	}
	h.Set("Access-Control-Allow-Origin", "*")
	if r.Method != http.MethodOptions {
		h.Set("Access-Control-Expose-Headers", "x-amzn-RequestId,x-amzn-ErrorType,x-amz-request-id,x-amz-id-2,x-amzn-ErrorMessage,Date")
		return false
	}
	if v := r.Header.Get("Access-Control-Request-Headers"); v != "" {
		h.Set("Access-Control-Allow-Headers", v)
	}
	if v := r.Header.Get("Access-Control-Request-Method"); v != "" {
		h.Set("Access-Control-Allow-Methods", v)
	}
	h.Set("Access-Control-Max-Age", "172800")
	h.Set("Content-Length", "0")
	return true
}

// plainError answers what is not a request of the API at all, as AWS' front does.
func plainError(w http.ResponseWriter, status int, typ, message string) {
	body := "<" + typ + "/>\n"
	if message != "" {
		body = "<" + typ + ">\n  <Message>" + message + "</Message>\n</" + typ + ">\n"
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client may be gone
}

var errTooLarge = &fault{http.StatusRequestEntityTooLarge, "RequestEntityTooLargeException", "Request size exceeded the limit"}

// read reads the body, within the operation's size, the door's memory and the time a body may take. held is what it took of the
// door's memory, whether it succeeds or not.
func (d *Door) read(c *call, buf *[]byte) (held int64, err error) {
	n := c.r.ContentLength
	if n > c.op.maxBody {
		d.metrics.refused.Add(1)
		return 0, errTooLarge
	}
	rc := http.NewResponseController(c.w)
	// A recorder in a test knows no deadlines; every real connection does.
	_ = rc.SetReadDeadline(c.now.Add(d.cfg.BodyTimeout))
	hold := func(more int64) bool {
		if d.bodies.Add(more) > d.cfg.BodyBytes {
			d.bodies.Add(-more)
			d.metrics.refused.Add(1)
			return false
		}
		held += more
		return true
	}
	b := (*buf)[:0]
	if !hold(int64(cap(b))) {
		return held, unavailable("too many requests are in hand: try again")
	}
	for {
		if len(b) == cap(b) {
			want := max(n, 2*int64(cap(b)))
			if n < 0 {
				want = 2 * int64(cap(b))
			}
			want = min(want, c.op.maxBody+1)
			// A body that is announced large gets its room bit by bit, so that announcing alone holds nothing.
			want = min(want, 16*int64(cap(b)))
			if !hold(want - int64(cap(b))) {
				return held, unavailable("too many requests are in hand: try again")
			}
			grown := make([]byte, len(b), want)
			copy(grown, b)
			b = grown
		}
		k, err := c.r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+k]
		*buf = b
		if int64(len(b)) > c.op.maxBody {
			d.metrics.refused.Add(1)
			return held, errTooLarge
		}
		if errors.Is(err, io.EOF) || (err == nil && n >= 0 && int64(len(b)) == n) {
			break
		}
		if err != nil {
			d.metrics.refused.Add(1)
			c.w.Header().Set("Connection", "close")
			return held, &fault{http.StatusRequestTimeout, "RequestTimeoutException", "The body did not arrive in time."}
		}
	}
	_ = rc.SetReadDeadline(time.Time{})
	c.body = b
	return held, nil
}

// serve authenticates a call and runs its operation.
func (d *Door) serve(c *call) error {
	if d.verifier != nil {
		key, err := d.verifier.Verify(c.r, c.body, c.now)
		if err != nil {
			return err
		}
		c.key = key
	}
	_ = http.NewResponseController(c.w).SetWriteDeadline(c.now.Add(d.cfg.BodyTimeout + d.cfg.WriteTimeout))
	if c.op.raw != nil {
		return c.op.raw(c.r.Context(), d, c)
	}
	out, err := c.op.typed(c.r.Context(), d, c)
	if err != nil {
		return err
	}
	buf := d.buffers.get()
	defer d.buffers.done(buf)
	*buf = c.enc.Marshal((*buf)[:0], out)
	d.answer(c, http.StatusOK, *buf)
	return nil
}

func (d *Door) answer(c *call, status int, body []byte) {
	h := c.w.Header()
	h["Content-Type"] = contentTypes[c.enc]
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body) // the client may be gone
}

//nolint:gochecknoglobals // a table
var contentTypes = [...][]string{{wire.JSON.ContentType()}, {wire.CBOR.ContentType()}}

func (d *Door) fail(c *call, err error) {
	f := asFault(err)
	if c.op != nil {
		d.metrics.errors[c.op.name].Add(1)
		if ours(err) {
			d.cfg.Log.Error("kinesis request failed", "operation", c.op.name, "error", err)
		}
	}
	c.w.Header().Set("X-Amzn-Errortype", f.typ)
	d.answer(c, f.status, f.append(nil, c.enc))
}

// allow counts a call against the operation's rate; which is the stream's or the account's.
func (d *Door) allow(c *call, l *live) error {
	if d.cfg.Throttle != ThrottleAWS || c.op.rate == 0 {
		return nil
	}
	mu, calls := &d.accountMu, d.accountCalls
	if l != nil && !c.op.account {
		mu, calls = &l.mu, l.calls
	}
	mu.Lock()
	defer mu.Unlock()
	b := calls[c.op.name]
	if b == nil {
		b = &bucket{}
		calls[c.op.name] = b
	}
	if !b.take(1, c.op.rate, c.op.rate, c.now) {
		return faultf(typeLimit, "Rate exceeded for %s under account %s.", c.op.name, d.cfg.Account)
	}
	return nil
}
