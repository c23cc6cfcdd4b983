package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/telemetry"
)

// Foreign answers senders that speak a format of their own: /in/<format>, /in/<format>/<vehicle>, and the paths that Influx
// clients insist on, /api/v2/write and /write.
//
// What a phone sends and cannot be read is kept as a dead letter and acknowledged: an app that is told of an error sends the
// same again, for ever, and what comes after it waits. A server (Telegraf, a feed) is told.
func (h *Handler) Foreign(mux *http.ServeMux, formats *format.Set) error {
	for _, name := range formats.Names() {
		if name == "sparkplug" { // it is MQTT
			continue
		}
		c, err := formats.Converter(name)
		if err != nil {
			return err
		}
		f := &foreign{Handler: h, name: name, convert: c, door: h.door.Admitter.Door("http-" + name)}
		mux.Handle("/in/"+name, f)
		mux.Handle("/in/"+name+"/{vehicle}", f)
		if name == "influx" {
			mux.Handle("/api/v2/write", f)
			mux.Handle("/write", f)
			mux.HandleFunc("/ping", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
		}
	}
	known := slices.DeleteFunc(slices.Clone(formats.Names()), func(name string) bool { return name == "sparkplug" })
	mux.HandleFunc("/in/", func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/in/"), "/")
		(&problem{status: http.StatusNotFound, detail: fmt.Sprintf("there is no format %.50q here: send to /in/ and one of %s", name, strings.Join(known, ", "))}).write(w)
	})
	return nil
}

type foreign struct {
	*Handler
	name    string
	convert format.Converter
	door    *ingest.Door // its own: refusals and dead letters name the format
}

// patient tells whether senders of the format are apps that send what was refused again for ever.
func (f *foreign) patient() bool {
	switch f.name {
	case "owntracks", "osmand", "overland", "torque", "traccar":
		return true
	}
	return false
}

// ServeHTTP implements http.Handler.
func (f *foreign) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if p := f.welcome(w, r, query); p != nil {
		f.fail(w, p)
		return
	}
	var data []byte
	if r.Method == http.MethodPost {
		body, p := f.body(w, r)
		if p != nil {
			f.door.Refuse(p.reason, 1)
			f.fail(w, p)
			return
		}
		defer body.release()
		data = body.data
	}
	// As in readings: the sender's going away changes nothing.
	ctx := context.WithoutCancel(r.Context())
	in := format.Input{Device: r.PathValue("vehicle"), Query: query, Header: r.Header.Get, Data: data, Now: time.Now()}
	out := format.NewOutput(f.door.Catalog())
	var receipt ingest.Receipt
	payload := ingest.Payload{Vehicle: in.Device, From: r.RemoteAddr, Topic: r.URL.Path}
	if err := f.convert.Convert(&in, out); err != nil {
		payload.Data = data
		if len(data) == 0 {
			payload.Data = []byte(strip(query).Encode())
		}
		f.door.DeadLetter(ctx, payload, ingest.NotReading, err.Error(), &receipt)
		if f.patient() && receipt.DeadLetterErr == nil {
			f.reply(w, out)
			return
		}
		f.fail(w, &problem{status: http.StatusBadRequest, detail: err.Error()})
		return
	}
	payload.Data, payload.Body = out.Lines, data
	for _, b := range out.Bad {
		payload.Unread = append(payload.Unread, ingest.Unread{Line: b.Element, Data: b.Data, Reason: b.Reason})
	}
	if len(payload.Data) > 0 || len(payload.Unread) > 0 {
		f.door.Admit(ctx, payload, &receipt)
	}
	if (receipt.Failed+receipt.Throttled > 0 || receipt.DeadLetterErr != nil) && out.Undo != nil {
		out.Undo()
	}
	switch {
	case receipt.Failed > 0:
		f.fail(w, &problem{status: http.StatusServiceUnavailable, retry: storeRetry, detail: unavailable(receipt.Err)})
	case receipt.DeadLetterErr != nil:
		f.fail(w, &problem{status: http.StatusServiceUnavailable, retry: storeRetry, detail: "what could not be read was not kept: " + receipt.DeadLetterErr.Error()})
	case receipt.Throttled > 0:
		f.fail(w, &problem{status: http.StatusTooManyRequests, retry: max(receipt.RetryAfter, roomRetry), detail: "the vehicle is over its rate: send it again later"})
	case receipt.Refused > 0 && !f.patient():
		f.fail(w, &problem{
			status: http.StatusBadRequest,
			detail: fmt.Sprintf("%d of %d accepted; the first that was not: %s", receipt.Accepted, receipt.Readings, first(&receipt)),
		})
	default:
		f.reply(w, out)
	}
}

func first(r *ingest.Receipt) string {
	if len(r.Problems) == 0 {
		return "unknown"
	}
	return fmt.Sprintf("element %d: %s", r.Problems[0].Line, r.Problems[0].Reason)
}

// welcome checks method, token and vehicle. Many of these senders cannot set a header, so the token may come as the password
// of basic authentication, as Influx clients write it, or in the query (token, key, or p of Influx 1).
func (f *foreign) welcome(w http.ResponseWriter, r *http.Request, query url.Values) *problem {
	get := f.name == "osmand" || f.name == "torque"
	if r.Method != http.MethodPost && (!get || r.Method != http.MethodGet) {
		allow := http.MethodPost
		if get {
			allow = "GET, POST"
		}
		w.Header().Set("Allow", allow)
		return &problem{status: http.StatusMethodNotAllowed, detail: "use " + allow}
	}
	if f.token.Asked() {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if _, password, ok := r.BasicAuth(); ok {
			scheme, token = "Bearer", password
		}
		for _, key := range []string{"token", "key", "p"} {
			if token == "" && query.Get(key) != "" {
				scheme, token = "Bearer", query.Get(key)
			}
		}
		known := strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "Token")
		if !known || !f.token.Is(token) {
			f.door.Refuse(ingest.Unwelcome, 1)
			w.Header().Set("WWW-Authenticate", `Basic realm="milepost"`)
			return &problem{status: http.StatusUnauthorized, detail: "send the token: as a bearer token, as the password, or as token= in the query"}
		}
	}
	if r.ContentLength > int64(f.limits.MaxBody) {
		f.door.Refuse(ingest.TooLarge, 1)
		return tooLarge(f.limits.MaxBody)
	}
	if id := r.PathValue("vehicle"); id != "" {
		if err := telemetry.CheckVehicle(id); err != nil {
			f.door.Refuse(ingest.Mismatch, 1)
			return &problem{status: http.StatusBadRequest, detail: "in the path: " + err.Error()}
		}
	}
	return nil
}

// strip leaves secrets out of what is kept.
func strip(query url.Values) url.Values {
	kept := url.Values{}
	for k, v := range query {
		if k != "token" && k != "key" && k != "p" {
			kept[k] = v
		}
	}
	return kept
}

func (f *foreign) reply(w http.ResponseWriter, out *format.Output) {
	if out.Type != "" {
		w.Header().Set("Content-Type", out.Type)
	}
	status := out.Status
	if status == 0 {
		status = http.StatusOK
	}
	if status != http.StatusOK || len(out.Reply) > 0 {
		w.WriteHeader(status)
		_, _ = w.Write(out.Reply)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(strconv.AppendInt([]byte(`{"accepted":`), int64(out.Readings), 10))
	_, _ = w.Write([]byte("}"))
}

// fail answers as the format's clients expect errors.
func (f *foreign) fail(w http.ResponseWriter, p *problem) {
	if f.name != "influx" {
		p.write(w)
		return
	}
	code := map[int]string{
		http.StatusBadRequest: "invalid", http.StatusUnauthorized: "unauthorized", http.StatusRequestEntityTooLarge: "request too large",
		http.StatusTooManyRequests: "too many requests", http.StatusServiceUnavailable: "unavailable",
	}[p.status]
	if code == "" {
		code = "internal error"
	}
	b, err := json.Marshal(map[string]string{"code": code, "message": p.detail})
	if err != nil {
		panic("httpapi: bug: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Influxdb-Error", clipLine(p.detail))
	if p.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((p.retry+time.Second-1)/time.Second)))
	}
	w.WriteHeader(p.status)
	_, _ = w.Write(b)
}

// clipLine makes a text fit for a header.
func clipLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 256)]
}
