package sim

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/milepost/milepost/sim/sender"
	"github.com/milepost/milepost/telemetry"
)

// RunConfig says which fleet reports to which door, and for how long.
type RunConfig struct {
	// Fleet is the fleet; its Start is now by default. With a Start in the past the fleet sends as fast as the door
	// acknowledges until it has caught up with the clock.
	Fleet Config
	// Sender is the door; its Address is required.
	Sender sender.Config
	// Readings ends the run after that many; 0: when ctx is done.
	Readings int64
	// Drain is how long the run waits at its end for the last acknowledgements; 5 s by default.
	Drain time.Duration
	// State is where the fleet goes on, as an earlier run's Save was given it; nil: where it sets off. A state of another
	// fleet is passed over with a warning. Save is given the state at the end.
	State []byte
	Save  func(state []byte)
	// Progress is told how it goes each Every, 10 s by default. It must not block for long.
	Progress func(RunStats)
	Every    time.Duration
	// Log gets changes of state. Discarded by default.
	Log *slog.Logger
}

// RunStats is how a run goes.
type RunStats struct {
	sender.Stats
	Vehicles int
	Elapsed  time.Duration
	Behind   time.Duration // how far the fleet lags the clock, because the door is slow or the fleet is catching up
}

// Run drives a fleet in real time and sends what it says until ctx is done, which is no error, or Readings are sent. It
// returns when the last reading is acknowledged or Drain is over; Stats.Open tells what is not.
func Run(ctx context.Context, cfg RunConfig) (RunStats, error) {
	if cfg.Fleet.Start.IsZero() {
		cfg.Fleet.Start = time.Now()
	}
	if cfg.Drain <= 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Every <= 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Sender.Log == nil {
		cfg.Sender.Log = cfg.Log
	}
	out, err := sender.Open(cfg.Sender)
	if err != nil {
		return RunStats{}, err
	}
	defer out.Close() //nolint:errcheck // it has no error to tell; what is under way is in Stats.Open
	fleet, begin := New(cfg.Fleet), time.Now()
	if cfg.State != nil {
		if err := fleet.Restore(cfg.State); err != nil {
			cfg.Log.WarnContext(ctx, "the fleet starts afresh", "err", err)
		}
	}
	var behind atomic.Int64
	stats := func() RunStats {
		return RunStats{Stats: out.Stats(), Vehicles: fleet.Len(), Elapsed: time.Since(begin), Behind: time.Duration(behind.Load())}
	}
	if cfg.Progress != nil {
		reporting, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { sender.Every(reporting, cfg.Every, func() { cfg.Progress(stats()) }) })
		defer wg.Wait()
		defer stop()
	}
	cfg.Log.InfoContext(ctx, "the fleet sets off", "vehicles", fleet.Len(), "interval", fleet.cfg.Interval, "address", cfg.Sender.Address)
	err = drive(ctx, fleet, out, cfg.Readings, &behind)
	if ctx.Err() != nil {
		err = nil // told to stop
	}
	if cfg.Save != nil {
		if state, saveErr := fleet.Save(); saveErr == nil {
			cfg.Save(state)
		} else if err == nil {
			err = saveErr
		}
	}
	if err == nil {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Drain)
		defer cancel()
		if err = out.Flush(drain); drain.Err() != nil {
			err = nil // Stats.Open tells
		}
	}
	s := stats()
	cfg.Log.InfoContext(ctx, "the fleet stops", "sent", s.Sent, "acknowledged", s.Acked, "refused", s.Refused, "open", s.Open())
	return s, err
}

// drive sends each reading at its moment.
func drive(ctx context.Context, fleet *Fleet, out *sender.Sender, limit int64, behind *atomic.Int64) error {
	cat := telemetry.NewCatalog()
	var pacer sender.Pacer
	var payload []byte
	for n := int64(0); limit == 0 || n < limit; {
		at, readings := fleet.Next()
		if err := pacer.Wait(ctx, at); err != nil {
			return err
		}
		behind.Store(int64(pacer.Behind(at)))
		for i := range readings {
			payload = telemetry.AppendJSON(payload[:0], cat, &readings[i])
			if err := out.Send(ctx, readings[i].Vehicle, payload); err != nil {
				return err
			}
			if n++; n == limit {
				break
			}
		}
	}
	return nil
}
