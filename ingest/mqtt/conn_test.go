package mqtt

import (
	"encoding/binary"
	"testing"
)

// sizes returns the remaining lengths of the packets in b as the standard library's varint reader finds them, and how many
// bytes the last one lacks; false if a length is malformed.
func sizes(b []byte) (all []int, lacking int, ok bool) {
	for len(b) > 1 {
		b = b[1:]
		n, used := binary.Uvarint(b[:min(len(b), 5)])
		if used == 0 && len(b) < 5 {
			return all, 0, true // the header is not whole
		}
		if used <= 0 || used > 4 {
			return all, 0, false
		}
		all = append(all, int(n)) //nolint:gosec // 28 bits
		b = b[used:]
		if int(n) > len(b) { //nolint:gosec // 28 bits
			return all, int(n) - len(b), true //nolint:gosec // 28 bits
		}
		b = b[n:]
	}
	return all, 0, true
}

// However the bytes are cut into reads, the scanner finds the same packets, and where the stream stands.
func FuzzPacketScanner(f *testing.F) {
	f.Add([]byte{0xC0, 0, 0x30, 3, 'a', 'b', 'c'}, uint8(1))
	f.Add([]byte{0x30, 0x80, 0x01, 'x'}, uint8(2))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, uint8(3))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x01}, uint8(4))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		all, lacking, ok := sizes(b)
		if !ok {
			return // the library ends such a connection
		}
		largest := 0
		for _, n := range all {
			largest = max(largest, n)
		}
		var s packetScanner
		got := 0
		for rest := b; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			s.scan(rest[:n])
			got = max(got, s.largest)
			rest = rest[n:]
		}
		if s.rest != lacking || got != largest {
			t.Errorf("%x in steps of %d: %d bytes lacking and largest %d, want %d and %d", b, step+1, s.rest, got, lacking, largest)
		}
		var whole packetScanner
		if size := whole.scan(b); (size > 0) != (lacking > 0) || (size > 0 && size != all[len(all)-1]) {
			t.Errorf("%x: unfinished packet of %d, want %v lacking %d", b, size, all, lacking)
		}
		if whole.between() && lacking > 0 {
			t.Errorf("%x: between packets, but %d bytes are lacking", b, lacking)
		}
	})
}

func TestPatterns(t *testing.T) {
	f := func(pattern, topic, vehicle string, ok bool) {
		t.Helper()
		p, err := parsePattern(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if gotVehicle, got := p.match(topic); got != ok || gotVehicle != vehicle {
			t.Errorf("%s of %s: %q %v, want %q %v", topic, pattern, gotVehicle, got, vehicle, ok)
		}
	}
	f("fleet/{vehicle}/telemetry", "fleet/T1/telemetry", "T1", true)
	f("fleet/{vehicle}/telemetry", "fleet//telemetry", "", false)
	f("fleet/{vehicle}/telemetry", "fleet/T1", "", false)
	f("fleet/{vehicle}/telemetry", "fleet/T1/telemetry/", "", false)
	f("fleet/{vehicle}/telemetry", "/fleet/T1/telemetry", "", false)
	f("fleet/{vehicle}/telemetry", "", "", false)
	f("{vehicle}", "T1", "T1", true)
	f("a/+/{vehicle}", "a/x/T1", "T1", true)
	f("a/+/{vehicle}", "a//T1", "T1", true)
	f("in", "in", "", true)
	f("in", "out", "", false)
}

func BenchmarkMatch(b *testing.B) {
	ps, err := parsePatterns([]string{"other/{vehicle}", DefaultTopic})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := ps.match("fleet/T100/telemetry"); !ok {
			b.Fatal("no match")
		}
	}
}
