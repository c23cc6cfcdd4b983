package runtime

import (
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed bootstrap/bootstrap.py
var bootstrapPython []byte

//go:embed bootstrap/bootstrap.mjs
var bootstrapNode []byte

// reserved are the variables that a function may not choose, as Lambda has them. Region and credentials are missing from the list:
// there is no execution role here that would give them.
//
//nolint:gochecknoglobals // a table
var reserved = []string{
	"_HANDLER", "_X_AMZN_TRACE_ID", "AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
	"AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
	"AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR",
}

// Variables by which a process' descendants are found: one's value is the process's alone, the other's the server's.
const (
	logStreamVariable  = "AWS_LAMBDA_LOG_STREAM_NAME"
	runtimeDirVariable = "LAMBDA_RUNTIME_DIR"
)

// environment is everything that a process sees. Of Milepost's own it gets what programs need to start: the rest may be secret.
func environment(c *Config, p *program, dir, api, stream string) []string {
	env := map[string]string{
		"LANG":                            "en_US.UTF-8",
		"TZ":                              ":UTC",
		"AWS_REGION":                      c.Region,
		"AWS_DEFAULT_REGION":              c.Region,
		"AWS_ACCESS_KEY_ID":               c.Credentials.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY":           c.Credentials.SecretAccessKey,
		"_HANDLER":                        c.Handler,
		"AWS_LAMBDA_RUNTIME_API":          api,
		"AWS_LAMBDA_FUNCTION_NAME":        c.Name,
		"AWS_LAMBDA_FUNCTION_VERSION":     "$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(c.MemorySize),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/aws/lambda/" + c.Name,
		logStreamVariable:                 stream,
		"LAMBDA_TASK_ROOT":                p.root,
		runtimeDirVariable:                dir,
		"LD_LIBRARY_PATH":                 p.root + ":" + filepath.Join(p.root, "lib"),
		"PYTHONPATH":                      dir,
	}
	if c.Credentials.SessionToken != "" {
		env["AWS_SESSION_TOKEN"] = c.Credentials.SessionToken
	}
	if p.execution != "" { // Lambda does not set it for programs of one's own
		env["AWS_EXECUTION_ENV"] = p.execution
	}
	if v := os.Getenv("LD_LIBRARY_PATH"); v != "" {
		env["LD_LIBRARY_PATH"] += ":" + v
	}
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	maps.Copy(env, c.Environment)
	list := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	return list
}

// arguments are the program's; a bootstrap of ours comes first.
func (p *program) arguments(dir string) []string {
	switch p.bootstrap {
	case "bootstrap.py":
		// -u: what is printed is in the log when it is printed; -X utf8: whatever the locale. Not -E: PYTHON… may be the user's wish.
		return []string{"-u", "-X", "utf8", filepath.Join(dir, p.bootstrap)}
	case "bootstrap.mjs":
		return []string{filepath.Join(dir, p.bootstrap)}
	}
	return p.args
}

const dirPrefix = "milepost-runtime-" // the process id and a random number follow

// sweepDirs removes the directories of servers that were killed, those of processes that are no more, and ends what their functions have
// left behind.
func sweepDirs() {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*-*"))
	if err != nil {
		return // it is a courtesy
	}
	for _, dir := range old {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if pid, err := strconv.Atoi(owner); err == nil && pid != os.Getpid() && ended(pid) {
			endDescendants(runtimeDirVariable + "=" + dir)
			_ = os.RemoveAll(dir)
		}
	}
}

// runtimeDir makes the LAMBDA_RUNTIME_DIR, with the bootstrap if there is one.
func (p *program) runtimeDir() (string, error) {
	sweepDirs()
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("make a directory for the function's bootstrap: %w", err)
	}
	var content []byte
	switch p.bootstrap {
	case "bootstrap.py":
		content = bootstrapPython
	case "bootstrap.mjs":
		content = bootstrapNode
	default:
		return dir, nil
	}
	if err := os.WriteFile(filepath.Join(dir, p.bootstrap), content, 0o600); err != nil {
		_ = os.RemoveAll(dir) // what counts is why it could not be written
		return "", fmt.Errorf("write the function's bootstrap: %w", err)
	}
	return dir, nil
}

// logStream is a new name as Lambda makes them: one for every process.
func logStream(now time.Time) string {
	return now.UTC().Format("2006/01/02") + "/[$LATEST]" + randomHex(16)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it does not fail
	return hex.EncodeToString(b)
}

// newID is a request id as Lambda makes them.
func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // it does not fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
