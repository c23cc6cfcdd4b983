package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/state"
)

// Keys, below "command" and a zero byte: 'c' vehicle 0 id → the command as JSON; 'k' vehicle 0 key → its id; 'o' vehicle 0 id → nothing,
// while it is open. A vehicle's id holds no zero byte. The key goes when the command is forgotten.
const (
	keyCommand = "command\x00c"
	keyByKey   = "command\x00k"
	keyOpen    = "command\x00o"
)

func key(prefix, vehicle, rest string) []byte {
	return []byte(prefix + vehicle + "\x00" + rest)
}

// save writes commands in one transaction, and forgets the oldest that ended when there are too many.
func (d *Desk) save(ctx context.Context, all ...*Command) error {
	if len(all) == 0 {
		return nil
	}
	return d.cfg.Store.Update(ctx, func(tx state.Tx) error {
		for _, c := range all {
			if c.State.Final() {
				if err := d.trim(tx, c.Vehicle); err != nil {
					return err
				}
			}
			v, err := json.Marshal(c)
			if err != nil {
				return fmt.Errorf("encode command %s: %w", c.ID, err)
			}
			if err := tx.Set(key(keyCommand, c.Vehicle, c.ID), v); err != nil {
				return err
			}
			open := key(keyOpen, c.Vehicle, c.ID)
			switch {
			case c.State.Final():
				err = tx.Delete(open)
			case c.State == Queued:
				err = tx.Set(open, nil)
				if c.Key != "" {
					err = errors.Join(err, tx.Set(key(keyByKey, c.Vehicle, c.Key), []byte(c.ID)))
				}
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// trim makes room for one more that has ended.
func (d *Desk) trim(tx state.Tx, vehicle string) error {
	var ended []Command
	from := key(keyCommand, vehicle, "")
	err := tx.Scan(from, state.PrefixEnd(from), func(_, v []byte) error {
		var c Command
		if err := json.Unmarshal(v, &c); err != nil {
			return fmt.Errorf("stored command of vehicle %s cannot be read: %w", vehicle, err)
		}
		if c.State.Final() {
			ended = append(ended, Command{ID: c.ID, Key: c.Key})
		}
		return nil
	})
	for i := 0; err == nil && i <= len(ended)-d.cfg.Limits.History; i++ {
		err = tx.Delete(key(keyCommand, vehicle, ended[i].ID))
		if ended[i].Key != "" {
			err = errors.Join(err, tx.Delete(key(keyByKey, vehicle, ended[i].Key)))
		}
	}
	return err
}

func (d *Desk) load(ctx context.Context, vehicle, id string) (c Command, err error) {
	if err := CheckVehicle(vehicle); err != nil {
		return Command{}, err
	}
	err = d.cfg.Store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(key(keyCommand, vehicle, id))
		if err != nil {
			return err
		}
		if v == nil {
			return ErrNotFound
		}
		return json.Unmarshal(v, &c)
	})
	return c, err
}

func (d *Desk) byKey(ctx context.Context, vehicle, k string) (c Command, err error) {
	id := ""
	err = d.cfg.Store.View(ctx, func(r state.Reader) error {
		v, err := r.Get(key(keyByKey, vehicle, k))
		id = string(v)
		return err
	})
	if err == nil && id == "" {
		err = ErrNotFound
	}
	if err != nil {
		return Command{}, err
	}
	return d.load(ctx, vehicle, id)
}

func (d *Desk) list(ctx context.Context, vehicle string, want func(*Command) bool, most int) ([]Command, error) {
	if err := CheckVehicle(vehicle); err != nil {
		return nil, err
	}
	all := []Command{}
	from := key(keyCommand, vehicle, "")
	err := d.cfg.Store.View(ctx, func(r state.Reader) error {
		return r.Scan(from, state.PrefixEnd(from), func(_, v []byte) error {
			var c Command
			if err := json.Unmarshal(v, &c); err != nil {
				return fmt.Errorf("stored command of vehicle %s cannot be read: %w", vehicle, err)
			}
			if want(&c) {
				all = append(all, c)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
		all[i], all[j] = all[j], all[i]
	}
	return all[:min(most, len(all))], nil
}

func (d *Desk) restore(ctx context.Context) error {
	return d.cfg.Store.View(ctx, func(r state.Reader) error {
		err := r.Scan([]byte(keyOpen), state.PrefixEnd([]byte(keyOpen)), func(k, _ []byte) error {
			v, err := r.Get(append([]byte(keyCommand), k[len(keyOpen):]...))
			if err != nil {
				return err
			}
			e := new(entry)
			if err := json.Unmarshal(v, &e.Command); err != nil {
				d.cfg.Log.Error("stored command cannot be read; it is ignored", "key", string(k), "error", err)
				return nil
			}
			e.vehicle, e.id = e.Vehicle, e.ID
			held := d.vehicles[e.Vehicle]
			if held == nil {
				held = &vehicle{id: e.Vehicle}
				d.vehicles[e.Vehicle] = held
			}
			held.open = append(held.open, e)
			d.open.Add(1)
			d.bytes.Add(int64(len(e.Payload)))
			when := e.Expires
			if e.State == Acknowledged {
				when = when.Add(d.cfg.Limits.Finish)
			}
			d.schedule(e, when)
			d.noteID(e.ID)
			return nil
		})
		if err != nil {
			return err
		}
		// Ids of commands that have ended are in the past, unless the clock was set back.
		d.noteID(fmt.Sprintf("c%016x", uint64(time.Now().UnixMilli())<<16))
		return nil
	})
}

func (d *Desk) noteID(id string) {
	if n, err := strconv.ParseUint(strings.TrimPrefix(id, "c"), 16, 64); err == nil && n > d.last.Load() {
		d.last.Store(n)
	}
}

type metrics struct {
	issued, refused, sent, delivered, badAnswers prometheus.Counter
	ended                                        map[State]prometheus.Counter
	registered                                   []prometheus.Collector
}

func newMetrics(d *Desk, reg prometheus.Registerer) (metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "milepost_command_" + name, Help: help})
	}
	ended := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "milepost_command_ended_total", Help: "Commands that have ended, by how.",
	}, []string{"state"})
	m := metrics{
		issued:     counter("issued_total", "Commands issued."),
		refused:    counter("refused_total", "Commands refused because too many are open."),
		sent:       counter("sent_total", "Times a command was handed to a connection."),
		delivered:  counter("delivered_total", "Commands whose message a device has acknowledged."),
		badAnswers: counter("bad_answers_total", "Answers of devices that could not be used."),
		ended:      map[State]prometheus.Counter{},
	}
	for _, s := range []State{Done, Failed, Expired, Cancelled} {
		m.ended[s] = ended.WithLabelValues(string(s))
	}
	if reg == nil {
		return m, nil
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "milepost_command_open", Help: "Commands that have not ended.",
	}, func() float64 { return float64(d.open.Load()) })
	for _, c := range []prometheus.Collector{m.issued, m.refused, m.sent, m.delivered, m.badAnswers, ended, open} {
		if err := reg.Register(c); err != nil {
			m.unregister(reg)
			return m, fmt.Errorf("register command metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

func (m *metrics) unregister(reg prometheus.Registerer) {
	for _, c := range m.registered {
		reg.Unregister(c)
	}
}

func (m *metrics) finished(s State) { m.ended[s].Inc() }
