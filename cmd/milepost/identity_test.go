package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/milepost/milepost/device"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/internal/vfs"
)

// milepost runs a command and returns what it printed.
func milepost(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(t.Context(), &env{strings.NewReader(""), &out, &out}, args); code != want {
		t.Fatalf("%v: exit code %d\n%s", args, code, &out)
	}
	return out.String()
}

// The commands reach a running server by its API, and say so when they find its directory in use; a device rotates its certificate
// over HTTPS; what the MQTT door asks is answered from the same registry, and revoking is heard at once.
func TestDevicesOfRunningServer(t *testing.T) {
	cfg, err := loadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg.Data, cfg.HTTP.Listen, cfg.MQTT.Listen, cfg.Kinesis.Listen = filepath.Join(dir, "d"), "127.0.0.1:0", "", ""
	cfg.HTTP.TLS.Listen, cfg.HTTP.Token = "127.0.0.1:0", "sesame"
	milepost(t, exitOK, "ca", "init", "--data", cfg.Data, "--host", "127.0.0.1")
	ctx := t.Context()
	s, err := openServer(ctx, cfg, vfs.Disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.drain(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	api := "http://" + s.listener.Addr().String()
	if out := milepost(t, exitFailed, "device", "list", "--data", cfg.Data); !strings.Contains(out, "in use by another process") || !strings.Contains(out, "--url") {
		t.Errorf("the directory is in use: %s", out)
	}
	if out := milepost(t, exitFailed, "device", "list", "--url", api); !strings.Contains(out, "bearer token") {
		t.Errorf("without the token: %s", out)
	}
	certs := filepath.Join(dir, "certs")
	milepost(t, exitOK, "device", "enroll", "truck-17", "--url", api, "--token", "sesame", "--out", certs)

	pair, err := tls.LoadX509KeyPair(filepath.Join(certs, "truck-17.crt"), filepath.Join(certs, "truck-17.key"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(certs, "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Post("https://"+s.devices.addr.String()+"/v1/devices/truck-17/rotate", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !bytes.Contains(b, []byte("does not leave it")) {
		t.Errorf("known by its certificate, it is asked for a request: %d %s", resp.StatusCode, b)
	}

	door := gatekeeper{s.devices.Identity}
	cred := &mqtt.Credentials{ClientID: "truck-17", TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}, Remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9}}
	p, err := door.Authenticate(ctx, cred)
	if err != nil {
		t.Fatal(err)
	}
	door.Connected(cred, p)
	door.Rejected(p, "fleet/truck-18/telemetry", "topic", "not yours")
	var d struct{ Verdict string }
	if err := json.Unmarshal([]byte(milepost(t, exitOK, "doctor", "device", "truck-17", "--url", api, "--token", "sesame", "--json")), &d); err != nil || d.Verdict != "topic_not_allowed" {
		t.Errorf("doctor: %+v %v", d, err)
	}
	cut := false
	s.devices.Devices.OnRevoke(func(match func(*device.Principal) bool) {
		if dp, is := p.(*device.Principal); is {
			cut = match(dp)
		}
	})
	milepost(t, exitOK, "device", "revoke", "truck-17", "--url", api, "--token", "sesame")
	if !cut {
		t.Error("the connection was not cut")
	}
	_, err = door.Authenticate(ctx, cred)
	r, isRefusal := err.(*mqtt.Refusal) //nolint:errorlint // the door looks at it like this
	if !isRefusal || r.Class != "revoked" {
		t.Errorf("after the revocation: %v", err)
	}
}
