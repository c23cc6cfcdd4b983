package command

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// send hands a command to who listens. The caller holds v's lock.
func (d *Desk) send(v *vehicle, e *entry, only uint64) {
	doc, err := json.Marshal(struct {
		ID      string          `json:"id"`
		Name    string          `json:"name"`
		Payload json.RawMessage `json:"payload,omitempty"`
		Issued  time.Time       `json:"issued"`
		Expires time.Time       `json:"expires"`
	}{e.ID, e.Name, e.Payload, e.Issued, e.Expires})
	if err != nil {
		panic("command: bug: " + err.Error())
	}
	id, vehicle := e.ID, v.id
	taken, by := false, ""
	err = d.cfg.Send.Send(Topic(vehicle), doc, e.Expires, only,
		func(conn uint64, device string) {
			if d.serves(device, vehicle) {
				e.conn, taken, by = conn, true, device
			}
		},
		func(_ uint64, device string, reason byte) {
			if d.serves(device, vehicle) {
				d.acknowledge(ack{vehicle, id, device, reason}) // run takes it: here v's lock may be held, or not
			}
		})
	if err != nil {
		d.cfg.Log.Error("command is not sent; it waits for the next connection", "vehicle", vehicle, "command", id, "error", err)
	}
	if !taken {
		return
	}
	c := e.Command
	now := time.Now().UTC().Truncate(time.Millisecond)
	c.State, c.SentAt, c.Device = Sent, &now, by
	c.Sends++
	if err := d.save(context.Background(), &c); err != nil {
		d.cfg.Log.Error("command is sent and that is not stored", "vehicle", vehicle, "command", id, "error", err)
		return
	}
	e.Command = c
	d.metrics.sent.Inc()
}

func (d *Desk) serves(device, vehicle string) bool {
	return d.cfg.Serves == nil || d.cfg.Serves(device, vehicle)
}

// Listening sends a connection what waits for the vehicles whose topic its new subscription matches, and what an earlier connection has
// not acknowledged. The broker calls it (Config.Listening).
func (d *Desk) Listening(conn uint64, device, filter string) {
	if shared, ok := strings.CutPrefix(filter, "$share/"); ok {
		_, filter, _ = strings.Cut(shared, "/")
	}
	id, one, ok := vehicleOf(filter)
	if !ok {
		return
	}
	ids := []string{id}
	if !one {
		ids = ids[:0]
		d.mu.Lock()
		for id := range d.vehicles {
			ids = append(ids, id)
		}
		d.mu.Unlock()
	}
	for _, id := range ids {
		if !d.serves(device, id) {
			continue
		}
		d.mu.Lock()
		known := d.vehicles[id] != nil
		d.mu.Unlock()
		if !known {
			continue // nearly always: nothing is open
		}
		v, err := d.vehicle(id)
		if err != nil {
			return
		}
		for _, e := range slices.Clone(v.open) {
			if (e.State == Queued || e.State == Sent) && !d.acknowledged(e) && e.conn != conn && time.Now().Before(e.Expires) {
				d.send(v, e, conn)
			}
		}
		d.release(v)
	}
}

// vehicleOf tells which vehicles' topics a filter matches: one, or any.
func vehicleOf(filter string) (id string, one, ok bool) {
	root, rest, _ := strings.Cut(filter, "/")
	id, end, more := strings.Cut(rest, "/")
	switch {
	case root == "#", (root == "fleet" || root == "+") && rest == "#":
		return "", false, true
	case root != "fleet" && root != "+", !more, end != "commands" && end != "+" && end != "#" && end != "commands/#":
		return "", false, false
	case id == "+":
		return "", false, true
	}
	return id, true, id != ""
}

// An ack is a connection's acknowledgement of a message. It is not the device's answer.
type ack struct {
	vehicle, id, device string
	reason              byte
}

func (d *Desk) acknowledge(a ack) {
	d.queues.Lock()
	d.acks = append(d.acks, a)
	d.noted[a.id] = struct{}{}
	d.queues.Unlock()
	d.rouse()
}

// acknowledged tells that a command need not be sent again, though that may not be stored yet: a device that has acknowledged and
// connects again at once is faster than the disk.
func (d *Desk) acknowledged(e *entry) bool {
	if e.DeliveredAt != nil {
		return true
	}
	d.queues.Lock()
	defer d.queues.Unlock()
	_, ok := d.noted[e.id]
	return ok
}

func (d *Desk) rouse() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

const ackBatch = 256

// delivered records acknowledgements, many to one transaction.
func (d *Desk) delivered(acks []ack) {
	slices.SortFunc(acks, func(a, b ack) int { return strings.Compare(a.vehicle, b.vehicle) }) // locks are taken in this order
	var held []*vehicle
	defer func() {
		d.queues.Lock()
		for _, a := range acks {
			delete(d.noted, a.id)
		}
		d.queues.Unlock()
		for _, v := range held {
			d.release(v)
		}
	}()
	type change struct {
		v *vehicle
		e *entry
		c Command
	}
	var changes []change
	now := time.Now().UTC().Truncate(time.Millisecond)
	for _, a := range acks {
		if len(held) == 0 || held[len(held)-1].id != a.vehicle {
			v, err := d.vehicle(a.vehicle)
			if err != nil {
				break // closed: it is sent again after the next start
			}
			held = append(held, v)
		}
		v := held[len(held)-1]
		e := v.find(a.id)
		if e == nil || e.DeliveredAt != nil {
			continue
		}
		if a.reason >= 0x80 {
			_, err := d.finish(context.Background(), v, e, Failed, func(c *Command) {
				c.Device, c.Reason = a.device, fmt.Sprintf("the device refused the message with reason code %#x", a.reason)
			})
			if err != nil {
				d.cfg.Log.Error("refusal of a command is not stored", "vehicle", a.vehicle, "command", a.id, "error", err)
			}
			continue
		}
		c := e.Command
		c.DeliveredAt, c.Device = &now, a.device
		changes = append(changes, change{v, e, c})
	}
	all := make([]*Command, len(changes))
	for i := range changes {
		all[i] = &changes[i].c
	}
	if err := d.save(context.Background(), all...); err != nil {
		d.cfg.Log.Error("delivery of commands is not stored; they may be sent again", "commands", len(all), "error", err)
		return
	}
	for _, c := range changes {
		c.e.Command = c.c
		d.metrics.delivered.Inc()
	}
}

// run expires commands and records acknowledgements.
func (d *Desk) run() {
	defer close(d.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-d.wake:
		case <-timer.C:
		}
		for {
			d.queues.Lock()
			n := min(len(d.acks), ackBatch)
			batch := slices.Clone(d.acks[:n])
			if d.acks = d.acks[n:]; len(d.acks) == 0 {
				d.acks = nil
			}
			d.queues.Unlock()
			if n == 0 {
				break
			}
			d.delivered(batch)
		}
		timer.Reset(d.expire())
	}
}

// expire ends what is over and returns how long nothing will be.
func (d *Desk) expire() time.Duration {
	for {
		now := time.Now()
		d.queues.Lock()
		if len(d.due) == 0 {
			d.queues.Unlock()
			return time.Hour
		}
		e := d.due[0]
		wait, vehicle, id := e.when.Sub(now), e.vehicle, e.id
		d.queues.Unlock()
		if wait > 0 {
			return wait
		}
		v, err := d.vehicle(vehicle)
		if err != nil {
			return time.Hour
		}
		if e := v.find(id); e != nil {
			reason := "no connection has acknowledged it in time"
			switch {
			case e.State == Acknowledged:
				reason = "the device has accepted it and not said how it ended"
			case e.DeliveredAt != nil:
				reason = "the device has not answered in time"
			}
			if _, err = d.finish(context.Background(), v, e, Expired, func(c *Command) { c.Reason = reason }); err != nil {
				d.cfg.Log.Error("expiry of a command is not stored; it is tried again", "vehicle", vehicle, "command", id, "error", err)
				d.schedule(e, now.Add(10*time.Second))
			}
		}
		d.release(v)
	}
}

type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is for container/heap.
func (h *dueHeap) Push(x any) {
	e, _ := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop is for container/heap.
func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}

// schedule makes e due, instead of when it was.
func (d *Desk) schedule(e *entry, when time.Time) {
	d.queues.Lock()
	fresh := e.when.IsZero()
	if e.when = when; fresh {
		heap.Push(&d.due, e)
	} else {
		heap.Fix(&d.due, e.index)
	}
	first := e.index == 0
	d.queues.Unlock()
	if first {
		d.rouse()
	}
}

func (d *Desk) unschedule(e *entry) {
	d.queues.Lock()
	defer d.queues.Unlock()
	if e.index >= 0 && !e.when.IsZero() {
		heap.Remove(&d.due, e.index)
	}
}

// An answer is what a device says about a command.
type answer struct {
	ID     string          `json:"id"`
	Status string          `json:"status"`
	Reason string          `json:"reason"`
	Result json.RawMessage `json:"result"`
}

const (
	maxReason = 1024
	maxResult = 16 << 10
)

// Handle takes a message of a device, after the front has checked that the device may publish it. handled is false if the topic is not one
// of the answers'. The error says what is wrong with an answer; a repeated one is no error. It is on disk when Handle returns.
func (d *Desk) Handle(ctx context.Context, device, topic string, payload []byte) (handled bool, err error) {
	rest, ok := strings.CutPrefix(topic, "fleet/")
	if !ok {
		return false, nil
	}
	vehicle, rest, ok := strings.Cut(rest, "/commands/")
	if !ok || strings.Contains(vehicle, "/") {
		return false, nil
	}
	id := ""
	if rest != "ack" {
		if id, ok = strings.CutSuffix(rest, "/ack"); !ok || strings.Contains(id, "/") {
			return false, nil
		}
	}
	if err := d.answer(ctx, device, vehicle, id, payload); err != nil {
		d.metrics.badAnswers.Inc()
		return true, fmt.Errorf("answer on %s: %w", topic, err)
	}
	return true, nil
}

func (d *Desk) answer(ctx context.Context, device, vehicle, id string, payload []byte) error {
	var a answer
	if err := json.Unmarshal(payload, &a); err != nil {
		return &RequestError{`it is not like {"id": "c01…", "status": "accepted|done|failed", "reason": "…"}: ` + err.Error()}
	}
	switch {
	case id == "":
		id = a.ID
	case a.ID != "" && a.ID != id:
		return &RequestError{fmt.Sprintf("the id %.40q is not the topic's", a.ID)}
	}
	var to State
	switch a.Status {
	case "accepted":
		to = Acknowledged
	case "done":
		to = Done
	case "failed":
		to = Failed
	default:
		return &RequestError{fmt.Sprintf("status %.40q: write accepted, done or failed", a.Status)}
	}
	if len(a.Reason) > maxReason || len(a.Result) > maxResult {
		return &RequestError{fmt.Sprintf("reason has at most %d bytes and result %d", maxReason, maxResult)}
	}
	if err := CheckVehicle(vehicle); err != nil {
		return err
	}
	v, err := d.vehicle(vehicle)
	if err != nil {
		return err
	}
	defer d.release(v)
	e := v.find(id)
	if e == nil {
		c, err := d.load(ctx, vehicle, id)
		switch {
		case err != nil:
			return err
		case c.State == to || to == Acknowledged:
			return nil // a repetition
		}
		return fmt.Errorf("%w as %s", ErrEnded, c.State)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	change := func(c *Command) {
		c.Device, c.Reason = device, a.Reason
		if len(a.Result) > 0 && string(a.Result) != "null" {
			c.Result = a.Result
		}
		if c.DeliveredAt == nil {
			c.DeliveredAt = &now
		}
		if c.AcknowledgedAt == nil {
			c.AcknowledgedAt = &now
		}
	}
	if to.Final() {
		_, err := d.finish(ctx, v, e, to, change)
		return err
	}
	c := e.Command
	c.State = Acknowledged
	change(&c)
	if err := d.save(ctx, &c); err != nil {
		return err
	}
	e.Command = c
	d.schedule(e, e.Expires.Add(d.cfg.Limits.Finish))
	return nil
}

// IsMistake tells that an error is the caller's, and not the server's.
func IsMistake(err error) bool {
	_, wrong := errors.AsType[*RequestError](err)
	return wrong || errors.Is(err, ErrNotFound) || errors.Is(err, ErrEnded) || errors.Is(err, ErrKey)
}
