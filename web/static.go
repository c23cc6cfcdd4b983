package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/milepost/milepost/web/basemap"
)

//go:embed static
var static embed.FS

// assets are the dashboard's files. They are served under /assets/<version>/, where the version is a hash of them all: a
// browser keeps them for ever, and a new binary's page asks for new ones.
type assets struct {
	version string
	files   map[string]*asset // by path under static/
	index   *asset            // the page, with the version and the title filled in
}

type asset struct {
	body []byte
	kind string
	etag string
	gzip func() []byte // made at the first request that takes it, then kept; nil result: not worth it
	zstd func() []byte
}

func newAssets() (*assets, error) {
	a := &assets{files: map[string]*asset{}}
	all := sha256.New()
	err := fs.WalkDir(static, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		all.Write(fmt.Appendf(nil, "%s %d\n", name, len(body)))
		all.Write(body)
		a.files[strings.TrimPrefix(name, "static/")] = newAsset(name, body)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read embedded dashboard: %w", err)
	}
	a.version = hex.EncodeToString(all.Sum(nil)[:6])
	return a, nil
}

func newAsset(name string, body []byte) *asset {
	sum := sha256.Sum256(body)
	kinds := map[string]string{ // not from the system's table, which differs
		".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
		".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".json": "application/json", ".txt": "text/plain; charset=utf-8",
		".webmanifest": "application/manifest+json", ".png": "image/png",
	}
	kind, ok := kinds[path.Ext(name)]
	if !ok {
		kind = "application/octet-stream"
	}
	a := &asset{body: body, kind: kind, etag: hex.EncodeToString(sum[:8])}
	a.gzip = sync.OnceValue(func() []byte { return worthIt(a, gzipped(body)) })
	a.zstd = sync.OnceValue(func() []byte { return worthIt(a, zstdCompressed(body)) })
	return a
}

func worthIt(a *asset, packed []byte) []byte {
	if len(packed) > len(a.body)*9/10 {
		return nil
	}
	return packed
}

func gzipped(body []byte) []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is valid
	_, _ = w.Write(body)                                  // a bytes.Buffer takes all
	_ = w.Close()
	return b.Bytes()
}

func zstdCompressed(body []byte) []byte {
	// The window is kept under the 8 MiB that browsers accept.
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(4<<20),
		zstd.WithEncoderConcurrency(1))
	if err != nil {
		return body // our own options: worthIt then leaves it plain
	}
	return w.EncodeAll(body, nil)
}

// page fills the version, the title and the list of modules into index.html, so that they all load at once.
func (a *assets) page(title string) *asset {
	var preload strings.Builder
	names := make([]string, 0, len(a.files))
	for name := range a.files {
		if strings.HasPrefix(name, "js/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&preload, "<link rel=\"modulepreload\" href=\"/assets/%s/%s\">\n", a.version, name)
	}
	body := strings.NewReplacer(
		"{{assets}}", "/assets/"+a.version,
		"{{title}}", html.EscapeString(title),
		"<!--{{modulepreload}}-->\n", preload.String(),
	).Replace(string(a.files["index.html"].body))
	return newAsset("index.html", []byte(body))
}

// serve answers with the best encoding the client takes, or 304.
func (a *asset) serve(w http.ResponseWriter, r *http.Request, cache string) error {
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", cache)
	h.Set("Vary", "Accept-Encoding")
	body, enc := a.body, ""
	if len(body) > 512 {
		accept := r.Header.Get("Accept-Encoding")
		if p := a.zstd; accepts(accept, "zstd") && p() != nil {
			body, enc = p(), "zstd"
		} else if p := a.gzip; accepts(accept, "gzip") && p() != nil {
			body, enc = p(), "gzip"
		}
	}
	etag := `"` + a.etag + `"`
	if enc != "" {
		etag = `"` + a.etag + "-" + enc + `"`
		h.Set("Content-Encoding", enc)
	}
	h.Set("ETag", etag)
	if matches(r.Header.Get("If-None-Match"), etag) {
		h.Del("Content-Encoding")
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client has gone
	}
	return nil
}

// accepts tells whether an Accept-Encoding header takes an encoding. "*" is not taken at its word.
func accepts(header, enc string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, err := mime.ParseMediaType("x/" + strings.TrimSpace(part))
		if err == nil && name == "x/"+enc {
			q, qerr := strconv.ParseFloat(params["q"], 64)
			return params["q"] == "" || (qerr == nil && q > 0)
		}
	}
	return false
}

func matches(header, etag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part == etag || part == "*" {
			return true
		}
	}
	return false
}

const (
	cacheForever = "public, max-age=31536000, immutable"
	revalidate   = "no-cache"
)

// page serves the dashboard at every path that is one of its pages, and its files.
func (s *Server) page(w http.ResponseWriter, r *http.Request) error {
	p := r.URL.Path
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return problemf(http.StatusMethodNotAllowed, "method", "pages are only read")
	}
	if rest, ok := strings.CutPrefix(p, "/assets/"); ok {
		version, name, _ := strings.Cut(rest, "/")
		a, ok := s.assets.files[name]
		if !ok || name == "index.html" {
			return problemf(http.StatusNotFound, "not-found", "there is no such file")
		}
		if version != s.assets.version { // the page of an older binary asks: answer, but do not let it keep that
			return a.serve(w, r, revalidate)
		}
		return a.serve(w, r, cacheForever)
	}
	switch {
	case p == "/", p == "/alerts", p == "/sql", p == "/pipeline", p == "/connect", p == "/devices",
		strings.HasPrefix(p, "/vehicles/") && len(p) > len("/vehicles/"),
		strings.HasPrefix(p, "/devices/") && len(p) > len("/devices/"):
		return s.assets.index.serve(w, r, revalidate)
	case p == "/favicon.ico":
		return s.assets.files["icon.svg"].serve(w, r, revalidate)
	}
	return problemf(http.StatusNotFound, "not-found", "there is no such page")
}

// tile serves one tile of the base map. Its URL carries the archive's version, so it never changes.
func (s *Server) tile(w http.ResponseWriter, r *http.Request) error {
	z, errZ := strconv.Atoi(r.PathValue("z"))
	x, errX := strconv.Atoi(r.PathValue("x"))
	y, errY := strconv.Atoi(r.PathValue("y"))
	packed, ok := s.tiles.Tile(z, x, y)
	if errZ != nil || errX != nil || errY != nil || !ok {
		return problemf(http.StatusNotFound, "not-found", "there is no such tile")
	}
	h := w.Header()
	h.Set("Content-Type", "application/vnd.mapbox-vector-tile")
	h.Set("Vary", "Accept-Encoding")
	h.Set("ETag", `"`+s.tiles.Version()+`"`)
	h.Set("Cache-Control", revalidate)
	if r.URL.Query().Get("v") == s.tiles.Version() {
		h.Set("Cache-Control", cacheForever)
	}
	if matches(r.Header.Get("If-None-Match"), h.Get("ETag")) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if len(packed) == 0 || accepts(r.Header.Get("Accept-Encoding"), "gzip") {
		if len(packed) > 0 {
			h.Set("Content-Encoding", "gzip")
		}
		h.Set("Content-Length", strconv.Itoa(len(packed)))
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(packed) // the client has gone
		return nil
	}
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("unpack tile %d/%d/%d: %w", z, x, y, err)
	}
	body, err := io.ReadAll(plain)
	if err != nil {
		return fmt.Errorf("unpack tile %d/%d/%d: %w", z, x, y, err)
	}
	_, _ = w.Write(body) // the client has gone
	return nil
}

func newOutline() *asset { return newAsset("outline.json", basemap.Outline()) }

func (s *Server) outline(w http.ResponseWriter, r *http.Request) error {
	return s.outlineAsset.serve(w, r, revalidate)
}
