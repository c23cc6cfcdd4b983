package web_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/milepost/milepost/web/webtest"
)

// TestScreenshots photographs every page for people to look at: MILEPOST_SCREENSHOTS=dir go test ./web -run Screenshots
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("MILEPOST_SCREENSHOTS")
	if dir == "" {
		t.Skip("MILEPOST_SCREENSHOTS names no directory")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	site := serve(t, 5000)
	for _, size := range []struct {
		name  string
		w, h  int64
		phone bool
	}{{"desktop", 1360, 850, false}, {"phone", 390, 844, true}} {
		b := webtest.Open(t, size.w, size.h, size.phone)
		shot := func(name string) {
			b.Script(t, `window.__since = undefined`)
			b.Shot(t, filepath.Join(dir, fmt.Sprintf("%s-%s.png", size.name, name)))
		}
		for _, dark := range []bool{false, true} {
			theme := map[bool]string{false: "light", true: "dark"}[dark]
			b.Dark(t, dark)
			b.Go(t, site.url+"/")
			b.Wait(t, mapDrawn)
			b.Wait(t, settled)
			shot("map-" + theme)
			b.Script(t, `milepost.map().go(-95.4, 29.8, 8, false); milepost.map().select(milepost.fleet.index.get("T0137"))`)
			b.Wait(t, settled)
			shot("map-near-" + theme)
			if size.phone {
				b.Do(t, chromedp.Click(chromedp.CSS(".grip")))
				b.Wait(t, settled)
				shot("list-" + theme)
			}
			b.Go(t, site.url+"/vehicles/T0137")
			b.Wait(t, `document.querySelectorAll(".chart").length > 3 && `+mapDrawn)
			b.Wait(t, settled)
			shot("vehicle-" + theme)
			b.Script(t, `document.querySelector(".charts").scrollIntoView()`)
			b.Wait(t, settled)
			shot("charts-" + theme)
			b.Go(t, site.url+"/alerts")
			b.Wait(t, `document.querySelectorAll(".alert").length > 3`)
			shot("alerts-" + theme)
			b.Go(t, site.url+"/sql")
			b.Wait(t, `document.querySelector(".sql-bar .primary") !== null`)
			b.Do(t, chromedp.Click(chromedp.CSS(".sql-bar .primary")))
			b.Wait(t, `document.querySelectorAll(".result td").length > 3`)
			shot("sql-" + theme)
			b.Go(t, site.url+"/connect")
			b.Wait(t, `document.querySelector(".qr img")?.naturalWidth > 0`)
			shot("connect-" + theme)
			b.Go(t, site.url+"/pipeline")
			b.Wait(t, `document.querySelectorAll(".letter-row").length > 3 && document.querySelectorAll(".flow details").length > 3`)
			b.Wait(t, `document.querySelectorAll(".mapping").length === 4`)
			b.Script(t, `document.querySelectorAll(".flow details")[3].open = true`)
			b.Wait(t, `milepost.page.sparks.lag.values.length > 3`)
			shot("pipeline-" + theme)
			b.Script(t, `document.querySelectorAll(".letter-row")[2].click()`)
			b.Wait(t, `document.querySelector("dialog pre") !== null`)
			shot("letter-" + theme)
			b.Script(t, `document.querySelector("dialog[open]").close(); document.querySelector('.function[data-name=clicks]').scrollIntoView()`)
			shot("functions-" + theme)
			click(t, b, fraud+` [aria-label^=Reset]`)
			shot("reset-" + theme)
			b.Go(t, site.url+"/vehicles/T0137")
			b.Wait(t, `document.querySelectorAll(".commands > li").length > 2 && document.querySelectorAll(".chart").length > 3`)
			b.Script(t, `document.querySelector(".command-form").parentElement.scrollIntoView(); document.querySelector(".commands details").open = true`)
			b.Wait(t, settled)
			shot("commands-" + theme)
			b.Go(t, site.url+"/devices")
			b.Wait(t, `document.querySelectorAll(".devices tbody tr").length > 10 && !document.querySelector(".devices-page > .note").hidden`)
			shot("devices-" + theme)
			click(t, b, `.page-head .primary`)
			write(t, b, `dialog[open] input`, "truck-99")
			shot("enrol-" + theme)
			b.Script(t, `document.querySelector("dialog[open] form").requestSubmit()`)
			b.Wait(t, `document.querySelector("dialog[open] .qr img")?.naturalWidth > 0`)
			shot("token-" + theme)
			b.Go(t, site.url+"/devices/truck-17")
			b.Wait(t, `document.querySelector(".device-page table") !== null`)
			shot("device-" + theme)
			b.Script(t, `document.querySelector(".journal").scrollIntoView()`)
			shot("journal-" + theme)
		}
		for _, c := range b.Complaints() {
			t.Errorf("%s: the page said: %s", size.name, c)
		}
	}
}
