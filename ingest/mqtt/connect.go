package mqtt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// maxClientID is the longest client identifier.
const maxClientID = 256

// maxRefusal is how much of a refusal's text a client gets to see.
const maxRefusal = 200

// A will of a mapped topic, which goes to the log too.
type will struct{ topic, payload []byte }

// connect takes a CONNECT and answers it.
func (c *conn) connect(flags byte, body []byte) error {
	var p packet.Connect
	err := p.Decode(flags, body)
	if err == nil {
		err = c.welcome(&p)
	}
	if err == nil {
		return nil
	}
	var wrong *packet.Error
	if !errors.As(err, &wrong) {
		return err
	}
	class := reasonName(wrong.Code)
	if t, ok := errors.AsType[*turnedAway](err); ok {
		class = t.class
	}
	c.server.met.refused.WithLabelValues(class).Inc()
	if p.Version != 0 { // otherwise it is no MQTT that could be answered
		answer := packet.Connack{Code: wrong.Code}
		if p.Version < packet.V5 {
			var ok bool
			if answer.Code, ok = packet.Refused311(wrong.Code); !ok {
				return err
			}
		} else if text := wrong.Text; text != "" {
			if len(text) > maxRefusal {
				text = strings.ToValidUTF8(text[:maxRefusal], "")
			}
			answer.Properties.Has = packet.SetOf(packet.ReasonString)
			answer.Properties.ReasonString = []byte(text)
		}
		c.clientMax = p.Properties.MaximumPacketSize
		if !c.fits(len(answer.Append(nil, p.Version))) { // MQTT-3.2.2-19
			answer.Properties = packet.Properties{}
		}
		c.sendIfItFits(func(dst []byte) []byte { return answer.Append(dst, p.Version) })
	}
	return err
}

// welcome judges a CONNECT and, if all is well, begins its session and sends CONNACK.
func (c *conn) welcome(p *packet.Connect) error {
	s := c.server
	v5 := p.Version >= packet.V5
	if p.Properties.Has.Has(packet.AuthMethod) {
		return &packet.Error{Code: packet.BadAuthMethod, Text: "authentication methods are not supported: use a certificate, or user and password"}
	}
	answer := packet.Connack{}
	id := string(p.ClientID)
	switch {
	case id == "" && !v5 && !p.Clean: // MQTT-3.1.3-8 of 3.1.1
		return &packet.Error{Code: packet.ClientIDNotValid, Text: "no client identifier and no clean session"}
	case id == "":
		id = "auto-" + rand.Text()
		if v5 { // MQTT-3.2.2-16
			answer.Properties.Has |= packet.SetOf(packet.AssignedClientID)
			answer.Properties.AssignedClientID = []byte(id)
		}
	case len(id) > maxClientID:
		return &packet.Error{Code: packet.ClientIDNotValid, Text: "client identifier of more than 256 bytes"}
	}
	principal, err := c.authenticate(id, p)
	if err != nil {
		return err
	}
	begin := broker.Connect{ClientID: id, Version: p.Version, Clean: p.Clean, ReceiveMaximum: p.Properties.ReceiveMaximum, MaxPacket: p.Properties.MaximumPacketSize}
	if s.cfg.Authenticator != nil {
		begin.Device = principal.Device()
	}
	switch {
	case v5:
		begin.Expiry = p.Properties.SessionExpiry
	case !p.Clean:
		begin.Expiry = broker.NeverExpires
	}
	var mapped *will
	if p.HasWill {
		if begin.Will, mapped, err = c.will(p, principal); err != nil {
			return err
		}
	}
	c.clientID, c.from = id, id+" at "+c.nc.RemoteAddr().String()
	c.problems = !p.Properties.Has.Has(packet.RequestProblemInfo) || p.Properties.RequestProblemInfo == 1
	c.clientMax = p.Properties.MaximumPacketSize
	c.vehicle = principal.Vehicle()
	if g, ok := principal.(gateway); ok && c.vehicle == "" {
		c.mayReport = g.MayReport
	}
	if h, ok := principal.(listened); ok {
		c.heard = h.Heard
	}
	keepAlive := time.Duration(p.KeepAlive) * time.Second
	if most := s.cfg.MaxKeepAlive; v5 && (keepAlive == 0 || keepAlive > most) {
		keepAlive = most
		answer.Properties.Has |= packet.SetOf(packet.ServerKeepAlive)
		answer.Properties.ServerKeepAlive = uint16(min(most/time.Second, 65535)) //nolint:gosec // bounded
	}
	if v5 {
		a := &answer.Properties
		a.Has |= packet.SetOf(packet.ReceiveMaximum, packet.MaximumPacketSize, packet.TopicAliasMaximum)
		a.ReceiveMaximum, a.TopicAliasMaximum = s.cfg.ReceiveMaximum, s.cfg.TopicAliases
		a.MaximumPacketSize = uint32(s.maxPacket) //nolint:gosec // a few hundred KiB
		largest := answer
		if begin.Expiry > 0 {
			largest.Properties.Has |= packet.SetOf(packet.SessionExpiry)
		}
		if n := len(largest.Append(nil, p.Version)); !c.fits(n) { // MQTT-3.1.2-24. Whatever else is not optional is smaller
			return &packet.Error{Code: packet.PacketTooLarge, Text: fmt.Sprintf("the CONNACK has %d bytes: raise the maximum packet size to it at least", n)}
		}
	}
	session, present, err := s.broker.Connect(begin, c)
	switch {
	case errors.Is(err, broker.ErrOwner):
		return &packet.Error{Code: packet.ClientIDNotValid, Text: err.Error()}
	case errors.Is(err, broker.ErrBusy):
		return &packet.Error{Code: packet.ServerBusy, Text: err.Error()}
	case errors.Is(err, broker.ErrClosed):
		return &packet.Error{Code: packet.ServerUnavailable, Text: err.Error()} // CONNACK has no "server shutting down" (MQTT-3.2.2-8)
	case err != nil:
		return &packet.Error{Code: packet.ServerUnavailable, Text: err.Error()}
	}
	if session.Expiry() > 0 {
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.ConnectTimeout)
		err := s.broker.Wait(ctx, session.Ticket())
		cancel()
		if err != nil {
			session.Disconnect(packet.ServerUnavailable, false)
			return &packet.Error{Code: packet.ServerUnavailable, Text: "the session cannot be stored"}
		}
	}
	answer.Present = present
	if granted := session.Expiry(); v5 && granted != begin.Expiry {
		answer.Properties.Has |= packet.SetOf(packet.SessionExpiry)
		answer.Properties.SessionExpiry = granted
	}
	c.begin(p.Version, principal, session, mapped, keepAlive, &answer)
	return nil
}

// begin makes the connection one of a client, and sends CONNACK, which is its first packet (MQTT-3.2.0-1).
func (c *conn) begin(version byte, principal Principal, session *broker.Session, w *will, keepAlive time.Duration, answer *packet.Connack) {
	s := c.server
	c.mu.Lock()
	c.version, c.principal, c.known, c.session, c.lastWill = version, principal, principal, session, w
	if at := principal.Expires(); !at.IsZero() {
		c.until.Store(at.UnixMilli())
	}
	c.keepAliveMS = keepAlive.Milliseconds() * 3 / 2
	c.allowed.Store(c.keepAliveMS)
	c.whole.Store(0)
	c.woken = c.woken || answer.Present // what waits for the session
	if !c.ended {
		c.out = answer.Append(c.out, version)
	}
	c.flush()
	s.met.connects[c.transport].Inc()
	s.met.versions[version-packet.V311].Add(1)
	if s.cfg.Journal != nil {
		s.cfg.Journal.Connected(c.credentials(), principal)
	}
	s.logger.Debug("mqtt client connected", slog.String("device", principal.Device()), slog.String("client", c.clientID))
}

func (c *conn) credentials() *Credentials {
	cr := &Credentials{ClientID: c.clientID, Remote: c.nc.RemoteAddr()}
	if state := tlsState(c.nc); state != nil {
		cr.TLS = state
	}
	return cr
}

// tlsState returns the state of a connection over TLS, nil of others.
func tlsState(nc any) *tls.ConnectionState {
	if w, ok := nc.(*wsConn); ok {
		nc = w.Conn
	}
	if t, ok := nc.(*tls.Conn); ok {
		state := t.ConnectionState()
		return &state
	}
	return nil
}

// authenticate asks who the client is.
func (c *conn) authenticate(id string, p *packet.Connect) (Principal, error) {
	s := c.server
	cr := &Credentials{ClientID: id, User: string(p.User), Password: p.Password, TLS: tlsState(c.nc), Remote: c.nc.RemoteAddr()}
	ctx, cancel := context.WithTimeout(s.reading, s.cfg.ConnectTimeout)
	defer cancel()
	principal, err := s.auth.Authenticate(ctx, cr)
	if err == nil {
		if at := principal.Expires(); !at.IsZero() && !time.Now().Before(at) {
			err = &Refusal{Class: "expired", Text: "the certificate has expired: renew it"}
		}
	}
	if err == nil {
		return principal, nil
	}
	s.door.Refuse(ingest.Unwelcome, 1)
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		s.logger.Error("mqtt cannot tell who connects", slog.String("client", id), slog.Any("error", err))
		return nil, &packet.Error{Code: packet.ServerUnavailable, Text: "the server cannot check who connects"}
	}
	if s.cfg.Journal != nil {
		s.cfg.Journal.Refused(cr, refusal)
	}
	level := slog.LevelWarn
	if (refusal.Class == "busy" || refusal.Class == "unavailable") && !s.busy.tell(time.Now()) {
		level = slog.LevelDebug // it is the server's trouble, and everybody's: one a minute speaks for all
	}
	s.logger.Log(ctx, level, "mqtt client turned away", slog.String("client", id), slog.String("remote", cr.Remote.String()),
		slog.String("class", refusal.Class), slog.String("reason", refusal.Text))
	code := byte(packet.NotAuthorized)
	switch refusal.Class {
	case "busy":
		code = packet.ServerBusy
	case "unavailable":
		code = packet.ServerUnavailable
	case "client_id":
		code = packet.ClientIDNotValid
	case "revoked":
		code = packet.Banned
	case "password":
		if len(p.User) > 0 && p.Version >= packet.V5 {
			code = packet.BadUserOrPassword
		}
	}
	return nil, &turnedAway{&packet.Error{Code: code, Text: refusal.Text}, refusal.Class}
}

// turnedAway is the answer to a client that the Authenticator refuses.
type turnedAway struct {
	answer *packet.Error
	class  string // of the refusal
}

func (t *turnedAway) Error() string { return t.answer.Error() }
func (t *turnedAway) Unwrap() error { return t.answer }

// A rarely says when something that happens often is to be told again.
type rarely struct{ last atomic.Int64 }

func (r *rarely) tell(now time.Time) bool {
	last := r.last.Load()
	return now.UnixMilli()-last >= time.Minute.Milliseconds() && r.last.CompareAndSwap(last, now.UnixMilli())
}

// will judges a CONNECT's will.
func (c *conn) will(p *packet.Connect, who Principal) (*broker.Will, *will, error) {
	w := &p.Will
	if len(w.Topic) > 0 && w.Topic[0] == '$' || !who.MayPublish(w.Topic) {
		return nil, nil, &packet.Error{Code: packet.NotAuthorized, Text: "the client may not publish to its will's topic"}
	}
	m, from, to := c.server.topics.find(view(w.Topic))
	if v := who.Vehicle(); m != nil && v != "" && to > from && string(w.Topic[from:to]) != v {
		return nil, nil, &packet.Error{Code: packet.NotAuthorized, Text: "the will is another vehicle's"}
	}
	out := &broker.Will{Delay: w.Properties.WillDelay, Message: broker.Message{
		Topic: bytes.Clone(w.Topic), Payload: bytes.Clone(w.Payload), QoS: w.QoS, Retain: w.Retain,
		Properties: w.Properties.Append(nil, packet.Forwarded),
		Expires:    w.Properties.Has.Has(packet.MessageExpiry), Expiry: w.Properties.MessageExpiry,
	}}
	if m == nil {
		return out, nil, nil
	}
	return out, &will{out.Message.Topic, out.Message.Payload}, nil
}

// admitWill takes the will of a mapped topic into the log, like a message of QoS 0, when the connection is lost. The broker sends it to
// its subscribers, after its delay.
func (c *conn) admitWill() {
	s, ok := c.server.scratches.Get().(*scratch)
	if !ok {
		panic("mqtt: bug: the pool holds something else")
	}
	defer c.server.scratches.Put(s)
	c.lastTopic = append(c.lastTopic[:0], c.lastWill.topic...)
	c.lastMap, c.lastFrom, c.lastTo = c.server.topics.find(view(c.lastTopic))
	s.in = c.server.pipe.Begin()
	s.pub = packet.Publish{Payload: c.lastWill.payload}
	a := ack{}
	c.reading(s, c.lastWill.topic, c.lastWill.topic, &a)
	if s.in.Messages() > 0 {
		s.acks = append(s.acks, a)
	}
	s.wait = 0
	_ = c.submit(s) // counted, if not stored
}
