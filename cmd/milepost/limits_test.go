package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// limits.bytes_per_device of the configuration bounds one vehicle, and not its neighbour in the same body.
func TestBytesPerDevice(t *testing.T) {
	httpAddr, mqttAddr := freeAddr(t), freeAddr(t)
	config := filepath.Join(t.TempDir(), "milepost.yaml")
	yaml := fmt.Sprintf("data: %s\nhttp:\n  listen: %s\nmqtt:\n  listen: %s\nkinesis:\n  listen: \"\"\nstream:\n  reserve: 0\nlimits:\n  rate_per_device: 0\n  message: 1KiB\n  bytes_per_device: 1KiB\n",
		filepath.Join(t.TempDir(), "data"), httpAddr, mqttAddr)
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startServer(t, config, httpAddr, mqttAddr)
	defer p.kill()
	send := func(vehicle string, lines int) (accepted, retryable int) {
		t.Helper()
		body := strings.Repeat(fmt.Sprintf(`{"vehicle_id":%q,"speed":1,"note":%q}`, vehicle, strings.Repeat("x", 900))+"\n", lines)
		resp, err := http.Post(p.http+"/v1/readings", "application/x-ndjson", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct {
			Accepted int
			Refused  []struct{ Retryable bool }
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		for _, r := range answer.Refused {
			if r.Retryable {
				retryable++
			}
		}
		return answer.Accepted, retryable
	}
	in, again := send("flood", 100) // 94 kB; a minute's worth is 60 KiB
	if in < 60 || in > 75 || in+again != 100 {
		t.Errorf("%d of 100 lines are accepted and %d may come again, want about 65", in, again)
	}
	if in, _ := send("neighbour", 10); in != 10 {
		t.Errorf("%d of the neighbour's 10 lines are accepted", in)
	}
}
