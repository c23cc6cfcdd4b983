package broker

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is read back is what was written, and bytes that nobody wrote are an error and no panic.
func FuzzStored(f *testing.F) {
	f.Add([]byte("topic"), []byte("payload"), []byte{1, 1}, int64(7), byte(0x16), uint32(3), "$share/g/topic")
	f.Fuzz(func(t *testing.T, topic, payload, properties []byte, deadline int64, flags byte, id uint32, share string) {
		_, _ = parseMessage(payload)
		_ = parseRecord(payload, new(client))
		_, _ = parseSub(nil, topic, payload)
		if flags&^0x3F != 0 || flags&3 == 3 || deadline < 0 {
			return
		}
		v := appendMessage(nil, topic, payload, properties, deadline, flags, []uint32{id}, share)
		e, err := parseMessage(v)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(e.m.topic, topic) || !bytes.Equal(e.m.payload, payload) || !bytes.Equal(e.m.properties, properties) ||
			e.m.deadline != deadline || e.ids[0] != id || e.share != share || messageFlags(e.qos, e.retain, e.m) != flags {
			t.Errorf("%q became %+v, %+v", v, e, e.m)
		}
		for i := range len(v) - len(payload) {
			if _, err := parseMessage(v[:i]); err == nil {
				t.Errorf("%q is cut short at %d and nobody noticed", v, i)
			}
		}
	})
}

func TestStoredSession(t *testing.T) {
	c := &client{
		id: "a", device: "truck-1", expiry: 9, left: time.Unix(77, 0), will: &Will{Delay: 5, Message: Message{
			Topic: []byte("t"), Payload: []byte("p"), Properties: []byte{1, 0}, QoS: 2, Retain: true, Expires: true, Expiry: 8,
		}},
	}
	v := appendRecord(nil, c)
	var got client
	if err := parseRecord(v, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.will, got.will); diff != "" || got.id != "a" || got.device != "truck-1" || got.expiry != 9 || !got.left.Equal(c.left) {
		t.Errorf("%+v\n%s", &got, diff)
	}
	for i := range v {
		if parseRecord(v[:i], new(client)) == nil {
			t.Errorf("cut short at %d and nobody noticed", i)
		}
	}
}
