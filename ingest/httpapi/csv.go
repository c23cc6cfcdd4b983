package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/milepost/milepost/ingest"
	"github.com/milepost/milepost/telemetry"
)

// maxUnread is how many rows that could not be read are gathered before they are made dead letters.
const maxUnread = 4096

// mapping reads the query: how to read a table. It returns nil without a problem if the body is JSON.
func (h *Handler) mapping(r *http.Request) (*telemetry.CSVConfig, *problem) {
	refuse := func(detail string) (*telemetry.CSVConfig, *problem) {
		return nil, &problem{status: http.StatusBadRequest, detail: detail}
	}
	table := isCSV(r)
	if r.URL.RawQuery == "" && !table {
		return nil, nil //nolint:nilnil // JSON needs no mapping
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return refuse("query: " + err.Error())
	}
	if !table && len(query) > 0 {
		return refuse("the query is for tables: send Content-Type: text/csv, or no query")
	}
	cfg := &telemetry.CSVConfig{Units: map[string]string{}}
	for key, values := range query {
		value := values[len(values)-1]
		if len(values) > 1 {
			return refuse("query: " + key + " is given twice")
		}
		switch signal, unit := strings.CutSuffix(key, "_unit"); {
		case key == "map":
			if cfg.Map, err = telemetry.ParseCSVMap(value); err != nil {
				return refuse(err.Error())
			}
		case key == "time":
			cfg.Time = value
		case key == "zone":
			if cfg.Zone, err = time.LoadLocation(value); err != nil || value == "" || value == "Local" {
				return refuse("zone: no time zone is called " + value + ": use names like Europe/Athens")
			}
		case key == "others":
			if cfg.Others = value == "true"; !cfg.Others && value != "false" {
				return refuse("others: use true or false")
			}
		case key == "comma":
			c, size := utf8.DecodeRuneInString(value)
			if size == 0 || size != len(value) || c == utf8.RuneError || strings.ContainsRune("\"\r\n", c) {
				return refuse("comma: give the one character that separates fields")
			}
			cfg.Comma = c
		case unit && signal != "":
			cfg.Units[signal] = value
		default:
			return refuse("query: " + key + " is unknown: use map, time, zone, others, comma or <signal>_unit")
		}
	}
	return cfg, nil
}

// table opens body as a table. In a table that has no column for it, the vehicle is that of the path.
func (h *Handler) table(cfg *telemetry.CSVConfig, vehicle string, body []byte) (*telemetry.CSV, error) {
	rows, err := telemetry.NewCSV(h.door.Catalog(), *cfg, bytes.NewReader(body))
	if err == nil || vehicle == "" || cfg.Map["vehicle"] != "" {
		return rows, err
	}
	named := *cfg
	named.Map = map[string]string{"vehicle": "@" + vehicle}
	maps.Copy(named.Map, cfg.Map)
	return telemetry.NewCSV(h.door.Catalog(), named, bytes.NewReader(body))
}

// admitCSV turns the rows into lines of JSON, as many at once as the smallest buffer holds, and admits those.
func (h *Handler) admitCSV(ctx context.Context, s *scratch, cfg *telemetry.CSVConfig, p ingest.Payload, body []byte) *problem {
	rows, err := h.table(cfg, p.Vehicle, body)
	if err != nil {
		h.door.Refuse(ingest.NotReading, 1)
		return &problem{status: http.StatusBadRequest, detail: "table: " + err.Error()}
	}
	lines := h.buffers.first()
	if lines == nil {
		h.door.Refuse(ingest.Overloaded, 1)
		return overloaded()
	}
	defer lines.release()
	s.receipt.Reset()
	p.Body = body
	c := converter{Handler: h, s: s, payload: p, out: lines.data, raw: body, line: 1}
	reading := telemetry.Reading{Arrival: time.Now().UnixMilli()}
	for {
		err := rows.Next(&reading)
		if bad, ok := errors.AsType[*telemetry.RowError](err); ok {
			c.bad(bad.Line, bad.Error())
			continue
		}
		if err == nil && len(reading.Status) > h.limits.MaxMessage {
			c.bad(rows.Line(), "status is too long")
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) { // a reader of bytes has no other errors
			c.bad(rows.Line()+1, err.Error())
		}
		if err != nil {
			break
		}
		c.good(rows.Line(), &reading)
		if len(c.out) > cap(lines.data)/2 || len(c.unread) >= maxUnread {
			c.flush(ctx)
		}
	}
	c.close(len(body))
	c.flush(ctx)
	return nil
}

// A converter gathers the lines of JSON that rows became. The line of a row in out, counted from where out begins, is its
// line in the table: what lies between, a header or the further lines of a row with line ends in it, becomes blank lines.
type converter struct {
	*Handler
	s       *scratch
	payload ingest.Payload
	out     []byte
	at      int             // lines in out
	rows    int             // of them not blank
	unread  []ingest.Unread // rows that could not be read
	open    bool            // the last of unread goes on until the next row begins
	raw     []byte          // the table from line on
	line    int
}

// good appends a row.
func (c *converter) good(line int, r *telemetry.Reading) {
	c.close(c.begin(line))
	for c.payload.Line+c.at < line-1 {
		c.out = append(c.out, '\n')
		c.at++
	}
	c.out = telemetry.AppendJSON(c.out, c.door.Catalog(), r)
	c.out = append(c.out, '\n')
	c.at++
	c.rows++
}

// bad notes a row that could not be read. How far it goes is known when the next one begins: a quote that is not closed can
// swallow many lines.
func (c *converter) bad(line int, reason string) {
	c.close(c.begin(line))
	c.unread = append(c.unread, ingest.Unread{Line: line, Reason: reason})
	c.open = true
}

// begin returns how far into raw the line begins.
func (c *converter) begin(line int) int {
	at := 0
	for ; c.line < line; c.line++ {
		end := bytes.IndexByte(c.raw[at:], '\n')
		if end < 0 {
			return len(c.raw)
		}
		at += end + 1
	}
	return at
}

// close ends the row noted last at that place of raw, and moves raw there.
func (c *converter) close(at int) {
	at = min(at, len(c.raw))
	if c.open {
		c.unread[len(c.unread)-1].Data = bytes.TrimRight(c.raw[:at], "\r\n")
		c.open = false
	}
	c.raw = c.raw[at:]
}

// flush admits what has been gathered.
func (c *converter) flush(ctx context.Context) {
	if len(c.out) == 0 && len(c.unread) == 0 {
		return
	}
	c.payload.Data, c.payload.Unread = c.out, c.unread
	if r := &c.s.receipt; r.Failed > 0 { // what comes after would overtake what is sent again (P2)
		r.Readings += c.rows
		r.Failed += c.rows
		c.door.Refuse(ingest.Unavailable, c.rows)
		c.payload.Data = nil
	}
	if len(c.payload.Data) > 0 || len(c.unread) > 0 {
		c.door.Admit(ctx, c.payload, &c.s.part)
		c.s.receipt.Add(&c.s.part)
	}
	c.payload.Line += c.at
	c.at, c.rows, c.out = 0, 0, c.out[:0]
	clear(c.unread)
	c.unread = c.unread[:0]
}
