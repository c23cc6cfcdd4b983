package web

import (
	"fmt"
	"net/http"
	"strings"

	"rsc.io/qr"
)

// maxQR is how much text a code may hold: more makes it too fine for a phone's camera on a screen.
const maxQR = 1024

// getQR draws text as a QR code, an SVG of one path.
func (s *Server) getQR(w http.ResponseWriter, r *http.Request) error {
	text := r.URL.Query().Get("text")
	if text == "" || len(text) > maxQR {
		return problemf(http.StatusBadRequest, "bad-parameter", "text: give 1 to %d bytes", maxQR)
	}
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return problemf(http.StatusBadRequest, "bad-parameter", "text: %v", err)
	}
	const quiet = 4 // modules of margin, as the standard wants
	var b strings.Builder
	size := code.Size + 2*quiet
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" shape-rendering="crispEdges"><rect width="100%%" height="100%%" fill="#fff"/><path d="`, size, size)
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			from := x
			for x < code.Size && code.Black(x, y) {
				x++
			}
			if x > from {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", from+quiet, y+quiet, x-from, x-from)
			}
		}
	}
	b.WriteString(`" fill="#000"/></svg>`)
	w.Header().Set("Content-Type", "image/svg+xml")
	w.Header().Set("Cache-Control", "no-store") // it may hold a token
	_, _ = w.Write([]byte(b.String()))
	return nil
}
