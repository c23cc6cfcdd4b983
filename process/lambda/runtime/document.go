package runtime

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// unhandled is the value of Response.FunctionError: Lambda has no other since runtimes became custom.
const unhandled = "Unhandled"

// Error types that Lambda itself gives.
const (
	typeExit       = "Runtime.ExitError"
	typeTimeout    = "Sandbox.Timedout"
	typeEntrypoint = "Runtime.InvalidEntrypoint"
	typeTooLarge   = "Function.ResponseSizeTooLarge"
)

// document is what a failed invocation answers.
type document struct {
	ErrorMessage string   `json:"errorMessage"`
	ErrorType    string   `json:"errorType,omitempty"`
	StackTrace   []string `json:"stackTrace,omitempty"`
}

func (d document) json() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(d); err != nil { // strings always encode
		panic("runtime: bug: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// failure is the document of a function that ended without saying why, in Lambda's words.
func failure(id, kind, message string) []byte {
	return document{ErrorType: kind, ErrorMessage: "RequestId: " + id + " Error: " + message}.json()
}

func tooLargeDocument() []byte {
	return document{
		ErrorType:    typeTooLarge,
		ErrorMessage: fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", maxPayload),
	}.json()
}

func timeoutText(after time.Duration) string {
	return "Task timed out after " + strconv.FormatFloat(after.Seconds(), 'f', 2, 64) + " seconds"
}

// errorText is what an operator reads of an error document, cut to a line's length.
func errorText(payload []byte) string {
	const most = 500
	cut := func(s string) string {
		if len(s) > most {
			return s[:most] + "…"
		}
		return s
	}
	var d struct {
		ErrorMessage string `json:"errorMessage"`
		ErrorType    string `json:"errorType"`
	}
	if json.Unmarshal(payload, &d) != nil || d.ErrorMessage == "" && d.ErrorType == "" {
		return cut(string(payload))
	}
	if d.ErrorType == "" {
		return cut(d.ErrorMessage)
	}
	return cut(fmt.Sprintf("%s: %s", d.ErrorType, d.ErrorMessage))
}
