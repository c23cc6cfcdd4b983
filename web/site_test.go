package web_test

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/milepost/milepost/web"
	"github.com/milepost/milepost/web/webtest"
)

// A site is the real handler over a made-up fleet that moves by itself.
type site struct {
	url   string
	fleet *webtest.Fleet
	ops   *webtest.Operations // what the program serves beside package web
	web   *web.Server
	cfg   web.Config
	front atomic.Pointer[web.Server]
	all   []*web.Server
}

// serve starts a site of n vehicles that report once a second.
func serve(t testing.TB, n int, change ...func(*web.Config)) *site {
	t.Helper()
	s := &site{fleet: webtest.New(n, 1, time.Now())}
	s.cfg = s.fleet.Config()
	for _, c := range change {
		c(&s.cfg)
	}
	s.restart(t)
	s.web = s.front.Load()
	s.protect(t, "")
	srv := httptest.NewServer(s.behind(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.front.Load().ServeHTTP(w, r) })))
	s.url = srv.URL
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				s.fleet.Advance(now)
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
		for _, w := range s.all {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
		srv.CloseClientConnections()
		srv.Close()
	})
	return s
}

// behind serves operations, and what they do not know from next.
func (s *site) behind(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.ops.Handler(next).ServeHTTP(w, r) })
}

// protect gives the site operations that need a token.
func (s *site) protect(t testing.TB, token string) {
	t.Helper()
	var err error
	if s.ops, err = webtest.NewOperations(filepath.Join(t.TempDir(), "ca"), token, time.Now()); err != nil {
		t.Fatal(err)
	}
	ops := s.ops
	t.Cleanup(func() {
		if err := ops.Close(); err != nil {
			t.Error(err)
		}
	})
}

// restart puts another server in front of the same fleet, and ends the one before.
func (s *site) restart(t testing.TB) {
	t.Helper()
	next, err := web.New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.all = append(s.all, next)
	if before := s.front.Swap(next); before != nil {
		if err := before.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	// mapDrawn: the map has its base, its vehicles, and has drawn both.
	mapDrawn = `window.milepost?.mapView?.overlay && milepost.mapView.host.dataset.ready === "true" && milepost.fleet.size > 0 && milepost.mapView.shown.length > 0`
	// settled: the base map has loaded what it needs, and has been still for long enough to fade its names in.
	settled = `!milepost.page?.map || (milepost.mapView.map.gl ? milepost.mapView.map.gl.loaded() && milepost.mapView.map.gl.areTilesLoaded() : true) && !(milepost.mapView.map.gl?.isMoving() ?? false) && document.getAnimations().length === 0 && (performance.now() - (window.__since ??= performance.now()) > 1500)`
)

var testTime = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
