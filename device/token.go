package device

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/state"
)

// ErrToken is a token that cannot be used. The text behind it says why to who holds the token.
var ErrToken = errors.New("the token is not valid")

const (
	tokenMark  = "mpt_" // so that people and scanners for secrets recognise one
	tokenBytes = 20
	// MaxTokenLife is the longest that a token can be used.
	MaxTokenLife = 366 * 24 * time.Hour
	maxTokenUses = 1_000_000
)

// A Token lets devices enrol by themselves: one device by its id, or as a claim token any new one whose id begins with a prefix.
type Token struct {
	ID      string    `json:"id"` // the first 12 digits of Hash; what people name it by
	Hash    string    `json:"hash"`
	Device  string    `json:"device,omitempty"` // the only device; empty: a claim token
	Prefix  string    `json:"prefix,omitempty"` // of the ids that a claim token may enrol
	Vehicle string    `json:"vehicle,omitempty"`
	Policy  string    `json:"policy"`
	Uses    int       `json:"uses"` // left
	Used    int       `json:"used"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

// TokenRequest is what a new token may be used for.
type TokenRequest struct {
	Device  string        // for one device; empty: a claim token
	Vehicle string        // of that device; default: its id
	Prefix  string        // of the ids that a claim token may enrol
	Policy  string        // default: own
	Uses    int           // of a claim token. Default 1
	Life    time.Duration // default 24 h
}

func tokenHash(secret string) string {
	h := sha256.Sum256([]byte(secret)) // 160 random bits need no salt and no slow hash
	return hex.EncodeToString(h[:])
}

// CreateToken makes a token. The secret is not kept: this is the only time it is seen.
func (r *Registry) CreateToken(ctx context.Context, q TokenRequest, now time.Time) (secret string, t Token, err error) {
	if q.Life == 0 {
		q.Life = 24 * time.Hour
	}
	if q.Uses == 0 {
		q.Uses = 1
	}
	e := Enrolment{ID: q.Device, Vehicle: q.Vehicle, Policy: q.Policy}
	switch {
	case q.Life < 0 || q.Life > MaxTokenLife:
		return "", t, fmt.Errorf("%w: a token lasts from now to 366 days, not %s", ErrInvalid, q.Life)
	case q.Uses < 0 || q.Uses > maxTokenUses:
		return "", t, fmt.Errorf("%w: a token has 1 to %d uses, not %d", ErrInvalid, maxTokenUses, q.Uses)
	case q.Device != "" && (q.Prefix != "" || q.Uses != 1):
		return "", t, fmt.Errorf("%w: a token for one device is used once; for several leave the device out and give a prefix", ErrInvalid)
	case q.Device == "" && q.Vehicle != "":
		return "", t, fmt.Errorf("%w: a claim token cannot name a vehicle: each device reports for the one with its own id", ErrInvalid)
	case q.Device == "":
		e.ID = q.Prefix + "x"
	}
	if err := e.check(r.policies); err != nil {
		return "", t, err
	}
	var b [tokenBytes]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", t, err
	}
	secret = tokenMark + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
	hash := tokenHash(secret)
	t = Token{
		ID: hash[:12], Hash: hash, Device: q.Device, Prefix: q.Prefix, Vehicle: q.Vehicle, Policy: e.Policy, Uses: q.Uses,
		Created: now.UTC(), Expires: now.Add(q.Life).UTC(),
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	return secret, t, r.store.Update(ctx, func(tx state.Tx) error { return saveToken(tx, &t) })
}

func saveToken(tx state.Tx, t *Token) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return tx.Set([]byte(tokenPrefix+t.Hash), b)
}

func scanTokens(r state.Reader, f func(Token) error) error {
	return r.Scan([]byte(tokenPrefix), state.PrefixEnd([]byte(tokenPrefix)), func(k, b []byte) error {
		var t Token
		if err := json.Unmarshal(b, &t); err != nil {
			return fmt.Errorf("stored token %s: %w", k[len(tokenPrefix):], err)
		}
		return f(t)
	})
}

// Tokens returns the tokens, oldest first; used-up ones too until they end.
func (r *Registry) Tokens(ctx context.Context) ([]Token, error) {
	out := []Token{}
	err := r.store.View(ctx, func(v state.Reader) error {
		return scanTokens(v, func(t Token) error {
			out = append(out, t)
			return nil
		})
	})
	slices.SortFunc(out, func(a, b Token) int { return a.Created.Compare(b.Created) })
	return out, err
}

// DropToken makes a token void.
func (r *Registry) DropToken(ctx context.Context, id string) error {
	n := 0
	err := r.dropTokens(ctx, func(t Token) bool {
		if t.ID == id || t.Hash == id {
			n++
			return true
		}
		return false
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: token %s", ErrNotFound, id)
	}
	return err
}

// expireTokens removes those that have ended.
func (r *Registry) expireTokens(ctx context.Context, now time.Time) error {
	return r.dropTokens(ctx, func(t Token) bool { return now.After(t.Expires) })
}

func (r *Registry) dropTokens(ctx context.Context, which func(Token) bool) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.store.Update(ctx, func(tx state.Tx) error { return deleteTokens(tx, which) })
}

// voidTokens removes the tokens of a device.
func voidTokens(tx state.Tx, device string) error {
	return deleteTokens(tx, func(t Token) bool { return t.Device == device })
}

func deleteTokens(tx state.Tx, which func(Token) bool) error {
	var gone []string
	err := scanTokens(tx, func(t Token) error {
		if which(t) {
			gone = append(gone, t.Hash)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, h := range gone {
		issued := []byte(issuedPrefix + h)
		if err := errors.Join(tx.Delete([]byte(tokenPrefix+h)), tx.DeleteRange(issued, state.PrefixEnd(issued))); err != nil {
			return err
		}
	}
	return nil
}

// Token returns a token by its secret, if it can be used.
func (r *Registry) Token(ctx context.Context, secret string, now time.Time) (Token, error) {
	var t Token
	err := r.store.View(ctx, func(v state.Reader) (err error) {
		t, err = loadToken(v, secret, now)
		return err
	})
	return t, err
}

func loadToken(v state.Reader, secret string, now time.Time) (Token, error) {
	var t Token
	b, err := v.Get([]byte(tokenPrefix + tokenHash(secret)))
	switch {
	case err != nil:
		return t, err
	case b == nil:
		return t, fmt.Errorf("%w: it is not known, or was revoked, or has ended: ask for a new one", ErrToken)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("stored token: %w", err)
	}
	if now.After(t.Expires) {
		return t, fmt.Errorf("%w: it ended at %s: ask for a new one", ErrToken, t.Expires.Format(time.RFC3339))
	}
	return t, nil
}

// Claim enrols a device with a token and its certificate signing request. The certificate, the device and the token's use are one
// transaction: after a crash either all of it has happened or nothing. Who asks again with the same token, id and key gets the
// same certificate and uses up nothing, so a device that lost the answer is not locked out; another key is refused.
func (r *Registry) Claim(ctx context.Context, secret, id string, csr *x509.CertificateRequest, now time.Time) (*Device, []*x509.Certificate, error) {
	cn := csr.Subject.CommonName
	if id == "" {
		id = cn
	}
	if cn != "" && cn != id {
		return nil, nil, fmt.Errorf("%w: the request is for CN=%s, and the device asked for is %s: make them the same", ErrToken, cn, id)
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	t, err := r.Token(ctx, secret, now)
	if err != nil {
		return nil, nil, err
	}
	if t.Device != "" && id == "" {
		id = t.Device
	}
	switch {
	case t.Device != "" && id != t.Device:
		return nil, nil, fmt.Errorf("%w: it is for %s, and the request for %s: use CN=%s", ErrToken, t.Device, id, t.Device)
	case t.Device == "" && id == "":
		return nil, nil, fmt.Errorf("%w: a claim token does not say which device: put the device's id into the request's CN", ErrToken)
	case t.Device == "" && !strings.HasPrefix(id, t.Prefix):
		return nil, nil, fmt.Errorf("%w: it is for devices whose id begins with %q, and the request for %s", ErrToken, t.Prefix, id)
	}
	e := Enrolment{ID: id, Vehicle: t.Vehicle, Policy: t.Policy, Origin: "token " + t.ID, Key: csr.PublicKey}
	if err := e.check(r.policies); err != nil {
		return nil, nil, err
	}
	key := sha256.Sum256(append([]byte(id+"\x00"), csr.RawSubjectPublicKeyInfo...))
	issued := []byte(issuedPrefix + t.Hash + hex.EncodeToString(key[:]))
	if d, chain, err := r.again(ctx, issued, id); d != nil || err != nil {
		return d, chain, err
	}
	if t.Uses <= 0 {
		return nil, nil, fmt.Errorf("%w: it was used %d times and has no use left: ask for a new one", ErrToken, t.Used)
	}
	leaf, err := r.ca.issue(id, csr.PublicKey, r.valid, now)
	if err != nil {
		return nil, nil, err
	}
	d, err := r.changeLocked(ctx, id, func(tx state.Tx, d *Device, found bool) error {
		// A claim token must not bring a second certificate for a device that is there: whoever has it could be any of them.
		if found && t.Device == "" {
			return fmt.Errorf("%w: %s", ErrExists, id)
		}
		if found && d.Status == Disabled {
			return fmt.Errorf("%w: device %s is disabled", ErrInvalid, id)
		}
		if !found || d.Status == Barred { // else it is another certificate of a device that is set up
			e.fill(d, now)
		}
		if err := r.add(d, leaf, OwnCA, now); err != nil {
			return err
		}
		t.Uses--
		t.Used++
		return errors.Join(saveToken(tx, &t), tx.Set(issued, leaf.Raw))
	})
	if err != nil {
		return nil, nil, err
	}
	way := "token"
	if t.Device == "" {
		way = "claim"
	}
	r.metrics.enrolled(way)
	return d, r.chainOf(leaf, OwnCA), nil
}

// again returns what was issued before for the same token, device and key.
func (r *Registry) again(ctx context.Context, issued []byte, id string) (*Device, []*x509.Certificate, error) {
	var leaf *x509.Certificate
	err := r.store.View(ctx, func(v state.Reader) error {
		b, err := v.Get(issued)
		if err != nil || b == nil {
			return err
		}
		leaf, err = x509.ParseCertificate(slices.Clone(b))
		return err
	})
	if err != nil || leaf == nil {
		return nil, nil, err
	}
	d, c := r.byFingerprint(FingerprintOf(leaf))
	if d == nil || d.ID != id || d.Status != Active || !c.Revoked.IsZero() {
		return nil, nil, fmt.Errorf("%w: what was issued for it was revoked: ask for a new one", ErrToken)
	}
	return d, r.chainOf(leaf, OwnCA), nil
}
