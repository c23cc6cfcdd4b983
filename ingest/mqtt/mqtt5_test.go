package mqtt_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/stream"
)

// phone is an MQTT 5 client as devices have it.
func (w *world) phone(id string) *paho.Client {
	w.t.Helper()
	conn, err := net.DialTimeout("tcp", w.server.Addr().String(), patience)
	if err != nil {
		w.t.Fatal(err)
	}
	c := paho.NewClient(paho.ClientConfig{ClientID: id, Conn: conn, PacketTimeout: patience})
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	ack, err := c.Connect(ctx, &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if p := ack.Properties; p.MaximumQoS != nil || p.MaximumPacketSize == nil || p.ReceiveMaximum == nil || *p.ReceiveMaximum != 1024 {
		w.t.Errorf("CONNACK properties %+v", p)
	}
	w.t.Cleanup(func() {
		_ = c.Disconnect(&paho.Disconnect{})
		<-c.Done()
	})
	return c
}

// MQTT-3.4.2-1: what each kind of message is answered.
func TestMQTT5ReasonCodes(t *testing.T) {
	w := newWorld(t, ingest.Limits{MaxMessage: 1000}, mqtt.Config{})
	c := w.phone("p1")
	f := func(want byte, topic, payload, reason string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		resp, err := c.Publish(ctx, &paho.Publish{
			QoS: 1, Topic: topic, Payload: []byte(payload),
			Properties: &paho.PublishProperties{User: paho.UserProperties{{Key: "k", Value: "v"}}},
		})
		if resp == nil {
			t.Fatalf("%s %.50s: %v", topic, payload, err)
		}
		if resp.ReasonCode != want || (err != nil) != (want >= 0x80) {
			t.Errorf("%s %.50s: PUBACK %x, %v, want %x", topic, payload, resp.ReasonCode, err, want)
		}
		got := ""
		if resp.Properties != nil {
			got = resp.Properties.ReasonString
			if len(resp.Properties.User) > 0 {
				t.Errorf("PUBACK carries the message's properties back: %+v", resp.Properties)
			}
		}
		if (reason == "") != (got == "") || !strings.Contains(got, reason) {
			t.Errorf("%s %.50s: PUBACK says %q, want %q in it", topic, payload, got, reason)
		}
	}
	f(0, "fleet/v1/telemetry", `{"speed":1}`, "")
	f(0, "fleet/v1/telemetry", "{\"speed\":1}\n{\"speed\":2}", "")
	f(0x99, "fleet/v1/telemetry", `{"speed":`, "cut short")
	f(0x99, "fleet/v1/telemetry", "{\"speed\":1}\nx\ny", "2 of 3 readings refused, the first in line 2")
	f(0x87, "fleet/v1/telemetry", `{"truck_id":"v2"}`, "v2")
	f(0x10, "fleet/v1", `{"truck_id":"v1"}`, "") // no subscriber: a plain message of the broker's
	f(0x90, "$SYS/x", `{"truck_id":"v1"}`, "server's own")
	f(0x97, "fleet/v1/telemetry", `{"x":"`+strings.Repeat("x", 1000)+`"}`, "limit")
	if len(w.stored()) != 4 || len(w.letters()) != 5 {
		t.Errorf("%d stored, %d dead letters", len(w.stored()), len(w.letters()))
	}
}

func TestMQTT5TopicAlias(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	c := w.phone("p1")
	alias := uint16(3)
	for _, topic := range []string{"fleet/v1/telemetry", "", ""} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := c.Publish(ctx, &paho.Publish{
			QoS: 1, Topic: topic, Payload: []byte(`{"speed":1}`), Properties: &paho.PublishProperties{TopicAlias: &alias},
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.stored()); n != 3 {
		t.Errorf("%d stored, want 3", n)
	}
}

func TestMQTT5NotStored(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{})
	w.log.Fail(stream.ErrFenced, 0)
	conn, err := net.DialTimeout("tcp", w.server.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	reasons := make(chan byte, 1)
	c := paho.NewClient(paho.ClientConfig{
		ClientID: "p1", Conn: conn, PacketTimeout: patience,
		OnServerDisconnect: func(d *paho.Disconnect) { reasons <- d.ReasonCode },
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Connect(ctx, &paho.Connect{ClientID: "p1", KeepAlive: 30, CleanStart: true}); err != nil {
		t.Fatal(err)
	}
	published := make(chan error, 1)
	go func() {
		_, err := c.Publish(ctx, &paho.Publish{QoS: 1, Topic: "fleet/v1/telemetry", Payload: []byte(`{"speed":1}`)})
		published <- err
	}()
	if got := <-reasons; got != 0x88 {
		t.Errorf("DISCONNECT %x, want 88 (server unavailable)", got)
	}
	<-c.Done()
	cancel() // the client goes on waiting for its acknowledgement
	if err := <-published; err == nil {
		t.Error("acknowledged what was not stored")
	}
}
