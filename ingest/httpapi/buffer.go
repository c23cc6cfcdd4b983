package httpapi

import (
	"errors"
	"io"
	"sync"

	"github.com/milepost/milepost/ingest"
)

// smallest is the first buffer of a body: 500 readings of 200 bytes fit. Each further one is four times as large.
const smallest = 128 << 10

var (
	errNoRoom   = errors.New("no room in flight")
	errTooLarge = errors.New("body too large")
)

// buffers hands out memory for bodies in a few sizes, all of it reserved from InFlightBytes: what is counted is what is
// held, however little of it a slow sender has filled, and however much it says that it will send.
type buffers struct {
	door  *ingest.Door
	sizes []int
	pools []sync.Pool // of *buffer, one for each size
}

func newBuffers(door *ingest.Door, maxBody int) *buffers {
	p := &buffers{door: door}
	for size := smallest; size <= maxBody; size *= 4 {
		p.sizes = append(p.sizes, size)
	}
	p.sizes = append(p.sizes, maxBody+1) // one more, to tell a full one from one too large
	p.pools = make([]sync.Pool, len(p.sizes))
	return p
}

// A buffer is a body in memory. Its owner releases it once.
type buffer struct {
	data  []byte
	class int
	from  *buffers
}

// first returns the smallest buffer; nil if there is no room for it. Whatever length a sender announces, a larger one is
// taken only when the bytes have come.
func (p *buffers) first() *buffer { return p.take(0) }

// sized returns a buffer for at least size bytes, or the largest.
func (p *buffers) sized(size int64) *buffer {
	class := 0
	for class < len(p.sizes)-1 && int64(p.sizes[class]) < size {
		class++
	}
	return p.take(class)
}

func (p *buffers) take(class int) *buffer {
	if !p.door.TryReserve(int64(p.sizes[class])) {
		return nil
	}
	if b, ok := p.pools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{data: make([]byte, 0, p.sizes[class]), class: class, from: p}
}

func (b *buffer) release() {
	b.data = b.data[:0]
	b.from.door.Unreserve(int64(b.from.sizes[b.class]))
	b.from.pools[b.class].Put(b)
}

// largest tells whether there is no larger buffer, next how large that is.
func (b *buffer) largest() bool { return b.class == len(b.from.sizes)-1 }
func (b *buffer) next() int64   { return int64(b.from.sizes[b.class]) + 1 }

// fill reads all of r, taking larger buffers as it needs them.
func (b *buffer) fill(r io.Reader) error {
	for {
		if len(b.data) == cap(b.data) {
			if b.largest() {
				return errTooLarge
			}
			if !b.grow() {
				return errNoRoom
			}
		}
		n, err := r.Read(b.data[len(b.data):cap(b.data)])
		b.data = b.data[:len(b.data)+n]
		if err == io.EOF { // io.Reader's contract is the bare value
			if len(b.data) == b.from.sizes[len(b.from.sizes)-1] {
				return errTooLarge
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// grow exchanges what b holds for the next larger buffer, with the same bytes.
func (b *buffer) grow() bool {
	bigger := b.from.take(b.class + 1)
	if bigger == nil {
		return false
	}
	bigger.data = append(bigger.data, b.data...)
	*b, *bigger = *bigger, *b
	bigger.release()
	return true
}
