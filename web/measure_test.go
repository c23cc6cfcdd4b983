package web_test

import (
	"os"
	"testing"

	"github.com/milepost/milepost/web/webtest"
)

// TestMeasureFrames prints how long frames take with 5,000 moving vehicles: MILEPOST_MEASURE=1 go test ./web -run Measure -v
// It asserts nothing: the browser draws in software here, on cores that others use too.
func TestMeasureFrames(t *testing.T) {
	if os.Getenv("MILEPOST_MEASURE") == "" {
		t.Skip("MILEPOST_MEASURE is not set")
	}
	s := serve(t, 5000)
	b := webtest.Open(t, 1360, 850, false)
	b.Go(t, s.url+"/")
	b.Wait(t, mapDrawn)
	b.Wait(t, settled)
	type result struct {
		Frames                 int
		Median, P95, Worst     float64
		Draw                   float64
		Drawn                  int
		BytesPerSecond, HeapMB float64
	}
	measure := func(name, force string) {
		r := webtest.Eval[result](t, b, `new Promise((done) => {
			const o = milepost.mapView.overlay, d = [], bytes = milepost.live.bytes, drawn = o.frames.drawn, ms = o.frames.ms, began = performance.now();
			let last = began;
			const step = (now) => {
				d.push(now - last);
				last = now;
				`+force+`;
				if (now - began < 8000) return requestAnimationFrame(step);
				d.sort((a, b) => a - b);
				done({Frames: d.length, Median: d[d.length >> 1], P95: d[Math.floor(d.length * 0.95)], Worst: d.at(-1),
					Drawn: o.frames.drawn - drawn, Draw: (o.frames.ms - ms) / Math.max(1, o.frames.drawn - drawn),
					BytesPerSecond: (milepost.live.bytes - bytes) / 8, HeapMB: performance.memory.usedJSHeapSize / 1e6});
			};
			requestAnimationFrame(step);
		})`)
		t.Logf("%-38s %4d frames, median %.1f ms, p95 %.1f, worst %.1f; vehicles drawn %d times, %.2f ms of script each; feed %.0f kB/s; heap %.0f MB",
			name, r.Frames, r.Median, r.P95, r.Worst, r.Drawn, r.Draw, r.BytesPerSecond/1000, r.HeapMB)
	}
	measure("whole fleet, as it paces itself", "")
	measure("whole fleet, vehicles in every frame", "o.draw()")
	measure("whole fleet, panning in every frame", "milepost.mapView.map.gl.panBy([2, 0], {duration: 0})")
	b.Script(t, `milepost.map().go(-95.4, 29.8, 12, false); window.__since = undefined`)
	b.Wait(t, settled)
	measure("a city at zoom 12, as it paces itself", "")
}
