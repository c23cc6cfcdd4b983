package kinesisapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/milepost/milepost/ingest/kinesisapi/sigv4"
	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/stream"
)

// A fault is an error answer in the API's terms.
type fault struct {
	status  int
	typ     string
	message string
}

func (f *fault) Error() string { return f.typ + ": " + f.message }

// The API's error types that are used in more than one place.
const (
	typeAccessDenied  = "AccessDeniedException"
	typeInternal      = "InternalFailure"
	typeInUse         = "ResourceInUseException"
	typeInvalid       = "InvalidArgumentException"
	typeLimit         = "LimitExceededException"
	typeNotFound      = "ResourceNotFoundException"
	typeSerialization = "SerializationException"
	typeThroughput    = "ProvisionedThroughputExceededException"
	typeUnavailable   = "ServiceUnavailable"
	typeUnknown       = "UnknownOperationException"
	typeValidation    = "ValidationException"
)

func faultf(typ, format string, args ...any) *fault {
	return &fault{http.StatusBadRequest, typ, fmt.Sprintf(format, args...)}
}

func invalidf(format string, args ...any) *fault { return faultf(typeInvalid, format, args...) }

func unavailable(message string) *fault {
	return &fault{http.StatusServiceUnavailable, typeUnavailable, message}
}

// asFault turns any error into an answer. What is not one of the API's own becomes an InternalFailure, which clients try again;
// its words stay here unless they tell how to mend it.
func asFault(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	if e, ok := errors.AsType[*wire.TypeError](err); ok {
		return faultf(typeSerialization, "%s", e.Message)
	}
	if e, ok := errors.AsType[*sigv4.Error](err); ok {
		return faultf(e.Type, "%s", e.Message)
	}
	switch {
	case errors.Is(err, wire.ErrSyntax):
		return faultf(typeSerialization, "")
	case errors.Is(err, stream.ErrFull), errors.Is(err, stream.ErrFenced):
		return &fault{http.StatusInternalServerError, typeInternal, err.Error()}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, stream.ErrClosed):
		return unavailable("the request was cut short: try again")
	}
	return &fault{http.StatusInternalServerError, typeInternal, "internal failure: see the server's log"}
}

// ours tells whether an error is of our own making, so that someone should read of it.
func ours(err error) bool {
	f := asFault(err)
	return f.status == http.StatusInternalServerError
}

func (f *fault) append(b []byte, enc wire.Encoding) []byte {
	b = enc.AppendString(enc.AppendKey(enc.OpenMap(b), "__type"), f.typ)
	if f.message != "" {
		key := "message"
		if f.typ == typeSerialization {
			key = "Message" // so AWS spells it for this type alone
		}
		b = enc.AppendString(enc.AppendKey(b, key), f.message)
	}
	return enc.CloseMap(b)
}
