package web

import (
	"net/http"
	"time"
)

// heartbeat keeps proxies from closing a feed that has nothing to say.
const heartbeat = 15 * time.Second

// live streams the feed as server-sent events: "vehicles" first with all of them and then with what changed, "alerts" and
// "stats" when they do. It ends when the browser leaves, takes nothing for Config.WriteTimeout, or the server closes.
func (s *Server) live(w http.ResponseWriter, r *http.Request) error {
	if !s.hub.join() {
		p := problemf(http.StatusServiceUnavailable, "too-many-feeds", "too many live feeds are open; try again in a minute")
		p.retry = time.Minute
		return p
	}
	defer s.hub.leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // a server's timeouts are for requests that end
	w.WriteHeader(http.StatusOK)

	f := &feed{h: s.hub}
	f.resume(r.Header.Get("Last-Event-ID"))
	out := [][]byte{[]byte("retry: 2000\n\n")}
	beat := time.NewTimer(heartbeat)
	defer beat.Stop()
	for {
		var more <-chan struct{}
		out, more = f.next(out)
		for _, frame := range out {
			_ = rc.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout)) // not every writer can
			n, err := w.Write(frame)
			s.metrics.bytes.Add(float64(n))
			if err != nil {
				if r.Context().Err() == nil {
					s.metrics.dropped.Inc()
				}
				return nil // it reconnects if it is still there
			}
		}
		if len(out) > 0 {
			if err := rc.Flush(); err != nil {
				return nil
			}
			beat.Reset(heartbeat)
		}
		clear(out)
		out = out[:0]
		select {
		case <-more:
		case <-beat.C:
			out = append(out, []byte(":\n\n"))
			beat.Reset(heartbeat)
		case <-r.Context().Done():
			return nil
		case <-s.hub.closed:
			return nil
		}
	}
}
