package web_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/png"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/milepost/milepost/web"
	"github.com/milepost/milepost/web/webtest"
)

// clean ends a browser test: the page must not have complained, nor have run what a device said.
func clean(t *testing.T, b *webtest.Browser) {
	t.Helper()
	if webtest.Eval[bool](t, b, `window.pwned !== undefined`) {
		t.Error("text from a device ran as script")
	}
	for _, c := range b.Complaints() {
		t.Errorf("the page said: %s", c)
	}
}

// A fleet comes to the map by itself, is searched, chosen by keyboard and opened.
func TestBrowserMap(t *testing.T) {
	s := serve(t, 300)
	b := webtest.Open(t, 1280, 800, false)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	if n := webtest.Eval[int](t, b, `milepost.mapView.overlay.count`); n != 300 {
		t.Errorf("%d vehicles are drawn, want 300", n)
	}
	if plain := webtest.Eval[bool](t, b, `milepost.mapView.host.dataset.plain === "true"`); plain {
		t.Fatal("the plain map came up; WebGL should work here")
	}
	// Pixels: the vehicles' canvas is not empty.
	b.Wait(t, settled)
	if n := webtest.Eval[int](t, b, `(() => {
		const o = milepost.mapView.overlay;
		o.draw();
		const gl = o.gl, px = new Uint8Array(gl.drawingBufferWidth * gl.drawingBufferHeight * 4);
		gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, px);
		let n = 0;
		for (let i = 3; i < px.length; i += 4) if (px[i] > 128) n++;
		return n;
	})()`); n < 300 {
		t.Errorf("%d opaque pixels of vehicles, want some for each of 300", n)
	}
	if n := webtest.Eval[int](t, b, `milepost.mapView.map.gl.queryRenderedFeatures({layers: ["city", "country-name", "region-name"]}).length`); n == 0 {
		t.Error("the base map has no names: local fonts did not draw")
	}
	b.Wait(t, `Number(document.querySelector(".cell.online b").textContent) > 200`)

	// It moves: the feed changes places, and what is drawn follows.
	before := webtest.Eval[float64](t, b, `milepost.fleet.lat[milepost.fleet.index.get("T0101")]`)
	b.Wait(t, fmt.Sprintf(`milepost.fleet.lat[milepost.fleet.index.get("T0101")] !== %v`, before))

	drawn := webtest.Eval[int](t, b, `milepost.mapView.overlay.frames.drawn`)
	b.Wait(t, fmt.Sprintf(`milepost.mapView.overlay.frames.drawn > %d`, drawn+2))

	// Search, then choose and open without a mouse.
	// Not b.Press: it sends the character even if the page takes the key.
	b.Script(t, `document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "/", bubbles: true, cancelable: true}))`)
	b.Wait(t, `document.activeElement.type === "search"`)
	b.Press(t, "t013")
	b.Wait(t, `document.querySelector(".list [role=option]:not([hidden]) .row-name").textContent.startsWith("T013") && milepost.mapView.overlay.count === 10`)
	b.Press(t, kb.ArrowDown)
	b.Press(t, kb.ArrowDown)
	b.Wait(t, `document.activeElement.getAttribute("role") === "listbox" && document.getElementById(document.activeElement.getAttribute("aria-activedescendant")).querySelector(".row-name").textContent === milepost.fleet.ids[milepost.mapView.selected]`)
	chosen := webtest.Eval[string](t, b, `milepost.fleet.ids[milepost.mapView.selected]`)
	b.Wait(t, `!document.querySelector(".map-card").hidden`)
	b.Press(t, kb.Enter)
	b.Wait(t, fmt.Sprintf(`location.pathname === "/vehicles/%s" && document.querySelector("h1").textContent === %q`, chosen, chosen))
	b.Do(t, chromedp.NavigateBack())
	b.Wait(t, `location.pathname === "/" && document.querySelector(".search input").value === "t013"`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.choices [data-value=offline]`)))
	b.Wait(t, `[...document.querySelectorAll(".list [role=option]:not([hidden]) .row-speed")].every((e) => e.textContent === "offline")`)
	clean(t, b)
}

// A vehicle on the map answers to the mouse and to the keyboard.
func TestBrowserPicksOnTheMap(t *testing.T) {
	s := serve(t, 40)
	b := webtest.Open(t, 1280, 800, false)
	b.Still(t)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	b.Wait(t, settled)
	// The vehicle that stands furthest from the others, so that a click can only mean it.
	b.Script(t, `
		const m = milepost.mapView, f = milepost.fleet, at = [...m.shown].filter((i) => f.speed[i] === 0 || f.state[i] > 0).map((i) => [i, m.overlay.placeOf(i)]);
		const all = [...m.shown].map((i) => [i, m.overlay.placeOf(i)]);
		const gap = ([i, p]) => Math.min(...all.filter(([k]) => k !== i).map(([, q]) => Math.hypot(p[0] - q[0], p[1] - q[1])));
		at.sort((a, b) => gap(b) - gap(a));
		const r = m.base.getBoundingClientRect();
		window.target = {id: f.ids[at[0][0]], x: r.left + at[0][1][0], y: r.top + at[0][1][1]};`)
	id := webtest.Eval[string](t, b, `target.id`)
	x, y := webtest.Eval[float64](t, b, `target.x`), webtest.Eval[float64](t, b, `target.y`)
	b.Do(t, chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y))
	b.Wait(t, fmt.Sprintf(`!document.querySelector(".map-tip").hidden && document.querySelector(".map-tip b").textContent === %q`, id))
	b.Do(t, chromedp.MouseClickXY(x, y))
	b.Wait(t, fmt.Sprintf(`milepost.fleet.ids[milepost.mapView.selected] === %q && !document.querySelector(".map-card").hidden`, id))
	b.Wait(t, `document.querySelector(".row[aria-selected=true]") !== null`)

	b.Script(t, `document.querySelector(".map-base canvas").focus()`)
	b.Press(t, "n")
	b.Wait(t, fmt.Sprintf(`milepost.mapView.selected >= 0 && milepost.fleet.ids[milepost.mapView.selected] !== %q`, id))
	next := webtest.Eval[string](t, b, `milepost.fleet.ids[milepost.mapView.selected]`)
	b.Wait(t, fmt.Sprintf(`document.querySelector("#stage [role=status]").textContent.startsWith(%q)`, next))
	b.Press(t, "p")
	b.Wait(t, fmt.Sprintf(`milepost.fleet.ids[milepost.mapView.selected] === %q`, id))
	b.Press(t, kb.Escape)
	b.Wait(t, `milepost.mapView.selected === -1 && document.querySelector(".map-card").hidden`)
	b.Press(t, "p")
	b.Press(t, kb.Enter)
	b.Wait(t, `location.pathname.startsWith("/vehicles/")`)
	clean(t, b)
}

func TestBrowserVehicle(t *testing.T) {
	s := serve(t, 60)
	b := webtest.Open(t, 1280, 800, false)
	b.Go(t, s.url+"/vehicles/T0137")
	b.Wait(t, `document.querySelectorAll(".chart").length >= 6 && document.querySelectorAll(".signal").length >= 6`)
	text := webtest.Eval[string](t, b, `document.querySelector("#panel").innerText`)
	for _, want := range []string{"T0137", "km/h", "°C", "kPa", "Heard", "Place", "engine-hot", "Speed", "Fuel"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	b.Wait(t, `milepost.mapView.map.trailData?.features.length === 2`) // the gap is a gap
	// The cursor of one chart is that of all, and a place on the map.
	b.Script(t, `document.querySelector(".chart canvas").focus()`)
	b.Press(t, kb.ArrowLeft)
	b.Wait(t, `[...document.querySelectorAll(".chart-now")].filter((e) => e.textContent.includes(" at ")).length >= 6 && milepost.mapView.map.markData.type === "Feature"`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.choices [data-value="1"]`)))
	b.Wait(t, `milepost.page.hours === 1 && document.querySelectorAll(".chart").length >= 6`)
	was := webtest.Eval[string](t, b, `document.querySelector(".signal b").textContent`)
	b.Wait(t, fmt.Sprintf(`document.querySelector(".signal b").textContent !== %q`, was))

	b.Go(t, s.url+"/vehicles/nobody")
	b.Wait(t, `document.querySelector(".message.error")?.textContent.includes("nobody")`)
	if n := len(b.Complaints()); n == 0 {
		t.Error("the browser should have logged the 404")
	}
	clean(t, b)
}

func TestBrowserWithoutSQL(t *testing.T) {
	s := serve(t, 5, func(c *web.Config) { c.SQL = nil })
	b := webtest.Open(t, 1000, 700, false)
	b.Go(t, s.url+"/vehicles/T0101")
	b.Wait(t, `document.querySelector(".charts").textContent.includes("SQL is not in this build")`)
	b.Go(t, s.url+"/sql")
	b.Wait(t, `document.querySelector(".sql-note").textContent.includes("not available") && document.querySelector(".sql-bar .primary").disabled`)
}

func TestBrowserAlerts(t *testing.T) {
	s := serve(t, 100)
	b := webtest.Open(t, 1100, 800, false)
	b.Go(t, s.url+"/alerts")
	b.Wait(t, `document.querySelectorAll(".alert").length > 10`)
	first := webtest.Eval[string](t, b, `document.querySelector(".alert").dataset.id`)
	// By keyboard: to the list, down and up, acknowledge.
	b.Script(t, `document.querySelector(".alert").focus()`)
	b.Press(t, "j")
	b.Wait(t, fmt.Sprintf(`document.activeElement.dataset.id !== %q`, first))
	b.Press(t, "k")
	b.Press(t, "a")
	b.Wait(t, fmt.Sprintf(`document.querySelector('.alert[data-id=%q]').textContent.includes("acknowledged by dashboard") && !document.querySelector('.alert[data-id=%q] .ack')`, first, first))
	// A new one comes by itself, with a word about it.
	s.fleet.Fire("al-new", "T0105", "door-open", "critical")
	b.Wait(t, `document.querySelector('.alert[data-id="al-new"]') !== null && document.querySelector(".toast.critical").textContent.includes("T0105")`)
	b.Do(t, chromedp.Click(chromedp.CSS(`.choices [data-value=resolved]`)))
	b.Wait(t, `document.querySelectorAll(".alert").length > 3 && [...document.querySelectorAll(".alert")].every((a) => a.dataset.state === "resolved")`)
	b.Do(t, chromedp.SendKeys(chromedp.CSS(`.page-head input`), "cargo"))
	b.Wait(t, `[...document.querySelectorAll(".alert-rule")].every((e) => e.textContent === "cargo-temperature")`)
	clean(t, b)
}

func TestBrowserSQL(t *testing.T) {
	s := serve(t, 30)
	b := webtest.Open(t, 1100, 800, false)
	b.Go(t, s.url+"/sql")
	b.Wait(t, `document.activeElement.classList.contains("editor")`)
	b.Press(t, kb.Enter, chromedp.ModifierCtrl)
	b.Wait(t, `document.querySelectorAll(".result tbody tr").length === 30 && document.querySelector(".sql-note").textContent.startsWith("30 rows in")`)
	if cell := webtest.Eval[string](t, b, `document.querySelector(".result td").textContent`); cell != webtest.Hostile {
		t.Errorf("first cell %q, want the hostile id as text", cell)
	}
	b.Script(t, `document.querySelector(".editor").value = "DELETE FROM readings"`)
	b.Press(t, kb.Enter, chromedp.ModifierCtrl)
	b.Wait(t, `document.querySelector(".sql-note [role=alert]")?.textContent.includes("only SELECT is allowed")`)
	b.Complaints() // the browser logs the 400
	b.Script(t, `document.querySelector(".editor").value = "SELECT 1"; window.saved = null; HTMLAnchorElement.prototype.click = function () { window.saved = this.download }`)
	b.Do(t, chromedp.Click(chromedp.CSS(".sql-bar .button:nth-child(2)")))
	b.Wait(t, `window.saved === "milepost.csv"`)
	clean(t, b)
}

func TestBrowserPipeline(t *testing.T) {
	s := serve(t, 100)
	b := webtest.Open(t, 1100, 900, false)
	b.Go(t, s.url+"/pipeline")
	b.Wait(t, `document.querySelectorAll(".flow details").length === 5 && document.querySelectorAll(".letter-row").length === 24`)
	b.Wait(t, `/^[0-9]/.test(document.querySelector(".figure b").textContent)`) // a rate needs two looks
	// An opened row stays open, and keeps the focus, while figures change.
	b.Do(t, chromedp.Click(chromedp.CSS(`.flow details[data-key="f/rules"] summary`)))
	looks := webtest.Eval[int](t, b, `milepost.page.sparks.lag.values.length`)
	b.Wait(t, fmt.Sprintf(`milepost.page.sparks.lag.values.length > %d`, looks+1))
	if !webtest.Eval[bool](t, b, `document.querySelector('.flow details[data-key="f/rules"]').open && document.activeElement.closest("details")?.dataset.key === "f/rules"`) {
		t.Error("the opened function closed, or lost the focus, when the figures changed")
	}
	b.Do(t, chromedp.Click(chromedp.CSS(".letter-row:nth-child(3)")))
	b.Wait(t, `document.querySelector("dialog[open] pre")?.textContent.includes("7b 22 74 72")`) // bytes that are no text
	b.Press(t, kb.Escape)
	b.Wait(t, `document.querySelector("dialog[open]") === null`)
	clean(t, b)
}

// Each kind of sender has its page filled in for the vehicle, and a code that reads back what it should set up.
func TestBrowserConnect(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1100, 900, false)
	b.Go(t, s.url+"/connect")
	b.Wait(t, `document.querySelector(".qr img")?.naturalWidth > 0`)
	b.Script(t, `const i = document.querySelector(".connect-form input"); i.value = "T & <b>"; i.dispatchEvent(new Event("input"))`)
	b.Wait(t, `JSON.parse(atob(new URLSearchParams(decodeURIComponent(new URL(document.querySelector(".qr img").src).searchParams.get("text")).split("?")[1]).get("inline").replaceAll(" ", "+"))).deviceId === "T & <b>"`)
	kinds := webtest.Eval[int](t, b, `document.querySelectorAll(".connect-page .choices button").length`)
	if kinds < 10 {
		t.Errorf("%d kinds of senders", kinds)
	}
	for i := range kinds {
		b.Script(t, fmt.Sprintf(`document.querySelectorAll(".connect-page .choices button")[%d].click()`, i))
		b.Wait(t, `document.querySelectorAll(".connect-out .code pre").length > 0`)
	}
	b.Script(t, `const j = document.querySelector(".connect-form input"); j.value = "a/b"; j.dispatchEvent(new Event("input"))`)
	b.Wait(t, `document.querySelector(".connect-out [role=alert]") !== null`)
	clean(t, b)
}

// What a device says is text everywhere it appears.
func TestBrowserHostileText(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1100, 800, false)
	for _, path := range []string{"/", "/alerts", "/pipeline", "/vehicles/" + url.PathEscape(webtest.Hostile)} {
		b.Go(t, s.url+path)
		b.Wait(t, `document.body.innerText.includes("<img src=x") && document.querySelector("img") === null`)
	}
	b.Wait(t, `document.querySelectorAll(".chart").length > 3 && document.querySelector("h1").textContent.startsWith("<img")`)
	s.fleet.Fire("al-x", webtest.Hostile, webtest.Hostile, "critical")
	b.Wait(t, `document.querySelector(".toast")?.textContent.includes("<img src=x")`)
	clean(t, b)
}

func TestBrowserPhone(t *testing.T) {
	s := serve(t, 100)
	b := webtest.Open(t, 390, 844, true)
	for _, path := range []string{"/", "/vehicles/T0137", "/alerts", "/sql", "/pipeline", "/connect"} {
		b.Go(t, s.url+path)
		b.Wait(t, `document.querySelector("#panel")?.innerText.length > 20`)
		if w := webtest.Eval[int](t, b, `document.documentElement.scrollWidth`); w > 390 {
			t.Errorf("%s is %d px wide on a 390 px screen", path, w)
		}
	}
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	shut := webtest.Eval[float64](t, b, `document.querySelector(".fleet-panel").getBoundingClientRect().top`)
	b.Do(t, chromedp.Click(chromedp.CSS(".grip")))
	b.Wait(t, fmt.Sprintf(`document.querySelector(".grip").getAttribute("aria-expanded") === "true" && document.querySelector(".fleet-panel").getBoundingClientRect().top < %v`, shut-200))
	clean(t, b)
}

func TestBrowserThemes(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1100, 800, false)
	b.Dark(t, true)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	b.Wait(t, `document.documentElement.dataset.theme === "dark" && milepost.mapView.map.gl.getPaintProperty("land", "fill-color") === "#1a232c"`)
	b.Dark(t, false)
	b.Wait(t, `document.documentElement.dataset.theme === "light" && milepost.mapView.map.gl.getPaintProperty("land", "fill-color") === "#f6f5f1"`)
	for _, want := range []string{"light", "dark"} {
		b.Do(t, chromedp.Click(chromedp.CSS(".head-end button")))
		b.Wait(t, fmt.Sprintf(`document.documentElement.dataset.theme === %q`, want))
	}
	b.Go(t, s.url+"/alerts") // the choice is kept
	b.Wait(t, `document.documentElement.dataset.theme === "dark"`)
	clean(t, b)
}

// Without WebGL there is a plain map that still shows, picks and steps.
func TestBrowserPlainMap(t *testing.T) {
	s := serve(t, 50)
	b := webtest.Open(t, 1100, 800, false, chromedp.Flag("disable-3d-apis", true))
	b.Still(t)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn+` && milepost.mapView.host.dataset.plain === "true" && milepost.mapView.map.lines.land.length > 50`)
	b.Wait(t, settled)
	if n := webtest.Eval[int](t, b, `(() => {
		const c = document.querySelector("canvas.flat"), px = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, seen = new Set();
		for (let i = 0; i < px.length; i += 4) seen.add(px[i] << 16 | px[i + 1] << 8 | px[i + 2]);
		return seen.size;
	})()`); n < 20 {
		t.Errorf("the plain map shows %d colours, want land, water and vehicles", n)
	}
	b.Script(t, `document.querySelector("canvas.flat").focus()`)
	b.Press(t, "n")
	b.Wait(t, `milepost.mapView.selected >= 0 && !document.querySelector(".map-card").hidden`)
	zoom := webtest.Eval[float64](t, b, `milepost.mapView.map.view.zoom`)
	b.Press(t, "+")
	b.Wait(t, fmt.Sprintf(`milepost.mapView.map.view.zoom > %v`, zoom))
	if webtest.Eval[bool](t, b, `window.pwned !== undefined`) {
		t.Error("text from a device ran as script")
	}
}

// The page finds the server again after it was gone, and starts over with the new one's vehicles.
func TestBrowserReconnects(t *testing.T) {
	s := serve(t, 30)
	b := webtest.Open(t, 1000, 700, false)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn+` && document.querySelector(".feed").textContent === "Live"`)
	s.fleet.Add("NEW-1")
	b.Wait(t, `milepost.fleet.index.has("NEW-1") && milepost.fleet.counts().total === 31`)
	s.restart(t)
	b.Wait(t, `milepost.live.state === "open" && milepost.fleet.counts().total === 31`)
	s.fleet.Add("NEW-2")
	b.Wait(t, `milepost.fleet.index.has("NEW-2")`)
}

// Tab reaches everything, and what has the focus can be seen.
func TestBrowserFocus(t *testing.T) {
	s := serve(t, 20)
	b := webtest.Open(t, 1100, 800, false)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	reached := map[string]bool{}
	for range 30 {
		b.Press(t, kb.Tab)
		what := webtest.Eval[string](t, b, `(() => {
			const e = document.activeElement, s = getComputedStyle(e), box = getComputedStyle(e.closest("label") ?? e);
			const seen = e === document.body || s.outlineStyle !== "none" || box.boxShadow !== "none";
			return (seen ? "" : "UNSEEN ") + (e.getAttribute("aria-label") ?? e.textContent ?? e.tagName).slice(0, 24);
		})()`)
		reached[what] = true
		if strings.HasPrefix(what, "UNSEEN") {
			t.Errorf("the focus cannot be seen on %q", what)
		}
	}
	for _, want := range []string{"Skip to content", "Map", "SQL", "Pipeline", "Theme: as the system", "Search vehicles", "Vehicles", "Zoom in", "Show all vehicles"} {
		if !reached[want] {
			t.Errorf("Tab never reaches %q; it reaches %v", want, reached)
		}
	}
	clean(t, b)
}

// An operator's PMTiles archive, on another host, lies over the base map; the policy lets just that host in.
func TestBrowserPMTiles(t *testing.T) {
	var ranges atomic.Int64
	archive := onePixelArchive(t)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Cache-Control", "no-store") // or the browser cuts the second answer out of the first
		http.ServeContent(w, r, "tiles.pmtiles", testTime, bytes.NewReader(archive))
	}))
	defer other.Close()
	s := serve(t, 5, func(c *web.Config) { c.PMTiles, c.TileBy = other.URL+"/tiles.pmtiles", `Ada & <b>friends</b>` })
	b := webtest.Open(t, 900, 700, false)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	b.Wait(t, `milepost.mapView.map.gl.getSource("tiles").type === "raster" && milepost.mapView.map.gl.isSourceLoaded("tiles")`)
	b.Wait(t, `document.querySelector(".maplibregl-ctrl-attrib").textContent.includes("Ada & <b>friends</b>")`)
	if n := ranges.Load(); n < 2 {
		t.Errorf("%d range requests, want one for the directory and one for the tile", n)
	}
	clean(t, b)
}

// onePixelArchive is a PMTiles v3 archive of one raster tile, the world in one colour.
func onePixelArchive(t *testing.T) []byte {
	t.Helper()
	var tile bytes.Buffer
	if err := png.Encode(&tile, image.NewGray(image.Rect(0, 0, 256, 256))); err != nil {
		t.Fatal(err)
	}
	dir := []byte{1, 0, 1}                              // one entry: tile 0, run of one
	dir = binary.AppendUvarint(dir, uint64(tile.Len())) // its length
	dir = append(dir, 1)                                // its offset + 1
	head := make([]byte, 127)
	copy(head, "PMTiles\x03")
	put := func(at int, v int) { binary.LittleEndian.PutUint64(head[at:], uint64(v)) }
	put(8, 127)
	put(16, len(dir))
	put(40, 127+len(dir))
	put(56, 127+len(dir))
	put(64, tile.Len())
	head[97], head[98], head[99] = 1, 1, 2 // nothing is compressed; PNG
	return append(append(head, dir...), tile.Bytes()...)
}
