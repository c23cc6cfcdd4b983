package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// runSQL asks a running server. The server owns its data directory, so SQL goes through it: that is also what sees the live tail.
func runSQL(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "sql")
	addr := fs.String("addr", "http://127.0.0.1:8080", "address of the server")
	format := fs.String("format", "table", "table, json, csv or arrow")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	query := strings.Join(rest, " ")
	if query == "" || query == "-" {
		b, err := io.ReadAll(e.stdin)
		if err != nil {
			return fmt.Errorf("read query: %w", err)
		}
		query = string(b)
	}
	wire := *format
	if wire == "table" {
		wire = "json"
	}
	body, err := json.Marshal(map[string]string{"sql": query})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(*addr, "/")+"/v1/sql?format="+wire, bytes.NewReader(body))
	if err != nil {
		return usagef("--addr: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("no server answers at %s; start one with 'milepost serve' or 'milepost demo', or name it with --addr (%w)", *addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or given up
	if resp.StatusCode != http.StatusOK {
		return problem(resp)
	}
	if *format != "table" {
		_, err = io.Copy(e.stdout, resp.Body)
		return err
	}
	return writeTable(e.stdout, resp.Body)
}

// problem turns an RFC 9457 answer into an error.
func problem(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	var p struct{ Title, Detail string }
	if json.Unmarshal(b, &p) == nil && (p.Detail != "" || p.Title != "") {
		if p.Detail == "" {
			p.Detail = p.Title
		}
		return errors.New(p.Detail)
	}
	return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(b)))
}

func writeTable(w io.Writer, from io.Reader) error {
	var res struct {
		Columns   []struct{ Name, Type string } `json:"columns"`
		Rows      [][]any                       `json:"rows"`
		Truncated bool                          `json:"truncated"`
		Elapsed   float64                       `json:"elapsed_ms"`
	}
	d := json.NewDecoder(from)
	d.UseNumber()
	if err := d.Decode(&res); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(cells []string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	cells := make([]string, len(res.Columns))
	for i, c := range res.Columns {
		cells[i] = c.Name
	}
	line(cells)
	for i, c := range res.Columns {
		cells[i] = strings.Repeat("-", utf8.RuneCountInString(c.Name))
	}
	line(cells)
	for _, row := range res.Rows {
		for i, v := range row {
			cells[i] = cell(v)
		}
		line(cells)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	more := ""
	if res.Truncated {
		more = ", cut at the row limit: add LIMIT or aggregate"
	}
	_, err := fmt.Fprintf(w, "(%s, %.0f ms%s)\n", plural(len(res.Rows), "row"), res.Elapsed, more)
	return err
}

// cell prints a value without control characters: what devices send ends up on a terminal.
func cell(v any) string {
	var s string
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		s = v
	case json.Number:
		return v.String()
	case bool:
		return fmt.Sprint(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return err.Error()
		}
		s = string(b)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '\uFFFD'
		}
		return r
	}, s)
}
