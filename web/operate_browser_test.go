package web_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/milepost/milepost/web/webtest"
)

// click presses what a CSS selector finds, as a mouse does.
func click(t *testing.T, b *webtest.Browser, selector string) {
	t.Helper()
	b.Wait(t, fmt.Sprintf(`document.querySelector(%q)?.checkVisibility() && !document.querySelector(%q).disabled`, selector, selector))
	b.Do(t, chromedp.Click(chromedp.CSS(selector)))
}

// write types into the field that a CSS selector finds.
func write(t *testing.T, b *webtest.Browser, selector, text string) {
	t.Helper()
	b.Wait(t, fmt.Sprintf(`document.querySelector(%q)?.checkVisibility()`, selector))
	b.Script(t, fmt.Sprintf(`const f = document.querySelector(%q); f.focus(); f.select?.()`, selector))
	b.Press(t, text)
}

func (s *site) ordered(t *testing.T, order string) {
	t.Helper()
	if got := s.ops.Orders(); !slices.Contains(got, order) {
		t.Errorf("the server was not asked to %q, but to %q", order, got)
	}
}

const fraud = `.function[data-name="fraud-score"] .mapping`

func TestBrowserFunctions(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1200, 900, false)
	b.Go(t, s.url+"/pipeline")
	b.Wait(t, `document.querySelectorAll(".function").length === 4 && document.querySelectorAll(".mapping").length === 4`)
	text := webtest.Eval[string](t, b, `document.querySelector(".functions").innerText`)
	for _, want := range []string{
		"enrich", "python", "48.2K records", "12 min", "retrying", "circuit open", "paused by overflow", "iterator age 1m1s is over 1m", "Last error", "<img src=x",
		"3 failure documents wait", "212", "as dashboard", "400 records were put off", "It is on no stream", "Disabled",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the functions lack %q:\n%s", want, text)
		}
	}
	// Figures change; the button under the finger is the same one.
	b.Script(t, `window.was = document.querySelector('.function[data-name=enrich] .mapping-do button'); window.n = document.querySelector('.function[data-name=enrich] .facts div:nth-child(4) dd').textContent`)
	b.Wait(t, `document.querySelector('.function[data-name=enrich] .facts div:nth-child(4) dd').textContent !== n && was.isConnected`)

	click(t, b, `.function[data-name=enrich] [aria-label^=Pause]`)
	b.Wait(t, `document.querySelector('.function[data-name=enrich] .tag').textContent === "Disabled" && document.activeElement.textContent === "Resume"`)
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector('.function[data-name=enrich] .tag').textContent === "Enabled" && document.querySelector('.function[data-name=enrich] [aria-label^=Resume]').hidden`)
	s.ordered(t, "pause enrich")
	s.ordered(t, "resume enrich")
	click(t, b, `.function[data-name=clicks] [aria-label="Resume clicks on click-stream"]`) // what overflow paused is enabled, and resumed
	b.Wait(t, `!document.querySelector('.function[data-name=clicks]').innerText.includes("paused by overflow")`)

	// Reset says what it does to the records, and wants the name.
	click(t, b, fraud+` [aria-label^=Reset]`)
	b.Wait(t, `document.querySelector("dialog[open] .note").textContent.includes("processed again") && document.querySelector("dialog[open] .danger").disabled`)
	click(t, b, `dialog[open] [value=LATEST]`)
	b.Wait(t, `document.querySelector("dialog[open] .note").textContent.includes("48.2K records that wait now will not be processed")`)
	write(t, b, `dialog[open] .field input`, "fraud")
	b.Press(t, kb.Enter) // not yet the name: nothing happens
	write(t, b, `dialog[open] .field input`, "fraud-score")
	if got := s.ops.Orders(); slices.ContainsFunc(got, func(o string) bool { return strings.HasPrefix(o, "reset") }) {
		t.Errorf("it was reset without its name: %q", got)
	}
	b.Press(t, kb.Enter)
	b.Wait(t, `!document.querySelector("dialog[open]") && document.querySelector('`+fraud+` dd').textContent === "caught up"`)
	s.ordered(t, "reset fraud-score LATEST fraud-score")
	click(t, b, fraud+` [aria-label^=Reset]`)
	b.Press(t, kb.Escape)
	b.Wait(t, `!document.querySelector("dialog[open]")`)

	click(t, b, fraud+` [aria-label^=Redrive]`)
	click(t, b, `dialog[open] .primary`)
	b.Wait(t, `document.querySelector("dialog[open] .facts")?.innerText.includes("38") && document.querySelector("dialog[open]").innerText.includes("<img src=x")`)
	b.Press(t, kb.Escape)
	click(t, b, `.function[data-name=enrich] [aria-label^=Redrive]`)
	click(t, b, `dialog[open] .primary`)
	b.Wait(t, `document.querySelector("dialog[open] [role=alert]").textContent.includes("has no destination")`)
	b.Press(t, kb.Escape)
	b.Complaints() // the browser logs the 409

	click(t, b, `[aria-label="Log of enrich"]`)
	b.Wait(t, `document.querySelectorAll("dialog[open] .log-entry").length === 2 && document.querySelector("dialog[open] .log-entry").textContent.includes("timed out") && document.querySelector("dialog[open]").innerText.includes("<img src=x")`)
	b.Do(t, chromedp.NavigateBack()) // a dialog does not outlive its page
	b.Go(t, s.url+"/pipeline")
	click(t, b, `[aria-label="Log of by-hand"]`)
	b.Wait(t, `document.querySelector("dialog[open]").innerText.includes("written nothing yet")`)
	clean(t, b)
}

// The token is asked for once, when it is first wanted; a wrong one is asked for again; the tab keeps it.
func TestBrowserToken(t *testing.T) {
	s := serve(t, 20)
	s.protect(t, "tok-1")
	b := webtest.Open(t, 1200, 900, false)
	b.Go(t, s.url+"/devices")
	b.Wait(t, `document.querySelector("dialog[open]")?.textContent.includes("token")`)
	b.Press(t, kb.Escape)
	b.Wait(t, `!document.querySelector("dialog[open]") && document.querySelector(".devices-box").innerText.includes("needs the server’s token")`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.devices-box button`)))
	write(t, b, `dialog[open] input`, "wrong")
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector("dialog[open] [role=alert]:not([hidden])")?.textContent.includes("did not take")`)
	write(t, b, `dialog[open] input`, "tok-1")
	b.Press(t, kb.Enter)
	b.Wait(t, `!document.querySelector("dialog[open]") && document.querySelectorAll(".devices tbody tr").length > 10 && sessionStorage.getItem("milepost-token") === "tok-1"`)
	b.Go(t, s.url+"/pipeline")
	click(t, b, `.function[data-name=enrich] [aria-label^=Pause]`)
	b.Wait(t, `document.querySelector('.function[data-name=enrich] .tag').textContent === "Disabled" && !document.querySelector("dialog[open]")`)

	// Without it: looking asks nothing, doing asks, and then does what was meant.
	b.Script(t, `sessionStorage.clear()`)
	b.Go(t, s.url+"/vehicles/T0137")
	b.Wait(t, `document.querySelector(".commands").innerText.includes("needs the server’s token") && !document.querySelector("dialog[open]")`)
	b.Go(t, s.url+"/pipeline")
	click(t, b, `.function[data-name=enrich] [aria-label^=Resume]`)
	write(t, b, `dialog[open] input`, "tok-1")
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector('.function[data-name=enrich] .tag').textContent === "Enabled"`)
	b.Complaints() // the browser logs each 401
	clean(t, b)
}

func TestBrowserDevices(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1200, 900, false)
	b.Go(t, s.url+"/devices")
	b.Wait(t, `document.querySelectorAll(".devices tbody tr").length === 47 && document.querySelector(".devices-page > .note").textContent.includes("1 certificate has ended, 2 certificates end within 30 days")`)
	row := func(id string) string {
		return webtest.Eval[string](t, b, fmt.Sprintf(`document.querySelector('.devices tr[data-id=%q]').innerText`, id))
	}
	for id, wants := range map[string][]string{
		"truck-17":  {"T0137", "active", "in 200 d", "connected", "message refused", "<img src=x"},
		"truck-18":  {"in 12 d", "was here", "keep-alive timeout"},
		"truck-19":  {"ended 3 d ago", "never connected", "rotate it"},
		"van-4":     {"disabled"},
		"van-5":     {"revoked"},
		"gateway-1": {"in 3 d", "connected"},
	} {
		for _, want := range wants {
			if got := row(id); !strings.Contains(got, want) {
				t.Errorf("%s lacks %q: %s", id, want, got)
			}
		}
	}
	for id, kind := range map[string]string{"truck-19": "critical", "gateway-1": "critical", "truck-18": "warning"} {
		if !webtest.Eval[bool](t, b, fmt.Sprintf(`document.querySelector('.devices tr[data-id=%q] time.tag').classList.contains(%q)`, id, kind)) {
			t.Errorf("the end of %s's certificate is not in the colour of %s", id, kind)
		}
	}
	write(t, b, `.search input`, "t0137") // a vehicle's name finds its device
	b.Wait(t, `document.querySelectorAll(".devices tbody tr").length === 1`)
	write(t, b, `.search input`, "nothing")
	b.Wait(t, `document.querySelector(".devices-box").innerText.includes("None matches")`)
	b.Script(t, `const i = document.querySelector(".search input"); i.value = ""; i.dispatchEvent(new Event("input"))`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.choices [data-value=ends]`)))
	b.Wait(t, `[...document.querySelectorAll(".devices tbody tr")].map((r) => r.dataset.id).join() === "gateway-1,truck-18,truck-19"`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.choices [data-value=revoked]`)))
	b.Wait(t, `[...document.querySelectorAll(".devices tbody tr")].map((r) => r.dataset.id).join() === "van-5"`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.devices tbody a`)))
	b.Wait(t, `location.pathname === "/devices/van-5" && document.querySelector(".verdict")?.innerText.includes("revoked")`)
	clean(t, b)
}

func TestBrowserDevice(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1200, 900, false)
	b.Go(t, s.url+"/devices/truck-17")
	b.Wait(t, `document.querySelector(".journal")?.innerText.includes("message refused")`)
	text := webtest.Eval[string](t, b, `document.querySelector("#panel").innerText`)
	for _, want := range []string{
		"publishes to fleet/T9999/telemetry", "What to do", "connected", "10.0.4.7", "T0137", "Policy: own", "fleet/T0137/#", "<img src=x", "this server", "Last connect", "Disconnect reason",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the device's page lacks %q:\n%s", want, text)
		}
	}
	// What is opened stays open while the doctor's words change.
	b.Do(t, chromedp.Click(chromedp.CSS(`.doctor summary`)))
	was := webtest.Eval[string](t, b, `document.querySelector(".doctor details").textContent`)
	b.Wait(t, fmt.Sprintf(`document.querySelector(".doctor details").open && document.querySelector(".doctor details").textContent !== %q`, was))

	press := func(name string) {
		t.Helper()
		b.Wait(t, fmt.Sprintf(`[...document.querySelectorAll(".head-do button")].find((x) => x.textContent === %q)`, name))
		b.Script(t, fmt.Sprintf(`[...document.querySelectorAll(".head-do button")].find((x) => x.textContent === %q).click()`, name))
	}
	press("Disable …")
	click(t, b, `dialog[open] .primary`)
	b.Wait(t, `document.querySelector(".page-head .tag").textContent === "disabled" && document.querySelector(".verdict").innerText.includes("disabled")`)
	press("Enable")
	b.Wait(t, `document.querySelector(".page-head .tag").textContent === "active"`)

	press("Revoke …")
	b.Wait(t, `document.querySelector("dialog[open]").innerText.includes("for good") && document.querySelector("dialog[open] .danger").disabled`)
	b.Script(t, `document.querySelector("dialog[open] select").value = "key_compromise"`)
	write(t, b, `dialog[open] input`, "truck-17")
	click(t, b, `dialog[open] .danger`)
	b.Wait(t, `document.querySelector(".page-head .tag").textContent === "revoked" && document.querySelector(".device-page table").innerText.includes("revoked")`)
	if d, ok := s.ops.Identity.Devices.Device("truck-17"); !ok || d.Status != "revoked" || d.Certificates[0].Reason != 1 {
		t.Errorf("the device is %+v", d)
	}

	// One certificate of it is another thing.
	b.Go(t, s.url+"/devices/truck-18")
	click(t, b, `.device-page table .button`)
	b.Wait(t, `document.querySelector("dialog[open]").innerText.includes("Another certificate of the device still lets it in")`)
	write(t, b, `dialog[open] input`, "truck-18")
	click(t, b, `dialog[open] .danger`)
	b.Wait(t, `document.querySelector(".device-page table").innerText.includes("revoked") && document.querySelector(".page-head .tag").textContent === "active"`)

	// Somebody that is not enrolled has a diagnosis and a journal too, and text of strangers is text.
	b.Go(t, s.url+"/devices/stranger")
	b.Wait(t, `document.querySelector(".page-head").innerText.includes("not enrolled") && document.querySelector(".journal").innerText.includes("<img src=x")`)
	clean(t, b)
}

func TestBrowserEnrol(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1200, 900, false)
	b.Go(t, s.url+"/devices")
	click(t, b, `.page-head .primary`)
	b.Wait(t, `document.querySelectorAll("dialog[open] select option").length >= 6`)
	write(t, b, `dialog[open] input`, "bad id")
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector("dialog[open] [role=alert]:not([hidden])")?.textContent.includes("letters, digits")`)
	b.Complaints() // the browser logs the 400
	write(t, b, `dialog[open] input`, "truck-99")
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector("dialog[open] .qr img")?.naturalWidth > 0`)
	link := webtest.Eval[string](t, b, `document.querySelector("dialog[open] .code pre").textContent`)
	if !strings.HasPrefix(link, "https://milepost.test:8443/v1/devices/enroll?device=truck-99&token=mpt_") {
		t.Errorf("the link is %s", link)
	}
	if !webtest.Eval[bool](t, b, `new URL(document.querySelector("dialog[open] .qr img").src).searchParams.get("text") === document.querySelector("dialog[open] .code pre").textContent`) {
		t.Error("the code is not of the link")
	}
	// The device uses it; the page notices.
	webtest.Eval[int](t, b, fmt.Sprintf(`fetch("/v1/devices/enroll", {method: "POST", headers: {"Content-Type": "application/x-www-form-urlencoded"},
		body: new URLSearchParams({token: %q, device: "truck-99", format: "p12", password: "secret-1"})}).then((r) => r.status)`, link[strings.Index(link, "mpt_"):]))
	b.Wait(t, `document.querySelector("dialog[open] .enrolled")?.textContent.includes("truck-99 has its certificate")`)
	b.Press(t, kb.Escape)
	b.Wait(t, `document.querySelector('.devices tr[data-id="truck-99"]')?.innerText.includes("in 365 d")`)

	// A token that nobody used can be withdrawn.
	click(t, b, `.page-head .primary`)
	write(t, b, `dialog[open] input`, "truck-98")
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector("dialog[open] .qr img")?.naturalWidth > 0`)
	b.Press(t, kb.Escape)
	b.Wait(t, `!document.querySelector(".tokens").hidden && document.querySelector(".tokens summary").textContent === "1 open token"`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.tokens summary`)))
	click(t, b, `.tokens button`)
	b.Wait(t, `document.querySelector(".tokens").hidden`)
	clean(t, b)
}

func TestBrowserCommands(t *testing.T) {
	s := serve(t, 60)
	b := webtest.Open(t, 1280, 900, false)
	b.Go(t, s.url+"/vehicles/T0137")
	b.Wait(t, `document.querySelectorAll(".commands > li").length === 3`)
	text := webtest.Eval[string](t, b, `document.querySelector(".commands").innerText`)
	for _, want := range []string{"lock", "queued", "waits for the device", "failed", "done", "<img src=x"} {
		if !strings.Contains(text, want) {
			t.Errorf("the commands lack %q:\n%s", want, text)
		}
	}
	write(t, b, `.command-form input`, "unlock")
	write(t, b, `.command-form textarea`, `{"door": 12345678901234567890`)
	click(t, b, `.command-form .primary`)
	b.Wait(t, `document.querySelector(".command-form + [role=alert]:not([hidden])")?.textContent.includes("not JSON") && document.activeElement.tagName === "TEXTAREA"`)
	b.Press(t, "}")
	click(t, b, `.command-form .primary`)
	b.Wait(t, `document.querySelectorAll(".commands > li").length === 4 && document.querySelector(".command-form input").value === "" && document.querySelector(".command-form + [role=alert]").hidden`)
	s.ordered(t, `command unlock {"door": 12345678901234567890} 86400`)
	s.ops.Finish("T0137", "done", "the door is open "+webtest.Hostile)
	b.Wait(t, `document.querySelector(".commands > li").dataset.state === "done" && document.querySelector(".commands > li").innerText.includes("the door is open <img")`)
	click(t, b, `.commands [aria-label="Cancel lock"]`)
	b.Wait(t, `document.querySelector('.commands [data-id=c3]').dataset.state === "cancelled"`)
	write(t, b, `.command-form input`, "too-many")
	b.Press(t, kb.Enter)
	b.Wait(t, `document.querySelector(".command-form + [role=alert]:not([hidden])")?.textContent.includes("too many commands")`)
	b.Complaints() // the browser logs the 429
	b.Go(t, s.url+"/vehicles/T0101")
	b.Wait(t, `document.querySelector(".commands").innerText.includes("None yet")`)
	clean(t, b)
}

// A server without functions, devices or commands does not show what it does not have.
func TestBrowserWithoutOperations(t *testing.T) {
	s := serve(t, 60)
	for _, what := range []string{"functions", "devices", "commands"} {
		s.ops.Without(what)
	}
	b := webtest.Open(t, 1200, 900, false)
	b.Go(t, s.url+"/pipeline")
	b.Wait(t, `document.querySelectorAll(".flow details").length > 2`)
	if webtest.Eval[bool](t, b, `document.querySelector(".box.wide").checkVisibility()`) {
		t.Error("functions are shown where there are none")
	}
	b.Go(t, s.url+"/devices")
	b.Wait(t, `document.querySelector(".devices-box").innerText.includes("knows no devices")`)
	b.Go(t, s.url+"/devices/truck-17")
	b.Wait(t, `document.querySelector(".doctor").innerText.includes("knows no devices")`)
	b.Go(t, s.url+"/vehicles/T0137")
	b.Wait(t, `document.querySelectorAll(".chart").length > 3`)
	if webtest.Eval[bool](t, b, `document.querySelector(".command-form").checkVisibility()`) {
		t.Error("commands are shown where there are none")
	}
}

// Nothing scrolls sideways, on a phone or beside another window, on the pages or in their dialogs.
func TestBrowserOperationsFit(t *testing.T) {
	s := serve(t, 60)
	for _, width := range []int64{390, 780} {
		b := webtest.Open(t, width, 844, width < 500)
		fits := func(what string) {
			t.Helper()
			if bad := webtest.Eval[string](t, b, `[...document.querySelectorAll("html, #head, #head nav, #panel, #panel .box, #panel .page, #panel section, #panel .mapping, #panel .function, #panel form, dialog")]
				.filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0).map((e) => e.tagName + "." + e.className + "#" + e.id + " " + e.scrollWidth + ">" + e.clientWidth).join(", ")`); bad != "" {
				t.Errorf("%d px, %s: wider than its place: %s", width, what, bad)
			}
			if webtest.Eval[bool](t, b, `document.documentElement.scrollHeight > innerHeight + 1`) {
				t.Errorf("%d px, %s: the whole page scrolls, not its panel", width, what)
			}
		}
		b.Go(t, s.url+"/pipeline")
		b.Wait(t, `document.querySelectorAll(".mapping").length === 4`)
		fits("functions")
		click(t, b, fraud+` [aria-label^=Reset]`)
		fits("reset")
		b.Press(t, kb.Escape)
		click(t, b, `[aria-label="Log of enrich"]`)
		b.Wait(t, `document.querySelectorAll(".log-entry").length === 2`)
		fits("log")
		b.Go(t, s.url+"/devices")
		b.Wait(t, `document.querySelectorAll(".devices tbody tr").length > 10`)
		fits("devices")
		click(t, b, `.page-head .primary`)
		fits("enrol")
		write(t, b, `dialog[open] input`, "truck-with-a-rather-long-name-"+strings.Repeat("x", 90))
		b.Press(t, kb.Enter)
		b.Wait(t, `document.querySelector("dialog[open] .qr img")?.naturalWidth > 0`)
		fits("token")
		for _, id := range []string{"truck-17", "truck-20", "gateway-1"} {
			b.Go(t, s.url+"/devices/"+id)
			b.Wait(t, `document.querySelector(".device-page table") !== null`)
			fits(id)
		}
		b.Go(t, s.url+"/vehicles/T0137")
		b.Wait(t, `document.querySelectorAll(".commands > li").length > 2`)
		fits("commands")
		clean(t, b)
	}
}
