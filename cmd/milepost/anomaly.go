package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/process/anomaly"
	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/sim"
	"github.com/milepost/milepost/telemetry"
)

// runAnomaly measures detectors: how early they see a coolant leak, and how often they cry wolf.
func runAnomaly(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "anomaly")
	o := evaluation{}
	fs.IntVar(&o.days, "vehicle-days", 100, "healthy days of driving, each of which ends with a leak")
	fs.DurationVar(&o.limit, "time", 30*time.Second, "stop after this long, with the vehicle-days that are done")
	fs.DurationVar(&o.interval, "rate", 5*time.Second, "how often each vehicle reports")
	fs.DurationVar(&o.every, "every", 20*time.Second, "width of the detectors' buckets")
	fs.Float64Var(&o.least, "min-rate", 0.3, "slowest leak, °C a minute")
	fs.Float64Var(&o.most, "max-rate", 2, "fastest leak, °C a minute")
	fs.Float64Var(&o.noise, "noise", 0.5, "standard deviation of noise on the engine's temperature, °C")
	fs.Float64Var(&o.spikes, "spikes", 0.0005, "share of readings with a glitch of ±20 °C")
	fs.Float64Var(&o.sigmas, "sigmas", 0, "rcf: threshold in standard deviations; default the detector's")
	fs.Float64Var(&o.share, "share", 0, "rcf: share of the score that must be the engine temperature's; default the detector's")
	fs.IntVar(&o.votes, "votes", 0, "rcf: evaluations of 8 that must say so; default the detector's")
	fs.Uint64Var(&o.seed, "seed", 1, "the same seed makes the same fleets, leaks and noise")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 || rest[0] != "evaluate" {
		return usagef("write: milepost anomaly evaluate")
	}
	if o.days < 1 || o.interval < time.Second || o.least <= 0 || o.most < o.least || o.noise < 0 {
		return usagef("--vehicle-days takes at least 1, --rate at least 1s, --min-rate and --max-rate a positive range, --noise nothing negative")
	}
	results, err := o.run(ctx)
	if err != nil {
		return err
	}
	done, leaks := 0.0, 0
	for _, r := range results {
		done += r.healthy.Hours() / 24
		if r.leaked {
			leaks++
		}
	}
	if leaks == 0 {
		return fmt.Errorf("no vehicle-day was done in %s: give it more --time", o.limit)
	}
	fmt.Fprintf(e.stdout, "%.1f healthy vehicle-days, %d leaks of %g–%g °C a minute, a reading each %s, noise %g °C, seed %d\n\n", done, leaks, o.least, o.most, o.interval, o.noise, o.seed)
	fmt.Fprintf(e.stdout, "%-28s %12s %12s %12s %16s %14s\n", "detector", "before 105", "lead median", "lead p10", "seen at", "false/100 days")
	for i, name := range o.names() {
		var leads, temps []float64
		early, falses := 0, 0
		for _, r := range results {
			falses += r.falses[i]
			if !r.leaked {
				continue
			}
			leads = append(leads, r.lead[i]) // 0 if missed
			if r.lead[i] > 0 {
				early++
				temps = append(temps, r.temp[i])
			}
		}
		at := "-"
		if len(temps) > 0 {
			at = fmt.Sprintf("%.1f °C", quantile(temps, 0.5))
		}
		fmt.Fprintf(e.stdout, "%-28s %11.0f%% %8.1f min %8.1f min %16s %14.1f\n", name, 100*float64(early)/float64(leaks), quantile(leads, 0.5), quantile(leads, 0.1), at, float64(falses)/done*100)
	}
	fmt.Fprintln(e.stdout, "\nA missed leak counts as a lead of 0. Target: median lead at least 10 min, at most 1 false alarm per 100 vehicle-days.")
	return nil
}

func quantile(xs []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	return s[int(q*float64(len(s)-1)+0.5)]
}

type evaluation struct {
	days                       int
	limit, interval, every     time.Duration
	least, most, noise, spikes float64
	share, sigmas              float64 // of the rcf detector, and its votes; 0: as shipped
	votes                      int
	seed                       uint64
}

func (o *evaluation) detectors() []anomaly.Detector {
	ds := anomaly.Shipped()
	for i := range ds {
		if d := &ds[i]; d.Kind == anomaly.RCF {
			if o.sigmas > 0 {
				d.Sigmas = o.sigmas
			}
			if o.share > 0 {
				d.Share = o.share
			}
			if o.votes > 0 {
				d.Votes, d.Of = o.votes, 8
			}
		}
	}
	return ds
}

// names lists what is compared: the shipped threshold rule and the shipped detectors.
func (o *evaluation) names() []string {
	names := []string{"engine_temperature (rule)"}
	for _, d := range anomaly.Shipped() {
		names = append(names, fmt.Sprintf("%s (%s)", d.Name, d.Kind))
	}
	return names
}

// An outcome is one vehicle's day. lead, temp and falses are indexed as names.
type outcome struct {
	healthy time.Duration
	leaked  bool
	lead    [3]float64 // minutes before 105 °C
	temp    [3]float64 // when it was seen
	falses  [3]int
}

// run lets fleets of five drive, each on one core, until the days are done or the time is over.
func (o *evaluation) run(ctx context.Context) ([]outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	const size = 5
	var mu sync.Mutex // guards all and failed
	var all []outcome
	var failed error
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i*size >= o.days || ctx.Err() != nil {
					return
				}
				got, err := o.fleet(ctx, min(size, o.days-i*size), o.seed*1_000_003+uint64(i)) //nolint:gosec // positive
				mu.Lock()
				all = append(all, got...)
				if err != nil && failed == nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return all, failed
}

// A patient is one simulated vehicle with what watches it.
type patient struct {
	rng      *rand.Rand
	rules    []rule.State
	bound    *rule.Bound
	values   rule.Values
	watch    *anomaly.Watch
	onset    int64   // the leak begins at the first reading from then on at which the vehicle drives
	began    int64   // 0: not yet
	rate     float64 // °C a minute
	added    float64
	last     int64
	hot      int64 // when it reached 105 °C
	done     bool
	firedAt  [3]int64
	firedHot [3]float64
	out      outcome
}

// fleet drives some vehicles for a day, and on until each has had a leak. Without time it returns what is complete: nothing.
func (o *evaluation) fleet(ctx context.Context, n int, seed uint64) ([]outcome, error) {
	cat := telemetry.NewCatalog()
	plan, err := anomaly.Compile(o.detectors(), o.every, cat)
	if err != nil {
		return nil, err
	}
	var hot []rule.Spec
	for _, s := range rule.Shipped() {
		if s.Name == "engine_temperature" {
			hot = append(hot, s)
		}
	}
	set, err := rule.Compile(hot, cat)
	if err != nil {
		return nil, err
	}
	start := time.Date(2026, 6, 1, 6, 0, 0, 0, time.UTC)
	// Only trucks and reefers: the ten kinds go round, so a fleet of twice the size has enough that drive far.
	f := sim.New(sim.Config{Vehicles: 2 * n, Seed: seed, Start: start, Interval: o.interval, Calm: true})
	patients := map[string]*patient{}
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < f.Len() && len(patients) < n; i++ {
		id := f.Vehicle(i)
		patients[id] = &patient{
			rng: rand.New(rand.NewPCG(seed, uint64(i)+2)), rules: make([]rule.State, set.Len()), bound: set.Bind(id), watch: anomaly.NewWatch(plan, id),
			values: rule.Values{V: make([]float64, telemetry.WellKnown), T: make([]int64, telemetry.WellKnown)},
			onset:  start.Add(24*time.Hour + time.Duration(rng.IntN(3600))*time.Second).UnixMilli(),
			rate:   o.least + rng.Float64()*(o.most-o.least),
		}
	}
	end := start.Add(30 * time.Hour).UnixMilli()
	left := len(patients)
	var found []anomaly.Finding
	var trans []rule.Transition
	for i := 0; left > 0; i++ {
		if i&4095 == 0 && ctx.Err() != nil {
			return nil, nil //nolint:nilerr // a part of a day would be all healthy
		}
		at, readings := f.Next()
		if at.UnixMilli() > end {
			break
		}
		for k := range readings {
			rd := &readings[k]
			p := patients[rd.Vehicle]
			if p == nil || p.done {
				continue
			}
			temp := p.age(o, rd)
			trans, found = trans[:0], found[:0]
			for _, s := range rd.Signals {
				if int(s.ID) < len(p.values.V) {
					p.values.V[s.ID], p.values.T[s.ID] = s.Value, rd.Time
				}
			}
			trans = p.bound.Eval(p.rules, &p.values, rule.Input{Time: rd.Time, Arrival: rd.Arrival, Changed: rd.Signals}, trans)
			for _, t := range trans {
				p.note(0, t, rd.Time, temp)
			}
			if found, _, err = p.watch.Observe(rd, found); err != nil {
				return nil, err
			}
			for _, x := range found {
				p.note(1+x.Transition.Rule, x.Transition, rd.Time, temp)
			}
			if p.hot != 0 && rd.Time > p.hot+10*60_000 {
				p.finish(start)
				left--
			}
		}
	}
	var out []outcome
	for _, p := range patients {
		if !p.done {
			p.out.healthy = time.Duration(p.last-start.UnixMilli()) * time.Millisecond
			if p.began != 0 {
				p.out.healthy = time.Duration(p.began-start.UnixMilli()) * time.Millisecond
			}
		}
		out = append(out, p.out)
	}
	return out, nil
}

// age adds the leak and noise to a reading, and returns the temperature without the noise.
func (p *patient) age(o *evaluation, rd *telemetry.Reading) float64 {
	rpm, _ := rd.Signal(telemetry.RPM)
	speed, _ := rd.Signal(telemetry.Speed)
	temp := math.NaN()
	for i := range rd.Signals {
		s := &rd.Signals[i]
		if s.ID != telemetry.EngineTemp {
			continue
		}
		if p.began == 0 && rd.Time >= p.onset && speed > 20 && s.Value >= 75 {
			p.began = rd.Time
		}
		if p.began != 0 && rpm > 0 {
			p.added += p.rate * float64(rd.Time-p.last) / 60_000
		}
		temp = s.Value + p.added
		s.Value = temp + p.rng.NormFloat64()*o.noise
		if p.rng.Float64() < o.spikes {
			s.Value += 20 * float64(1-2*p.rng.IntN(2))
		}
		s.Value = math.Round(s.Value*10) / 10
	}
	p.last = rd.Time
	if p.began != 0 && p.hot == 0 && temp >= 105 {
		p.hot = rd.Time
	}
	return temp
}

// note counts an alert: false before the leak, early before 105 °C.
func (p *patient) note(i int, t rule.Transition, at int64, temp float64) {
	if t.To != rule.Firing {
		return
	}
	if p.began == 0 {
		p.out.falses[i]++
	} else if p.firedAt[i] == 0 {
		p.firedAt[i], p.firedHot[i] = at, temp
	}
}

func (p *patient) finish(start time.Time) {
	p.done = true
	p.out.leaked = true
	p.out.healthy = time.Duration(p.began-start.UnixMilli()) * time.Millisecond
	for i, at := range p.firedAt {
		if at != 0 && at < p.hot {
			p.out.lead[i], p.out.temp[i] = float64(p.hot-at)/60_000, p.firedHot[i]
		}
	}
}
