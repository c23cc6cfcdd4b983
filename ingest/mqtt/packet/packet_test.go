package packet

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recode decodes a packet and encodes what came out.
func recode(first byte, body []byte, version byte) (out []byte, err error) {
	t, flags := Type(first>>4), first&15
	switch t {
	case CONNECT:
		var p Connect
		if err = p.Decode(flags, body); err == nil {
			out = p.Append(nil)
		}
	case CONNACK:
		var p Connack
		if err = p.Decode(flags, body, version); err == nil {
			out = p.Append(nil, version)
		}
	case PUBLISH:
		var p Publish
		if err = p.Decode(flags, body, version); err == nil {
			out = p.Append(nil, version)
		}
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		var p Ack
		if err = p.Decode(t, flags, body, version); err == nil {
			out = p.Append(nil, version)
		}
	case SUBSCRIBE, UNSUBSCRIBE:
		var p Subscribe
		if err = p.Decode(t, flags, body, version); err == nil {
			out = p.Append(nil, t, version)
		}
	case SUBACK, UNSUBACK:
		var p Suback
		if err = p.Decode(t, flags, body, version); err == nil {
			out = p.Append(nil, t, version)
		}
	case DISCONNECT, AUTH:
		var p End
		if err = p.Decode(t, flags, body, version); err == nil {
			out = p.Append(nil, t, version)
		}
	case PINGREQ, PINGRESP:
		if err = CheckEmpty(t, flags, body); err == nil {
			out = []byte{first, 0}
		}
	default:
		err = malformed("packet of type 0")
	}
	return out, err
}

func some[T any](v T) []T { return []T{v} }

// full has every property, of which each packet takes its own.
func full() Properties {
	return Properties{
		Has: 1<<properties - 1, PayloadFormat: 1, MessageExpiry: 60, ContentType: []byte("text/plain"), ResponseTopic: []byte("a/b"),
		CorrelationData: []byte{0, 1}, SubscriptionIDs: some(uint32(300)), SessionExpiry: 7, AssignedClientID: []byte("id"), ServerKeepAlive: 9,
		AuthMethod: []byte("m"), AuthData: []byte{1}, RequestProblemInfo: 1, WillDelay: 3, RequestResponseInfo: 1, ResponseInfo: []byte("r"),
		ServerReference: []byte("s"), ReasonString: []byte("why"), ReceiveMaximum: 20, TopicAliasMaximum: 5, TopicAlias: 2, MaximumQoS: 1,
		RetainAvailable: 1, User: []Pair{{[]byte("k"), []byte("v")}, {[]byte("k"), []byte("")}}, MaximumPacketSize: 1000, WildcardAvailable: 1,
		SubscriptionIDsAllowed: 1, SharedAvailable: 1,
	}
}

// samples are one packet of every type, with everything that it may have.
func samples(version byte) [][]byte {
	props := Properties{}
	if version == V5 {
		props = full()
	}
	with := func(s Set) Properties {
		p := props
		p.Has &= s
		return p
	}
	code := func(c byte) byte {
		if version == V5 {
			return c
		}
		return 0
	}
	connect := Connect{
		Version: version, Clean: true, KeepAlive: 60, ClientID: []byte("truck-17"), HasUser: true, User: []byte("u"), HasPassword: true,
		Password: []byte("p"), Properties: with(connectMay), HasWill: true,
		Will: Will{QoS: 1, Retain: true, Topic: []byte("will"), Payload: []byte("gone"), Properties: with(willMay)},
	}
	publish := Publish{QoS: 1, Dup: true, Retain: true, Topic: []byte("fleet/ü/telemetry"), ID: 7, Payload: []byte("payload"), Properties: with(publishMay)}
	small := Publish{Topic: []byte("t")}
	out := [][]byte{connect.Append(nil), publish.Append(nil, version), small.Append(nil, version)}
	ack := Connack{Present: true, Properties: with(connackMay)}
	out = append(out, ack.Append(nil, version))
	for _, t := range []Type{PUBACK, PUBREC, PUBREL, PUBCOMP} {
		a := Ack{Type: t, ID: 300, Properties: with(acksMay)}
		b := Ack{Type: t, ID: 300}
		if t == PUBACK {
			b.Code = code(PayloadFormatInvalid)
		}
		out = append(out, a.Append(nil, version), b.Append(nil, version))
	}
	sub := Subscribe{ID: 5, Properties: with(subscribeMay), Filters: []Filter{{Filter: []byte("a/+/#"), QoS: 2}, {Filter: []byte("b")}}}
	if version == V5 {
		sub.Filters[1].NoLocal, sub.Filters[1].RetainAsPublished, sub.Filters[1].RetainHandling = true, true, 2
	}
	unsub := Subscribe{ID: 6, Properties: with(unsubMay), Filters: []Filter{{Filter: []byte("a")}, {Filter: []byte("b")}}}
	suback := Suback{ID: 5, Properties: with(acksMay), Codes: []byte{0, 2, 0x80}}
	unsuback := Suback{ID: 5, Properties: with(acksMay)}
	if version == V5 {
		unsuback.Codes = []byte{0, 0x11}
	}
	end := End{Code: code(ServerShuttingDown), Properties: with(disconnectMay)}
	out = append(out, sub.Append(nil, SUBSCRIBE, version), unsub.Append(nil, UNSUBSCRIBE, version), suback.Append(nil, SUBACK, version),
		unsuback.Append(nil, UNSUBACK, version), []byte{0xC0, 0}, []byte{0xD0, 0}, end.Append(nil, DISCONNECT, version), []byte{0xE0, 0})
	if version == V5 {
		auth := End{Code: ContinueAuthentication, Properties: with(authMay)}
		out = append(out, auth.Append(nil, AUTH, version))
	}
	return out
}

func TestEveryPacketComesBackTheSame(t *testing.T) {
	for _, version := range []byte{V311, V5} {
		for _, p := range samples(version) {
			head, size, err := Frame(p, MaxSize)
			if err != nil || size != len(p) {
				t.Fatalf("%x: frame of %d, %v", p, size, err)
			}
			out, err := recode(p[0], p[head:], version)
			if err != nil {
				t.Errorf("version %d, %s %x: %v", version, Type(p[0]>>4), p, err)
			} else if diff := cmp.Diff(p, out); diff != "" {
				t.Errorf("version %d, %s (-want +got):\n%s", version, Type(p[0]>>4), diff)
			}
		}
	}
}

// Every byte of every packet is changed to what a liar would write there, and every packet is cut short everywhere: the outcome is an
// error or a packet that encodes, never a panic or bytes from beyond the end.
func TestLies(t *testing.T) {
	for _, version := range []byte{V311, V5} {
		for _, p := range samples(version) {
			head, _, _ := Frame(p, MaxSize)
			for n := range len(p) - head {
				if _, err := recode(p[0], p[head:head+n:head+n], version); err == nil && bytes.Equal(p[head:head+n], p[head:]) {
					t.Errorf("%x cut to %d bytes is good", p, n)
				}
			}
			for i := head; i < len(p); i++ {
				for _, lie := range []byte{0, 1, p[i] - 1, p[i] + 1, 0x7f, 0x80, 0xff} {
					q := bytes.Clone(p)
					q[i] = lie
					if out, err := recode(q[0], q[head:], version); err == nil {
						h, _, _ := Frame(out, MaxSize)
						if again, err := recode(out[0], out[h:], version); err != nil || !bytes.Equal(again, out) {
							t.Fatalf("%x encodes to %x and that to %x, %v", q, out, again, err)
						}
					}
				}
			}
		}
	}
}

func TestFrame(t *testing.T) {
	f := func(b []byte, head, size int, code byte) {
		t.Helper()
		h, n, err := Frame(b, 1000)
		got := byte(0)
		if e, ok := errors.AsType[*Error](err); ok {
			got = e.Code
		}
		if h != head || n != size || got != code {
			t.Errorf("%x: %d %d %v, want %d %d %x", b, h, n, err, head, size, code)
		}
	}
	f(nil, 0, 0, 0)
	f([]byte{0x30}, 0, 0, 0)
	f([]byte{0x30, 5}, 2, 7, 0)
	f([]byte{0x30, 0x80}, 0, 0, 0)
	f([]byte{0x30, 0x80, 1}, 3, 131, 0)
	f([]byte{0x30, 0x80, 0}, 0, 0, MalformedPacket)
	f([]byte{0x30, 0xff, 0xff, 0xff}, 0, 0, 0)
	f([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, 0, 0, PacketTooLarge)
	f([]byte{0x30, 0xff, 0xff, 0xff, 0x80}, 0, 0, MalformedPacket)
	f([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, 0, 0, MalformedPacket)
	f([]byte{0x30, 0xe8, 0x07}, 0, 0, PacketTooLarge)
}

// Packets byte by byte: what encoder and decoder agree on is what the specification says.
func TestBytes(t *testing.T) {
	f := func(statement string, got []byte, want string) {
		t.Helper()
		if diff := cmp.Diff(want, fmt.Sprintf("%x", got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", statement, diff)
		}
	}
	zero, one := Publish{Topic: []byte("a"), Payload: []byte("p"), ID: 7}, Publish{Topic: []byte("a"), Payload: []byte("p"), ID: 7, QoS: 1}
	f("MQTT-2.2.1-2, 3.3.2-1", zero.Append(nil, V311), "3004000161"+"70")
	f("MQTT-2.2.1-2, 2.2.2-1, 3.3.2-1", zero.Append(nil, V5), "3005000161"+"00"+"70")
	f("MQTT-2.2.2-1", one.Append(nil, V5), "3207000161"+"0007"+"00"+"70")
	f("MQTT-2.2.2-1", (&Connack{}).Append(nil, V5), "2003000000")
	f("MQTT-2.2.2-1", (&Suback{ID: 7, Codes: []byte{1}}).Append(nil, SUBACK, V5), "9004000700"+"01")
	connect := "\x00\x04MQTT\x05\xee\x00\x3c" + "\x05\x11\x00\x00\x00\x07" + "\x00\x02id" + "\x05\x18\x00\x00\x00\x03" + "\x00\x01t" + "\x00\x01w" + "\x00\x01u" + "\x00\x01p"
	var c Connect // MQTT-3.1.3-1, -3: client identifier, will properties, will topic, will payload, user name, password
	if err := c.Decode(0, []byte(connect)); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%v %s %d %d %s %s %d %v %s %s", c.Clean, c.ClientID, c.Properties.SessionExpiry, c.Will.Properties.WillDelay, c.Will.Topic, c.Will.Payload, c.Will.QoS, c.Will.Retain, c.User, c.Password)
	if want := "true id 7 3 t w 1 true u p"; got != want {
		t.Errorf("MQTT-3.1.3-1: %s, want %s", got, want)
	}
}

// What the specifications forbid, by the number of the statement in MQTT 5 (or 3.1.1).
func TestForbidden(t *testing.T) {
	f := func(statement string, version, first byte, body string, code byte) {
		t.Helper()
		_, err := recode(first, []byte(body), version)
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != code {
			t.Errorf("%s: %x %q: %v, want %#x", statement, first, body, err, code)
		}
	}
	connect5 := func(flags byte, rest string) string {
		return "\x00\x04MQTT\x05" + string(rune(flags)) + "\x00\x3c" + rest
	}
	connect4 := func(flags byte, rest string) string {
		return string(append([]byte("\x00\x04MQTT\x04"), flags)) + "\x00\x3c" + rest
	}
	f("1.5.4-1", V5, 0x30, "\x00\x01\xff\x00", MalformedPacket)
	f("1.5.4-1", V5, 0x30, "\x00\x03\xed\xa0\x80\x00", MalformedPacket) // a surrogate
	f("1.5.4-2", V5, 0x30, "\x00\x01\x00\x00", MalformedPacket)
	f("1.5.4-2", V5, 0x30, "\x00\x03\xc3\xbc\x00\x00", MalformedPacket)
	f("1.5.4-1", V5, 0x30, "\x00\x02\xc0\xaf\x00", MalformedPacket)         // longer than it need be
	f("1.5.4-1", V5, 0x30, "\x00\x04\xf4\x90\x80\x80\x00", MalformedPacket) // beyond Unicode
	f("1.5.5-1", V5, 0x30, "\x00\x01a\x80\x00", MalformedPacket)
	f("1.5.5-1", V5, 0x82, "\x00\x01\x03\x0b\x81\x00\x00\x01a\x00", MalformedPacket)
	f("1.5.7-1", V5, 0x30, "\x00\x01a\x07\x26\x00\x01\xff\x00\x01v", MalformedPacket)
	f("1.5.7-1", V5, 0x30, "\x00\x01a\x07\x26\x00\x01k\x00\x01\x00", MalformedPacket)
	f("2.1.3-1", V5, 0xC1, "", MalformedPacket)
	f("2.1.3-1", V5, 0x60, "\x00\x01", MalformedPacket)
	f("2.2.1-2", V5, 0x32, "\x00\x01a", MalformedPacket)
	f("2.2.1-3", V5, 0x32, "\x00\x01a\x00\x00\x00", ProtocolError)
	f("2.2.1-3", V5, 0xA2, "\x00\x00\x00\x00\x01a", ProtocolError)
	f("2.2.1-3", V311, 0x82, "\x00\x00\x00\x01a\x00", ProtocolError)
	f("2.2.2-1", V5, 0x30, "\x00\x01a", MalformedPacket)
	f("2.2.2.2", V5, 0x30, "\x00\x01a\x05\x11\x00\x00\x00\x01", MalformedPacket)
	f("2.2.2.2", V5, 0x30, "\x00\x01a\x02\x01\x02", ProtocolError)
	f("2.2.2.2", V5, 0x30, "\x00\x01a\x04\x01\x00\x01\x00", ProtocolError)
	f("3.1.2-1", V5, 0x10, "\x00\x04MQTX\x05\x02\x00\x3c\x00\x00\x00", MalformedPacket)
	f("3.1.2-2", V5, 0x10, "\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x00", UnsupportedVersion)
	f("3.1.2-2", V5, 0x10, "\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00", UnsupportedVersion)
	f("3.1.2-3", V5, 0x10, connect5(3, "\x00\x00\x00"), MalformedPacket)
	f("3.1.2-9", V5, 0x10, connect5(0x06, "\x00\x00\x00"), MalformedPacket)                     // no will
	f("3.1.2-9", V5, 0x10, connect5(0x06, "\x00\x00\x00\x00\x00\x01a"), MalformedPacket)        // no payload
	f("3.1.2-9", V5, 0x10, connect5(0x06, "\x00\x00\x00\x00\x00\x00\x00\x00"), MalformedPacket) // an empty topic
	f("3.1.2-11", V5, 0x10, connect5(0x0a, "\x00\x00\x00"), MalformedPacket)
	f("3.1.2-12", V5, 0x10, connect5(0x1e, "\x00\x00\x00\x00\x00\x01a\x00\x00"), MalformedPacket)
	f("3.1.2-13", V5, 0x10, connect5(0x22, "\x00\x00\x00"), MalformedPacket)
	f("3.1.2-22 of 3.1.1", V311, 0x10, connect4(0x42, "\x00\x00\x00\x00"), MalformedPacket)
	f("3.1.2-16", V5, 0x10, connect5(2, "\x00\x00\x00\x00\x01u"), MalformedPacket)
	f("3.1.2-17", V311, 0x10, connect4(0x82, "\x00\x00"), MalformedPacket)
	f("3.1.2-18", V311, 0x10, connect4(0x82, "\x00\x00\x00\x01u\x00\x01p"), MalformedPacket)
	f("3.1.2-19", V311, 0x10, connect4(0xc2, "\x00\x00\x00\x01u"), MalformedPacket)
	f("3.1.2.11.3", V5, 0x10, connect5(2, "\x03\x21\x00\x00\x00\x00"), ProtocolError)
	f("3.1.2.11.4", V5, 0x10, connect5(2, "\x05\x27\x00\x00\x00\x00\x00\x00"), ProtocolError)
	f("3.1.2.11.10", V5, 0x10, connect5(2, "\x04\x16\x00\x01a\x00\x00"), ProtocolError)
	f("3.1.3-1", V5, 0x10, connect5(2, "\x00\x00\x00x"), MalformedPacket)
	f("3.1.3-3", V5, 0x10, connect5(2, "\x00"), MalformedPacket)
	f("3.1.3-4", V5, 0x10, connect5(2, "\x00\x00\x01\xff"), MalformedPacket)
	f("3.1.3-11", V311, 0x10, connect4(6, "\x00\x00\x00\x01\x00\x00\x00"), MalformedPacket)
	f("3.1.3-12", V311, 0x10, connect4(0x82, "\x00\x00\x00\x01\xff"), MalformedPacket)
	f("3.2.2-1", V5, 0x20, "\x02\x00\x00", MalformedPacket)
	f("3.2.2-6", V5, 0x20, "\x01\x80\x00", ProtocolError)
	f("3.2.2-8", V5, 0x20, "\x00\x8b\x00", ProtocolError)
	f("3.2.2-8", V311, 0x20, "\x00\x06", ProtocolError)
	f("3.3.1-2", V5, 0x38, "\x00\x01a\x00", MalformedPacket)
	f("3.3.1-4", V5, 0x36, "\x00\x01a\x00\x01\x00", MalformedPacket)
	f("3.3.2-1", V311, 0x30, "\x00\x00", MalformedPacket)
	f("3.3.2-1", V5, 0x30, "\x00\x00\x00", ProtocolError)
	f("3.3.2-2", V5, 0x30, "\x00\x03a/+\x00", TopicNameInvalid)
	f("3.3.2-2", V311, 0x30, "\x00\x01#", TopicNameInvalid)
	f("3.3.2-8", V5, 0x30, "\x00\x01a\x03\x23\x00\x00", TopicAliasInvalid)
	f("3.3.2-13", V5, 0x30, "\x00\x01a\x04\x08\x00\x01\xff", MalformedPacket)
	f("3.3.2-19", V5, 0x30, "\x00\x01a\x04\x03\x00\x01\xff", MalformedPacket)
	f("3.3.2-14", V5, 0x30, "\x00\x01a\x05\x08\x00\x02a+", ProtocolError)
	f("3.4.2-1", V5, 0x40, "\x00\x01\x42", ProtocolError)
	f("3.5.2-1", V5, 0x50, "\x00\x01\x92", ProtocolError)
	f("3.6.2-1", V5, 0x62, "\x00\x01\x80", ProtocolError)
	f("3.7.2-1", V5, 0x70, "\x00\x01\x10", ProtocolError)
	f("3.6.1-1", V5, 0x60, "\x00\x01", MalformedPacket)
	f("3.8.1-1", V5, 0x80, "\x00\x01\x00\x00\x01a\x00", MalformedPacket)
	f("3.8.3-1", V5, 0x82, "\x00\x01\x00\x00\x01\xff\x00", MalformedPacket)
	f("3.8.3-2", V5, 0x82, "\x00\x01\x00", ProtocolError)
	f("3.8.3-5", V5, 0x82, "\x00\x01\x00\x00\x01a\x40", MalformedPacket)
	f("3.8.3-4 of 3.1.1", V311, 0x82, "\x00\x01\x00\x01a\x04", MalformedPacket)
	f("3.8.3.1", V5, 0x82, "\x00\x01\x00\x00\x01a\x03", MalformedPacket)
	f("3.8.3.1", V5, 0x82, "\x00\x01\x00\x00\x01a\x30", ProtocolError)
	f("3.8.2.1.2", V5, 0x82, "\x00\x01\x02\x0b\x00\x00\x01a\x00", ProtocolError)
	f("3.10.1-1", V5, 0xA0, "\x00\x01\x00\x00\x01a", MalformedPacket)
	f("3.9.3-2", V5, 0x90, "\x00\x01\x00\x03", ProtocolError)
	f("3.9.3-2", V311, 0x90, "\x00\x01\x8f", ProtocolError)
	f("3.11.3-2", V5, 0xB0, "\x00\x01\x00\x01", ProtocolError)
	f("3.10.1-1", V311, 0xA1, "\x00\x01\x00\x01a", MalformedPacket)
	f("3.10.3-1", V5, 0xA2, "\x00\x01\x00\x00\x01\xff", MalformedPacket)
	f("3.10.3-2", V5, 0xA2, "\x00\x01\x00", ProtocolError)
	f("3.12", V5, 0xC0, "x", MalformedPacket)
	f("3.14.1-1", V5, 0xE1, "", MalformedPacket)
	f("3.14.2-1", V5, 0xE0, "\x03", ProtocolError)
	f("3.14.2 of 3.1.1", V311, 0xE0, "\x00", MalformedPacket)
	f("3.15.1-1", V5, 0xF1, "", MalformedPacket)
	f("3.15.2-1", V5, 0xF0, "\x01", ProtocolError)
}

func FuzzPacket(f *testing.F) {
	for _, version := range []byte{V311, V5} {
		for _, p := range samples(version) {
			f.Add(p, version)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, version byte) {
		if version != V311 {
			version = V5
		}
		head, size, err := Frame(p, MaxSize)
		if err != nil || size == 0 || size > len(p) {
			return
		}
		out, err := recode(p[0], p[head:size:size], version)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("%x: %v has no reason code", p, err)
			}
			return
		}
		h, n, err := Frame(out, MaxSize)
		if err != nil || n != len(out) {
			t.Fatalf("%x encodes to %x: %d, %v", p, out, n, err)
		}
		again, err := recode(out[0], out[h:], version)
		if err != nil || !bytes.Equal(out, again) {
			t.Fatalf("%x encodes to %x and that to %x: %v", p, out, again, err)
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	for _, version := range []byte{V311, V5} {
		b.Run(fmt.Sprint("version=", version), func(b *testing.B) {
			in := Publish{QoS: 1, Topic: []byte("fleet/T100/telemetry"), ID: 5, Payload: []byte(strings.Repeat("x", 199))}
			raw := in.Append(nil, version)
			var p Publish
			p.Known = in.Topic
			b.ReportAllocs()
			for b.Loop() {
				head, size, err := Frame(raw, 1<<20)
				if err != nil {
					b.Fatal(err)
				}
				if err := p.Decode(raw[0]&15, raw[head:size], version); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
