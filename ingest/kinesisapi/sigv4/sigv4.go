// Package sigv4 verifies AWS Signature Version 4 on requests, in the header form and in the presigned query form.
//
// What a signature that verifies proves: the caller has the secret of the key it names, signed within MaxSkew of now (or within
// the presigned life), and neither the body, the path, the query, nor any header it lists was altered since; the host and
// X-Amz-Target are always among those. The hash of the body is computed here, never taken from the request, so that
// UNSIGNED-PAYLOAD and chunked signing are refused as mismatches. A request repeated unaltered within MaxSkew verifies again, as
// it does at AWS: two equal calls within a second are equal bytes, so a memory of signatures would refuse honest clients.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// MaxSkew is how far a signature's time may be from now.
const MaxSkew = 5 * time.Minute

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	timeFormat = "20060102T150405Z"
	maxLife    = 7 * 24 * time.Hour // of a presigned request
	maxSigned  = 64                 // headers a signature may list
)

// An Error is a refusal with AWS' name and words for it.
type Error struct {
	Type    string // "InvalidSignatureException"
	Message string
}

func (e *Error) Error() string { return e.Type + ": " + e.Message }

func refuse(typ, format string, args ...any) error {
	return &Error{typ, fmt.Sprintf(format, args...)}
}

// A Verifier knows the keys. It is safe for concurrent use.
type Verifier struct {
	service string
	keys    map[string]*key
	buffers sync.Pool
}

type key struct {
	secret  string
	derived atomic.Pointer[derived]
}

// derived is the signing key of the scope that the access key used last; most use one a day.
type derived struct {
	date, region string
	key          []byte
}

// New returns a verifier of requests to service, with each access key's secret by its ID.
func New(service string, secrets map[string]string) *Verifier {
	v := &Verifier{service: service, keys: make(map[string]*key, len(secrets))}
	for id, s := range secrets {
		v.keys[id] = &key{secret: s}
	}
	v.buffers.New = func() any { b := make([]byte, 0, 1024); return &b }
	return v
}

// claim is what a request says about its signature.
type claim struct {
	id, date, region string
	at               string // the time as it was signed
	signed           string // semicolon-separated header names
	signature        string
	query            url.Values
	presigned        bool
	life             time.Duration // of a presigned request
}

// Verify checks a request against its body and returns the ID of the key that signed it. A refusal is an *Error.
func (v *Verifier) Verify(r *http.Request, body []byte, now time.Time) (id string, err error) {
	c, err := v.parse(r)
	if err != nil {
		return "", err
	}
	k := v.keys[c.id]
	if k == nil {
		return "", refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if err := c.timely(now); err != nil {
		return "", err
	}
	buf, _ := v.buffers.Get().(*[]byte)
	defer v.buffers.Put(buf)
	b, err := c.canonical((*buf)[:0], r, body)
	if err != nil {
		return "", err
	}
	*buf = b
	sum := sha256.Sum256(b)
	b = append(b[:0], algorithm...)
	b = append(b, '\n')
	b = append(b, c.at...)
	b = append(b, '\n')
	b = append(b, c.date...)
	b = append(b, '/')
	b = append(b, c.region...)
	b = append(b, '/')
	b = append(b, v.service...)
	b = append(b, "/"+terminator+"\n"...)
	b = hex.AppendEncode(b, sum[:])
	*buf = b
	mac := hmac.New(sha256.New, k.signingKey(c.date, c.region, v.service))
	mac.Write(b)
	var got [sha256.Size]byte
	if len(c.signature) != 2*len(got) {
		return "", mismatch()
	}
	if _, err := hex.Decode(got[:], []byte(c.signature)); err != nil {
		return "", mismatch()
	}
	var want [sha256.Size]byte
	if !hmac.Equal(got[:], mac.Sum(want[:0])) {
		return "", mismatch()
	}
	return c.id, nil
}

func mismatch() error {
	return refuse("InvalidSignatureException", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
}

func (k *key) signingKey(date, region, service string) []byte {
	if d := k.derived.Load(); d != nil && d.date == date && d.region == region {
		return d.key
	}
	step := func(key []byte, data string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(data))
		return m.Sum(nil)
	}
	d := &derived{strings.Clone(date), strings.Clone(region), nil}
	d.key = step(step(step(step([]byte("AWS4"+k.secret), date), region), service), terminator)
	k.derived.Store(d)
	return d.key
}

func (v *Verifier) parse(r *http.Request) (*claim, error) {
	auth := r.Header.Get("Authorization")
	var query url.Values
	if r.URL.RawQuery != "" {
		var err error
		if query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return nil, refuse("IncompleteSignatureException", "The query string cannot be read.")
		}
	}
	inQuery := query.Has("X-Amz-Algorithm") || query.Has("X-Amz-Signature")
	switch {
	case auth != "" && inQuery:
		return nil, refuse("InvalidSignatureException", "Found both 'X-Amz-Algorithm' as a query-string param and 'Authorization' as HTTP header.")
	case auth == "" && !inQuery:
		return nil, refuse("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	c := &claim{query: query, presigned: inQuery}
	var credential string
	var err error
	if inQuery {
		credential, err = c.fromQuery()
	} else {
		credential, err = c.fromHeader(r, auth)
	}
	if err != nil {
		return nil, err
	}
	var parts [5]string
	n := 0
	for p := range strings.SplitSeq(credential, "/") {
		if n < len(parts) {
			parts[n] = p
		}
		n++
	}
	if n != len(parts) || parts[0] == "" {
		return nil, refuse("IncompleteSignatureException", "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '%s'", clip(credential))
	}
	c.id, c.date, c.region = parts[0], parts[1], parts[2]
	if parts[3] != v.service {
		return nil, refuse("InvalidSignatureException", "Credential should be scoped to correct service: '%s'. ", v.service)
	}
	if parts[4] != terminator {
		return nil, refuse("InvalidSignatureException", "Credential should be scoped with a valid terminator: '%s', not '%s'.", terminator, clip(parts[4]))
	}
	return c, c.covers(r)
}

func clip(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "..."
	}
	return s
}

func (c *claim) fromQuery() (credential string, err error) {
	var msg strings.Builder
	for _, p := range []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date"} {
		if c.query.Get(p) == "" {
			msg.WriteString("AWS query-string parameters must include '" + p + "'. ")
		}
		if len(c.query[p]) > 1 {
			return "", refuse("InvalidSignatureException", "Query-string parameter '%s' must not be repeated.", p)
		}
	}
	if msg.Len() > 0 {
		return "", refuse("IncompleteSignatureException", "%sRe-examine the query-string parameters.", msg.String())
	}
	if a := c.query.Get("X-Amz-Algorithm"); a != algorithm {
		return "", refuse("IncompleteSignatureException", "Unsupported AWS 'algorithm': '%s'.", clip(a))
	}
	c.at, c.signed, c.signature = c.query.Get("X-Amz-Date"), c.query.Get("X-Amz-SignedHeaders"), c.query.Get("X-Amz-Signature")
	if e := c.query.Get("X-Amz-Expires"); e != "" {
		n, err := strconv.Atoi(e)
		if err != nil || n < 0 || time.Duration(n)*time.Second > maxLife {
			return "", refuse("InvalidSignatureException", "X-Amz-Expires must be between 0 and %d seconds.", int(maxLife.Seconds()))
		}
		c.life = time.Duration(n) * time.Second
	}
	return c.query.Get("X-Amz-Credential"), nil
}

func (c *claim) fromHeader(r *http.Request, auth string) (credential string, err error) {
	scheme, rest, _ := strings.Cut(auth, " ")
	if scheme != algorithm {
		return "", refuse("IncompleteSignatureException", "Unsupported AWS 'algorithm': '%s'.", clip(scheme))
	}
	for p := range strings.FieldsFuncSeq(rest, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, value, _ := strings.Cut(p, "=")
		switch name {
		case "Credential":
			credential = value
		case "Signature":
			c.signature = value
		case "SignedHeaders":
			c.signed = value
		}
	}
	c.at = r.Header.Get("X-Amz-Date")
	date := r.Header.Get("Date")
	msg := ""
	if credential == "" {
		msg += "Authorization header requires 'Credential' parameter. "
	}
	if c.signature == "" {
		msg += "Authorization header requires 'Signature' parameter. "
	}
	if c.signed == "" {
		msg += "Authorization header requires 'SignedHeaders' parameter. "
	}
	if c.at == "" && date == "" {
		msg += "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. "
	}
	if msg != "" {
		return "", refuse("IncompleteSignatureException", "%sAuthorization=%s", msg, clip(auth))
	}
	if c.at == "" {
		t, err := http.ParseTime(date)
		if err != nil {
			return "", refuse("IncompleteSignatureException", "Date must be in a form that RFC 7231 knows, got '%s'", clip(date))
		}
		c.at = t.UTC().Format(timeFormat)
	}
	return credential, nil
}

// covers makes sure that what decides over the request's meaning is signed.
func (c *claim) covers(r *http.Request) error {
	var host, target, date bool
	n := 0
	for h := range strings.SplitSeq(c.signed, ";") {
		switch n++; h {
		case "host", ":authority":
			host = true
		case "x-amz-target":
			target = true
		case "x-amz-date", "date":
			date = true
		}
	}
	switch {
	case n > maxSigned:
		return refuse("InvalidSignatureException", "SignedHeaders lists more than %d headers.", maxSigned)
	case !host:
		return refuse("InvalidSignatureException", "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	case !target && r.Header.Get("X-Amz-Target") != "":
		return refuse("InvalidSignatureException", "'X-Amz-Target' must be a 'SignedHeader' in the AWS Authorization.")
	case !date && !c.presigned && r.Header.Get("X-Amz-Date") != "":
		return refuse("InvalidSignatureException", "'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

func (c *claim) timely(now time.Time) error {
	at, err := time.Parse(timeFormat, c.at)
	if err != nil {
		return refuse("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'. Got '%s'. See http://en.wikipedia.org/wiki/ISO_8601", clip(c.at))
	}
	if c.date != c.at[:8] {
		return refuse("InvalidSignatureException", "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.", clip(c.date), c.at[:8], c.at)
	}
	now = now.UTC()
	if at.After(now.Add(MaxSkew)) {
		return refuse("InvalidSignatureException", "Signature not yet current: %s is still later than %s (%s + 5 min.)", c.at, now.Add(MaxSkew).Format(timeFormat), now.Format(timeFormat))
	}
	life := MaxSkew
	if c.presigned && c.life > 0 {
		life = c.life
	}
	if now.After(at.Add(life)) {
		return refuse("InvalidSignatureException", "Signature expired: %s is now earlier than %s (%s - %d min.)", c.at, now.Add(-life).Format(timeFormat), now.Format(timeFormat), int(life.Minutes()))
	}
	return nil
}

var errHeader = errors.New("signed header is not in the request")

// canonical appends the canonical request.
func (c *claim) canonical(b []byte, r *http.Request, body []byte) ([]byte, error) {
	b = append(b, r.Method...)
	b = append(b, '\n')
	// Every service but S3 encodes the path once more than it is on the wire.
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	b = escape(b, path, true)
	b = append(b, '\n')
	b = c.canonicalQuery(b)
	b = append(b, '\n')
	prev := ""
	for h := range strings.SplitSeq(c.signed, ";") {
		if h <= prev || h != strings.ToLower(h) {
			return b, refuse("InvalidSignatureException", "SignedHeaders must be lower case, sorted and unique.")
		}
		prev = h
		b = append(b, h...)
		b = append(b, ':')
		var err error
		if b, err = appendHeader(b, r, h); err != nil {
			return b, mismatch()
		}
		b = append(b, '\n')
	}
	b = append(b, '\n')
	b = append(b, c.signed...)
	b = append(b, '\n')
	sum := sha256.Sum256(body)
	return hex.AppendEncode(b, sum[:]), nil
}

func appendHeader(b []byte, r *http.Request, name string) ([]byte, error) {
	switch name {
	case "host", ":authority":
		return append(b, r.Host...), nil
	case "content-length":
		if r.Header.Get("Content-Length") == "" {
			return strconv.AppendInt(b, r.ContentLength, 10), nil
		}
	case "transfer-encoding":
		return append(b, strings.Join(r.TransferEncoding, ",")...), nil
	}
	values := r.Header.Values(name)
	if len(values) == 0 {
		return b, errHeader
	}
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendTrimmed(b, v)
	}
	return b, nil
}

// appendTrimmed appends s without outer spaces and with each inner run of them as one.
func appendTrimmed(b []byte, s string) []byte {
	s = strings.TrimSpace(s)
	space := false
	for i := range len(s) {
		if s[i] == ' ' || s[i] == '\t' {
			space = true
			continue
		}
		if space {
			b = append(b, ' ')
			space = false
		}
		b = append(b, s[i])
	}
	return b
}

func (c *claim) canonicalQuery(b []byte) []byte {
	if len(c.query) == 0 {
		return b
	}
	pairs := make([]string, 0, len(c.query))
	for name, values := range c.query {
		if name == "X-Amz-Signature" {
			continue
		}
		for _, v := range values {
			p := append(escape(nil, name, false), '=')
			pairs = append(pairs, string(escape(p, v, false)))
		}
	}
	slices.Sort(pairs)
	return append(b, strings.Join(pairs, "&")...)
}

// escape percent-encodes all but the unreserved characters.
func escape(b []byte, s string, slash bool) []byte {
	const upper = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~' || (slash && c == '/') {
			b = append(b, c)
			continue
		}
		b = append(b, '%', upper[c>>4], upper[c&15])
	}
	return b
}
