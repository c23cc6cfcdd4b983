package device

import (
	"container/list"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/state"
)

// Bounds of the journal. What is over goes: the oldest of a device's entries, and of devices the one not heard of for longest.
const (
	journalRing      = 16
	journalDevices   = 100_000
	journalStrangers = 4096
	journalFlush     = 5000 // devices written at one time; the rest wait for the next
	maxJournalText   = 512
)

// An Attempt is a connection that was refused.
type Attempt struct {
	At        time.Time `json:"at"`
	Class     string    `json:"class"`
	Text      string    `json:"text"`
	Remote    string    `json:"remote,omitempty"`
	ClientID  string    `json:"client_id,omitempty"`
	User      string    `json:"user,omitempty"`
	Subject   string    `json:"subject,omitempty"` // of the certificate that was shown
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Times     int       `json:"times"` // that it was the same, one after the other
}

// A Rejection is a message that was refused.
type Rejection struct {
	At    time.Time `json:"at"`
	Topic string    `json:"topic"`
	Why   string    `json:"why"`
	Text  string    `json:"text"`
	Times int       `json:"times"`
}

// A Departure is the end of a connection.
type Departure struct {
	At  time.Time `json:"at"`
	Why string    `json:"why"`
}

// A Record is what the doors saw of one device, or of one stranger: a certificate's name, a client id or an address.
type Record struct {
	FirstConnect time.Time   `json:"first_connect,omitzero"`
	LastConnect  time.Time   `json:"last_connect,omitzero"`
	LastMessage  time.Time   `json:"last_message,omitzero"`
	Connections  int         `json:"-"` // open now
	Remote       string      `json:"remote,omitempty"`
	ClientID     string      `json:"client_id,omitempty"`
	Departures   []Departure `json:"departures,omitempty"` // oldest first, as all of them
	Attempts     []Attempt   `json:"attempts,omitempty"`
	Rejections   []Rejection `json:"rejections,omitempty"`
}

// A trace is a device's record with what is written to it without a lock.
type trace struct {
	heard  atomic.Int64 // Unix ms of the last message
	record Record       // guarded by Journal.mu
	dirty  bool         // since it was written
	wrote  int64        // heard when it was written
	at     *list.Element
}

// A Journal remembers what the doors saw of each device, for people who ask why one cannot get in. Its methods do not block: they
// take one lock for a moment and never touch the disk. It is safe for concurrent use.
type Journal struct {
	store   state.Store
	log     *slog.Logger
	metrics *metrics

	mu        sync.Mutex // guards the rest
	devices   map[string]*trace
	order     *list.List // of ids of devices, the newest in front
	strangers map[string]*trace
	strange   *list.List
}

func openJournal(ctx context.Context, store state.Store, log *slog.Logger, m *metrics) (*Journal, error) {
	j := &Journal{store: store, log: log, metrics: m, devices: map[string]*trace{}, order: list.New(), strangers: map[string]*trace{}, strange: list.New()}
	err := store.View(ctx, func(v state.Reader) error {
		return v.Scan([]byte(journalPrefix), state.PrefixEnd([]byte(journalPrefix)), func(k, b []byte) error {
			if len(j.devices) >= journalDevices {
				return state.ErrStop
			}
			t := new(trace)
			if err := json.Unmarshal(b, &t.record); err != nil {
				return nil //nolint:nilerr // a journal that cannot be read is worth less than a start; the next flush replaces it
			}
			id := string(k[len(journalPrefix):])
			t.heard.Store(ms(t.record.LastMessage))
			t.wrote = t.heard.Load()
			t.at = j.order.PushBack(id)
			j.devices[id] = t
			return nil
		})
	})
	return j, err
}

func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// traceOf returns the record of a device, which is made if it is missing.
func (j *Journal) traceOf(id string) *trace {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.deviceLocked(id)
}

func (j *Journal) deviceLocked(id string) *trace {
	return touch(j.devices, j.order, id, journalDevices, j.metrics)
}

func touch(m map[string]*trace, order *list.List, key string, most int, count *metrics) *trace {
	if t := m[key]; t != nil {
		order.MoveToFront(t.at)
		return t
	}
	t := new(trace)
	t.at = order.PushFront(key)
	m[key] = t
	if order.Len() > most {
		last := order.Back()
		if k, ok := last.Value.(string); ok {
			delete(m, k)
		}
		order.Remove(last)
		count.evict()
	}
	return t
}

// Connected notes that a device was let in.
func (j *Journal) Connected(c *Credentials, p *Principal) {
	now := time.Now().UTC()
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.deviceLocked(p.device)
	if p.trace != t {
		t.heard.Store(0)
		p.trace = t // the old one was forgotten between judging and now
	}
	r := &t.record
	if r.FirstConnect.IsZero() {
		r.FirstConnect = now
	}
	r.LastConnect, r.Remote, r.ClientID = now, address(c.Remote), cut(c.ClientID)
	r.Connections++
	t.dirty = true
}

// Disconnected notes that a connection of a device ended.
func (j *Journal) Disconnected(p *Principal, _, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.deviceLocked(p.device)
	t.record.Connections = max(0, t.record.Connections-1)
	t.record.Departures = push(t.record.Departures, Departure{time.Now().UTC(), cut(why)})
	t.dirty = true
}

// Refused notes that a client was not let in. It is kept under every name that it gave: what it was refused for may be which.
func (j *Journal) Refused(c *Credentials, refusal *Refusal) {
	a := Attempt{At: time.Now().UTC(), Class: refusal.Class, Text: cut(refusal.Text), Remote: address(c.Remote), ClientID: cut(c.ClientID), User: cut(c.User), Times: 1}
	names := make([]string, 0, 3)
	if leaf := c.certificate(); leaf != nil {
		a.Subject, a.Issuer, a.Serial = cut(leaf.Subject.String()), cut(leaf.Issuer.String()), leaf.SerialNumber.Text(16)
		a.NotBefore, a.NotAfter = leaf.NotBefore, leaf.NotAfter
		names = append(names, leaf.Subject.CommonName)
	}
	names = append(names, c.User, c.ClientID)
	names = slices.DeleteFunc(names, func(n string) bool { return n == "" || len(n) > 256 })
	if len(names) == 0 {
		names = append(names, remoteName(c.Remote))
	}
	slices.Sort(names)
	j.attempt(a, slices.Compact(names)...)
	j.log.Warn("device refused", "class", a.Class, "reason", a.Text, "remote", a.Remote, "client_id", a.ClientID, "subject", a.Subject, "serial", a.Serial)
}

// HandshakeFailed notes that a TLS handshake ended before it was known who the client is.
func (j *Journal) HandshakeFailed(remote net.Addr, err error) {
	text := "TLS handshake: " + err.Error() + handshakeHint(err)
	j.attempt(Attempt{At: time.Now().UTC(), Class: NoHandshake, Text: cut(text), Remote: address(remote), Times: 1}, remoteName(remote))
	j.metrics.refused(NoHandshake)
	j.log.Debug("TLS handshake failed", "remote", address(remote), "error", err)
}

func (j *Journal) attempt(a Attempt, names ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range names {
		r := &touch(j.strangers, j.strange, n, journalStrangers, j.metrics).record
		if k := len(r.Attempts) - 1; k >= 0 && r.Attempts[k].Class == a.Class && r.Attempts[k].Text == a.Text && r.Attempts[k].Remote == a.Remote {
			r.Attempts[k].Times++
			r.Attempts[k].At = a.At
			continue
		}
		r.Attempts = push(r.Attempts, a)
	}
}

// Rejected notes that a message was refused: why is the reason's label as metrics have it.
func (j *Journal) Rejected(p *Principal, topic, why, text string) {
	now := time.Now().UTC()
	topic, text = cut(topic), cut(text)
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.deviceLocked(p.device)
	t.dirty = true
	r := &t.record
	if k := len(r.Rejections) - 1; k >= 0 && r.Rejections[k].Topic == topic && r.Rejections[k].Why == why {
		r.Rejections[k].Times++
		r.Rejections[k].At, r.Rejections[k].Text = now, text
		return
	}
	r.Rejections = push(r.Rejections, Rejection{now, topic, cut(why), text, 1})
}

// push appends to a ring.
func push[T any](ring []T, v T) []T {
	if len(ring) >= journalRing {
		copy(ring, ring[1:])
		ring[len(ring)-1] = v
		return ring
	}
	return append(ring, v)
}

// cut bounds what strangers write.
func cut(s string) string {
	if len(s) <= maxJournalText {
		return s
	}
	return s[:maxJournalText] + "…"
}

func address(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

func remoteName(a net.Addr) string {
	host, _, err := net.SplitHostPort(address(a))
	if err != nil {
		host = address(a)
	}
	return "address " + host
}

// Device returns a copy of what was seen of a device, and of what was refused under its name.
func (j *Journal) Device(id string) (seen, refused Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.devices[id]; t != nil {
		seen = t.copied()
	}
	if t := j.strangers[id]; t != nil {
		refused = t.copied()
	}
	return seen, refused
}

// From returns what was refused from an address that gave no name.
func (j *Journal) From(remote string) Record {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.strangers["address "+host]; t != nil {
		return t.copied()
	}
	return Record{}
}

// Nameless returns the newest attempts of clients that gave no name, newest first.
func (j *Journal) Nameless(most int) []Attempt {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Attempt
	for e := j.strange.Front(); e != nil && len(out) < most; e = e.Next() {
		k, ok := e.Value.(string)
		if !ok || len(k) < 8 || k[:8] != "address " {
			continue
		}
		if a := j.strangers[k].record.Attempts; len(a) > 0 {
			out = append(out, a[len(a)-1])
		}
	}
	return out
}

func (t *trace) copied() Record {
	r := t.record
	r.Departures, r.Attempts, r.Rejections = slices.Clone(r.Departures), slices.Clone(r.Attempts), slices.Clone(r.Rejections)
	if h := t.heard.Load(); h > 0 {
		r.LastMessage = time.UnixMilli(h).UTC()
	}
	return r
}

// flush writes what changed of devices, some thousand at a time. What strangers did is not kept over a restart: they come again.
func (j *Journal) flush(ctx context.Context, most int) error {
	type entry struct {
		key, value []byte
		t          *trace
	}
	var entries []entry
	j.mu.Lock()
	for id, t := range j.devices {
		if len(entries) >= most {
			break
		}
		if h := t.heard.Load(); t.dirty || h-t.wrote > time.Hour.Milliseconds() {
			r := t.copied()
			b, err := json.Marshal(r)
			if err != nil {
				j.mu.Unlock()
				return fmt.Errorf("journal of %s: %w", id, err)
			}
			t.dirty, t.wrote = false, h
			entries = append(entries, entry{[]byte(journalPrefix + id), b, t})
		}
	}
	j.mu.Unlock()
	for part := range slices.Chunk(entries, 500) {
		err := j.store.Update(ctx, func(tx state.Tx) error {
			for _, e := range part {
				if err := tx.Set(e.key, e.value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			j.mu.Lock()
			for _, e := range entries {
				e.t.dirty = true
			}
			j.mu.Unlock()
			return fmt.Errorf("write the device journal: %w", err)
		}
	}
	return nil
}
