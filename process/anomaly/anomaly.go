// Package anomaly watches vehicles for what no threshold says: an engine that grows hotter than its own normal, or a combination of
// signals that this vehicle has not shown before. What it finds are alerts like those of rules: one open per detector and vehicle,
// acknowledged, resolved, reopened and notified alike.
//
// Readings are averaged over buckets of event time (Config.Every), and detectors see buckets. A trend detector compares one signal
// with what is normal for this vehicle at its speed, and fires when it rises towards its limit; it can be explained in a sentence. An
// rcf detector scores a vector of signals with a random cut forest per vehicle and says which signals are to blame.
//
// A Watch is pure: the same readings in the same order make the same findings. Folder keeps one per vehicle, and its state moves with the
// checkpoint (P3), so that a crash or a replay in other batches changes nothing. A reading that is not newer than the vehicle's last is
// passed over: what it would have told has been judged (P9).
package anomaly

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/process/forest"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/telemetry"
)

// The kinds of detector.
const (
	Trend = "trend"
	RCF   = "rcf"
)

// A Detector is one thing to look for, as people configure it. Zero fields take the defaults that their doc names.
type Detector struct {
	Name     string `yaml:"name" doc:"letters, digits and _; keys state and alerts, so renaming forgets them"`
	Kind     string `yaml:"kind" doc:"trend or rcf"`
	Vehicles string `yaml:"vehicles,omitempty" doc:"glob of vehicle ids; default all"`
	Severity string `yaml:"severity,omitempty" doc:"info, warning or critical; default warning"`

	// The gate: without it a cold engine that warms up is a trend.
	Gate   map[string]float64 `yaml:"gate,omitempty" doc:"least values for the detector to look at all, such as {engine_temp: 70, rpm: 300}"`
	Settle time.Duration      `yaml:"settle,omitempty" doc:"how long the gate must have been open; default 5m, negative: not at all"`
	Votes  int                `yaml:"votes,omitempty" doc:"how many of the last evaluations must say so; default 2 for trend, 3 for rcf"`
	Of     int                `yaml:"of,omitempty" doc:"how many evaluations vote, at most 8; default 3 for trend, 5 for rcf"`

	// Kind trend.
	Signal   string        `yaml:"signal,omitempty" doc:"trend: the signal; default engine_temp"`
	Load     string        `yaml:"load,omitempty" doc:"trend: the signal on which its normal value depends; default speed"`
	Limit    float64       `yaml:"limit,omitempty" doc:"trend: the value it must not reach; default 105"`
	Slope    float64       `yaml:"slope,omitempty" doc:"trend: least rise per minute; default 0.4"`
	Within   time.Duration `yaml:"within,omitempty" doc:"trend: alert if the limit is reached within this time; default 30m"`
	Window   time.Duration `yaml:"window,omitempty" doc:"trend: over which the slope is taken; default 10m"`
	Distance float64       `yaml:"distance,omitempty" doc:"trend: least distance above normal; default 2"`

	// Kind rcf; parameters named as AWS names them.
	Signals       []string `yaml:"signals,omitempty" doc:"rcf: the vector; d(x) is the change of x per minute; default [engine_temp, d(engine_temp), rpm, speed, battery]"`
	NumberOfTrees int      `yaml:"numberOfTrees,omitempty" doc:"rcf: default 30"`
	SubSampleSize int      `yaml:"subSampleSize,omitempty" doc:"rcf: points in each tree; default 256"`
	TimeDecay     float64  `yaml:"timeDecay,omitempty" doc:"rcf: default 0.1/subSampleSize"`
	ShingleSize   int      `yaml:"shingleSize,omitempty" doc:"rcf: observations in a row that make one point; default 4"`
	Seed          uint64   `yaml:"seed,omitempty" doc:"rcf: of the random numbers; each vehicle has its own from it"`
	WarmUp        int      `yaml:"warmUp,omitempty" doc:"rcf: points to learn before it says anything; default 256"`
	About         []string `yaml:"about,omitempty" doc:"rcf: alert only if these of the signals, being high, make up share of the score; default: whatever the cause"`
	Share         float64  `yaml:"share,omitempty" doc:"rcf: see about; default 0.6"`
	Sigmas        float64  `yaml:"sigmas,omitempty" doc:"rcf: threshold above the mean score, in standard deviations; default 3.5"`
	MinScore      float64  `yaml:"minScore,omitempty" doc:"rcf: least threshold; default 1"`
}

// Shipped returns the detectors that come with Milepost.
func Shipped() []Detector {
	warm := map[string]float64{"engine_temp": 70, "rpm": 300}
	return []Detector{
		{Name: "engine_temperature_trend", Kind: Trend, Gate: warm},
		{Name: "engine_anomaly", Kind: RCF, Severity: rule.Info, Gate: warm, About: []string{"engine_temp"}},
	}
}

func (d *Detector) defaults() error {
	def := func(x *time.Duration, v time.Duration) {
		if *x == 0 {
			*x = v
		}
	}
	number := func(x *float64, v float64) {
		if *x == 0 {
			*x = v
		}
	}
	count := func(x *int, v int) {
		if *x == 0 {
			*x = v
		}
	}
	def(&d.Settle, 5*time.Minute)
	switch d.Kind {
	case Trend:
		if d.Signal == "" {
			d.Signal = "engine_temp"
		}
		if d.Load == "" {
			d.Load = "speed"
		}
		number(&d.Limit, 105)
		number(&d.Slope, 0.4)
		number(&d.Distance, 2)
		def(&d.Within, 30*time.Minute)
		def(&d.Window, 10*time.Minute)
		count(&d.Votes, 2)
		count(&d.Of, 3)
		if d.Slope < 0 || d.Distance < 0 || d.Within < 0 || d.Window < time.Minute {
			return fmt.Errorf("detector %s: slope, distance and within must be positive and window at least 1m", d.Name)
		}
	case RCF:
		if len(d.Signals) == 0 {
			d.Signals = []string{"engine_temp", "d(engine_temp)", "rpm", "speed", "battery"}
		}
		count(&d.NumberOfTrees, 30)
		count(&d.SubSampleSize, 256)
		count(&d.ShingleSize, 4)
		count(&d.WarmUp, 256)
		number(&d.Sigmas, 3.5)
		number(&d.MinScore, 1)
		number(&d.Share, 0.6)
		for _, a := range d.About {
			if !slices.Contains(d.Signals, a) {
				return fmt.Errorf("detector %s: about names %s, which is not among its signals %v", d.Name, a, d.Signals)
			}
		}
		count(&d.Votes, 3)
		count(&d.Of, 5)
		if d.WarmUp < 1 || d.Sigmas < 0 {
			return fmt.Errorf("detector %s: warmUp and sigmas must be positive", d.Name)
		}
	default:
		return fmt.Errorf("detector %q: kind is %q; it must be %s or %s", d.Name, d.Kind, Trend, RCF)
	}
	if d.Of > 8 || d.Votes < 1 || d.Votes > d.Of {
		return fmt.Errorf("detector %s: votes is %d of %d; it must be at least 1 and at most of, and of at most 8", d.Name, d.Votes, d.Of)
	}
	if d.Vehicles == "" {
		d.Vehicles = "*"
	}
	if _, err := path.Match(d.Vehicles, ""); err != nil {
		return fmt.Errorf("detector %s: vehicles: %q is not a glob", d.Name, d.Vehicles)
	}
	return nil
}

// A Plan is a set of detectors, compiled. It never changes and is safe for concurrent use.
type Plan struct {
	every     int64 // ms
	detectors []detector
	signals   []telemetry.SignalID // all that some detector wants
	names     []string
	units     []string
	set       *rule.Set // one rule for each detector, over what detectors say
	hash      uint64    // of all that stored state depends on
	values    int       // length of a rule.Values
}

type detector struct {
	Detector
	signal, load int     // trend: indices into signals
	inputs       []input // rcf
	gate         []gate
	score, votes telemetry.SignalID // in the catalog of the set
	forest       forest.Config
}

type input struct {
	signal int
	change bool // per minute
	name   string
}

type gate struct {
	signal int
	least  float64
}

// Compile checks detectors. every is the width of a bucket, 20 s if zero.
func Compile(detectors []Detector, every time.Duration, cat *telemetry.Catalog) (*Plan, error) {
	if every == 0 {
		every = 20 * time.Second
	}
	if every < time.Second || every > 10*time.Minute {
		return nil, fmt.Errorf("anomaly: every is %s; it must be 1s to 10m", every)
	}
	p := &Plan{every: every.Milliseconds()}
	var specs []rule.Spec
	var defs []telemetry.Def
	for _, d := range detectors {
		c := detector{Detector: d}
		if err := c.defaults(); err != nil {
			return nil, err
		}
		var err error
		use := func(name string) (i int) {
			i, e := p.use(cat, name)
			if e != nil && err == nil {
				err = fmt.Errorf("detector %s: %w", d.Name, e)
			}
			return i
		}
		for _, name := range sortedKeys(c.Gate) {
			c.gate = append(c.gate, gate{use(name), c.Gate[name]})
		}
		if c.Kind == Trend {
			c.signal, c.load = use(c.Signal), use(c.Load)
		}
		for _, name := range c.Signals {
			if c.Kind != RCF {
				break
			}
			inner, change := strings.CutPrefix(name, "d(")
			if change {
				inner = strings.TrimSuffix(inner, ")")
			}
			c.inputs = append(c.inputs, input{use(inner), change, name})
		}
		if err != nil {
			return nil, err
		}
		least := 0.0
		if c.Kind == RCF {
			least = c.MinScore
			c.forest = forest.Config{
				Dimensions: len(c.inputs), NumberOfTrees: c.NumberOfTrees, SubSampleSize: c.SubSampleSize, TimeDecay: c.TimeDecay,
				ShingleSize: c.ShingleSize, Seed: c.Seed,
			}
			if _, err := forest.New(c.forest); err != nil {
				return nil, fmt.Errorf("detector %s: %w", c.Name, err)
			}
		} else if n := c.Window.Milliseconds() / p.every; n < 6 || n > maxWindow {
			return nil, fmt.Errorf("detector %s: window is %s, which is %d buckets of %s; it must be 6 to %d", c.Name, c.Window, n, every, maxWindow)
		}
		defs = append(defs, telemetry.Def{Name: c.Name + "_score"}, telemetry.Def{Name: c.Name + "_votes"})
		specs = append(specs, rule.Spec{
			Name: c.Name, Severity: c.Severity, Summary: "{vehicle}: {rule}",
			When:  fmt.Sprintf("%s_score >= least && %s_votes >= needed", c.Name, c.Name),
			Clear: c.Name + "_votes < 1", ClearFor: time.Minute,
			Params: map[string]float64{"least": least, "needed": float64(c.Votes)},
		})
		p.detectors = append(p.detectors, c)
	}
	own := telemetry.NewCatalog(defs...)
	set, err := rule.Compile(specs, own)
	if err != nil {
		return nil, fmt.Errorf("anomaly: %w", err)
	}
	p.set = set
	for i := range p.detectors {
		d := &p.detectors[i]
		d.score, _ = own.Lookup([]byte(d.Name + "_score"))
		d.votes, _ = own.Lookup([]byte(d.Name + "_votes"))
		p.values = max(p.values, int(d.score)+1, int(d.votes)+1)
	}
	p.hash = p.fingerprint()
	return p, nil
}

func (p *Plan) use(cat *telemetry.Catalog, name string) (int, error) {
	for i, n := range p.names {
		if n == name {
			return i, nil
		}
	}
	id, ok := cat.Lookup([]byte(name)) // a misspelt one would never be heard of
	if !ok {
		return 0, fmt.Errorf("no signal is called %q: declare it under signals", name)
	}
	p.names, p.signals, p.units = append(p.names, name), append(p.signals, id), append(p.units, cat.Def(id).Unit)
	return len(p.names) - 1, nil
}

// Rules returns the rules by which findings become alerts, one for each detector.
func (p *Plan) Rules() *rule.Set { return p.set }

// matches tells whether a detector watches a vehicle.
func (d *detector) matches(vehicle string) bool {
	ok, err := path.Match(d.Vehicles, vehicle)
	return ok && err == nil
}

// fingerprint changes when stored state would mean something else.
func (p *Plan) fingerprint() uint64 {
	h := uint64(14695981039346656037)
	for _, b := range fmt.Append(nil, p.every, p.names) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	for i := range p.detectors {
		d := &p.detectors[i]
		for _, b := range fmt.Append(nil, d.Name, d.Kind, d.Signal, d.Load, d.Window, d.inputs, d.forest) {
			h = (h ^ uint64(b)) * 1099511628211
		}
	}
	return h
}

func nan(x float64) bool { return math.IsNaN(x) }
