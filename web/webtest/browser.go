package webtest

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// A Browser is one tab of a headless Chromium.
type Browser struct {
	Ctx context.Context //nolint:containedctx // chromedp's handle of the tab
	mu  sync.Mutex
	bad []string
}

// RequireBrowser makes a missing browser a failure instead of a skipped test.
const RequireBrowser = "MILEPOST_REQUIRE_BROWSER"

// Open starts a browser with a window of the given size, or skips the test saying why. Phone: it has a touch screen. Extra
// flags go to Chromium.
func Open(t testing.TB, width, height int64, phone bool, flags ...chromedp.ExecAllocatorOption) *Browser {
	t.Helper()
	path := find()
	if path == "" {
		if os.Getenv(RequireBrowser) != "" {
			t.Fatalf("no Chromium found in PATH, and %s is set", RequireBrowser)
		}
		t.Skipf("no Chromium found in PATH: the dashboard is not tested in a browser (%s=1 makes this a failure)", RequireBrowser)
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.WindowSize(int(width), int(height)),
		chromedp.Flag("use-angle", "swiftshader"),
		chromedp.Flag("enable-unsafe-swiftshader", true),
		chromedp.Flag("hide-scrollbars", false),
		chromedp.Flag("disable-gpu", false),
	)
	if os.Geteuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	alloc, stopAlloc := chromedp.NewExecAllocator(t.Context(), append(opts, flags...)...)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		stop()
		stopAlloc()
	})
	b := &Browser{Ctx: ctx}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	if err := chromedp.Listen(ctx, b.event); err != nil {
		t.Fatal(err)
	}
	view := []chromedp.EmulateViewportOption{chromedp.EmulateScale(1)}
	if phone {
		view = []chromedp.EmulateViewportOption{chromedp.EmulateScale(2), chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait}
	}
	b.Do(t, chromedp.EmulateViewport(width, height, view...))
	return b
}

// event keeps what the page complains of. It runs on the tab's own goroutine and returns at once.
func (b *Browser) event(ev any) {
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		d := ev.ExceptionDetails
		text := d.Text
		if d.Exception != nil {
			text += " " + d.Exception.Description
		}
		b.complain("exception: " + text)
	case *runtime.EventConsoleAPICalled:
		if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning {
			var words []string
			for _, a := range ev.Args {
				words = append(words, string(a.Value)+a.Description)
			}
			b.complain("console: " + strings.Join(words, " "))
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelError {
			b.complain("browser: " + ev.Entry.Text + " " + ev.Entry.URL)
		}
	}
}

// find returns the path of a Chromium or Chrome.
func find() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

func (b *Browser) complain(s string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad = append(b.bad, s)
}

// Complaints returns the exceptions, errors and warnings of the page so far, and forgets them.
func (b *Browser) Complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	bad := b.bad
	b.bad = nil
	return bad
}

// Do performs actions, or ends the test with what the page complained of.
func (b *Browser) Do(t testing.TB, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	err := chromedp.Do(b.Ctx, steps...)
	// A page that is drawn again just then takes the node away between finding and clicking it.
	for n := 0; n < 20 && len(steps) == 1 && err != nil && strings.Contains(err.Error(), "Could not find node"); n++ {
		time.Sleep(50 * time.Millisecond)
		err = chromedp.Do(b.Ctx, steps...)
	}
	if err != nil {
		t.Fatalf("browser: %v\npage said: %s", err, strings.Join(b.Complaints(), "\n"))
	}
}

// Go opens a page.
func (b *Browser) Go(t testing.TB, url string) {
	t.Helper()
	b.Do(t, chromedp.Navigate(url))
}

// Wait polls a JavaScript expression until it is true; one that throws is not true yet.
func (b *Browser) Wait(t testing.TB, expr string) {
	t.Helper()
	safe := "(() => { try { return Boolean(" + expr + ") } catch { return false } })()"
	_, err := chromedp.Run(b.Ctx, chromedp.Poll[bool](safe, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(pageHangs)))
	if err != nil {
		text, _ := chromedp.Run(b.Ctx, chromedp.Evaluate[string](`location.pathname + "\n" + document.body.innerText.slice(0, 1500)`)) // for the message
		t.Fatalf("never true: %s: %v\npage shows: %s\npage said: %s", expr, err, text, strings.Join(b.Complaints(), "\n"))
	}
}

// pageHangs bounds a wait for a page that never gets there; it measures nothing.
const pageHangs = 60 * time.Second

// Eval returns what a JavaScript expression, or the promise it makes, is.
func Eval[T any](t testing.TB, b *Browser, expr string) T {
	t.Helper()
	v, err := chromedp.Run(b.Ctx, chromedp.Evaluate[T](expr, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("browser: %s: %v\npage said: %s", expr, err, strings.Join(b.Complaints(), "\n"))
	}
	return v
}

// Script runs JavaScript for its effect.
func (b *Browser) Script(t testing.TB, code string) {
	t.Helper()
	Eval[bool](t, b, "(async () => {"+code+"; return true})()")
}

// Press presses keys on what has the focus.
func (b *Browser) Press(t testing.TB, keys string, mods ...chromedp.Modifier) {
	t.Helper()
	b.Do(t, chromedp.KeyEvent(keys, chromedp.KeyModifiers(mods...)))
}

// Dark sets what the page takes for the system's theme.
func (b *Browser) Dark(t testing.TB, dark bool) {
	t.Helper()
	b.media(t, "prefers-color-scheme", map[bool]string{true: "dark", false: "light"}[dark])
}

// Still asks the page for less motion.
func (b *Browser) Still(t testing.TB) {
	t.Helper()
	b.media(t, "prefers-reduced-motion", "reduce")
}

func (b *Browser) media(t testing.TB, name, value string) {
	t.Helper()
	b.Do(t, chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: name, Value: value}},
		})
		return err
	}))
}

// Shot writes a screenshot to a file.
func (b *Browser) Shot(t testing.TB, path string) {
	t.Helper()
	png, err := chromedp.Run(b.Ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatalf("screenshot: %v", err)
	}
	if err := os.WriteFile(path, png, 0o600); err != nil {
		t.Fatal(err)
	}
}
