package webtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/milepost/milepost/internal/bearer"
	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda"
)

// Operations stands for what the program mounts beside package web: users' functions and commands to vehicles, made up, and devices,
// which are a real device.Identity. Handler serves them.
type Operations struct {
	*Devices
	Token string // http.token; empty: none needed

	mu        sync.Mutex // guards the rest
	functions []lambda.FunctionStatus
	commands  []command
	orders    []string // what was asked of functions and commands: "reset enrich {…}"
	off       map[string]bool
	began     time.Time
}

// A command as device/command shows it.
type command struct {
	ID      string          `json:"id"`
	Vehicle string          `json:"vehicle"`
	Name    string          `json:"name"`
	Payload json.RawMessage `json:"payload,omitempty"`
	Key     string          `json:"key,omitempty"`
	State   string          `json:"state"`
	Issued  time.Time       `json:"issued"`
	Expires time.Time       `json:"expires"`
	SentAt  *time.Time      `json:"sent_at,omitempty"`
	Sends   int             `json:"sends,omitempty"`
	EndedAt *time.Time      `json:"ended_at,omitempty"`
	Device  string          `json:"device,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// NewOperations returns operations at a moment. Dir is for the authority's files.
func NewOperations(dir, token string, now time.Time) (*Operations, error) {
	devices, err := newDevices(dir, token, now)
	if err != nil {
		return nil, err
	}
	o := &Operations{Devices: devices, Token: token, off: map[string]bool{}, began: now}
	mapping := func(function, stream, state string, lag, age int64, c process.Counters) lambda.MappingStatus {
		return lambda.MappingStatus{
			UUID: fmt.Sprintf("%08x-0000-4000-8000-%012x", len(function)*7919, len(stream)), Function: function, Stream: stream, State: state, LastResult: "OK",
			Lag: lag, IteratorAgeMS: age, LastInvocation: now.Add(-time.Second), Total: c, Shards: []process.ShardStatus{{Shard: "shardId-000000000000", State: process.StateRunning}},
		}
	}
	enrich := mapping("enrich", "readings", "Enabled", 12, 180, process.Counters{Records: 812_400, Batches: 1200, Invocations: 8312})
	enrich.Configured = true
	score := mapping("fraud-score", "readings", "Enabled", 48_211, 734_000, process.Counters{
		Records: 90_233, Invocations: 4410, Errors: 61, Throttles: 212, DeadLetters: 40, Retries: 55,
	})
	score.LastError, score.LastErrorTime, score.OnFailure, score.Owed = "Unhandled: "+Hostile, now.Add(-3*time.Second), "dir:failed", 3
	score.Shards[0].State = process.StateRetrying
	score.Breaker = &process.BreakerStatus{State: process.BreakerOpen, Failures: 12, Opened: 3, Held: 31, Until: now.Add(20 * time.Second)}
	clicks := mapping("clicks", "click-stream", "Enabled", 900, 61_000, process.Counters{Records: 1200, Invocations: 12, Spilled: 400, CaughtUp: 100})
	clicks.Consumer, clicks.Overflow = "dashboard", "iterator age 1m1s is over 1m"
	clicks.Shards[0].State = process.StatePaused
	archive := mapping("clicks", "readings", "Disabled", -1, 0, process.Counters{})
	archive.LastInvocation, archive.Shards = time.Time{}, []process.ShardStatus{}
	o.functions = []lambda.FunctionStatus{
		{Name: "enrich", Runtime: "python", Timeout: 3, Pool: lambda.PoolStatus{Processes: 2, Busy: 1, Limit: 4, Invokes: 8312, ColdStarts: 2, Last: now}, Mappings: []lambda.MappingStatus{enrich}},
		{Name: "fraud-score", Runtime: "http", Timeout: 10, Pool: lambda.PoolStatus{Limit: 8, Busy: 8, Invokes: 4410, Errors: 61, Throttles: 212, LastError: Hostile}, Mappings: []lambda.MappingStatus{score}},
		{Name: "clicks", Runtime: "node", Timeout: 3, Pool: lambda.PoolStatus{Limit: 1, Timeouts: 2, Restarts: 1}, Mappings: []lambda.MappingStatus{clicks, archive}},
		{Name: "by-hand", Runtime: "bootstrap", Timeout: 3, Mappings: []lambda.MappingStatus{}},
	}
	ago := func(d time.Duration) *time.Time { t := now.Add(-d); return &t }
	o.commands = []command{
		{ID: "c3", Vehicle: "T0137", Name: "lock", State: "queued", Issued: now.Add(-time.Minute), Expires: now.Add(time.Hour), Payload: json.RawMessage(`{"door":1}`)},
		{ID: "c2", Vehicle: "T0137", Name: "reboot", State: "failed", Issued: now.Add(-time.Hour), Expires: now.Add(23 * time.Hour), SentAt: ago(time.Hour), Sends: 2, EndedAt: ago(59 * time.Minute), Device: "T0137", Reason: Hostile},
		{ID: "c1", Vehicle: "T0137", Name: Hostile, State: "done", Issued: now.Add(-2 * time.Hour), Expires: now.Add(22 * time.Hour), SentAt: ago(2 * time.Hour), Sends: 1, EndedAt: ago(2 * time.Hour), Device: "T0137", Payload: json.RawMessage(`[1,2]`), Result: json.RawMessage(`{"took":4}`)},
	}
	return o, nil
}

// Without leaves something out: functions, devices or commands. It then answers 404, as a program without it does.
func (o *Operations) Without(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.off[what] = true
}

// Orders returns what was asked for so far.
func (o *Operations) Orders() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.orders)
}

// Finish ends the newest command of a vehicle as its device would.
func (o *Operations) Finish(vehicle, state, reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.commands {
		if c := &o.commands[i]; c.Vehicle == vehicle {
			now := time.Now()
			c.State, c.Reason, c.EndedAt, c.Device = state, reason, &now, vehicle
			return
		}
	}
}

// Handler serves operations, and the rest from next.
func (o *Operations) Handler(next http.Handler) http.Handler {
	devices, mux := http.NewServeMux(), http.NewServeMux()
	o.Identity.Register(devices)
	handle := func(what, pattern string, h http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			o.mu.Lock()
			off := o.off[what]
			o.mu.Unlock()
			if off {
				next.ServeHTTP(w, r)
				return
			}
			h(w, r)
		})
	}
	for _, p := range []string{"/v1/devices", "/v1/devices/", "/v1/device-tokens", "/v1/device-tokens/", "/v1/ca", "/v1/ca/"} {
		handle("devices", p, devices.ServeHTTP)
	}
	handle("functions", "GET /v1/functions", func(w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		now := time.Now()
		for i := range o.functions {
			for k := range o.functions[i].Mappings {
				if m := &o.functions[i].Mappings[k]; m.State == "Enabled" && m.Overflow == "" && m.Breaker == nil {
					m.LastInvocation, m.Total.Invocations = now, m.Total.Invocations+3
				}
			}
		}
		answer(w, http.StatusOK, map[string]any{"functions": o.functions})
	})
	handle("functions", "GET /v1/functions/{name}/logs", func(w http.ResponseWriter, r *http.Request) {
		tails := []lambda.Tail{}
		if r.PathValue("name") != "by-hand" {
			tails = []lambda.Tail{
				{RequestID: "5f1c9f02-0001", At: o.began.Add(-time.Minute), Took: 0.0121, Log: "START\nscored 100 records\n" + Hostile},
				{RequestID: "5f1c9f02-0002", At: o.began.Add(-time.Second), Took: 3, Error: "Task timed out after 3.00 seconds", Log: "START\ncalling the bank …"},
			}
		}
		answer(w, http.StatusOK, map[string]any{"invocations": tails})
	})
	handle("functions", "POST /v1/functions/{name}/{action}", o.operate)
	handle("commands", "GET /v1/vehicles/{id}/commands", o.asking(o.listCommands))
	handle("commands", "POST /v1/vehicles/{id}/commands", o.asking(o.issue))
	handle("commands", "DELETE /v1/vehicles/{id}/commands/{command}", o.asking(o.cancel))
	mux.Handle("/", next)
	return mux
}

func (o *Operations) authorized(r *http.Request) bool {
	token := bearer.New(o.Token)
	return token.Allows(r)
}

// asking answers requests that bring the token, as the API of commands does.
func (o *Operations) asking(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !o.authorized(r) {
			refuse(w, http.StatusUnauthorized, "send the token: Authorization: Bearer <token>")
			return
		}
		next(w, r)
	}
}

// operate answers as lambda.Registry.Operations behind the program's guard does.
func (o *Operations) operate(w http.ResponseWriter, r *http.Request) {
	if !o.authorized(r) {
		http.Error(w, "send the token of http.token: Authorization: Bearer <token>", http.StatusUnauthorized)
		return
	}
	name, action := r.PathValue("name"), r.PathValue("action")
	var q struct {
		Mapping string    `json:"mapping"`
		Confirm string    `json:"confirm"`
		To      string    `json:"to"`
		Time    time.Time `json:"time"`
	}
	if r.Header.Get("Content-Type") != "application/json" || json.NewDecoder(r.Body).Decode(&q) != nil {
		answer(w, http.StatusUnsupportedMediaType, map[string]string{"error": "send JSON"})
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.orders = append(o.orders, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", action, name, q.To, q.Confirm)))
	var m *lambda.MappingStatus
	for i := range o.functions {
		for k := range o.functions[i].Mappings {
			if v := &o.functions[i].Mappings[k]; v.UUID == q.Mapping && v.Function == name {
				m = v
			}
		}
	}
	if m == nil {
		answer(w, http.StatusNotFound, map[string]string{"error": "function " + name + " has no mapping " + q.Mapping})
		return
	}
	var report any
	switch {
	case action == "pause":
		m.State = "Disabled"
	case action == "resume":
		m.State, m.Overflow = "Enabled", ""
		for i := range m.Shards {
			m.Shards[i].State = process.StateRunning
		}
	case action == "reset" && q.Confirm == name:
		m.Lag = 0
	case action == "redrive" && m.OnFailure == "":
		answer(w, http.StatusConflict, map[string]string{"error": "mapping " + m.UUID + ": redrive: the mapping has no destination, and there is no stream of dead letters"})
		return
	case action == "redrive":
		report = lambda.RedriveReport{Documents: 40, Records: 38, Failed: 1, Missing: 1, Errors: []string{Hostile}}
	default:
		answer(w, http.StatusBadRequest, map[string]string{"error": "confirm it"})
		return
	}
	answer(w, http.StatusOK, map[string]any{"done": []any{map[string]any{"mapping": m.UUID, "report": report}}})
}

func (o *Operations) listCommands(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := []command{}
	for _, c := range o.commands {
		if c.Vehicle == r.PathValue("id") {
			out = append(out, c)
		}
	}
	answer(w, http.StatusOK, map[string]any{"commands": out})
}

func (o *Operations) issue(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Name      string          `json:"name"`
		Payload   json.RawMessage `json:"payload"`
		ExpiresIn float64         `json:"expires_in"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil || q.Name == "" || q.ExpiresIn <= 0 || r.Header.Get("Idempotency-Key") == "" {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("the body is not like {\"name\": \"lock\", \"payload\": …, \"expires_in\": 600}: %v", err))
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.commands {
		if c.Key == r.Header.Get("Idempotency-Key") {
			answer(w, http.StatusOK, c)
			return
		}
	}
	if q.Name == "too-many" {
		refuse(w, http.StatusTooManyRequests, "too many commands are open: wait for some to end")
		return
	}
	now := time.Now()
	c := command{
		ID: fmt.Sprintf("c%d", len(o.commands)+1), Vehicle: r.PathValue("id"), Name: q.Name, Payload: q.Payload, Key: r.Header.Get("Idempotency-Key"), State: "queued",
		Issued: now, Expires: now.Add(time.Duration(q.ExpiresIn) * time.Second),
	}
	o.commands = append([]command{c}, o.commands...)
	o.orders = append(o.orders, fmt.Sprintf("command %s %s %.0f", q.Name, q.Payload, q.ExpiresIn))
	answer(w, http.StatusCreated, c)
}

func (o *Operations) cancel(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.commands {
		if c := &o.commands[i]; c.ID == r.PathValue("command") && c.Vehicle == r.PathValue("id") && c.EndedAt == nil {
			now := time.Now()
			c.State, c.Reason, c.EndedAt = "cancelled", "cancelled", &now
			answer(w, http.StatusOK, c)
			return
		}
	}
	refuse(w, http.StatusConflict, "the command has ended")
}

func refuse(w http.ResponseWriter, status int, detail string) {
	answer(w, status, map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}
