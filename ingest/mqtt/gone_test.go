package mqtt

import (
	"net"
	"testing"
	"time"
)

// That a client has gone is seen behind what it sent before: its ClientHello lies there unread, and must not be worked on.
func TestGone(t *testing.T) {
	if tcpInfo == 0 {
		t.Skip("only Linux tells that a client has gone before all it sent was read")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	h, ok := newHelloConn(nc).(*helloConn)
	if !ok {
		t.Fatal("TCP is not looked at")
	}
	if there, err := h.peek(false); there || err != nil {
		t.Errorf("before anything came: there %v, %v", there, err)
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if there, err := h.peek(true); !there || err != nil {
		t.Errorf("after something came: there %v, %v", there, err)
	}
	if h.gone() {
		t.Error("a client that is there has gone")
	}
	_ = client.Close()
	for until := time.Now().Add(10 * time.Second); !h.gone(); {
		if time.Now().After(until) {
			t.Fatal("a client that has gone is there")
		}
	}
	b := make([]byte, 10)
	if n, err := h.Read(b); string(b[:n]) != "hello" || err != nil { // looking has taken nothing away
		t.Errorf("read %q, %v", b[:n], err)
	}
	if there, err := h.peek(true); there || err == nil {
		t.Errorf("at the end: there %v, %v", there, err)
	}
}
