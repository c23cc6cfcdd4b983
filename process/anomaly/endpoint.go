package anomaly

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/telemetry"
)

// What an Endpoint does while its model cannot be reached.
const (
	FallbackRCF  = "rcf"  // a random cut forest per vehicle, in memory only, scores instead
	FallbackPass = "pass" // records pass without a score
	FallbackFail = "fail" // records wait until the model is back
)

// maxAnswer bounds a model's answer to one request.
const maxAnswer = 6 << 20

// EndpointConfig describes a model behind HTTP.
type EndpointConfig struct {
	Name     string   `yaml:"name" doc:"keys checkpoints, so it never changes"`
	URL      string   `yaml:"url" doc:"of the model; with endpoint set, of the service before it"`
	Endpoint string   `yaml:"endpoint,omitempty" doc:"name of a SageMaker endpoint: /endpoints/NAME/invocations is appended to url"`
	Signals  []string `yaml:"signals" doc:"features, in order; a reading that lacks one is passed over"`
	Content  string   `yaml:"content_type,omitempty" doc:"application/json (default): {\"instances\": [{\"features\": […]}]}, or text/csv: a line each"`

	Batch    int           `yaml:"batch,omitempty" doc:"most readings in one request; default 500"`
	Timeout  time.Duration `yaml:"timeout,omitempty" doc:"of one request; default 5s"`
	Failures int           `yaml:"failures,omitempty" doc:"failures in a row that open the circuit; default 5"`
	OpenFor  time.Duration `yaml:"open_for,omitempty" doc:"how long the circuit stays open before one request tries; default 30s"`
	Output   string        `yaml:"output,omitempty" doc:"stream that the scores go to; without one they are lost"`
	Fallback string        `yaml:"fallback,omitempty" doc:"rcf, pass or fail; default pass"`
	Forests  int           `yaml:"forests,omitempty" doc:"fallback rcf: most vehicles with a forest; default 200. Further ones pass"`

	Header  http.Header        `yaml:"-"` // added to each request
	Client  *http.Client       `yaml:"-"` // http.DefaultClient's transport if nil
	Catalog *telemetry.Catalog `yaml:"-"`
}

// A Prediction is what an Endpoint says of a reading: a record of its output stream, in JSON.
type Prediction struct {
	Vehicle string   `json:"vehicle_id"`
	Time    int64    `json:"ts"` // event time, Unix ms
	Score   *float64 `json:"score"`
	Source  string   `json:"source"` // the endpoint's name; "rcf" or "none" when it could not be reached
}

// An Endpoint is a process.Handler that scores readings with a model over HTTP. Its output is one Prediction for each reading. It is
// safe for concurrent use.
type Endpoint struct {
	cfg     EndpointConfig
	url     string
	ids     []telemetry.SignalID
	breaker *gobreaker.CircuitBreaker[[]float64]

	mu     sync.Mutex // guards the rest
	det    detector
	plan   *Plan
	models map[string]*stand
}

// stand is the forest that stands in for a model, of one vehicle.
type stand struct {
	rcf  rcf
	last int64
	said score
	ok   bool
}

var _ process.Handler = (*Endpoint)(nil)

// NewEndpoint checks a configuration.
func NewEndpoint(cfg EndpointConfig) (*Endpoint, error) {
	if cfg.Content == "" {
		cfg.Content = "application/json"
	}
	for _, x := range []struct {
		v   *int
		def int
	}{{&cfg.Batch, 500}, {&cfg.Failures, 5}, {&cfg.Forests, 200}} {
		if *x.v == 0 {
			*x.v = x.def
		}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.OpenFor == 0 {
		cfg.OpenFor = 30 * time.Second
	}
	if cfg.Fallback == "" {
		cfg.Fallback = FallbackPass
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{}
	}
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("endpoint %s: url %q: write http://… or https://…", cfg.Name, cfg.URL)
	case cfg.Content != "application/json" && cfg.Content != "text/csv":
		return nil, fmt.Errorf("endpoint %s: content_type %q: it must be application/json or text/csv", cfg.Name, cfg.Content)
	case cfg.Fallback != FallbackRCF && cfg.Fallback != FallbackPass && cfg.Fallback != FallbackFail:
		return nil, fmt.Errorf("endpoint %s: fallback %q: it must be rcf, pass or fail", cfg.Name, cfg.Fallback)
	case len(cfg.Signals) == 0 || cfg.Batch < 1 || cfg.Failures < 1 || cfg.Timeout < 0 || cfg.OpenFor < 0:
		return nil, fmt.Errorf("endpoint %s: signals must not be empty, and batch, failures, timeout and open_for must be positive", cfg.Name)
	}
	e := &Endpoint{cfg: cfg, url: cfg.URL, models: map[string]*stand{}}
	if cfg.Endpoint != "" {
		e.url = u.JoinPath("endpoints", url.PathEscape(cfg.Endpoint), "invocations").String()
	}
	e.plan, err = Compile([]Detector{{Name: "fallback", Kind: RCF, Signals: cfg.Signals}}, 0, cfg.Catalog)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", cfg.Name, err)
	}
	e.det, e.ids = e.plan.detectors[0], e.plan.signals
	if len(e.ids) != len(cfg.Signals) || strings.Contains(strings.Join(cfg.Signals, ""), "(") {
		return nil, fmt.Errorf("endpoint %s: signals must be different names of signals", cfg.Name)
	}
	e.breaker = gobreaker.NewCircuitBreaker[[]float64](gobreaker.Settings{
		Name: cfg.Name, Timeout: cfg.OpenFor, MaxRequests: 1,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(cfg.Failures) }, //nolint:gosec // positive
	})
	return e, nil
}

// Name keys the endpoint's checkpoints.
func (e *Endpoint) Name() string { return e.cfg.Name }

type instance struct {
	vehicle string
	at      int64
	values  []float64
}

// Handle scores the readings of an invocation.
func (e *Endpoint) Handle(ctx context.Context, in *process.Invocation) (process.Result, error) {
	var res process.Result
	instances := e.read(in.Records)
	for len(instances) > 0 {
		batch := instances[:min(len(instances), e.cfg.Batch)]
		instances = instances[len(batch):]
		stands := e.standIn(batch)
		scores, err := e.breaker.Execute(func() ([]float64, error) { return e.ask(ctx, batch) })
		if err != nil {
			if ctx.Err() != nil {
				return process.Result{}, err
			}
			if e.cfg.Fallback == FallbackFail {
				return process.Result{}, &process.NotRunError{Err: err, After: e.pause(err)}
			}
		}
		for i := range batch {
			p := Prediction{Vehicle: batch[i].vehicle, Time: batch[i].at, Source: "none"}
			switch {
			case err == nil:
				p.Score, p.Source = &scores[i], e.cfg.Name
			case e.cfg.Fallback == FallbackRCF && stands[i] != nil:
				p.Score, p.Source = stands[i], "rcf"
			}
			data, err := json.Marshal(&p)
			if err != nil {
				return process.Result{}, err
			}
			res.Output = append(res.Output, stream.Record{Key: p.Vehicle, Data: data})
		}
	}
	return res, nil
}

func (e *Endpoint) pause(err error) time.Duration {
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return time.Second
	}
	return 0
}

func (e *Endpoint) read(recs []stream.Record) []instance {
	d := telemetry.NewDecoder(e.cfg.Catalog)
	out := make([]instance, 0, len(recs))
	var rd telemetry.Reading
next:
	for i := range recs {
		rd.Vehicle, rd.Arrival = recs[i].Key, recs[i].Time.UnixMilli()
		if err := d.JSON(recs[i].Data, &rd); err != nil {
			continue // no reading: the fleet dead-letters it
		}
		x := instance{vehicle: strings.Clone(rd.Vehicle), at: rd.Time, values: make([]float64, len(e.ids))}
		for k, id := range e.ids {
			v, ok := rd.Signal(id)
			if !ok {
				continue next
			}
			x.values[k] = v
		}
		out = append(out, x)
	}
	return out
}

// standIn lets the forests learn and score, also while the model answers: they must know the vehicles when it does not.
func (e *Endpoint) standIn(batch []instance) []*float64 {
	out := make([]*float64, len(batch))
	if e.cfg.Fallback != FallbackRCF {
		return out
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range batch {
		s := e.models[batch[i].vehicle]
		if s == nil {
			if len(e.models) >= e.cfg.Forests {
				continue
			}
			w := NewWatch(e.plan, batch[i].vehicle)
			s = &stand{rcf: *w.each[0].rcf}
			f, err := newForest(&e.det, batch[i].vehicle)
			if err != nil {
				continue // the configuration was checked
			}
			s.rcf.f = f
			e.models[batch[i].vehicle] = s
		}
		if batch[i].at > s.last { // the same records may come again
			s.last = batch[i].at
			s.said, s.ok, _ = s.rcf.step(&e.det, e.plan.every, batch[i].values)
			s.rcf.learn()
			s.rcf.tail, s.rcf.added = s.rcf.tail[:0], 0
		}
		if s.ok {
			v := s.said.value
			out[i] = &v
		}
	}
	return out
}

// ask sends one request and returns a score for each instance.
func (e *Endpoint) ask(ctx context.Context, batch []instance) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	body, err := e.body(batch)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, e.cfg.Header)
	req.Header.Set("Content-Type", e.cfg.Content)
	req.Header.Set("Accept", e.cfg.Content)
	resp, err := e.cfg.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", e.cfg.Name, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("model %s: read answer: %w", e.cfg.Name, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("model %s: status %d: %s", e.cfg.Name, resp.StatusCode, bytes.TrimSpace(answer[:min(len(answer), 200)]))
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("model %s: the answer is longer than %d bytes", e.cfg.Name, maxAnswer)
	}
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		kind = e.cfg.Content
	}
	scores, err := parseScores(kind, answer)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", e.cfg.Name, err)
	}
	if len(scores) != len(batch) {
		return nil, fmt.Errorf("model %s: %d scores for %d readings", e.cfg.Name, len(scores), len(batch))
	}
	return scores, nil
}

func (e *Endpoint) body(batch []instance) ([]byte, error) {
	if e.cfg.Content == "text/csv" {
		var b []byte
		for i := range batch {
			for k, v := range batch[i].values {
				if k > 0 {
					b = append(b, ',')
				}
				b = strconv.AppendFloat(b, v, 'g', -1, 64)
			}
			b = append(b, '\n')
		}
		return b, nil
	}
	type features struct {
		Features []float64 `json:"features"`
	}
	list := make([]features, len(batch))
	for i := range batch {
		list[i].Features = batch[i].values
	}
	return json.Marshal(map[string]any{"instances": list})
}

// parseScores reads the shapes in which models answer: CSV with the score first on each line, or in JSON an array, or an object with
// scores or predictions; their elements are numbers, objects with score, or arrays with the score first.
func parseScores(kind string, b []byte) ([]float64, error) {
	if kind == "text/csv" {
		var out []float64
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			first, _, _ := strings.Cut(line, ",")
			v, err := strconv.ParseFloat(strings.TrimSpace(first), 64)
			if err != nil || v-v != 0 {
				return nil, fmt.Errorf("line %d of the answer begins with %q, not with a score", len(out)+1, first)
			}
			out = append(out, v)
		}
		return out, nil
	}
	var whole struct {
		Scores      []json.RawMessage `json:"scores"`
		Predictions []json.RawMessage `json:"predictions"`
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		if err := json.Unmarshal(b, &whole); err != nil {
			return nil, fmt.Errorf("the answer is not JSON: %w", err)
		}
		if list = whole.Scores; list == nil {
			list = whole.Predictions
		}
	}
	if list == nil {
		return nil, errors.New("the answer has neither scores nor predictions")
	}
	out := make([]float64, len(list))
	for i, raw := range list {
		var object struct {
			Score *float64 `json:"score"`
		}
		var row []float64
		switch {
		case json.Unmarshal(raw, &out[i]) == nil && string(raw) != "null":
		case json.Unmarshal(raw, &object) == nil && object.Score != nil:
			out[i] = *object.Score
		case json.Unmarshal(raw, &row) == nil && len(row) > 0:
			out[i] = row[0]
		default:
			return nil, fmt.Errorf("element %d of the answer holds no score", i)
		}
		if math.IsNaN(out[i]) {
			return nil, fmt.Errorf("element %d of the answer is not a number", i)
		}
	}
	return out, nil
}
