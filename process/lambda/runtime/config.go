package runtime

import (
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/conf"
)

// Config says what a function is. Exactly one of Runtime, Command and URL is set.
type Config struct {
	Name string `yaml:"name" doc:"letters, digits, - and _; at most 64"`

	Runtime string   `yaml:"runtime,omitempty" doc:"provided (a bootstrap that speaks the Runtime API, as Go functions are), python3 (or python3.12: that interpreter), nodejs (nodejs20.x is the same: the node on the PATH)"`
	Handler string   `yaml:"handler,omitempty" doc:"python and node: module.function, as on Lambda"`
	Code    string   `yaml:"code,omitempty" doc:"directory of the function's files, its LAMBDA_TASK_ROOT and working directory"`
	Command []string `yaml:"command,omitempty" doc:"instead of runtime: a program that speaks the Runtime API, with its arguments"`

	URL        string            `yaml:"url,omitempty" doc:"instead of runtime: events are posted here"`
	Secret     string            `yaml:"secret,omitempty" doc:"url: signs requests, as webhooks of alerts are signed"`
	SecretFile string            `yaml:"secret_file,omitempty" doc:"url, instead: a file that holds it"`
	Token      string            `yaml:"token,omitempty" doc:"url: sent as Authorization: Bearer"`
	TokenFile  string            `yaml:"token_file,omitempty" doc:"url, instead: a file that holds it"`
	CAFile     string            `yaml:"ca_file,omitempty" doc:"url: PEM of the authority that signed the receiver's certificate; default the system's"`
	Headers    map[string]string `yaml:"headers,omitempty" doc:"url: further headers"`

	Environment map[string]string `yaml:"environment,omitempty" doc:"further variables for the process; those that Lambda reserves are refused, but for region and credentials"`
	Timeout     conf.Duration     `yaml:"timeout,omitempty" doc:"default 3s, at most 15m; then the process is killed"`
	MemorySize  int               `yaml:"memory_size,omitempty" doc:"MB, default 128; only reported to the function: nothing limits its memory (limits of address space break Go and Node; use a cgroup)"`
	Concurrency int               `yaml:"concurrency,omitempty" doc:"reserved concurrency: processes, or requests to the url, at once; default 10"`
	InitTimeout conf.Duration     `yaml:"init_timeout,omitempty" doc:"default 10s: then the process is started once more, within the invocation's timeout"`
	IdleTimeout conf.Duration     `yaml:"idle_timeout,omitempty" doc:"default 5m: processes that had nothing to do for this long are ended"`

	LogLines int `yaml:"log_lines,omitempty" doc:"lines a second of its output that go to the log, five seconds' worth at once; default 200; more are counted, and in Logs all the same"`

	Region      string      `yaml:"-"` // default us-east-1
	Account     string      `yaml:"-"` // default 000000000000
	Credentials Credentials `yaml:"-"` // of the process; default: placeholders, which local endpoints accept
}

// Credentials are what AWS SDKs in a function find in their environment.
type Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Deps are what a function uses of Milepost. The zero value works.
type Deps struct {
	Log     *slog.Logger // nil: none
	Metrics *Metrics     // nil: none
}

const (
	maxTimeout     = 15 * time.Minute
	maxConcurrency = 1000
	maxLogLines    = 100_000
)

// ARN is the function's name in full.
func (c *Config) ARN() string {
	return "arn:aws:lambda:" + c.Region + ":" + c.Account + ":function:" + c.Name
}

// fill sets defaults and checks what can be checked without looking at the disk.
func (c *Config) fill() error {
	def := func(d *conf.Duration, v time.Duration) {
		if *d == 0 {
			*d = conf.Duration(v)
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	str := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Timeout, 3*time.Second)
	def(&c.InitTimeout, 10*time.Second)
	def(&c.IdleTimeout, 5*time.Minute)
	num(&c.MemorySize, 128)
	num(&c.Concurrency, 10)
	num(&c.LogLines, 200)
	str(&c.Region, "us-east-1")
	str(&c.Account, "000000000000")
	if c.Credentials.AccessKeyID == "" {
		c.Credentials = Credentials{AccessKeyID: "milepost", SecretAccessKey: "milepost"}
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" || len(c.Name) > 64 || strings.ContainsFunc(c.Name, notName) {
		bad("name %q: use 1 to 64 letters, digits, - and _", c.Name)
	}
	set := 0
	for _, is := range []bool{c.Runtime != "", len(c.Command) > 0, c.URL != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		bad("set one of runtime, command and url")
	}
	if t := time.Duration(c.Timeout); t < time.Millisecond || t > maxTimeout {
		bad("timeout %s: use up to 15m", c.Timeout)
	}
	if c.InitTimeout < 0 || c.IdleTimeout < 0 {
		bad("init_timeout or idle_timeout is negative")
	}
	if c.MemorySize < 0 {
		bad("memory_size %d: use a number of MB", c.MemorySize)
	}
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		bad("concurrency %d: use 1 to %d", c.Concurrency, maxConcurrency)
	}
	if c.LogLines < 1 || c.LogLines > maxLogLines {
		bad("log_lines %d: use 1 to %d", c.LogLines, maxLogLines)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Environment)) {
		switch {
		case k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(c.Environment[k], 0):
			bad("environment: %q cannot be a variable", k)
		case slices.Contains(reserved, k):
			bad("environment: %s is reserved: Milepost sets it, as Lambda does", k)
		}
	}
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			bad("url %q: write https://HOST/PATH or http://HOST/PATH", c.URL)
		}
		if c.Handler != "" || c.Code != "" || len(c.Environment) > 0 {
			bad("handler, code and environment are for processes, not for a url")
		}
	} else if c.Secret != "" || c.SecretFile != "" || c.Token != "" || c.TokenFile != "" || c.CAFile != "" || len(c.Headers) > 0 {
		bad("secret, token, ca_file and headers are for a url, not for a process")
	}
	return errors.Join(errs...)
}

func notName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// Check says whether New would accept a configuration, without starting anything.
func Check(c Config) error {
	if err := c.fill(); err != nil {
		return fmt.Errorf("function %s: %w", c.Name, err)
	}
	var err error
	if c.URL != "" {
		_, err = newEndpoint(c, Deps{})
	} else {
		_, err = prepare(&c)
	}
	if err != nil {
		return fmt.Errorf("function %s: %w", c.Name, err)
	}
	return nil
}

// New makes the invoker that the configuration asks for. Processes start with the first invocation.
func New(c Config, d Deps) (Invoker, error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	var inv Invoker
	err := c.fill()
	if err == nil {
		if c.URL != "" {
			inv, err = newEndpoint(c, d)
		} else {
			inv, err = newPool(c, d)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("function %s: %w", c.Name, err)
	}
	return inv, nil
}

// A program is how a function's processes are started.
type program struct {
	path      string
	args      []string // after path; bootstrapName stands for the file of that name in the runtime directory
	root      string   // absolute
	bootstrap string   // "bootstrap.py", "bootstrap.mjs" or ""
	execution string   // AWS_EXECUTION_ENV
}

// prepare finds what a function needs, and says what is missing.
func prepare(c *Config) (*program, error) {
	if !canRun {
		return nil, errors.New("functions run in processes on Linux and macOS only: use url")
	}
	root := c.Code
	if root == "" {
		if c.Runtime != "" {
			return nil, errors.New("code: set the directory of the function's files")
		}
		root = "."
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("code: %w", err)
	}
	if info, err := os.Stat(root); err != nil {
		return nil, fmt.Errorf("code: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("code: %s is no directory: unpack the function's archive", root)
	}
	p := &program{root: root}
	switch {
	case len(c.Command) > 0:
		p.path, p.args = c.Command[0], c.Command[1:]
		if strings.ContainsRune(p.path, filepath.Separator) && !filepath.IsAbs(p.path) {
			p.path = filepath.Join(root, p.path)
		}
		if p.path, err = exec.LookPath(p.path); err != nil {
			return nil, fmt.Errorf("command: %w", err)
		}
	case c.Runtime == "provided" || strings.HasPrefix(c.Runtime, "provided."):
		p.path = filepath.Join(root, "bootstrap")
		return p, checkBootstrap(p.path)
	case strings.HasPrefix(c.Runtime, "python"):
		if c.Runtime != "python3" && !strings.HasPrefix(c.Runtime, "python3.") {
			return nil, unknownRuntime(c.Runtime)
		}
		p.bootstrap, p.execution = "bootstrap.py", "AWS_Lambda_"+c.Runtime
		if p.path, err = exec.LookPath(c.Runtime); err != nil {
			return nil, fmt.Errorf("runtime: %s is not on the PATH: install it, or write another version (python3 is any): %w", c.Runtime, err)
		}
		return p, checkHandler(root, c.Handler, func(module string) []string {
			module = strings.ReplaceAll(module, ".", "/")
			return []string{module + ".py", module + "/__init__.py"}
		})
	case c.Runtime == "nodejs" || strings.HasPrefix(c.Runtime, "nodejs") && strings.HasSuffix(c.Runtime, ".x"):
		p.bootstrap, p.execution = "bootstrap.mjs", "AWS_Lambda_"+c.Runtime
		if p.path, err = exec.LookPath("node"); err != nil {
			return nil, fmt.Errorf("runtime: node is not on the PATH: install Node.js: %w", err)
		}
		return p, checkHandler(root, c.Handler, func(module string) []string {
			return []string{module + ".js", module + ".mjs", module + ".cjs", module}
		})
	default:
		return nil, unknownRuntime(c.Runtime)
	}
	return p, nil
}

func unknownRuntime(name string) error {
	return fmt.Errorf("runtime %q: use provided, python3, nodejs, or command for anything else that speaks the Runtime API", name)
}

// checkHandler finds the handler's file; whether the function is in it shows when it is started.
func checkHandler(root, handler string, files func(module string) []string) error {
	dir, last := "", handler
	if i := strings.LastIndexByte(handler, '/'); i >= 0 {
		dir, last = handler[:i+1], handler[i+1:]
	}
	if i := strings.IndexByte(last, '.'); i < 1 || i == len(last)-1 {
		return fmt.Errorf("handler %q: write FILE.FUNCTION, such as app.handler", handler)
	}
	var tried []string
	// a.b.c is function c in a/b.py for Python, and b.c in a.js for Node: any reading will do
	for i := range last {
		if i == 0 || last[i] != '.' {
			continue
		}
		for _, f := range files(dir + last[:i]) {
			if info, err := os.Stat(filepath.Join(root, filepath.FromSlash(f))); err == nil && info.Mode().IsRegular() {
				return nil
			}
			tried = append(tried, f)
		}
	}
	return fmt.Errorf("handler %q: no such file in %s: looked for %s", handler, root, strings.Join(tried, ", "))
}

// checkBootstrap says before the first invocation what exec would say in two words.
func checkBootstrap(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("runtime provided needs a program called bootstrap in code: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", path)
	}
	if info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not executable: chmod +x it", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the function's program: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		return fmt.Errorf("%s is no program: %w", path, err)
	}
	if string(magic[:2]) == "#!" || goruntime.GOOS != "linux" {
		return nil
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("%s is neither a Linux program nor a script that begins with #!: build it with GOOS=linux GOARCH=%s", path, goruntime.GOARCH)
	}
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "386": elf.EM_386, "arm": elf.EM_ARM}[goruntime.GOARCH]
	if want != 0 && e.Machine != want {
		return fmt.Errorf("%s is built for %s, this machine is %s: build it with GOARCH=%[3]s", path, e.Machine, goruntime.GOARCH)
	}
	return nil
}
