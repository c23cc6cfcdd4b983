package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/milepost/milepost/sim/replay"
	"github.com/milepost/milepost/telemetry"
)

func runReplay(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "replay")
	door := addDoorFlags(fs)
	mapping := fs.String("map", "", "columns of the fields: vehicle=vehicle_id,time=timestamp,lat=latitude,lon=longitude; A+B joins two columns, vehicle=@X is one vehicle")
	speed := fs.String("speed-unit", "", "unit of the speed column: kmh (default), mph, mps, knots")
	units := fs.String("units", "", "units of other columns: engine_temp=f,odometer=mi")
	layout := fs.String("time", "", "how times are written: rfc3339 (default), unix_s, unix_ms, or a Go layout")
	zone := fs.String("zone", "", "IANA time zone of times without an offset")
	comma := fs.String("comma", "", "separator of the columns (default: a comma)")
	others := fs.Bool("others", false, "take every further numeric column as a signal")
	speedup := fs.Float64("speedup", 0, "how many times faster than recorded; 0: as fast as acknowledged")
	shift := fs.Bool("shift", false, "move the times to now")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return usagef("name at least one file")
	}
	cfg := telemetry.CSVConfig{Time: *layout, Others: *others, Units: map[string]string{}}
	if cfg.Map, err = telemetry.ParseCSVMap(*mapping); err != nil {
		return usagef("--map: %w", err)
	}
	if *units != "" {
		if cfg.Units, err = telemetry.ParseCSVMap(*units); err != nil {
			return usagef("--units: %w", err)
		}
	}
	if *speed != "" {
		cfg.Units["speed"] = *speed
	}
	if *zone != "" {
		if cfg.Zone, err = time.LoadLocation(*zone); err != nil {
			return usagef("--zone: %w", err)
		}
	}
	if *comma != "" {
		r := []rune(strings.ReplaceAll(*comma, `\t`, "\t"))
		if len(r) != 1 {
			return usagef("--comma takes one character")
		}
		cfg.Comma = r[0]
	}
	log := newLogger(e.stderr, LogConfig{Level: "info"})
	sum, err := replay.Run(ctx, replay.Config{
		Files: files, CSV: cfg, Speedup: *speedup, Shift: *shift, Sender: door.config(log), Log: log,
		Progress: func(s replay.Stats) {
			fmt.Fprintf(e.stdout, "at %s: %d rows read, %d acknowledged\n", time.UnixMilli(s.Now).UTC().Format(time.DateTime), s.Read, s.Acked)
		},
	})
	fmt.Fprintf(e.stdout, "%d rows of %s read, %d sent, %d acknowledged, %d refused by the door, %d no readings, %s, in %s\n",
		sum.Read, plural(sum.Files, "file"), sum.Sent, sum.Acked, sum.Refused, sum.Bad, plural(sum.Vehicles, "vehicle"), sum.Elapsed.Round(time.Millisecond))
	for _, p := range sum.Problems {
		fmt.Fprintln(e.stdout, " ", p)
	}
	if total := sum.Bad + sum.Refused; int64(len(sum.Problems)) < total {
		fmt.Fprintf(e.stdout, "  and %d more\n", total-int64(len(sum.Problems)))
	}
	if err == nil && sum.Open() > 0 {
		err = errors.New(plural(int(sum.Open()), "reading") + " without an answer")
	}
	return err
}
