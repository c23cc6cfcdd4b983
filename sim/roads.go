package sim

import (
	"fmt"
	"math"
	"strings"
)

const (
	earthRadius     = 6_371_008.8 // mean, m
	metersPerDegree = earthRadius * math.Pi / 180
)

// A point is a place on a path.
type point struct {
	lat, lon float64
	at       float64 // metres from the path's beginning
	heading  float64 // degrees, towards the next point
}

// A path is a curve on the ground: a highway between two places, or a round through a town.
type path struct {
	points []point
	length float64
	round  bool // its end is its beginning
	from   int  // place; of a highway
	to     int
}

// A network is the highways, and the rounds of the towns that need any.
type network struct {
	places []place
	paths  []*path
	ends   [][]int // for each place, the paths that begin or end there
}

// newNetwork builds the highways. It is the same each time.
func newNetwork() *network {
	n := &network{places: places()}
	index := make(map[string]int, len(n.places))
	for i, p := range n.places {
		index[p.name] = i
	}
	n.ends = make([][]int, len(n.places))
	for _, c := range corridors() {
		names := strings.Fields(c)
		for i := 1; i < len(names); i++ {
			a, okA := index[names[i-1]]
			b, okB := index[names[i]]
			if !okA || !okB {
				panic(fmt.Sprintf("sim: bug: unknown place on the way from %s to %s", names[i-1], names[i]))
			}
			n.ends[a] = append(n.ends[a], len(n.paths))
			n.ends[b] = append(n.ends[b], len(n.paths))
			n.paths = append(n.paths, n.highway(a, b))
		}
	}
	return n
}

// highway winds from a to b: two waves across the straight line, growing from nothing at both ends.
func (n *network) highway(a, b int) *path {
	const spacing = 500
	rng := random(uint64(a)<<32 | uint64(b))
	from, to := n.places[a], n.places[b]
	scale := math.Cos((from.lat + to.lat) / 2 * math.Pi / 180)
	north, east := (to.lat-from.lat)*metersPerDegree, (to.lon-from.lon)*metersPerDegree*scale
	direct := math.Hypot(north, east)
	long, short := min(1500, direct*0.015)*rng.between(0.5, 1), min(250, direct*0.004)*rng.between(0.5, 1)
	longWave, shortWave := rng.between(18e3, 32e3), rng.between(4e3, 8e3)
	longPhase, shortPhase := rng.between(0, 2*math.Pi), rng.between(0, 2*math.Pi)

	p := &path{from: a, to: b}
	count := max(int(direct/spacing), 4)
	for i := range count + 1 {
		t := float64(i) / float64(count)
		grown := min(1, 8*t, 8*(1-t))
		s := t * direct
		across := grown * (long*math.Sin(2*math.Pi*s/longWave+longPhase) + short*math.Sin(2*math.Pi*s/shortWave+shortPhase))
		p.points = append(p.points, point{
			lat: from.lat + (north*t+across*east/direct)/metersPerDegree,
			lon: from.lon + (east*t-across*north/direct)/(metersPerDegree*scale),
		})
	}
	p.measure()
	return p
}

// town makes a round of a few kilometres through a town: a circle with dents.
func (n *network) town(at int, rng *random) *path {
	center := n.places[at]
	scale := math.Cos(center.lat * math.Pi / 180)
	radius := rng.between(900, 2600)
	offNorth, offEast := rng.between(-700, 700), rng.between(-700, 700)
	var dents [5]struct{ size, phase float64 }
	for k := range dents {
		dents[k].size, dents[k].phase = rng.between(0.02, 0.16)/float64(1+k/2), rng.between(0, 2*math.Pi)
	}
	p := &path{round: true, from: at, to: at}
	count := int(2 * math.Pi * radius / 60)
	for i := range count + 1 {
		angle := 2 * math.Pi * float64(i%count) / float64(count)
		r := radius
		for k, d := range dents {
			r += radius * d.size * math.Cos(float64(k+2)*angle+d.phase)
		}
		p.points = append(p.points, point{
			lat: center.lat + (offNorth+r*math.Cos(angle))/metersPerDegree,
			lon: center.lon + (offEast+r*math.Sin(angle))/(metersPerDegree*scale),
		})
	}
	p.measure()
	return p
}

// measure fills in distances and headings.
func (p *path) measure() {
	for i := 1; i < len(p.points); i++ {
		a, b := &p.points[i-1], &p.points[i]
		scale := math.Cos((a.lat + b.lat) / 2 * math.Pi / 180)
		north, east := b.lat-a.lat, (b.lon-a.lon)*scale
		b.at = a.at + math.Hypot(north, east)*metersPerDegree
		a.heading = math.Mod(math.Atan2(east, north)*180/math.Pi+360, 360)
	}
	last := len(p.points) - 1
	p.points[last].heading = p.points[last-1].heading
	if p.round {
		p.points[last].heading = p.points[0].heading
	}
	p.length = p.points[last].at
}

// place returns the point at s metres and the heading there. hint is the index of a point near by, and is kept up to date, so
// that following a path costs a step or two.
func (p *path) place(s float64, hint *int32) (lat, lon, heading float64) {
	i := int(*hint)
	for i > 0 && p.points[i].at > s {
		i--
	}
	for i < len(p.points)-2 && p.points[i+1].at <= s {
		i++
	}
	*hint = int32(i) //nolint:gosec // a path has some thousand points
	a, b := &p.points[i], &p.points[i+1]
	t := (s - a.at) / (b.at - a.at)
	turn := b.heading - a.heading
	if turn > 180 {
		turn -= 360
	} else if turn < -180 {
		turn += 360
	}
	return a.lat + (b.lat-a.lat)*t, a.lon + (b.lon-a.lon)*t, wrap(a.heading + turn*t)
}

// wrap brings an angle that is off by less than a turn into [0, 360).
func wrap(degrees float64) float64 {
	if degrees < 0 {
		return degrees + 360
	}
	if degrees >= 360 {
		return degrees - 360
	}
	return degrees
}

// random is a small generator that fits into each vehicle: a counter, well mixed.
type random uint64

func (r *random) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	h := uint64(*r)
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// unit returns a number in [0, 1).
func (r *random) unit() float64 { return float64(r.next()>>11) / (1 << 53) }

func (r *random) between(low, high float64) float64 { return low + (high-low)*r.unit() }

func (r *random) below(n int) int { return int(r.next() % uint64(n)) } //nolint:gosec // n is small and positive
