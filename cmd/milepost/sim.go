package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/milepost/milepost/sim"
	"github.com/milepost/milepost/sim/sender"
)

// doorFlags are the flags of the commands that publish.
type doorFlags struct {
	to, token, user, password, topic *string
}

func addDoorFlags(e *flagSet) doorFlags {
	return doorFlags{
		to:       e.String("to", "http://127.0.0.1:8080", "the door: http://host:port or mqtt://host:port"),
		token:    e.String("token", "", "bearer token of an HTTP door"),
		user:     e.String("user", "", "user name of an MQTT door"),
		password: e.String("password", "", "its password"),
		topic:    e.String("topic", "fleet/{vehicle}/telemetry", "topic of an MQTT door"),
	}
}

func (d doorFlags) config(log *slog.Logger) sender.Config {
	return sender.Config{Address: *d.to, Token: *d.token, User: *d.user, Password: *d.password, Topic: *d.topic, Log: log}
}

func runSim(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "sim")
	door := addDoorFlags(fs)
	vehicles := fs.Int("vehicles", 100, "vehicles in the fleet")
	every := fs.Duration("rate", time.Second, "how often each vehicle reports")
	seed := fs.Uint64("seed", 1, "the same seed makes the same fleet")
	calm := fs.Bool("calm", false, "nobody gets into trouble")
	back := fs.Duration("since", 0, "begin this long ago and catch up as fast as the door acknowledges")
	readings := fs.Int64("readings", 0, "stop after so many readings; 0: when interrupted")
	if rest, err := parse(fs, args); err != nil {
		return err
	} else if len(rest) > 0 {
		return usagef("unexpected %q", rest[0])
	}
	if *vehicles < 1 || *vehicles > 100_000 || *every < 10*time.Millisecond {
		return usagef("--vehicles takes 1 to 100000, --rate at least 10ms")
	}
	log := newLogger(e.stderr, LogConfig{Level: "info"})
	stats, err := sim.Run(ctx, sim.RunConfig{
		Fleet:    sim.Config{Vehicles: *vehicles, Seed: *seed, Interval: *every, Calm: *calm, Start: time.Now().Add(-*back)},
		Sender:   door.config(log),
		Readings: *readings,
		Progress: func(s sim.RunStats) {
			fmt.Fprintf(e.stdout, "%d vehicles: %d sent, %d acknowledged, %d refused, %d under way\n", s.Vehicles, s.Sent, s.Acked, s.Refused, s.Open())
		},
		Log: log,
	})
	fmt.Fprintf(e.stdout, "%d sent, %d acknowledged, %d refused, %d without an answer, in %s\n",
		stats.Sent, stats.Acked, stats.Refused, stats.Open(), stats.Elapsed.Round(time.Millisecond))
	return err
}

// simulate is the demo's fleet: over MQTT, as devices do. Where its vehicles are is kept in a file, so that the next demo goes on
// from there.
func simulate(ctx context.Context, mqttAddr, stateFile string, vehicles int, seed uint64, every time.Duration, log *slog.Logger) error {
	was, err := os.ReadFile(stateFile)
	if err != nil {
		was = nil // the first demo here
	}
	_, err = sim.Run(ctx, sim.RunConfig{
		Fleet:  sim.Config{Vehicles: vehicles, Seed: seed, Interval: every},
		Sender: sender.Config{Address: "mqtt://" + mqttAddr, Log: log},
		State:  was,
		Save: func(now []byte) {
			if err := os.WriteFile(stateFile, now, 0o600); err != nil {
				log.WarnContext(ctx, "keep the simulated fleet", "error", err)
			}
		},
		Log: log,
	})
	return err
}
