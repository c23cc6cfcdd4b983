package web_test

import (
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/milepost/milepost/web"
	"github.com/milepost/milepost/web/webtest"
)

// A site is the real handler over a made-up fleet that moves by itself.
type site struct {
	url   string
	fleet *webtest.Fleet
	web   *web.Server
}

// serve starts a site of n vehicles that report once a second.
func serve(t testing.TB, n int, change ...func(*web.Config)) *site {
	t.Helper()
	f := webtest.New(n, 1, time.Now())
	cfg := f.Config()
	for _, c := range change {
		c(&cfg)
	}
	s, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				f.Advance(now)
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		srv.CloseClientConnections()
		srv.Close()
	})
	return &site{url: srv.URL, fleet: f, web: s}
}

const (
	// mapDrawn: the map has its base, its vehicles, and has drawn both.
	mapDrawn = `window.milepost?.mapView?.overlay && milepost.mapView.host.dataset.ready === "true" && milepost.fleet.size > 0 && milepost.mapView.shown.length > 0`
	// settled: the base map has loaded what it needs, and animations have ended.
	settled = `!milepost.page?.map || (milepost.mapView.map.gl ? milepost.mapView.map.gl.loaded() && milepost.mapView.map.gl.areTilesLoaded() : true) && !(milepost.mapView.map.gl?.isMoving() ?? false) && document.getAnimations().length === 0 && (performance.now() - (window.__since ??= performance.now()) > 1500)`
)
