package runtime

import (
	"bytes"
	"strconv"
	"sync"
	"time"
)

const (
	tailBytes = 4 << 10  // of Response.Log, as Lambda's LogResult
	maxLine   = 16 << 10 // longer ones are continued on the next
	ringLines = 2000
	ringBytes = 1 << 20
)

// A ring keeps the last lines of a function: at most ringLines, and ringBytes of text. The oldest go first.
type ring struct {
	mu    sync.Mutex // guards all
	lines []Line     // in order, from first on
	first int
	bytes int
	last  uint64 // number of the newest line
}

func (r *ring) add(l Line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	l.Number = r.last
	r.lines = append(r.lines, l)
	r.bytes += len(l.Text)
	for len(r.lines)-r.first > ringLines || r.bytes > ringBytes {
		r.bytes -= len(r.lines[r.first].Text)
		r.lines[r.first] = Line{}
		r.first++
	}
	if r.first > ringLines {
		r.lines = append(r.lines[:0], r.lines[r.first:]...)
		clear(r.lines[len(r.lines):cap(r.lines)])
		r.first = 0
	}
}

func (r *ring) since(n uint64, most int) []Line {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.lines[r.first:]
	if oldest := r.last - uint64(len(kept)); n > oldest {
		kept = kept[min(n-oldest, uint64(len(kept))):]
	}
	if most > 0 && len(kept) > most {
		kept = kept[len(kept)-most:]
	}
	return append([]Line(nil), kept...)
}

// A capture turns what one process writes to its standard output and error into lines, each with the invocation that it belongs
// to. Both streams share one pipe, so that their order is the process's.
//
// Whoever finishes an invocation drains the pipe first. What the process wrote before it answered is in the pipe by then, so that
// no line is missing in Response.Log or appears under a later request.
type capture struct {
	to   *lines
	ring *ring

	mu      sync.Mutex // guards all below, and reading the pipe
	drained func(read func([]byte))
	id      string
	tail    []byte // of the invocation, at most a little over 2*tailBytes
	partial []byte // of a line without its end
}

// begin makes what follows belong to an invocation.
func (c *capture) begin(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	c.flush()
	if c.id != "" { // what was written during the start belongs to the first
		c.tail = c.tail[:0]
	}
	c.id = id
	c.own("START RequestId: " + id + " Version: $LATEST")
}

// A report is what the REPORT line says.
type report struct {
	duration, init time.Duration
	memory         int   // MB, as configured
	used           int64 // bytes, at most, so far
	status         string
	extra          string // a line before END
}

// end returns the last 4 KiB of an invocation's log.
func (c *capture) end(id string, r report) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	c.flush()
	if r.extra != "" {
		c.own(r.extra)
	}
	c.own("END RequestId: " + id)
	b := make([]byte, 0, 192)
	ms := func(label string, d time.Duration) {
		b = append(b, label...)
		b = strconv.AppendFloat(b, float64(d.Nanoseconds())/1e6, 'f', 2, 64)
		b = append(b, " ms\t"...)
	}
	b = append(b, "REPORT RequestId: "...)
	b = append(b, id...)
	ms("\tDuration: ", r.duration)
	b = append(b, "Billed Duration: "...)
	b = strconv.AppendInt(b, (r.duration + r.init + time.Millisecond - 1).Milliseconds(), 10)
	b = append(b, " ms\tMemory Size: "...)
	b = strconv.AppendInt(b, int64(r.memory), 10)
	b = append(b, " MB\tMax Memory Used: "...)
	b = strconv.AppendInt(b, (r.used+1<<20-1)>>20, 10)
	b = append(b, " MB\t"...)
	if r.init > 0 {
		ms("Init Duration: ", r.init)
	}
	if r.status != "" {
		b = append(append(b, "Status: "...), r.status...)
	}
	c.own(string(bytes.TrimRight(b, "\t")))
	return append([]byte(nil), c.tail[max(0, len(c.tail)-tailBytes):]...)
}

// read takes what is in the pipe.
func (c *capture) read() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
}

func (c *capture) drain() {
	if c.drained != nil {
		c.drained(c.write)
	}
}

func (c *capture) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			c.partial = append(c.partial, p...)
			for len(c.partial) > maxLine {
				c.line(c.partial[:maxLine])
				c.partial = append(c.partial[:0], c.partial[maxLine:]...)
			}
			return
		}
		line := p[:i]
		p = p[i+1:]
		if len(c.partial) > 0 {
			c.partial = append(c.partial, line...)
			line = c.partial
		}
		for len(line) > maxLine {
			c.line(line[:maxLine])
			line = line[maxLine:]
		}
		c.line(line)
		c.partial = c.partial[:0]
	}
}

func (c *capture) flush() {
	if len(c.partial) > 0 {
		c.line(c.partial)
		c.partial = c.partial[:0]
	}
}

func (c *capture) line(text []byte) {
	s := string(bytes.TrimSuffix(text, []byte("\r")))
	c.keep(s)
	c.to.write(c.id, s)
}

// own adds a line of ours, which the log of Milepost does not repeat.
func (c *capture) own(s string) { c.keep(s) }

func (c *capture) keep(s string) {
	c.ring.add(Line{At: time.Now(), RequestID: c.id, Text: s})
	c.tail = append(append(c.tail, s...), '\n')
	if len(c.tail) > 2*tailBytes {
		c.tail = append(c.tail[:0], c.tail[len(c.tail)-tailBytes:]...)
	}
}
