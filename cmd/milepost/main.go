// Command milepost is the whole platform in one program: doors, log, processing, alerts, archive, SQL and dashboard.
// main.go picks the command; each command has a file; server.go wires the rooms together and starts and stops them in flow order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	_ "time/tzdata" // --zone works on machines without a zone database

	"github.com/milepost/milepost/internal/nearest"
)

// A verb is one command. run gets the arguments after it.
type verb struct {
	name, args, help string
	run              func(ctx context.Context, env *env, args []string) error
}

// env is what a command talks to, so that tests can run it without a process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

func commands() []verb {
	return []verb{
		{"demo", "[--data DIR] [--vehicles N]", "start everything with a simulated fleet and print one address", runDemo},
		{"serve", "--config FILE", "run for real", runServe},
		{"check", "--config FILE", "validate a configuration and print what would run", runCheck},
		{"sql", `"SELECT …"`, "ask a running server (--addr) in SQL", runSQL},
		{"functions", "[COMMAND]", "a running server's functions: list, pause, resume, reset, redrive, logs, invoke", runFunctions},
		{"rules", "test FILE…", "run rule scenarios", runRules},
		{"try", "[DIR]", "run functions and windows over a file of records and print what comes out", runTry},
		{"anomaly", "evaluate", "measure detectors on a simulated coolant leak: lead time and false alarms", runAnomaly},
		{"sim", "--vehicles N --rate 1s", "simulate a fleet against any address", runSim},
		{"replay", "FILE… --map vehicle=…,time=…", "send recorded data through a door", runReplay},
		{"bench", "[NAME…]", "measure this machine: end to end, MQTT, latency, recovery, queries", runBench},
		{"ca", "init|show|export|import|server", "the certificate authority of devices and listeners", runCA},
		{"device", "enroll|list|show|revoke|rotate|token …", "who may connect, and with what", runDevice},
		{"doctor", "device ID", "why a device cannot get in, or nothing is seen of it", runDoctor},
		{"log", "verify|salvage --data DIR", "check the log of a stopped server, or move damage aside", runLog},
		{"version", "", "print the version", runVersion},
	}
}

// Exit codes, as documented in docs/operate.md.
const (
	exitOK     = 0
	exitFailed = 1 // it ran and failed
	exitUsage  = 2 // the call or the configuration is wrong
)

func main() {
	if h := os.Getenv(benchHandlerVariable); h != "" {
		benchBootstrap(h)
		return
	}
	if os.Getenv(benchDevicesVariable) != "" {
		runBenchDevices()
		return
	}
	if os.Getenv(demoHandlerVariable) != "" {
		demoHandler()
		return
	}
	// The second signal ends the program at once: draining is worth waiting for, but not for ever.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, &env{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

func run(ctx context.Context, e *env, args []string) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(e.stdout)
		return exitOK
	}
	names := make([]string, 0, 16)
	for _, c := range commands() {
		names = append(names, c.name)
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, e, args[1:])
		switch {
		case err == nil:
			return exitOK
		case errors.Is(err, flag.ErrHelp):
			return exitOK
		}
		fmt.Fprintf(e.stderr, "milepost %s: %v\n", c.name, err)
		if _, ok := errors.AsType[*usageError](err); ok {
			return exitUsage
		}
		return exitFailed
	}
	msg := fmt.Sprintf("milepost: unknown command %q", args[0])
	if near := nearest.Word(args[0], names); near != "" {
		msg += fmt.Sprintf("; did you mean %q?", near)
	}
	fmt.Fprintln(e.stderr, msg+"\nRun 'milepost help' for the list.")
	return exitUsage
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Milepost: fleet telemetry in one program.\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  milepost %-38s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprint(w, "\n'milepost COMMAND -h' lists a command's flags. Documentation: docs/ in the source.\n")
}

// usageError is a mistake in the call.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// flagSet is flag.FlagSet, named so that helpers can take one.
type flagSet = flag.FlagSet

// flags returns a flag set whose mistakes become usage errors.
func flags(e *env, name string) *flag.FlagSet {
	fs := flag.NewFlagSet("milepost "+name, flag.ContinueOnError)
	fs.SetOutput(e.stderr)
	return fs
}

// parse reads flags wherever they stand among the arguments and returns the other arguments.
func parse(fs *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, &usageError{err}
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		rest = append(rest, fs.Arg(0))
		args = fs.Args()[1:]
	}
}
