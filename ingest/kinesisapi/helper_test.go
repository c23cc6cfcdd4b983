package kinesisapi

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/milepost/milepost/stream/seglog"
)

// Environment of a helper process: this test binary, serving a door on a real disk until it is killed.
const (
	helperDir    = "MILEPOST_KINESIS_HELPER_DIR"
	helperListen = "MILEPOST_KINESIS_HELPER_LISTEN"
	helperTLS    = "MILEPOST_KINESIS_HELPER_TLS" // an address that speaks TLS besides
)

// serveHelper is the helper process' whole life.
func serveHelper(dir string) error {
	store, err := seglog.Open(seglog.Config{Dir: dir + "/log"})
	if err != nil {
		return err
	}
	d, err := New(Config{Store: store, Dir: dir + "/kinesis"})
	if err != nil {
		return err
	}
	addr := os.Getenv(helperListen)
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, func() { _ = d.Close(context.Background()) })
	if addr := os.Getenv(helperTLS); addr != "" {
		secure, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		conf, err := selfSigned()
		if err != nil {
			return err
		}
		go func() { _ = d.Serve(secure, conf) }() // ends in Close
	}
	if _, err := fmt.Fprintf(os.Stdout, "listening on %s\n", ln.Addr()); err != nil {
		return err
	}
	if err := d.Serve(ln, nil); err != nil {
		return err
	}
	return store.Close()
}

// startHelper starts a helper process and returns it with its address. It is killed at the test's end.
func startHelper(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$") // killed by the test, not by its context
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("helper said %q: %v", line, err)
	}
	return cmd, "http://" + addr
}

// selfSigned is a TLS configuration with a certificate of its own.
func selfSigned() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, nil
}
