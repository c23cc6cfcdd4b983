package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/milepost/milepost/process/rule"
	"github.com/milepost/milepost/telemetry"
)

// runRules runs scenario files: what readings come in, and what alerts are expected of them.
func runRules(_ context.Context, e *env, args []string) error {
	fs := flags(e, "rules")
	config := fs.String("config", "", "configuration whose rules and signals scenarios may use ('use config')")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) < 2 || rest[0] != "test" {
		return usagef("write: milepost rules test FILE…")
	}
	scene := rule.Env{Catalog: telemetry.NewCatalog()}
	if *config != "" {
		cfg, err := loadConfig(*config)
		if err != nil {
			return &usageError{err}
		}
		scene.Catalog = cfg.catalog()
		if scene.Specs, err = cfg.Rules.specs(); err != nil {
			return &usageError{err}
		}
	}
	failed := 0
	for _, file := range rest[1:] {
		text, err := os.ReadFile(file) //nolint:gosec // the user names it
		if err != nil {
			return err
		}
		failures := rule.RunScenario(bytes.NewReader(text), scene)
		if len(failures) == 0 {
			fmt.Fprintf(e.stdout, "ok   %s\n", file)
			continue
		}
		failed++
		fmt.Fprintf(e.stdout, "FAIL %s\n", file)
		for _, f := range failures {
			if f.Err != nil {
				fmt.Fprintf(e.stdout, "  %s:%d: %v\n", file, f.Line, f.Err)
			} else {
				fmt.Fprintf(e.stdout, "  %s:%d: got %s, want %s\n", file, f.Line, f.Got, f.Want)
			}
		}
	}
	if failed > 0 {
		return errors.New(plural(failed, "scenario") + " failed")
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
