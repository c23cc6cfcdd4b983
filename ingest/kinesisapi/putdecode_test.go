package kinesisapi

import (
	"bytes"
	"encoding/base64"
	"testing"

	"github.com/milepost/milepost/ingest/kinesisapi/wire"
)

// FuzzPut holds the fast path against the careful one: whatever the fast one takes, the careful one takes for the same.
func FuzzPut(f *testing.F) {
	f.Add([]byte(`{"Records":[{"Data":"AAECAw==","PartitionKey":"k","ExplicitHashKey":"12"},{"PartitionKey":"é","Data":""}],"StreamName":"s"}`), true, false)
	f.Add([]byte(`{"StreamARN":"arn:aws:kinesis:us-east-1:000000000000:stream/s","Data":"AAEC","PartitionKey":"k"}`), false, false)
	f.Add([]byte(`{"Records":[{"Data":"AAEC","PartitionKey":"k","Data":"AAED"}],"StreamName":"s"}`), true, false)
	f.Add(putRecordsCBOR(2, 10), true, true)
	f.Fuzz(func(t *testing.T, body []byte, many, cbor bool) {
		var fast, careful putRequest
		fast.reset()
		careful.reset()
		c := &call{body: body}
		taken := false
		if cbor {
			c.enc = wire.CBOR
			taken = fast.decodePutCBOR(body, many)
		} else {
			taken = fast.decodePutJSON(body, many)
		}
		var err error
		if many {
			err = careful.decodeMany(c)
		} else {
			err = careful.decodeOne(c)
		}
		if !taken || !validName(fast.name) {
			return
		}
		if fast.arn != "" {
			if _, _, _, ok := (&Door{cfg: Config{Region: "us-east-1", Account: "000000000000"}}).parseARN(fast.arn); !ok {
				return // such an ARN is refused later, in other words
			}
		}
		if err != nil {
			t.Fatalf("%q: the careful path says %v", body, err)
		}
		if fast.name != careful.name || fast.arn != careful.arn || len(fast.recs) != len(careful.recs) {
			t.Fatalf("%q: got %q %q %d records, want %q %q %d", body, fast.name, fast.arn, len(fast.recs), careful.name, careful.arn, len(careful.recs))
		}
		for i := range fast.recs {
			a, b := fast.recs[i], careful.recs[i]
			if a.Key != b.Key || !bytes.Equal(a.Data, b.Data) || (a.Hash == nil) != (b.Hash == nil) || (a.Hash != nil && *a.Hash != *b.Hash) {
				t.Errorf("%q: record %d: got %+v, want %+v", body, i, a, b)
			}
		}
	})
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("AAECAwQFBgcICQ=="))
	f.Add([]byte("AA==AAAA"))
	f.Add([]byte("AB=="))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text)%4 != 0 {
			return
		}
		got, ok := appendBase64(make([]byte, 0, len(text)), text)
		want, err := base64.StdEncoding.Strict().DecodeString(string(text))
		if bytes.ContainsAny(text, "\r\n") { // the library passes over line ends
			err = base64.CorruptInputError(0)
		}
		if ok != (err == nil) || (ok && !bytes.Equal(got, want)) {
			t.Errorf("%q: got %x %v, want %x %v", text, got, ok, want, err)
		}
	})
}
