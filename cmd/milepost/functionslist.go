package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/milepost/milepost/process"
	"github.com/milepost/milepost/process/lambda"
)

// writeFunctions prints functions as a table, a line for each stream that one runs on.
func writeFunctions(w io.Writer, functions []lambda.FunctionStatus, now time.Time) error {
	if len(functions) == 0 {
		_, err := fmt.Fprintln(w, "There are no functions: add them to the configuration, under functions.")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FUNCTION\tSTREAM\tSTATE\tLAG\tAGE\tINVOKED\tERRORS\tGIVEN UP\tLAST\tPROBLEM")
	for i := range functions {
		f := &functions[i]
		if len(f.Mappings) == 0 {
			fmt.Fprintf(t, "%s\t-\ton no stream\t-\t-\t%d\t%d\t-\t%s\t%s\n", f.Name, f.Pool.Invokes, f.Pool.Errors, ago(f.Pool.Last, now), problemOf(f.Pool.LastError))
		}
		for j := range f.Mappings {
			m := &f.Mappings[j]
			lag, age := "-", "-"
			if m.Lag >= 0 {
				lag, age = fmt.Sprint(m.Lag), short(time.Duration(m.IteratorAgeMS)*time.Millisecond)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n",
				f.Name, m.Stream, stateOf(m), lag, age, m.Total.Invocations, m.Total.Errors, m.Total.DeadLetters, ago(m.LastInvocation, now), problemOf(mappingProblem(m)))
		}
	}
	return t.Flush()
}

// stateOf is a mapping's state with what holds it up.
func stateOf(m *lambda.MappingStatus) string {
	switch {
	case m.Overflow != "":
		return m.State + ", overflow"
	case m.Breaker != nil && m.Breaker.State != process.BreakerClosed:
		return m.State + ", breaker open"
	case m.Owed > 0:
		return fmt.Sprintf("%s, owes %s", m.State, plural(m.Owed, "document"))
	}
	return m.State
}

func mappingProblem(m *lambda.MappingStatus) string {
	switch {
	case m.Overflow != "":
		return m.Overflow
	case m.LastError != "":
		return m.LastError
	case strings.HasPrefix(m.LastResult, "PROBLEM:"):
		return m.LastResult
	}
	return ""
}

// problemOf cuts an error to what fits at a line's end.
func problemOf(s string) string {
	const most = 80
	if r := []rune(cell(s)); len(r) > most {
		return string(r[:most]) + "…"
	}
	return cell(s)
}

func ago(at, now time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return short(now.Sub(at)) + " ago"
}

// short is a duration to two digits or so.
func short(d time.Duration) string {
	switch {
	case d <= 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
