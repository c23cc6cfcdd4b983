package ingest

import (
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"time"
)

// rates is a token bucket per vehicle: one token a reading, or one a byte. Vehicles are spread over parts with a lock each, so that doors
// with many connections do not meet on one.
type rates struct {
	rate  float64 // tokens per nanosecond
	burst float64
	most  int // buckets per part
	seed  maphash.Seed
	parts [rateParts]ratePart
}

const rateParts = 64

type ratePart struct {
	mu      sync.Mutex // guards what follows; held for a map access or, when full, a sample of evictionSample
	buckets map[string]*bucket
}

type bucket struct {
	left float64 // tokens at the time last; negative while readings that were let in wait for theirs
	last int64   // Unix ns
}

// evictionSample is how many buckets are looked at to find one to forget. All of them would cost a flood of invented ids a
// scan each; the fullest of a random few is nearly always full.
const evictionSample = 16

func newRates(perSecond, burst float64, most int) *rates {
	r := &rates{rate: perSecond / float64(time.Second), burst: burst, most: max(1, most/rateParts), seed: maphash.MakeSeed()}
	for i := range r.parts {
		r.parts[i].buckets = map[string]*bucket{}
	}
	return r
}

// wait takes what a reading of that size costs its vehicle and returns zero, or how long the vehicle is to wait: see rates.take.
func (a *Admitter) wait(vehicle string, size int, now int64, debt bool) time.Duration {
	var wait time.Duration
	if a.rates != nil {
		wait = a.rates.take(vehicle, 1, now, debt)
		if wait > 0 && !debt {
			return wait
		}
	}
	if a.volumes != nil {
		// A reading larger than the burst passes when the whole burst is there, or it never would.
		wait = max(wait, a.volumes.take(vehicle, min(float64(size), a.volumes.burst), now, debt))
	}
	return wait
}

// take takes tokens of the vehicle at time now (Unix ns) and returns zero. If there are too few it takes nothing and returns
// how long until there are enough; with debt it takes them in advance and returns how long to wait before using them.
func (r *rates) take(vehicle string, tokens float64, now int64, debt bool) time.Duration {
	p := &r.parts[maphash.String(r.seed, vehicle)%rateParts]
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.buckets[vehicle]
	if b == nil {
		if len(p.buckets) >= r.most {
			p.evict(r, now)
		}
		b = &bucket{left: r.burst, last: now}
		p.buckets[strings.Clone(vehicle)] = b
	}
	if now > b.last { // the wall clock may step back
		b.left = r.at(b, now)
		b.last = now
	}
	if b.left < tokens && !debt {
		return time.Duration(math.Round((tokens - b.left) / r.rate))
	}
	b.left -= tokens
	if b.left < 0 {
		return time.Duration(math.Round(-b.left / r.rate))
	}
	return 0
}

// at returns the tokens a bucket has at time now.
func (r *rates) at(b *bucket, now int64) float64 {
	return min(r.burst, b.left+float64(max(0, now-b.last))*r.rate)
}

// evict forgets a full bucket, which is the same as having none, or failing that the fullest of a few: its vehicle gains at
// most one burst, and memory stays bounded.
func (p *ratePart) evict(r *rates, now int64) {
	fullest, most, seen := "", 0.0, 0
	for v, b := range p.buckets { // starts at a random place
		if left := r.at(b, now); fullest == "" || left > most {
			fullest, most = v, left
		}
		if seen++; seen == evictionSample || most >= r.burst {
			break
		}
	}
	delete(p.buckets, fullest)
}

// size returns how many vehicles are remembered.
func (r *rates) size() int {
	n := 0
	for i := range r.parts {
		r.parts[i].mu.Lock()
		n += len(r.parts[i].buckets)
		r.parts[i].mu.Unlock()
	}
	return n
}
