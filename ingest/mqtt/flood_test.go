package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
)

// The limit in bytes: a device that sends few messages and large ones is read from as slowly as its bytes allow, whatever their number.
func TestBytesSlowADeviceDown(t *testing.T) {
	w := newWorld(t, ingest.Limits{BytesPerDevice: 50_000, BytesBurstPerDevice: 5_000}, mqtt.Config{})
	d := w.device("d1")
	payload := `{"x":"` + strings.Repeat("x", 990) + `"}`
	start := time.Now()
	const messages = 30
	for id := uint16(1); id <= messages; id++ {
		d.publish(1, id, "fleet/v1/telemetry", payload)
		d.wantAck(id)
	}
	least := time.Duration(float64(len(payload)*(messages-1)-5000) / 50_000 * float64(time.Second)) // the last one's is still owed
	if took := time.Since(start); took < least-20*time.Millisecond {                                // a lower bound: machines are slow, never fast
		t.Errorf("%d bytes at 50,000/s took %s, want at least %s", messages*len(payload), took, least)
	}
	if got := len(w.stored()); got != messages {
		t.Errorf("%d of %d are stored: the limit makes late and loses nothing", got, messages)
	}
}

// A device that is so far over its bytes that it is not heard for hours delays no other.
func TestFloodOfBytesDelaysNobody(t *testing.T) {
	w := newWorld(t, ingest.Limits{BytesPerDevice: 1, BytesBurstPerDevice: 1000}, mqtt.Config{})
	flood, other := w.device("flood"), w.device("other")
	payload := `{"x":"` + strings.Repeat("x", 990) + `"}`
	flood.publish(1, 1, "fleet/flood/telemetry", payload)
	flood.wantAck(1)
	for id := uint16(2); id < 200; id++ {
		flood.publish(1, id, "fleet/flood/telemetry", payload)
	}
	for id := uint16(1); id <= 20; id++ { // within its own burst
		other.publish(1, id, "fleet/other/telemetry", `{"speed":1}`)
		other.wantAck(id)
	}
	flooded := 0
	for _, s := range w.stored() {
		if strings.HasPrefix(s, "flood ") {
			flooded++
		}
	}
	if flooded > 80 { // what one reading of the socket may bring: 64 KiB
		t.Errorf("%d messages of the flood are stored", flooded)
	}
}
