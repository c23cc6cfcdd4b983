package kinesisapi

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/milepost/milepost/internal/vfs"
)

// tokenLife is how long a shard iterator or a pagination token is good for, as at AWS.
const tokenLife = 5 * time.Minute

// tokens seals what a client carries for us. The key is in the data directory, so tokens outlive a restart; AES-GCM, so that they
// can be neither read nor forged. Sealed bytes are 0 0 0 0 0 0 0 1, a nonce, and the box.
type tokens struct{ box cipher.AEAD }

const (
	keyFile = "kinesis.key"
	keyLen  = 32
)

const tokenPrefix = "\x00\x00\x00\x00\x00\x00\x00\x01"

// openTokens reads the key, or makes it.
func openTokens(fsys vfs.FS, dir string) (*tokens, error) {
	path := fsys.PathJoin(dir, keyFile)
	key := make([]byte, keyLen)
	f, err := fsys.Open(path)
	switch {
	case err == nil:
		_, err = io.ReadFull(f, key)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w: restore it, or remove it, which ends all shard iterators", path, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		_, _ = rand.Read(key)                                                   // never fails: it ends the program instead
		if err := writeFile(fsys, dir, keyFile, bytes.Clone(key)); err != nil { // a file may scribble over what it was given
			return nil, err
		}
	default:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	box, err := cipher.NewGCM(block)
	return &tokens{box}, err
}

// An iterator is a place in a shard, as a shard iterator holds it.
type iterator struct {
	stream  string
	created int64 // ms; of the stream: another stream of the same name is another
	shard   uint32
	after   uint64 // number of the record before
	at      int64  // ms; when the iterator was made
}

const iteratorFixed = 8 + 8 + 8 + 4 + 1

// iteratorLen is the length of an iterator for a stream's name before base64, as AWS' are.
func iteratorLen(name int) int { return 152 + (name+2)/16*16 }

func (t *tokens) iterator(b []byte, it iterator) []byte {
	var space [512]byte
	plain := appendUint64(space[:0], uint64(it.at), uint64(it.created), it.after)
	plain = binary.BigEndian.AppendUint32(plain, it.shard)
	plain = append(plain, byte(len(it.stream)))
	plain = append(plain, it.stream...)
	size := iteratorLen(len(it.stream)) - len(tokenPrefix) - t.box.NonceSize() - t.box.Overhead()
	plain = space[:max(size, len(plain))] // the rest is zero
	var sealed [512]byte
	return base64.StdEncoding.AppendEncode(b, t.seal(sealed[:0], plain, "iterator"))
}

// readIterator opens an iterator, whatever its age.
func (t *tokens) readIterator(text string) (it iterator, ok bool) {
	if n := len(text); n >= 2 && text[0] == '"' && text[n-1] == '"' {
		text = text[1 : n-1] // AWS takes one in quotes
	}
	plain, ok := t.open(text, "iterator")
	if !ok || len(plain) < iteratorFixed {
		return it, false
	}
	be := binary.BigEndian
	it.at, it.created, it.after = int64(be.Uint64(plain)), int64(be.Uint64(plain[8:])), be.Uint64(plain[16:])
	it.shard = be.Uint32(plain[24:])
	n := int(plain[28])
	if len(plain) < iteratorFixed+n {
		return it, false
	}
	it.stream = string(plain[iteratorFixed : iteratorFixed+n])
	return it, true
}

// position in a listing, as a NextToken holds it.
type page struct {
	Op      string
	Stream  string       `json:",omitempty"`
	Created int64        `json:",omitempty"` // ms; of the stream
	After   string       // the last item that was listed
	Filter  *shardFilter `json:",omitempty"`
	At      int64        // ms; when the token was made
}

func (t *tokens) page(p page) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("kinesisapi: bug: " + err.Error()) // strings and numbers only
	}
	return base64.StdEncoding.EncodeToString(t.seal(nil, b, "page"))
}

func (t *tokens) readPage(text, op string, now time.Time) (p page, err error) {
	plain, ok := t.open(text, "page")
	if !ok || json.Unmarshal(plain, &p) != nil || p.Op != op {
		return p, invalidf("NextToken is invalid.")
	}
	if age := now.Sub(time.UnixMilli(p.At)); age > tokenLife {
		return p, faultf("ExpiredNextTokenException", "NextToken expired. The token was created at time %s while now it is %s.",
			amazonTime(time.UnixMilli(p.At)), amazonTime(now))
	}
	return p, nil
}

func (t *tokens) seal(b, plain []byte, kind string) []byte {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:]) // never fails
	b = append(b, tokenPrefix...)
	b = append(b, nonce[:]...)
	return t.box.Seal(b, nonce[:], plain, []byte(kind))
}

func (t *tokens) open(text, kind string) ([]byte, bool) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < len(tokenPrefix)+t.box.NonceSize() || string(b[:len(tokenPrefix)]) != tokenPrefix {
		return nil, false
	}
	b = b[len(tokenPrefix):]
	nonce, b := b[:t.box.NonceSize()], b[t.box.NonceSize():]
	plain, err := t.box.Open(b[:0], nonce, b, []byte(kind))
	return plain, err == nil
}

// amazonTime writes a time as AWS' messages do: Thu Jan 22 01:22:02 UTC 2015.
func amazonTime(t time.Time) string { return t.UTC().Format("Mon Jan 02 15:04:05 UTC 2006") }
