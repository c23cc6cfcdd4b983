package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/milepost/milepost/telemetry"
)

// load reads a file's readings, sorted by time.
func (p *player) load(ctx context.Context, name string) ([]row, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // only read
	in, closeIn, err := unpack(file, name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer closeIn()
	buffered := bufio.NewReaderSize(in, 256<<10)
	table, err := isTable(name, buffered)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var rows []row
	if table {
		rows, err = p.loadCSV(ctx, name, buffered)
	} else {
		rows, err = p.loadJSON(ctx, name, buffered)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	sortRows(rows)
	p.files.Add(1)
	return rows, nil
}

// unpack returns what is in a file that may be compressed, and what ends reading it.
func unpack(file io.Reader, name string) (io.Reader, func(), error) {
	switch filepath.Ext(name) {
	case ".gz":
		z, err := gzip.NewReader(file)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil // it only reads
	case ".zst":
		z, err := zstd.NewReader(file)
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return file, func() {}, nil
}

// isTable tells a table from JSON, by name or else by its beginning.
func isTable(name string, in *bufio.Reader) (bool, error) {
	base := strings.TrimSuffix(strings.TrimSuffix(name, ".gz"), ".zst")
	switch filepath.Ext(base) {
	case ".csv", ".tsv":
		return true, nil
	case ".json", ".jsonl", ".ndjson":
		return false, nil
	}
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	head = bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n")
	return len(head) == 0 || (head[0] != '{' && head[0] != '['), nil
}

func (p *player) loadCSV(ctx context.Context, name string, in io.Reader) ([]row, error) {
	cfg := p.cfg.CSV
	if cfg.Comma == 0 && strings.Contains(filepath.Base(name), ".tsv") {
		cfg.Comma = '\t'
	}
	c, err := telemetry.NewCSV(p.cat, cfg, in)
	if err != nil {
		return nil, err
	}
	var rows []row
	keep := newKeeper()
	for r := (telemetry.Reading{Arrival: time.Now().UnixMilli()}); ; {
		switch err := c.Next(&r); {
		case err == nil:
			p.read.Add(1)
			rows = append(rows, keep.row(&r, nil))
		case errors.Is(err, io.EOF):
			return rows, nil
		default:
			bad, ok := errors.AsType[*telemetry.RowError](err)
			if !ok {
				return nil, err
			}
			p.reject(name, bad.Line, bad.Error())
		}
		if len(rows)%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (p *player) loadJSON(ctx context.Context, name string, in io.Reader) ([]row, error) {
	body, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	var rows []row
	keep := newKeeper()
	d := telemetry.NewDecoder(p.cat)
	r := telemetry.Reading{}
	now := time.Now().UnixMilli()
	err = telemetry.Split(body, func(line []byte, index int) bool {
		r.Vehicle, r.Arrival = "", now
		if err := d.JSON(line, &r); err != nil {
			p.reject(name, index+1, fmt.Sprintf("line %d: %v", index+1, err))
			return true
		}
		p.read.Add(1)
		if bytes.ContainsAny(line, "\r\n") { // an object over several lines, which cannot be sent as one
			rows = append(rows, keep.row(&r, nil))
		} else {
			rows = append(rows, keep.row(&r, line))
		}
		return len(rows)%4096 != 0 || ctx.Err() == nil
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		p.reject(name, 0, err.Error())
	}
	return rows, nil
}

// reject counts a row that is no reading.
func (p *player) reject(name string, line int, reason string) {
	p.read.Add(1)
	p.bad.Add(1)
	p.problem(Problem{File: name, Line: line, Reason: reason})
}

// keeper makes rows that last: ids and statuses are few, and kept once; signals are kept in large pieces.
type keeper struct {
	texts   map[string]string
	signals []telemetry.Signal
}

func newKeeper() *keeper { return &keeper{texts: map[string]string{}} }

func (k *keeper) row(r *telemetry.Reading, raw []byte) row {
	kept := *r
	kept.Vehicle, kept.Status = k.text(r.Vehicle), k.text(r.Status)
	if len(r.Signals) > cap(k.signals)-len(k.signals) {
		k.signals = make([]telemetry.Signal, 0, max(4096, len(r.Signals)))
	}
	n := len(k.signals)
	k.signals = append(k.signals, r.Signals...)
	kept.Signals = k.signals[n:len(k.signals):len(k.signals)]
	return row{time: r.Time, r: kept, raw: raw}
}

func (k *keeper) text(s string) string {
	if kept, ok := k.texts[s]; ok {
		return kept
	}
	s = strings.Clone(s)
	if len(k.texts) < 100_000 {
		k.texts[s] = s
	}
	return s
}
