// Package wire reads and writes the two bodies that Kinesis clients speak, JSON 1.1 and AWS' CBOR 1.1, and binds them to structs.
//
// Both readers are pull parsers over a body in memory. They allocate nothing for what the caller skips, refuse nesting deeper
// than MaxDepth, and never recurse, so a hostile body costs no more than its own bytes. A Plan, compiled once for each input
// type, binds a body to a struct and checks the constraints in the fields' tags with the words that AWS uses.
//
// AWS' CBOR differs from the RFC in one thing: a timestamp is tag 1 with an integer number of milliseconds.
package wire

import (
	"errors"
	"fmt"
	"time"
)

// MaxDepth is how deep values may nest. No request of the API needs more than four.
const MaxDepth = 16

// A Kind tells what value is next in a body.
type Kind uint8

// The kinds of values; Bytes occurs in CBOR only.
const (
	Invalid Kind = iota
	Null
	Bool
	Number
	String
	Bytes
	List
	Map
)

// A Reader pulls values out of a body. After an error its state is undefined.
//
//nolint:interfacebloat // one method for each kind of value of two formats: split, each half would be asked for by the same caller
type Reader interface {
	Kind() Kind          // of the value at the cursor; it does not move
	Bool() (bool, error) //
	Int() (int64, error) // a number, cut to an integer
	Time() (time.Time, error)
	Text() ([]byte, error) // a string, valid until the body changes; it may alias the body
	Blob() ([]byte, error) // base64 in JSON, bytes in CBOR
	Open() error           // enters the list or map at the cursor
	More() (bool, error)   // whether the list or map entered last has another item; false leaves it
	Key() ([]byte, error)  // the key of the next item of a map
	Skip() error           // passes the value at the cursor whole
	End() error            // nil if nothing but space is left
}

// ErrSyntax is wrapped by every error about a body that is not JSON or CBOR at all.
var ErrSyntax = errors.New("malformed body")

// ErrDeep says that the body nests deeper than MaxDepth.
var ErrDeep = fmt.Errorf("%w: nested too deep", ErrSyntax)

// A TypeError says that a value is there but of the wrong kind, in AWS' words.
type TypeError struct{ Message string }

func (e *TypeError) Error() string { return e.Message }

// An Encoding writes values. Values of one message are appended to one slice.
type Encoding uint8

// The encodings.
const (
	JSON Encoding = iota
	CBOR
)

// ContentType returns the encoding's media type.
func (e Encoding) ContentType() string {
	if e == CBOR {
		return "application/x-amz-cbor-1.1"
	}
	return "application/x-amz-json-1.1"
}

// NewReader returns a reader of body.
func (e Encoding) NewReader(body []byte) Reader {
	if e == CBOR {
		return &CBORReader{b: body}
	}
	return &JSONReader{b: body}
}

// NewCBORReader returns a reader of a CBOR body whose methods need no interface.
func NewCBORReader(body []byte) *CBORReader { return &CBORReader{b: body} }
