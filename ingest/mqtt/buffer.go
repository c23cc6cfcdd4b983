package mqtt

import "sync"

const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

// A buffer is what a connection reads into, while it has bytes.
type buffer struct{ b []byte }

// A bufferPool has buffers of two sizes: the large are for connections that fill theirs.
type bufferPool struct{ small, large sync.Pool }

func (p *bufferPool) get(large bool) *buffer {
	pool, size := &p.small, smallBuffer
	if large {
		pool, size = &p.large, largeBuffer
	}
	if b, ok := pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, size)}
}

// put takes a buffer back; one of another size is left to the garbage collector.
func (p *bufferPool) put(b *buffer) {
	switch len(b.b) {
	case smallBuffer:
		p.small.Put(b)
	case largeBuffer:
		p.large.Put(b)
	}
}

// A ring is a queue of acks. Empty it keeps little memory.
type ring struct {
	a    []ack
	head int
}

func (r *ring) len() int { return len(r.a) - r.head }

func (r *ring) push(as []ack) {
	if r.head > 0 && len(r.a)+len(as) > cap(r.a) {
		n := copy(r.a, r.a[r.head:])
		clear(r.a[n:])
		r.a, r.head = r.a[:n], 0
	}
	r.a = append(r.a, as...)
}

// drop forgets the last n.
func (r *ring) drop(n int) {
	clear(r.a[len(r.a)-n:])
	r.a = r.a[:len(r.a)-n]
}

// pop returns the first n, good until the next push.
func (r *ring) pop(n int) []ack {
	as := r.a[r.head : r.head+n]
	r.head += n
	if r.head == len(r.a) {
		r.a, r.head = r.a[:0], 0
		if cap(r.a) > 32 {
			r.a = nil
		}
	}
	return as
}
