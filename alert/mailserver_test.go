package alert

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// selfSigned makes a certificate for 127.0.0.1 and writes it as PEM to ca.
func selfSigned(t *testing.T) (cert tls.Certificate, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, ca, der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, ca
}

func writePEM(t *testing.T, file string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A mailServer speaks enough SMTP to be lied to: STARTTLS if it has a certificate, AUTH PLAIN, and refusals by address.
type mailServer struct {
	ln       net.Listener
	cert     *tls.Certificate
	implicit *tls.Certificate // TLS from the first byte
	user     string           // "" takes mail without authentication

	mu    sync.Mutex // guards what follows
	mails []received
	codes map[string]string // answer to RCPT TO, by address
	wg    sync.WaitGroup
}

type received struct {
	to, data string
	secure   bool
	user     string
}

func startMail(t *testing.T, s *mailServer) *mailServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.ln, s.codes = ln, map[string]string{}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		s.wg.Wait()
	})
	return s
}

func (s *mailServer) port() int { return s.ln.Addr().(*net.TCPAddr).Port } //nolint:errcheck,forcetypeassert // it listens on TCP

func (s *mailServer) answer(rcpt, line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[rcpt] = line
}

func (s *mailServer) received() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

func (s *mailServer) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if s.implicit != nil {
		c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*s.implicit}, MinVersion: tls.VersionTLS12})
	}
	in := bufio.NewReader(c)
	say := func(l string) { _, _ = fmt.Fprintf(c, "%s\r\n", l) } // a client that is gone shows when the next line is read
	m := received{secure: s.implicit != nil}
	say("220 test ESMTP")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO", "HELO":
			say("250-test")
			if s.cert != nil && !m.secure {
				say("250-STARTTLS")
			}
			if s.user != "" && m.secure {
				say("250-AUTH PLAIN")
			}
			say("250 8BITMIME")
		case "STARTTLS":
			say("220 go ahead")
			tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*s.cert}, MinVersion: tls.VersionTLS12})
			if tc.Handshake() != nil {
				return
			}
			c, in, m.secure = tc, bufio.NewReader(tc), true
		case "AUTH":
			raw, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			if string(raw) != "\x00"+s.user+"\x00pass" {
				say("535 5.7.8 wrong")
				continue
			}
			m.user = s.user
			say("235 ok")
		case "MAIL":
			if s.user != "" && m.user == "" {
				say("530 authenticate first")
				continue
			}
			say("250 ok")
		case "RCPT":
			m.to = strings.Trim(strings.TrimPrefix(rest, "TO:"), "<>")
			s.mu.Lock()
			code := s.codes[m.to]
			s.mu.Unlock()
			if code == "" {
				code = "250 ok"
			}
			say(code)
		case "DATA":
			say("354 go")
			var b strings.Builder
			for {
				l, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if l == ".\r\n" {
					break
				}
				b.WriteString(strings.TrimPrefix(l, "."))
			}
			m.data = b.String()
			s.mu.Lock()
			s.mails = append(s.mails, m)
			s.mu.Unlock()
			say("250 queued")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}
