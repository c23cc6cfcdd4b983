package mqtt_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// overwhelmed has no time for anybody.
type overwhelmed struct{ class string }

func (o overwhelmed) Authenticate(context.Context, *mqtt.Credentials) (mqtt.Principal, error) {
	return nil, &mqtt.Refusal{Class: o.class, Text: "connect again in a minute"}
}

// A client that the server has no time for is told that it is the server's trouble and not its own, so that it comes back with the same
// password; each is counted, and the log is not filled with them.
func TestServerBusy(t *testing.T) {
	for class, code := range map[string]byte{"busy": packet.ServerBusy, "unavailable": packet.ServerUnavailable} {
		var logged syncBuffer
		w := newWorld(t, ingest.Limits{}, mqtt.Config{Authenticator: overwhelmed{class}, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		for range 10 {
			five := w.peer(packet.V5)
			if a := five.hello("d1"); a.Code != code || !strings.Contains(string(a.Properties.ReasonString), "again in a minute") {
				t.Errorf("%s: CONNACK %x %q, want %x", class, a.Code, a.Properties.ReasonString, code)
			}
			five.wantEnd()
			old := w.peer(packet.V311)
			if a := old.hello("d2"); a.Code != packet.RefusedUnavailable {
				t.Errorf("%s: MQTT 3.1.1 was answered %d", class, a.Code)
			}
			old.wantEnd()
		}
		if n := w.metric("milepost_ingest_mqtt_connects_refused_total"); n != 20 {
			t.Errorf("%s: %v counted as refused, want 20", class, n)
		}
		if n := strings.Count(logged.String(), "turned away"); n != 1 {
			t.Errorf("%s: logged %d times, want once a minute", class, n)
		}
	}
}
