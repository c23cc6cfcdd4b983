package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/process/lambda"
)

// functionCommands are what can be done with functions.
func functionCommands() []verb {
	return []verb{
		{"list", "", "functions with the streams that they run on (also without a command)", listFunctions},
		{"pause", "NAME", "stop calling it; it keeps its place", pauseFunction},
		{"resume", "NAME", "go on from there", resumeFunction},
		{"reset", "NAME --to oldest|latest|TIME", "go on from another place, after a question", resetFunction},
		{"redrive", "NAME [DOCUMENT]", "invoke it again with what it gave up: all, or a failure document's records", redriveFunction},
		{"logs", "NAME [-f]", "what it has written", functionLogs},
		{"invoke", "NAME [FILE]", "try it by hand with an event in JSON, - for standard input", invokeFunction},
	}
}

// runFunctions operates the functions of a running server.
func runFunctions(ctx context.Context, e *env, args []string) error {
	name := "list"
	switch {
	case len(args) > 0 && (args[0] == "-h" || args[0] == "--help" || args[0] == "help"):
		fmt.Fprint(e.stdout, "milepost functions: see and operate a running server's functions.\n\n")
		for _, c := range functionCommands() {
			fmt.Fprintf(e.stdout, "  milepost functions %-36s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
		}
		fmt.Fprint(e.stdout, "\n'milepost functions COMMAND -h' lists a command's flags.\n")
		return nil
	case len(args) > 0 && !strings.HasPrefix(args[0], "-"):
		name, args = args[0], args[1:]
	}
	var names []string
	for _, c := range functionCommands() {
		if c.name == name {
			return c.run(ctx, e, args)
		}
		names = append(names, c.name)
	}
	return usagef("no command %q; there are %s", name, strings.Join(names, ", "))
}

// A functionCall is the part of a command line that commands on functions share.
type functionCall struct {
	fs    *flagSet
	addr  *string
	token *string
	name  string
	rest  []string // what stands after the name
}

func newFunctionCall(e *env, name string) *functionCall {
	fs := flags(e, "functions "+name)
	return &functionCall{
		fs: fs, addr: fs.String("addr", "http://127.0.0.1:8080", "address of the server"),
		token: fs.String("token", os.Getenv("MILEPOST_TOKEN"), "the server's bearer token (http.token); default: $MILEPOST_TOKEN"),
	}
}

// on adds the flag that chooses one of the function's streams.
func (c *functionCall) on() *string {
	return c.fs.String("on", "", "only on this stream, or this mapping (UUID); default: on all")
}

// parse reads NAME and at most so many further arguments.
func (c *functionCall) parse(args []string, more int) error {
	rest, err := parse(c.fs, args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return usagef("name the function; 'milepost functions' lists them")
	}
	c.name, c.rest = rest[0], rest[1:]
	if len(c.rest) > more {
		return usagef("too many arguments: %q", c.rest[more])
	}
	return nil
}

// ask sends a request and decodes the answer. path comes after /v1/functions.
func (c *functionCall) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(*c.addr, "/")+"/v1/functions"+path, bytes.NewReader(body))
	if err != nil {
		return usagef("--addr: %w", err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if *c.token != "" {
		req.Header.Set("Authorization", "Bearer "+*c.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("no server answers at %s; start one with 'milepost serve' or 'milepost demo', or name it with --addr (%w)", *c.addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or given up
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refused struct{ Error string }
		if json.Unmarshal(b, &refused) == nil && refused.Error != "" {
			return errors.New(refused.Error)
		}
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(b))
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

func (c *functionCall) path(action string) string { return "/" + url.PathEscape(c.name) + "/" + action }

// An operation's answer names the mappings that it was carried out on.
type operated struct {
	Done []struct {
		Mapping string
		Report  *lambda.RedriveReport
	}
}

// order carries out an action on the function's mappings.
func (c *functionCall) order(ctx context.Context, action string, order map[string]any) (operated, error) {
	var out operated
	body, err := json.Marshal(order)
	if err != nil {
		return out, err
	}
	return out, c.ask(ctx, http.MethodPost, c.path(action), body, &out)
}

func pauseFunction(ctx context.Context, e *env, args []string) error {
	return switchFunction(ctx, e, args, "pause", "paused")
}

func resumeFunction(ctx context.Context, e *env, args []string) error {
	return switchFunction(ctx, e, args, "resume", "resumed")
}

func switchFunction(ctx context.Context, e *env, args []string, action, done string) error {
	c := newFunctionCall(e, action)
	on := c.on()
	if err := c.parse(args, 0); err != nil {
		return err
	}
	out, err := c.order(ctx, action, map[string]any{"mapping": *on})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s: %s %s\n", c.name, plural(len(out.Done), "mapping"), done)
	return err
}

func resetFunction(ctx context.Context, e *env, args []string) error {
	c := newFunctionCall(e, "reset")
	on := c.on()
	to := c.fs.String("to", "", "oldest, latest, a time such as 2026-01-02T15:04:05Z, or so long ago, such as 2h")
	shard := c.fs.String("shard", "", "instead of --to: only this shard, with --sequence")
	sequence := c.fs.String("sequence", "", "with --shard: sequence number of the first record to process")
	yes := c.fs.Bool("yes", false, "do not ask")
	if err := c.parse(args, 0); err != nil {
		return err
	}
	order := map[string]any{"mapping": *on, "confirm": c.name}
	var what string
	switch {
	case *shard != "" || *sequence != "":
		if *shard == "" || *sequence == "" || *to != "" {
			return usagef("--shard and --sequence go together, and without --to")
		}
		order["shard"], order["sequence"] = *shard, *sequence
		what = "record " + *sequence + " of " + *shard
	case *to == "":
		return usagef("say where to go: --to oldest, latest, a time, or so long ago")
	default:
		kind, at, err := readPlace(*to, time.Now())
		if err != nil {
			return err
		}
		order["to"], what = kind, map[string]string{"TRIM_HORIZON": "the oldest record that is kept", "LATEST": "the newest, passing over what it has not processed"}[kind]
		if kind == "AT_TIMESTAMP" {
			order["time"], what = at, at.Format(time.RFC3339)
		}
	}
	if !*yes {
		where := "on all of its streams"
		if *on != "" {
			where = "on " + *on
		}
		fmt.Fprintf(e.stderr, "This moves %s %s to %s: what lies between is processed again, or not at all.\nType the function's name to go on: ", c.name, where, what)
		line, err := bufio.NewReader(e.stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the answer: %w", err)
		}
		if strings.TrimSpace(line) != c.name {
			return errors.New("not confirmed: nothing was changed (--yes does not ask)")
		}
	}
	out, err := c.order(ctx, "reset", order)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s: %s moved to %s\n", c.name, plural(len(out.Done), "mapping"), what)
	return err
}

// readPlace reads a place in a stream.
func readPlace(s string, now time.Time) (kind string, at time.Time, err error) {
	switch strings.ToLower(s) {
	case "oldest", "trim_horizon":
		return "TRIM_HORIZON", at, nil
	case "latest", "newest":
		return "LATEST", at, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return "AT_TIMESTAMP", now.Add(-d).UTC().Truncate(time.Second), nil
	}
	if at, err = time.Parse(time.RFC3339, s); err == nil {
		return "AT_TIMESTAMP", at.UTC(), nil
	}
	return "", at, usagef("--to %q: use oldest, latest, a time such as 2026-01-02T15:04:05Z, or so long ago, such as 2h", s)
}

func redriveFunction(ctx context.Context, e *env, args []string) error {
	c := newFunctionCall(e, "redrive")
	on := c.on()
	if err := c.parse(args, 1); err != nil {
		return err
	}
	order := map[string]any{"mapping": *on}
	if len(c.rest) > 0 {
		b, err := readEvent(e, c.rest[0])
		if err != nil {
			return err
		}
		order["document"] = json.RawMessage(b)
	}
	out, err := c.order(ctx, "redrive", order)
	if err != nil {
		return err
	}
	var total lambda.RedriveReport
	for _, d := range out.Done {
		if d.Report != nil {
			total.Documents += d.Report.Documents
			total.Records += d.Report.Records
			total.Failed += d.Report.Failed
			total.Missing += d.Report.Missing
			total.Errors = append(total.Errors, d.Report.Errors...)
		}
	}
	fmt.Fprintf(e.stdout, "%s: %s read, %s processed, %d failed again, %d no longer kept\n",
		c.name, plural(total.Documents, "document"), plural(total.Records, "record"), total.Failed, total.Missing)
	for _, problem := range total.Errors {
		fmt.Fprintf(e.stderr, "  %s\n", cell(problem))
	}
	if total.Failed > 0 || len(total.Errors) > 0 {
		return errors.New("not everything succeeded; what failed stays where it is and can be redriven again")
	}
	return nil
}

// readEvent reads a file of JSON, or standard input.
func readEvent(e *env, name string) ([]byte, error) {
	var b []byte
	var err error
	if name == "-" {
		b, err = io.ReadAll(e.stdin)
	} else {
		b, err = os.ReadFile(name) //nolint:gosec // the user names it
	}
	if err != nil {
		return nil, err
	}
	if !json.Valid(b) {
		return nil, usagef("%s is not JSON", name)
	}
	return b, nil
}

func functionLogs(ctx context.Context, e *env, args []string) error {
	const every = 500 * time.Millisecond
	c := newFunctionCall(e, "logs")
	follow := c.fs.Bool("f", false, "go on until interrupted")
	last := c.fs.Int("n", 200, "begin with so many of the last lines, up to 2000")
	if err := c.parse(args, 0); err != nil {
		return err
	}
	if *last < 1 || *last > 2000 {
		return usagef("-n %d: use 1 to 2000", *last)
	}
	since, limit := uint64(0), *last
	for {
		var out struct{ Lines []lambda.LogLine }
		err := c.ask(ctx, http.MethodGet, c.path(fmt.Sprintf("lines?since=%d&limit=%d", since, limit)), nil, &out)
		switch {
		case err != nil && ctx.Err() != nil && *follow:
			return nil // interrupted, as it is meant to be
		case err != nil:
			return err
		}
		for i := range out.Lines {
			l := &out.Lines[i]
			if since > 0 && l.Number > since+1 {
				fmt.Fprintf(e.stderr, "%s came too fast to be kept\n", plural(int(l.Number-since-1), "line")) //nolint:gosec // far fewer
			}
			since = l.Number
			for text := range strings.Lines(l.Text + "\n") {
				fmt.Fprintf(e.stdout, "%s %s\n", l.At.Local().Format("15:04:05.000"), cell(strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\t", "  ")))
			}
		}
		if !*follow {
			return nil
		}
		limit = 2000
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

func invokeFunction(ctx context.Context, e *env, args []string) error {
	c := newFunctionCall(e, "invoke")
	logs := c.fs.Bool("logs", false, "also show what it wrote, on standard error")
	if err := c.parse(args, 1); err != nil {
		return err
	}
	event := []byte("{}")
	if len(c.rest) > 0 {
		var err error
		if event, err = readEvent(e, c.rest[0]); err != nil {
			return err
		}
	}
	var out lambda.Trial
	if err := c.ask(ctx, http.MethodPost, c.path("invoke"), event, &out); err != nil {
		return err
	}
	if *logs || out.Error != "" {
		for line := range strings.Lines(out.Log) {
			fmt.Fprintln(e.stderr, cell(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "  ")))
		}
	}
	if _, err := fmt.Fprintf(e.stdout, "%s\n", out.Payload); err != nil {
		return err
	}
	if out.Error != "" {
		return fmt.Errorf("the function failed (%s), request %s", out.Error, out.RequestID)
	}
	return nil
}

func listFunctions(ctx context.Context, e *env, args []string) error {
	c := newFunctionCall(e, "list")
	asJSON := c.fs.Bool("json", false, "everything that is known, as JSON")
	rest, err := parse(c.fs, args)
	if err != nil {
		return err
	}
	if *asJSON {
		var out json.RawMessage
		if err := c.ask(ctx, http.MethodGet, "", nil, &out); err != nil {
			return err
		}
		_, err := fmt.Fprintf(e.stdout, "%s\n", bytes.TrimSpace(out))
		return err
	}
	var out struct{ Functions []lambda.FunctionStatus }
	if err := c.ask(ctx, http.MethodGet, "", nil, &out); err != nil {
		return err
	}
	for _, name := range rest {
		if !slices.ContainsFunc(out.Functions, func(f lambda.FunctionStatus) bool { return f.Name == name }) {
			return fmt.Errorf("there is no function %s", name)
		}
	}
	if len(rest) > 0 {
		out.Functions = slices.DeleteFunc(out.Functions, func(f lambda.FunctionStatus) bool { return !slices.Contains(rest, f.Name) })
	}
	return writeFunctions(e.stdout, out.Functions, time.Now())
}
