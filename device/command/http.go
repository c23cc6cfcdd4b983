package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/bearer"
)

// A Handler answers
//
//	POST   /v1/vehicles/{id}/commands            {"name", "payload", "expires" or "expires_in" (seconds)}; Idempotency-Key
//	GET    /v1/vehicles/{id}/commands            ?state=&limit=
//	GET    /v1/vehicles/{id}/commands/{command}
//	DELETE /v1/vehicles/{id}/commands/{command}  cancels
//
// Errors are problem documents (RFC 9457).
type Handler struct {
	desk  *Desk
	token bearer.Token
	mux   *http.ServeMux
}

const (
	pathAll = "/v1/vehicles/{id}/commands"
	pathOne = "/v1/vehicles/{id}/commands/{command}"

	defaultList = 50
)

// NewHandler returns a Handler. The token, if not empty, must come with every request: "Authorization: Bearer <token>".
func NewHandler(d *Desk, token string) *Handler {
	h := &Handler{desk: d, token: bearer.New(token), mux: http.NewServeMux()}
	h.mux.HandleFunc("POST "+pathAll, h.issue)
	h.mux.HandleFunc("GET "+pathAll, h.list)
	h.mux.HandleFunc("GET "+pathOne, h.one)
	h.mux.HandleFunc("DELETE "+pathOne, h.cancel)
	return h
}

// Register puts the paths into mux.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.Handle(pathAll, h)
	mux.Handle(pathOne, h)
}

// ServeHTTP answers a request for one of the paths.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.token.Allows(r) {
		bearer.Ask(w)
		problem(w, http.StatusUnauthorized, "send the token: Authorization: Bearer <token>")
		return
	}
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) issue(w http.ResponseWriter, r *http.Request) {
	limit := int64(h.desk.cfg.Limits.Payload) + 4096
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", limit))
			return
		}
		problem(w, http.StatusBadRequest, "the body did not arrive: "+err.Error())
		return
	}
	var in struct {
		Name      string          `json:"name"`
		Payload   json.RawMessage `json:"payload"`
		Expires   *time.Time      `json:"expires"`
		ExpiresIn *float64        `json:"expires_in"`
		Key       string          `json:"key"`
	}
	dec := json.NewDecoder(strings.NewReader(string(body)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		problem(w, http.StatusBadRequest, `the body is not like {"name": "lock", "payload": …, "expires_in": 600}: `+err.Error())
		return
	}
	if dec.More() {
		problem(w, http.StatusBadRequest, "the body holds more than one command")
		return
	}
	req := Request{Name: in.Name, Payload: in.Payload, Key: in.Key}
	if k := r.Header.Get("Idempotency-Key"); k != "" {
		req.Key = k
	}
	switch {
	case in.Expires != nil && in.ExpiresIn != nil:
		problem(w, http.StatusBadRequest, "give expires or expires_in, not both")
		return
	case in.Expires != nil:
		req.Expires = *in.Expires
	case in.ExpiresIn != nil:
		if s := *in.ExpiresIn; s <= 0 || s > h.desk.cfg.Limits.Longest.Seconds() {
			problem(w, http.StatusBadRequest, fmt.Sprintf("expires_in: write seconds, more than 0 and at most %.0f", h.desk.cfg.Limits.Longest.Seconds()))
			return
		}
		req.Expires = time.Now().Add(time.Duration(*in.ExpiresIn * float64(time.Second)))
	}
	// From here on the client's going away changes nothing.
	c, fresh, err := h.desk.Issue(context.WithoutCancel(r.Context()), r.PathValue("id"), req)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Location", "/v1/vehicles/"+c.Vehicle+"/commands/"+c.ID)
	status := http.StatusCreated
	if !fresh {
		status = http.StatusOK
	}
	reply(w, status, c)
}

func (h *Handler) list(w http.ResponseWriter, r *http.Request) {
	s := State(r.URL.Query().Get("state"))
	switch s {
	case "", Queued, Sent, Acknowledged, Done, Failed, Expired, Cancelled:
	default:
		problem(w, http.StatusBadRequest, "state: write queued, sent, acknowledged, done, failed, expired or cancelled")
		return
	}
	most := defaultList
	if v := r.URL.Query().Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 1000 {
			problem(w, http.StatusBadRequest, "limit: write a number from 1 to 1000")
			return
		}
		most = n
	}
	all, err := h.desk.List(r.Context(), r.PathValue("id"), s, most)
	if err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, map[string][]Command{"commands": all})
}

func (h *Handler) one(w http.ResponseWriter, r *http.Request) {
	c, err := h.desk.Command(r.Context(), r.PathValue("id"), r.PathValue("command"))
	if err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, c)
}

func (h *Handler) cancel(w http.ResponseWriter, r *http.Request) {
	c, err := h.desk.Cancel(context.WithoutCancel(r.Context()), r.PathValue("id"), r.PathValue("command"), "")
	if err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, c)
}

func refuse(w http.ResponseWriter, err error) {
	_, mistake := errors.AsType[*RequestError](err)
	switch {
	case mistake:
		problem(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, ErrNotFound):
		problem(w, http.StatusNotFound, "the vehicle has no such command, or it is too old: see the list")
	case errors.Is(err, ErrKey), errors.Is(err, ErrEnded):
		problem(w, http.StatusConflict, err.Error())
	case errors.Is(err, ErrFull):
		w.Header().Set("Retry-After", "10")
		problem(w, http.StatusTooManyRequests, err.Error())
	default:
		w.Header().Set("Retry-After", "10")
		problem(w, http.StatusServiceUnavailable, err.Error())
	}
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	write(w, status, struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, detail})
}

func reply(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	write(w, status, doc)
}

func write(w http.ResponseWriter, status int, doc any) {
	b, err := json.Marshal(doc)
	if err != nil {
		panic("command: bug: " + err.Error())
	}
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
