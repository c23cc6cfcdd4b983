//go:build cgo

package duckdb

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/milepost/milepost/query"
)

// outputBuffer is how much of a result is kept back: an error that comes before has written nothing.
const outputBuffer = 1 << 20

// An output writes a result in one format. head is called before each chunk, and only its first call matters.
type output interface {
	head(q *result) error
	chunk(q *result, n int) error
	end(res *query.Result) error
}

func newOutput(f query.Format, w io.Writer) (output, error) {
	b := bufio.NewWriterSize(w, outputBuffer)
	switch f {
	case query.JSON, "":
		return &jsonOutput{w: b}, nil
	case query.CSV:
		return &csvOutput{w: b}, nil
	case query.Arrow:
		return &arrowOutput{w: b}, nil
	}
	return nil, &query.UserError{Msg: fmt.Sprintf("format %q is not known: json, csv and arrow are", f)}
}

type jsonOutput struct {
	w    *bufio.Writer
	buf  []byte
	rows int
	open bool
}

func (o *jsonOutput) head(q *result) error {
	if o.open {
		return nil
	}
	o.open = true
	cols, err := json.Marshal(q.columns())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(o.w, `{"columns":%s,"rows":[`, cols)
	return err
}

func (o *jsonOutput) chunk(q *result, n int) error {
	for row := range n {
		b := o.buf[:0]
		if o.rows > 0 {
			b = append(b, ',')
		}
		b = append(b, '\n', '[')
		for i := range q.cols {
			if i > 0 {
				b = append(b, ',')
			}
			b = q.cols[i].appendJSON(b, row)
		}
		o.buf = append(b, ']')
		o.rows++
		if _, err := o.w.Write(o.buf); err != nil {
			return err
		}
	}
	return nil
}

func (o *jsonOutput) end(res *query.Result) error {
	if _, err := fmt.Fprintf(o.w, "\n],\"truncated\":%t,\"elapsed_ms\":%.3f}\n", res.Truncated, res.Elapsed.Seconds()*1e3); err != nil {
		return err
	}
	return o.w.Flush()
}

type csvOutput struct {
	w    *bufio.Writer
	buf  []byte
	cell []byte
	open bool
}

func (o *csvOutput) head(q *result) error {
	if o.open {
		return nil
	}
	o.open = true
	b := o.buf[:0]
	for i := range q.cols {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendCSV(b, []byte(q.cols[i].name))
	}
	_, err := o.w.Write(append(b, '\r', '\n'))
	return err
}

func (o *csvOutput) chunk(q *result, n int) error {
	for row := range n {
		b := o.buf[:0]
		for i := range q.cols {
			if i > 0 {
				b = append(b, ',')
			}
			c := &q.cols[i]
			switch {
			case c.null(row): // an empty field; an empty text is ""
			case c.nested():
				o.cell = c.appendJSON(o.cell[:0], row)
				b = appendCSV(b, o.cell)
			default:
				o.cell = c.appendPlain(o.cell[:0], row)
				b = appendCSV(b, o.cell)
			}
		}
		o.buf = append(b, '\r', '\n')
		if _, err := o.w.Write(o.buf); err != nil {
			return err
		}
	}
	return nil
}

func (o *csvOutput) end(*query.Result) error { return o.w.Flush() }

func appendCSV(dst, s []byte) []byte {
	if len(s) > 0 && !bytes.ContainsAny(s, ",\"\r\n") && s[0] != ' ' && s[len(s)-1] != ' ' {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for _, b := range s {
		if b == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, b)
	}
	return append(dst, '"')
}
