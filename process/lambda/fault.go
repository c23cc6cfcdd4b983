package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/milepost/milepost/ingest/kinesisapi/sigv4"
	"github.com/milepost/milepost/state"
)

// A fault is an error answer in the terms of Lambda's API.
type fault struct {
	status  int
	typ     string
	message string
}

func (f *fault) Error() string { return f.typ + ": " + f.message }

// The API's error types.
const (
	typeAccessDenied = "AccessDeniedException"
	typeConflict     = "ResourceConflictException"
	typeContent      = "InvalidRequestContentException"
	typeInUse        = "ResourceInUseException"
	typeInvalid      = "InvalidParameterValueException"
	typeNotFound     = "ResourceNotFoundException"
	typeSerial       = "SerializationException"
	typeService      = "ServiceException"
	typeThrottled    = "TooManyRequestsException"
	typeTooLarge     = "RequestTooLargeException"
	typeUnknown      = "UnknownOperationException"
	typeValidation   = "ValidationException"
)

func invalidf(format string, args ...any) *fault {
	return &fault{http.StatusBadRequest, typeInvalid, fmt.Sprintf(format, args...)}
}

// constraint says that a value is out of bounds, in the words of AWS' request validation.
func constraint(value any, member, must string) *fault {
	text := "null"
	if value != nil {
		text = fmt.Sprintf("'%v'", value)
	}
	return &fault{http.StatusBadRequest, typeValidation, fmt.Sprintf("1 validation error detected: Value %s at '%s' failed to satisfy constraint: %s", text, member, must)}
}

func noMapping() *fault {
	return &fault{http.StatusNotFound, typeNotFound, "The resource you requested does not exist."}
}

func asFault(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	if e, ok := errors.AsType[*sigv4.Error](err); ok {
		return &fault{http.StatusForbidden, e.Type, e.Message}
	}
	switch {
	case cutShort(err):
		return &fault{http.StatusInternalServerError, typeService, "the service is being closed or the request was cut short: try again"}
	case errors.Is(err, state.ErrFull), errors.Is(err, state.ErrFenced):
		return &fault{http.StatusInternalServerError, typeService, err.Error()}
	}
	return &fault{http.StatusInternalServerError, typeService, "internal failure: see the server's log"}
}

// cutShort tells that the program or the client has ended, which is nobody's failure.
func cutShort(err error) bool {
	return errors.Is(err, errClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, state.ErrClosed)
}

// body writes an error as the service model has it: some types spell Message with a small letter.
func (f *fault) body() []byte {
	var doc struct {
		Reason  string `json:",omitempty"`
		Type    string `json:",omitempty"`
		Message string `json:",omitempty"`
		Small   string `json:"message,omitempty"`
	}
	doc.Type = "User"
	if f.status >= http.StatusInternalServerError {
		doc.Type = "Service"
	}
	switch f.typ {
	case typeInvalid, typeConflict, typeContent, typeTooLarge:
		doc.Small = f.message
	case typeThrottled:
		doc.Small, doc.Reason = f.message, "ReservedFunctionConcurrentInvocationLimitExceeded"
	case typeValidation, typeUnknown, typeSerial:
		doc.Small, doc.Type = f.message, ""
	case typeAccessDenied:
		doc.Message, doc.Type = f.message, ""
	default:
		doc.Message = f.message
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic("lambda: bug: " + err.Error())
	}
	return b
}

func (f *fault) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Amzn-Errortype", f.typ)
	if f.typ == typeThrottled {
		h.Set("Retry-After", "1")
	}
	body := f.body()
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.status)
	_, _ = w.Write(body) // the client may be gone
}
