package sender

import (
	"fmt"
	"io"
	"log/slog"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// allow lets everybody in.
type allow struct{ mqtt.HookBase }

func (*allow) ID() string                                              { return "allow" }
func (*allow) Provides(b byte) bool                                    { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }
func (*allow) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*allow) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// A real broker understands what we write, and we what it answers.
func TestMQTTBroker(t *testing.T) {
	b := mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := b.AddHook(&allow{}, nil); err != nil {
		t.Fatal(err)
	}
	door := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
	if err := b.AddListener(door); err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	arrived := make(chan packets.Packet, 200)
	if err := b.Subscribe("fleet/+/telemetry", 1, func(_ *mqtt.Client, _ packets.Subscription, p packets.Packet) {
		arrived <- p
	}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Address: "mqtt://" + door.Address(), Connections: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sendAll(t, s, 4, 50)
	got := map[string][]string{}
	for range 200 { // this broker acknowledges before it hands on
		p := <-arrived
		got[p.TopicName] = append(got[p.TopicName], string(p.Payload))
	}
	for v := range 4 {
		lines := got[fmt.Sprintf("fleet/v%d/telemetry", v)]
		if len(lines) != 50 {
			t.Errorf("v%d: %d publishes", v, len(lines))
		}
		for n, line := range lines {
			if want := fmt.Sprintf(`{"v":"v%d","n":%d}`, v, n); line != want {
				t.Errorf("got %s, want %s", line, want)
			}
		}
	}
}
