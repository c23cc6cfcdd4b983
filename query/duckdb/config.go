// Package duckdb is the SQL engine: DuckDB over the archive's snapshot and over tables that live in memory. It is the only
// package that needs cgo; without it Open returns query.ErrNotBuilt.
//
// A query sees one snapshot: readings is the exact list of Parquet objects of that moment united with the live tail, each row
// once; vehicles, alerts and whatever tables it is given are scanned when the query asks for them. Each query runs on a
// connection of its own, in views made for it.
//
// A query may read those tables and nothing else. Three walls, each enough for most attacks: the text must be one SELECT (or
// EXPLAIN, DESCRIBE, SUMMARIZE of one) whose parsed tree names only known tables and harmless functions; DuckDB itself has
// external access disabled but for the archive's directory, its configuration locked and extensions off; and the database is an
// empty one in memory, so there is nothing else to find.
package duckdb

import (
	"log/slog"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/milepost/milepost/archive"
	"github.com/milepost/milepost/query"
)

// Config says how much a query may use. The zero value works.
type Config struct {
	Threads       int           // of all queries together; 0: half the processors, at least 1
	MemoryLimit   string        // of all queries together, as DuckDB writes it; "": 512MB
	TempDir       string        // where large sorts and joins spill; "": nowhere, they fail instead
	TempLimit     string        // how much they spill at most; "": 2GB
	MaxConcurrent int           // queries that run at once; 0: 4
	MaxWaiting    int           // queries that wait for their turn, more get query.ErrBusy; 0: 16
	Timeout       time.Duration // of one query, waiting included, and the most that Limits may ask for; 0: 30 s
	Rows          int           // of one result unless Limits ask for fewer or more; 0: 100,000
	MaxRows       int           // the most that Limits may ask for; 0: 1,000,000
	Log           *slog.Logger  // nil: silent
	Metrics       prometheus.Registerer
}

// Sources are what queries see.
type Sources struct {
	Archive *archive.Archive       // table readings; nil: there is none
	Tables  map[string]query.Table // by name: vehicles, alerts, daily_kpis; readings too if there is no Archive
}

func (c *Config) defaults() {
	if c.Threads <= 0 {
		c.Threads = max(1, runtime.NumCPU()/2)
	}
	if c.MemoryLimit == "" {
		c.MemoryLimit = "512MB"
	}
	if c.TempLimit == "" {
		c.TempLimit = "2GB"
	}
	if c.MaxConcurrent <= 0 {
		c.MaxConcurrent = 4
	}
	if c.MaxWaiting <= 0 {
		c.MaxWaiting = 16
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Rows <= 0 {
		c.Rows = 100_000
	}
	if c.MaxRows <= 0 {
		c.MaxRows = 1_000_000
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}
