package mqtt_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/ingest/mqtt"
	"github.com/milepost/milepost/ingest/mqtt/packet"
)

// newSecureWorld serves TLS.
func newSecureWorld(t *testing.T, cfg mqtt.Config) *world {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLSAddress, cfg.TLS = "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return newWorld(t, ingest.Limits{}, cfg)
}

// helloOnly is a client's side of a handshake that writes at most so many bytes of its ClientHello and hears nothing.
type helloOnly struct {
	net.Conn
	most int
	said chan struct{}
}

func (h *helloOnly) Write(b []byte) (int, error) {
	defer close(h.said)
	_, err := h.Conn.Write(b[:min(len(b), h.most)])
	return len(b), err
}

func (h *helloOnly) Read([]byte) (int, error) { return 0, net.ErrClosed }

// sayHello connects and says so much of a ClientHello.
func sayHello(t *testing.T, w *world, most int) *device {
	t.Helper()
	d := dial(t, w.server.TLSAddr())
	h := &helloOnly{d.conn, most, make(chan struct{})}
	_ = tls.Client(h, &tls.Config{InsecureSkipVerify: true}).Handshake() //nolint:gosec // no handshake comes about
	<-h.said
	return d
}

// A handshake's turn is for work: clients that stop in the middle of their ClientHello, or after it, hold up nobody. They have as long as
// ConnectTimeout.
func TestSlowHandshakesHoldUpNobody(t *testing.T) {
	w := newSecureWorld(t, mqtt.Config{ConnectTimeout: 2 * time.Second})
	var slow []*device
	for i := range 200 { // many more than there are turns
		slow = append(slow, sayHello(t, w, []int{1, 50, 1 << 20}[i%3]))
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", w.server.TLSAddr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			c := packet.Connect{Version: 4, Clean: true, ClientID: []byte(conn.LocalAddr().String())}
			if _, err := conn.Write(c.Append(nil)); err != nil {
				t.Error(err)
			}
			if first, err := bufio.NewReader(conn).ReadByte(); err != nil || first != 0x20 {
				t.Errorf("want CONNACK, got %x %v", first, err)
			}
		})
	}
	wg.Wait()
	for _, d := range slow {
		for {
			if _, err := d.in.ReadByte(); err != nil { // after the server's part of the handshake
				if strings.Contains(err.Error(), "timeout") {
					t.Fatal("a handshake that never ends is kept")
				}
				break
			}
		}
	}
	for w.metric("milepost_ingest_mqtt_handshakes_failed_total") < 200 {
		w.device("other").ping()
	}
	if n := w.metric("milepost_ingest_mqtt_handshakes_waiting"); n != 0 {
		t.Errorf("%v wait for a turn", n)
	}
}

// Clients that have gone before their turn cost no handshake, and are counted.
func TestGoneBeforeItsTurn(t *testing.T) {
	w := newSecureWorld(t, mqtt.Config{})
	for range 100 {
		_ = sayHello(t, w, 1<<20).conn.Close()
	}
	for w.metric("milepost_ingest_mqtt_handshakes_failed_total") < 100 {
		w.device("other").ping()
	}
	if n := w.metric("milepost_ingest_mqtt_handshakes_waiting"); n != 0 {
		t.Errorf("%v wait for a turn", n)
	}
}

// ConnectTimeout is for CONNECT as a whole, and PacketTimeout for a big packet as a whole: a byte now and then does not make them longer.
// Somebody could otherwise hold a connection, and memory that others wait for, as long as he likes.
func TestDrips(t *testing.T) {
	w := newWorld(t, ingest.Limits{}, mqtt.Config{ConnectTimeout: 500 * time.Millisecond, PacketTimeout: 500 * time.Millisecond})
	stranger := dial(t, w.server.Addr())
	stranger.send([]byte{0x10, 0x7f})
	known := w.device("known")
	known.send(publishPacket(1, 1, false, "fleet/v1/telemetry", `{"x":"`+strings.Repeat("x", 100_000))[:20_000])
	for name, d := range map[string]*device{"CONNECT": stranger, "PUBLISH": known} {
		ended := make(chan struct{})
		go func() { // ends below
			defer close(ended)
			_, _ = d.in.ReadByte()
		}()
		began := time.Now()
		for drip := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-drip.C:
				_, _ = d.conn.Write([]byte{0})
				if time.Since(began) < patience/2 {
					continue
				}
				t.Errorf("%s: the connection stays open as long as something drips", name)
				_ = d.conn.Close()
				<-ended
			case <-ended:
			}
			drip.Stop()
			break
		}
	}
	for w.admit.InFlight() != 0 {
		w.device("other").ping()
	}
	if n := w.metric("milepost_ingest_mqtt_connects_refused_total"); n != 1 {
		t.Errorf("%v counted as too slow to say CONNECT, want 1", n)
	}
}
