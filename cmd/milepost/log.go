package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/milepost/milepost/stream/seglog"
)

// runLog looks after the log of a stopped server.
func runLog(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "log")
	data := fs.String("data", "", "data directory of the stopped server")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 || *data == "" {
		return usagef("write: milepost log verify --data DIR, or milepost log salvage --data DIR")
	}
	cfg := seglog.Config{Dir: filepath.Join(*data, "log"), Log: newLogger(e.stderr, LogConfig{Level: "info"})}
	var report *seglog.Report
	switch rest[0] {
	case "verify":
		report, err = seglog.Verify(ctx, cfg)
	case "salvage":
		report, err = seglog.Salvage(ctx, cfg)
	default:
		return usagef("no action %q: write verify or salvage", rest[0])
	}
	if err != nil {
		return err
	}
	for _, st := range report.Streams {
		fmt.Fprintf(e.stdout, "%s: %s, %d records, %d bytes\n", st.Name, plural(st.Segments, "segment"), st.Records, st.Bytes)
		if st.Torn > 0 {
			fmt.Fprintf(e.stdout, "  %d bytes of a write that a crash tore; nothing of it was acknowledged\n", st.Torn)
		}
		for _, d := range st.Damage {
			fmt.Fprintf(e.stdout, "  damage: %v\n", d)
		}
		for _, m := range st.Missing {
			fmt.Fprintf(e.stdout, "  cannot be read: %s from %s to %s\n", m.Shard, m.From, m.To)
		}
		for _, a := range st.Aside {
			fmt.Fprintf(e.stdout, "  moved aside: %s\n", a)
		}
	}
	if rest[0] == "verify" && report.Damaged() {
		return errors.New("the log is damaged; 'milepost log salvage' moves the damaged files aside and keeps what can be read")
	}
	return nil
}
