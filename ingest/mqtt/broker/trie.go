package broker

import (
	"bytes"
	"strings"
	"sync"
	"sync/atomic"
)

// A sub is one subscription of one session. It is replaced, never changed, but for its place in the trie.
type sub struct {
	c      *client
	filter string // as the client wrote it
	id     uint32
	qos    byte
	noLocal,
	asPublished bool

	at int // index in its list; the trie's lock guards it
}

// children are the nodes below a node by the name of their level. Most have one child, which needs no map: 50,000 sessions with
// "fleet/<id>/commands" would otherwise have 50,000 maps of one entry.
type children[N any] struct {
	name string
	only *N
	many map[string]*N
}

func (k *children[N]) get(name []byte) *N {
	if k.many != nil {
		return k.many[string(name)]
	}
	if k.only != nil && k.name == string(name) {
		return k.only
	}
	return nil
}

func (k *children[N]) put(name string, n *N) {
	switch {
	case k.many != nil:
		k.many[name] = n
	case k.only == nil:
		k.name, k.only = name, n
	default:
		k.many = map[string]*N{k.name: k.only, name: n}
		k.name, k.only = "", nil
	}
}

func (k *children[N]) remove(name string) {
	if k.many != nil {
		if delete(k.many, name); len(k.many) == 0 {
			k.many = nil
		}
	} else if k.name == name {
		k.name, k.only = "", nil
	}
}

func (k *children[N]) empty() bool { return k.only == nil && len(k.many) == 0 }

// A node is one level of filters.
type node struct {
	below children[node]
	plus  *node
	exact ending // filters that end here
	hash  *ending
}

// An ending holds the subscriptions of one filter.
type ending struct {
	subs   []*sub
	groups []*group
}

func (e *ending) empty() bool { return e == nil || len(e.subs) == 0 && len(e.groups) == 0 }

// A group shares what matches among its members.
type group struct {
	name    string
	members []*sub
	next    atomic.Uint32 // whose turn it is
}

// A trie finds the subscriptions that match a topic. Its lock is a leaf: nothing else is taken under it.
type trie struct {
	mu   sync.RWMutex // guards all below
	root node
	size atomic.Int64 // subscriptions; read without the lock
}

// add puts in s, and takes out old, which has the same filter, if it is not nil.
func (t *trie) add(s, old *sub) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old != nil {
		t.removeLocked(old)
	} else {
		t.size.Add(1) // of one that takes another's place it stays: Publish, which reads it without the lock, must not find 0 (MQTT-3.8.4-4)
	}
	group, filter, _ := CheckFilter(s.filter)
	n := &t.root
	for more := true; more; {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		if level == "#" {
			if n.hash == nil {
				n.hash = new(ending)
			}
			n.hash.add(group, s)
			return
		}
		n = n.child(level)
	}
	n.exact.add(group, s)
}

func (n *node) child(level string) *node {
	if level == "+" {
		if n.plus == nil {
			n.plus = new(node)
		}
		return n.plus
	}
	next := n.below.get([]byte(level))
	if next == nil {
		next = new(node)
		n.below.put(strings.Clone(level), next)
	}
	return next
}

func (e *ending) add(name string, s *sub) {
	list := &e.subs
	if name != "" {
		list = nil
		for _, g := range e.groups {
			if g.name == name {
				list = &g.members
			}
		}
		if list == nil {
			g := &group{name: strings.Clone(name)}
			e.groups = append(e.groups, g)
			list = &g.members
		}
	}
	s.at = len(*list)
	*list = append(*list, s)
}

func (e *ending) remove(name string, s *sub) {
	if name == "" {
		e.subs = take(e.subs, s)
		return
	}
	for i, g := range e.groups {
		if g.name == name {
			if g.members = take(g.members, s); len(g.members) == 0 {
				e.groups = append(e.groups[:i], e.groups[i+1:]...)
			}
			return
		}
	}
}

func take(list []*sub, s *sub) []*sub {
	last := len(list) - 1
	list[s.at] = list[last]
	list[s.at].at = s.at
	list[last] = nil
	if last == 0 {
		return nil
	}
	return list[:last]
}

func (t *trie) remove(s *sub) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(s)
	t.size.Add(-1)
}

func (t *trie) removeLocked(s *sub) {
	group, filter, _ := CheckFilter(s.filter)
	t.root.cut(group, filter, true, s)
}

// cut removes s and the nodes that this leaves empty.
func (n *node) cut(group, filter string, more bool, s *sub) {
	if !more {
		n.exact.remove(group, s)
		return
	}
	level, filter, more := strings.Cut(filter, "/")
	switch level {
	case "#":
		if n.hash.remove(group, s); n.hash.empty() {
			n.hash = nil
		}
	case "+":
		if n.plus.cut(group, filter, more, s); n.plus.empty() {
			n.plus = nil
		}
	default:
		next := n.below.get([]byte(level))
		if next.cut(group, filter, more, s); next.empty() {
			n.below.remove(level)
		}
	}
}

func (n *node) empty() bool {
	return n.plus == nil && n.hash == nil && n.below.empty() && n.exact.empty()
}

// members puts the members of a shared subscription into m, as match would. It tells whether there are any.
func (t *trie) members(share string, m *matches) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	name, filter, _ := CheckFilter(share)
	n := &t.root
	for more := true; more; {
		var level string
		if level, filter, more = strings.Cut(filter, "/"); level == "#" {
			return n.hash.members(name, m)
		}
		if level == "+" {
			n = n.plus
		} else {
			n = n.below.get([]byte(level))
		}
		if n == nil {
			return false
		}
	}
	return n.exact.members(name, m)
}

func (e *ending) members(name string, m *matches) bool {
	if e == nil {
		return false
	}
	for _, g := range e.groups {
		if g.name == name {
			m.ring = append(m.ring, g.members...)
			m.shared = append(m.shared, turn{g, 0, len(m.ring)})
			return true
		}
	}
	return false
}

// A matches is what a topic found. It is reused.
type matches struct {
	subs   []*sub
	shared []turn
	ring   []*sub // the members of the groups in shared
	ids    []uint32
	value  []byte
}

// A turn is one group that matched: ring[from:to] are its members.
type turn struct {
	g        *group
	from, to int
}

func (m *matches) reset() {
	clear(m.subs)
	clear(m.shared)
	clear(m.ring)
	m.subs, m.shared, m.ring = m.subs[:0], m.shared[:0], m.ring[:0]
}

// match appends the subscriptions for a topic to m. It allocates nothing when m is large enough.
func (t *trie) match(topic []byte, m *matches) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	// Wildcards of the first level do not match topics that begin with $ (MQTT-4.7.2-1).
	t.root.match(topic, topic[0] != '$', m)
}

func (n *node) match(topic []byte, wild bool, m *matches) {
	if wild && n.hash != nil {
		m.add(n.hash)
	}
	level, rest := topic, []byte(nil)
	i := bytes.IndexByte(topic, '/')
	if i >= 0 {
		level, rest = topic[:i], topic[i+1:]
	}
	if wild && n.plus != nil {
		n.plus.step(rest, i >= 0, m)
	}
	if next := n.below.get(level); next != nil {
		next.step(rest, i >= 0, m)
	}
}

func (n *node) step(rest []byte, more bool, m *matches) {
	if more {
		n.match(rest, true, m)
		return
	}
	if len(n.exact.subs) > 0 || len(n.exact.groups) > 0 {
		m.add(&n.exact)
	}
	if n.hash != nil {
		m.add(n.hash) // "a/#" is for "a" too (4.7.1.2)
	}
}

func (m *matches) add(e *ending) {
	m.subs = append(m.subs, e.subs...)
	for _, g := range e.groups {
		from := len(m.ring)
		m.ring = append(m.ring, g.members...)
		m.shared = append(m.shared, turn{g, from, len(m.ring)})
	}
}
