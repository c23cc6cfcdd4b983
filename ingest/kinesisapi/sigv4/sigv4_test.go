package sigv4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	id     = "AKIDEXAMPLE"
	secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

var now = time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC)

func verifier() *Verifier { return New("kinesis", map[string]string{id: secret, "other": "s"}) }

// request is a request as AWS' own signer signs it.
func request(t testing.TB, body string, edit func(*http.Request)) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://localhost:4567/a%20b/%C3%A9?z=1&a=b%20c&a=B", strings.NewReader(body))
	r.Header.Set("X-Amz-Target", "Kinesis_20131202.PutRecord")
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Meta", "  two   spaces ")
	if edit != nil {
		edit(r)
	}
	if err := signer.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, r, hash(body), "kinesis", "us-east-1", now); err != nil {
		t.Fatal(err)
	}
	return r
}

func hash(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

func presigned(t testing.TB, body string, expires string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://localhost:4567/?X-Amz-Expires="+expires, strings.NewReader(body))
	r.Header.Set("X-Amz-Target", "Kinesis_20131202.ListStreams")
	u, header, err := signer.NewSigner().PresignHTTP(context.Background(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, r, hash(body), "kinesis", "eu-west-1", now)
	if err != nil {
		t.Fatal(err)
	}
	p := httptest.NewRequest(http.MethodPost, u, strings.NewReader(body))
	for k, v := range header {
		if k != "Host" {
			p.Header[k] = v
		}
	}
	// The signer moves x-amz headers into the query; what is in neither is not signed.
	return p
}

func TestVerify(t *testing.T) {
	v := verifier()
	for _, at := range []time.Duration{0, MaxSkew, -MaxSkew} {
		if got, err := v.Verify(request(t, "body", nil), []byte("body"), now.Add(at)); got != id || err != nil {
			t.Errorf("%v from the signature: got %q %v", at, got, err)
		}
	}
	if got, err := v.Verify(request(t, "", func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "t") }), nil, now); got != id || err != nil {
		t.Errorf("with a session token: got %q %v", got, err)
	}
}

func TestVerifyPresigned(t *testing.T) {
	v := verifier()
	r := presigned(t, "body", "600")
	r.Header.Del("X-Amz-Target") // it is in the query, signed
	if got, err := v.Verify(r, []byte("body"), now.Add(9*time.Minute)); got != id || err != nil {
		t.Errorf("got %q %v", got, err)
	}
	refused(t, v, r, "body", now.Add(11*time.Minute), "InvalidSignatureException", "Signature expired")
	refused(t, v, r, "bodY", now, "InvalidSignatureException", "does not match")
	r.Header.Set("X-Amz-Target", "Kinesis_20131202.DeleteStream")
	refused(t, v, r, "body", now, "InvalidSignatureException", "'X-Amz-Target' must be")
}

func refused(t testing.TB, v *Verifier, r *http.Request, body string, at time.Time, typ, words string) {
	t.Helper()
	_, err := v.Verify(r, []byte(body), at)
	var e *Error
	if !errors.As(err, &e) || e.Type != typ || !strings.Contains(e.Message, words) {
		t.Errorf("got %v\nwant %s …%s…", err, typ, words)
	}
}

func TestRefusals(t *testing.T) {
	v := verifier()
	const invalid, incomplete = "InvalidSignatureException", "IncompleteSignatureException"
	edited := func(edit func(*http.Request)) *http.Request {
		r := request(t, "body", nil)
		edit(r)
		return r
	}
	replace := func(old, by string) *http.Request {
		return edited(func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, by, 1))
		})
	}
	refused(t, v, request(t, "body", nil), "altered", now, invalid, "does not match")
	refused(t, v, request(t, "body", nil), "body", now.Add(MaxSkew+time.Second), invalid, "Signature expired: 20261121T050000Z is now earlier than 20261121T050001Z (20261121T050501Z - 5 min.)")
	refused(t, v, request(t, "body", nil), "body", now.Add(-MaxSkew-time.Second), invalid, "Signature not yet current")
	refused(t, v, edited(func(r *http.Request) { r.Header.Set("X-Amz-Target", "Kinesis_20131202.DeleteStream") }), "body", now, invalid, "does not match")
	refused(t, v, edited(func(r *http.Request) { r.Host = "elsewhere" }), "body", now, invalid, "does not match")
	refused(t, v, edited(func(r *http.Request) { r.URL.RawQuery += "&b=1" }), "body", now, invalid, "does not match")
	refused(t, v, edited(func(r *http.Request) { r.URL.Path = "/other" }), "body", now, invalid, "does not match")
	refused(t, v, edited(func(r *http.Request) { r.Method = http.MethodPut }), "body", now, invalid, "does not match")
	refused(t, v, edited(func(r *http.Request) { r.Header.Del("Authorization") }), "body", now, "MissingAuthenticationTokenException", "Missing Authentication Token")
	refused(t, v, edited(func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Algorithm=x" }), "body", now, invalid, "Found both")
	refused(t, v, edited(func(r *http.Request) { r.Header.Del("X-Amz-Date") }), "body", now, incomplete, "'X-Amz-Date' or a 'Date'")
	refused(t, v, replace(id, "nobody"), "body", now, "UnrecognizedClientException", "security token")
	refused(t, v, replace(id, "other"), "body", now, invalid, "does not match")
	refused(t, v, replace("/kinesis/", "/s3/"), "body", now, invalid, "correct service: 'kinesis'")
	refused(t, v, replace("/aws4_request", "/aws4"), "body", now, invalid, "terminator")
	refused(t, v, replace("/20261121/", "/20261120/"), "body", now, invalid, "Date in Credential scope")
	refused(t, v, replace("Signature=", "Signature=00"), "body", now, invalid, "does not match")
	refused(t, v, replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "body", now, incomplete, "Unsupported AWS 'algorithm'")
	refused(t, v, replace("SignedHeaders=", "X="), "body", now, incomplete, "'SignedHeaders' parameter")
	refused(t, v, replace("x-amz-target", "x-amz-zzz"), "body", now, invalid, "'X-Amz-Target' must be")
	refused(t, v, replace("host", "hosts"), "body", now, invalid, "'Host' or ':authority' must be")
	unsigned := request(t, "body", func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") })
	if _, err := v.Verify(unsigned, []byte("body"), now); err != nil {
		t.Errorf("a header that says unsigned over a body that is signed: %v", err)
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("body"))
	if err := signer.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, r, "UNSIGNED-PAYLOAD", "kinesis", "us-east-1", now); err != nil {
		t.Fatal(err)
	}
	refused(t, v, r, "body", now, invalid, "does not match")
}

func FuzzVerify(f *testing.F) {
	r := request(f, "body", nil)
	f.Add(r.Header.Get("Authorization"), r.Header.Get("X-Amz-Date"), r.URL.RawQuery, []byte("body"))
	f.Add("", "", presigned(f, "", "60").URL.RawQuery, []byte(""))
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/kinesis/aws4_request,SignedHeaders=host;,Signature=", "2026", "X-Amz-Date=1&X-Amz-Date=2", []byte("x"))
	f.Fuzz(func(t *testing.T, auth, date, query string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.URL.RawQuery = query
		r.Header.Set("Authorization", auth)
		r.Header.Set("X-Amz-Date", date)
		// A verifier whose secret nobody has: whatever verifies is a hole.
		got, err := New("kinesis", map[string]string{id: fmt.Sprintf("%p", t)}).Verify(r, body, now)
		var e *Error
		if err == nil || !errors.As(err, &e) || got != "" {
			t.Errorf("got %q %v", got, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	body := strings.Repeat("x", 300)
	r := request(b, body, nil)
	v := verifier()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(r, []byte(body), now); err != nil {
			b.Fatal(err)
		}
	}
}
