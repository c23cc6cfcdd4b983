// Package httpapi is the door for senders that speak HTTP: POST /v1/readings and POST /v1/vehicles/{id}/readings.
//
// A body is one JSON object, an array of them, NDJSON, or CSV with a mapping in the query; it may be compressed with gzip or
// zstd. 200 says that everything acceptable in it is on disk (P1) and lists what was not accepted, line by line (P7). Any
// other answer is a problem document (RFC 9457) that says whether sending again helps; docs/ingest.md has them all.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/internal/bearer"
	"github.com/milepost/milepost/telemetry"
)

// Config says for whom the door opens.
type Config struct {
	// Token, if not empty, must come with every request: "Authorization: Bearer <token>".
	Token string
	// BodyTimeout is how long a body may take to arrive. Default 30 s.
	BodyTimeout time.Duration
}

const zstdBlock = 128 << 10 // the largest block of a zstd frame, decoded

// A Handler answers both paths. It starts no goroutines; when the http.Server has shut down, it is done.
type Handler struct {
	door    *ingest.Door
	token   bearer.Token
	timeout time.Duration
	limits  ingest.Limits
	mux     *http.ServeMux
	buffers *buffers
	zstd    *zstd.Decoder // DecodeAll only, which is safe for concurrent use
	gzips   sync.Pool     // of *gzip.Reader
	scratch sync.Pool     // of *scratch
}

// scratch is what one request needs besides its body.
type scratch struct {
	receipt, part ingest.Receipt
	out           []byte
}

// New returns a Handler.
func New(cfg Config, admit *ingest.Admitter) (*Handler, error) {
	h := &Handler{
		door: admit.Door("http"), token: bearer.New(cfg.Token), timeout: cfg.BodyTimeout,
		limits: admit.Limits(), mux: http.NewServeMux(),
	}
	if h.timeout <= 0 {
		h.timeout = 30 * time.Second
	}
	h.buffers = newBuffers(h.door, h.limits.MaxBody)
	var err error
	// DecodeAll decodes into what it is given and grows it by no byte: a frame's own claim about its size costs nothing.
	h.zstd, err = zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	h.mux.HandleFunc("/v1/readings", h.readings)
	h.mux.HandleFunc("/v1/vehicles/{id}/readings", h.readings)
	return h, nil
}

// Register puts both paths into mux.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.Handle("/v1/readings", h)
	mux.Handle("/v1/vehicles/{id}/readings", h)
}

// ServeHTTP answers a request for one of the two paths.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) readings(w http.ResponseWriter, r *http.Request) {
	if p := h.check(w, r); p != nil {
		p.write(w)
		return
	}
	s, ok := h.scratch.Get().(*scratch)
	if !ok {
		s = new(scratch)
	}
	defer h.scratch.Put(s)
	payload := ingest.Payload{Vehicle: r.PathValue("id"), From: r.RemoteAddr}
	table, p := h.mapping(r)
	if p != nil {
		p.write(w)
		return
	}
	body, p := h.body(w, r)
	if p != nil {
		h.door.Refuse(p.reason, 1)
		p.write(w)
		return
	}
	defer body.release()
	// From here on the sender's going away changes nothing: what it sent is stored as if it had stayed.
	ctx := context.WithoutCancel(r.Context())
	if table != nil {
		p = h.admitCSV(ctx, s, table, payload, body.data)
	} else {
		payload.Data = body.data
		h.door.Admit(ctx, payload, &s.receipt)
	}
	if p != nil {
		p.write(w)
		return
	}
	s.out = respond(w, &s.receipt, s.out[:0])
}

// check decides what can be decided without the body.
func (h *Handler) check(w http.ResponseWriter, r *http.Request) *problem {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return &problem{status: http.StatusMethodNotAllowed, detail: "use POST"}
	}
	if !h.token.Allows(r) {
		h.door.Refuse(ingest.Unwelcome, 1)
		bearer.Ask(w)
		return &problem{status: http.StatusUnauthorized, detail: "send the token: Authorization: Bearer <token>"}
	}
	if r.ContentLength > int64(h.limits.MaxBody) {
		h.door.Refuse(ingest.TooLarge, 1)
		return tooLarge(h.limits.MaxBody)
	}
	if id := r.PathValue("id"); id != "" {
		if err := telemetry.CheckVehicle(id); err != nil {
			h.door.Refuse(ingest.Mismatch, 1)
			return &problem{status: http.StatusBadRequest, detail: "in the path: " + err.Error()}
		}
	}
	return nil
}

// body reads and decompresses the request's body.
func (h *Handler) body(w http.ResponseWriter, r *http.Request) (*buffer, *problem) {
	// Without it a sender of one byte a minute would hold its buffer for hours. Writers that cannot set it have no network.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.timeout))
	from := http.MaxBytesReader(w, r.Body, int64(h.limits.MaxBody))
	switch encoding := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); encoding {
	case "", "identity":
		b := h.buffers.first()
		if b == nil {
			return nil, overloaded()
		}
		if err := b.fill(from); err != nil {
			return nil, h.unread(b, err, "body")
		}
		return b, nil
	case "gzip", "x-gzip":
		return h.gunzip(from)
	case "zstd":
		return h.unzstd(from)
	default:
		w.Header().Set("Accept-Encoding", "gzip, zstd")
		return nil, &problem{
			status: http.StatusUnsupportedMediaType, reason: ingest.NotReading,
			detail: fmt.Sprintf("content encoding %q: use gzip, zstd or none", encoding),
		}
	}
}

func (h *Handler) gunzip(from io.Reader) (*buffer, *problem) {
	b := h.buffers.first()
	if b == nil {
		return nil, overloaded()
	}
	z, ok := h.gzips.Get().(*gzip.Reader)
	if !ok {
		z = new(gzip.Reader)
	}
	defer h.gzips.Put(z)
	err := z.Reset(from)
	if err == nil {
		err = b.fill(z)
	}
	if err != nil {
		return nil, h.unread(b, err, "gzip")
	}
	return b, nil
}

func (h *Handler) unzstd(from io.Reader) (*buffer, *problem) {
	in := h.buffers.first()
	if in == nil {
		return nil, overloaded()
	}
	if err := in.fill(from); err != nil {
		return nil, h.unread(in, err, "body")
	}
	defer in.release()
	size := int64(4 * len(in.data))
	var head zstd.Header
	if head.Decode(in.data) == nil && head.HasFCS && head.FrameContentSize <= uint64(h.limits.MaxBody) { //nolint:gosec // positive
		size = int64(head.FrameContentSize) //nolint:gosec // bounded
	}
	out := h.buffers.sized(size)
	for out != nil {
		data, err := h.zstd.DecodeAll(in.data, out.data[:0])
		if err == nil {
			out.data = data
			if len(data) > h.limits.MaxBody {
				return nil, h.unread(out, errTooLarge, "zstd")
			}
			return out, nil
		}
		// The library reports a buffer that is too small in several ways, some of which could be damage as well. A block is
		// 128 KiB at most: if there was room for two more, it was not for want of room.
		damaged := errors.Is(err, zstd.ErrMagicMismatch) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, zstd.ErrCRCMismatch)
		full := errors.Is(err, zstd.ErrDecoderSizeExceeded) || (!damaged && cap(out.data)-len(data) < 2*zstdBlock)
		if !full || out.largest() {
			if full {
				err = errTooLarge
			}
			return nil, h.unread(out, err, "zstd")
		}
		// A few bytes of a frame can stand for many of the body, so its size is found out by trying: each buffer is four
		// times the last, which makes all tries together cost a third more than the last one.
		bigger := out.next()
		out.release()
		out = h.buffers.sized(bigger)
	}
	return nil, overloaded()
}

// unread releases the buffer and says why the body could not be read.
func (h *Handler) unread(b *buffer, err error, what string) *problem {
	b.release()
	var limit *http.MaxBytesError
	switch {
	case errors.Is(err, errNoRoom):
		return overloaded()
	case errors.As(err, &limit), errors.Is(err, errTooLarge):
		return tooLarge(h.limits.MaxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &problem{
			status: http.StatusRequestTimeout, reason: ingest.NotReading,
			detail: fmt.Sprintf("the body took longer than %s: send smaller bodies", h.timeout),
		}
	}
	return &problem{
		status: http.StatusBadRequest, reason: ingest.NotReading,
		detail: fmt.Sprintf("read %s: %v", what, err),
	}
}

// isCSV tells whether the body is CSV. Everything else is taken for JSON, whatever it says it is: curl says form data.
func isCSV(r *http.Request) bool {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && t == "text/csv"
}
