package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/conf"
	"github.com/milepost/milepost/internal/nearest"
	"github.com/milepost/milepost/process/window"
)

// plan tells row by row which functions, windows, queries, detectors and feeds would run, and in notes what may be a mistake and need
// not be one.
func (c *Config) plan(row func(k, format string, args ...any)) {
	var notes []string
	needs := func(what, name string) {
		if _, ok := c.Streams[name]; ok || name == readingsStream || name == deadStream {
			return
		}
		hint := "unless the Kinesis API has made it, name it under streams"
		if near := nearest.Word(name, append(slices.Sorted(maps.Keys(c.Streams)), readingsStream)); near != "" {
			hint = fmt.Sprintf("did you mean %s? If not, and the Kinesis API has not made it, name it under streams", near)
		}
		notes = append(notes, fmt.Sprintf("%s: %s is not under streams; %s", what, name, hint))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Functions)) {
		f := c.Functions[name]
		runs := f.URL
		switch {
		case f.Runtime != "":
			runs = strings.TrimSpace(f.Runtime + " " + f.Handler)
		case len(f.Command) > 0:
			runs = strings.Join(f.Command, " ")
		}
		if len(f.On) == 0 {
			row("function "+name, "%s, on no stream: by Invoke, or by mappings of the Lambda API", runs)
		}
		for i := range f.On {
			m, at := &f.On[i], fmt.Sprintf("functions.%s.on[%d]", name, i)
			text := fmt.Sprintf("%s on %s, batches of %d", runs, m.Stream, m.BatchSize)
			needs(at+".stream", m.Stream)
			if m.Tumbling > 0 {
				text += ", tumbling windows of " + conf.Duration(m.Tumbling).String()
			}
			if m.Output != "" {
				text += ", to " + m.Output
				needs(at+".output", m.Output)
			}
			if to, ok := strings.CutPrefix(m.OnFailure, "stream:"); ok {
				needs(at+".on_failure", to)
			}
			if !m.Enabled {
				text += " (disabled)"
			}
			row("function "+name, "%s", text)
		}
	}
	c.planWindows(row, needs)
	for _, name := range slices.Sorted(maps.Keys(c.Queries)) {
		q := c.Queries[name]
		row("query "+name, "every %s, to %s", conf.Duration(q.Every), q.Output)
		needs("queries."+name+".output", q.Output)
	}
	for _, d := range c.Anomaly.detectors() {
		row("detector "+d.Name, "%s", d.Kind)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Feeds)) {
		f := c.Feeds[name]
		row("feed "+name, "%s from %s every %s", f.Format, f.URL, f.Every)
	}
	for _, n := range notes {
		row("note", "%s", n)
	}
}

func (c *Config) planWindows(row func(k, format string, args ...any), needs func(what, name string)) {
	defs, _ := c.windowDefs() // checked when it was loaded
	for _, stream := range slices.Sorted(maps.Keys(defs)) {
		for _, d := range defs[stream] {
			s := &d.Spec
			row("window "+s.Name, "%s", windowLine(s))
			needs("windows."+s.Name+".stream", stream)
			if s.Output != "" {
				needs("windows."+s.Name+".output", s.Output)
			}
		}
	}
}

func windowLine(s *window.Spec) string {
	long := func(d time.Duration) string { return conf.Duration(d).String() }
	text := fmt.Sprintf("%s from %s by %s, %s", strings.Join(s.Aggregates, ", "), s.Stream, s.Key, s.Type)
	switch {
	case s.Gap > 0:
		text += " " + long(s.Gap)
	case s.Every > 0 && s.Every != s.Size:
		text += " " + long(s.Size) + " every " + long(s.Every)
	default:
		text += " " + long(s.Size)
	}
	if s.Output != "" {
		text += ", to " + s.Output
	}
	return text
}
