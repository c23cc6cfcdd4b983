package broker

import (
	"bytes"
	"strings"
	"sync"
)

// retained are the retained messages, all in memory, so that a subscription costs no disk; the disk has them too. Its lock is a leaf
// but for the journal's.
type retained struct {
	mu    sync.RWMutex // guards all below
	root  leaf
	count int
	bytes int64
}

// A leaf is one level of topics.
type leaf struct {
	below children[leaf]
	m     *message
}

// cost is what a retained message counts for: each level of its topic is a leaf, and there may be 65,535 of them.
func (m *message) cost() int64 { return m.size() + overhead*int64(bytes.Count(m.topic, []byte("/"))) }

// put retains m in place of what its topic had, or refuses it if there is no room. change is called if it was taken.
func (r *retained) put(m *message, most int, mostBytes, now int64, change func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := int64(0)
	n := r.find(m.topic)
	if n != nil && n.m != nil {
		old = n.m.cost()
	}
	fits := func() bool {
		return (old > 0 || r.count < most) && r.bytes-old+m.cost() <= mostBytes
	}
	if !fits() {
		r.sweepLocked(&r.root, nil, now)
		if n = r.find(m.topic); n == nil || n.m == nil {
			old = 0
		}
		if !fits() {
			return false
		}
	}
	n = &r.root
	for rest, more := m.topic, true; more; {
		var level []byte
		level, rest, more = bytes.Cut(rest, []byte("/"))
		next := n.below.get(level)
		if next == nil {
			next = new(leaf)
			n.below.put(string(level), next)
		}
		n = next
	}
	if n.m == nil {
		r.count++
	}
	r.bytes += m.cost() - old
	n.m = m
	change()
	return true
}

func (r *retained) find(topic []byte) *leaf {
	n := &r.root
	for more := true; more && n != nil; {
		var level []byte
		level, topic, more = bytes.Cut(topic, []byte("/"))
		n = n.below.get(level)
	}
	return n
}

// remove forgets a topic's message; change is called if there was one.
func (r *retained) remove(topic []byte, change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.find(topic); n != nil && n.m != nil {
		r.root.cut(topic, true, r)
		change()
	}
}

func (n *leaf) cut(topic []byte, more bool, r *retained) {
	if !more {
		r.count--
		r.bytes -= n.m.cost()
		n.m = nil
		return
	}
	level, rest, more := bytes.Cut(topic, []byte("/"))
	next := n.below.get(level)
	if next.cut(rest, more, r); next.m == nil && next.below.empty() {
		n.below.remove(string(level))
	}
}

// sweep forgets what has expired and returns the topics.
func (r *retained) sweep(now int64) (topics [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sweepLocked(&r.root, nil, now)
}

func (r *retained) sweepLocked(n *leaf, topics [][]byte, now int64) [][]byte {
	if m := n.m; m != nil && m.deadline != 0 && m.deadline <= now {
		r.count--
		r.bytes -= m.cost()
		n.m = nil
		topics = append(topics, m.topic)
	}
	prune := func(name string, k *leaf) {
		if topics = r.sweepLocked(k, topics, now); k.m == nil && k.below.empty() {
			n.below.remove(name)
		}
	}
	n.below.each(prune)
	return topics
}

// each calls f, which may remove the child it is called with.
func (k *children[N]) each(f func(name string, n *N)) {
	if k.only != nil {
		f(k.name, k.only)
	}
	for name, n := range k.many {
		f(name, n)
	}
}

// match calls f for every retained message that filter matches and that has not expired.
func (r *retained) match(filter string, now int64, f func(*message)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.root.match(filter, true, true, func(m *message) {
		if m.deadline == 0 || m.deadline > now {
			f(m)
		}
	})
}

func (n *leaf) match(filter string, more, first bool, f func(*message)) {
	if !more {
		if n.m != nil {
			f(n.m)
		}
		return
	}
	level, rest, more := strings.Cut(filter, "/")
	hidden := func(name string) bool { return first && strings.HasPrefix(name, "$") } // MQTT-4.7.2-1
	switch level {
	case "#":
		if n.m != nil {
			f(n.m)
		}
		n.below.each(func(name string, k *leaf) {
			if !hidden(name) {
				k.match("#", true, false, f)
			}
		})
	case "+":
		n.below.each(func(name string, k *leaf) {
			if !hidden(name) {
				k.match(rest, more, false, f)
			}
		})
	default:
		if k := n.below.get([]byte(level)); k != nil {
			k.match(rest, more, false, f)
		}
	}
}

func (r *retained) sizes() (count int, size int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.count, r.bytes
}
