package device

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"rsc.io/qr"
	"software.sslmate.com/src/go-pkcs12"
)

// PKCS12 puts a key and its certificates (the device's first) into one file with a password, as phones and Windows take it. legacy
// uses the ciphers of the nineties, which is all that Android before 14 and macOS before 14 read: the file then protects little.
func PKCS12(key crypto.Signer, chain []*x509.Certificate, roots []*x509.Certificate, password string, legacy bool) ([]byte, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate to put into PKCS#12")
	}
	if password == "" {
		return nil, errors.New("a PKCS#12 file needs a password")
	}
	enc := pkcs12.Modern
	if legacy {
		enc = pkcs12.LegacyDES
	}
	return enc.Encode(key, chain[0], append(chain[1:len(chain):len(chain)], roots...), password)
}

// EnrolmentURL is what the QR code of a one-time token says: the page at which a phone gets its certificate, and the address to
// which an app posts its request.
func EnrolmentURL(public, device, secret string) string {
	q := url.Values{"token": {secret}}
	if device != "" {
		q.Set("device", device)
	}
	return strings.TrimSuffix(public, "/") + "/v1/devices/enroll?" + q.Encode()
}

// A QRCode is a text to be scanned.
type QRCode struct{ code *qr.Code }

// NewQRCode encodes a text.
func NewQRCode(text string) (*QRCode, error) {
	c, err := qr.Encode(text, qr.M)
	if err != nil {
		return nil, fmt.Errorf("encode QR code: %w", err)
	}
	return &QRCode{c}, nil
}

// PNG returns an image with a quiet zone around the code.
func (q *QRCode) PNG() []byte { return q.code.PNG() }

// Terminal returns the code in half blocks, two rows to a line, dark on light whatever the terminal's colours are.
func (q *QRCode) Terminal() string {
	const quiet = 2
	var b bytes.Buffer
	for y := -quiet; y < q.code.Size+quiet; y += 2 {
		b.WriteString("\x1b[30;47m")
		for x := -quiet; x < q.code.Size+quiet; x++ {
			switch up, down := q.code.Black(x, y), q.code.Black(x, y+1); {
			case up && down:
				b.WriteString("█")
			case up:
				b.WriteString("▀")
			case down:
				b.WriteString("▄")
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteString("\x1b[0m\n")
	}
	return b.String()
}
