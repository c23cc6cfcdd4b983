package shadow

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/milepost/milepost/internal/bearer"
)

// A Handler answers as the data plane of AWS IoT does:
//
//	GET, POST, DELETE /things/{thing}/shadow[?name=]
//	GET               /api/things/shadow/ListNamedShadowsForThing/{thing}
//
// Errors are {"message"} with the header x-amzn-ErrorType.
type Handler struct {
	keeper *Keeper
	token  bearer.Token
	mux    *http.ServeMux
}

const (
	pathShadow = "/things/{thing}/shadow"
	pathNames  = "/api/things/shadow/ListNamedShadowsForThing/{thing}"
)

// NewHandler returns a Handler. The token, if not empty, must come with every request: "Authorization: Bearer <token>".
func NewHandler(k *Keeper, token string) *Handler {
	h := &Handler{keeper: k, token: bearer.New(token), mux: http.NewServeMux()}
	h.mux.HandleFunc("GET "+pathShadow, h.serve(k.Get))
	h.mux.HandleFunc("POST "+pathShadow, h.serve(k.Update))
	h.mux.HandleFunc("DELETE "+pathShadow, h.serve(k.Delete))
	h.mux.HandleFunc("GET "+pathNames, h.names)
	return h
}

// Register puts the paths into mux.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.Handle(pathShadow, h)
	mux.Handle(pathNames, h)
}

// ServeHTTP answers a request for one of the paths.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.token.Allows(r) {
		refuse(w, fault(http.StatusUnauthorized, "Unauthorized: send the token: Authorization: Bearer <token>"))
		return
	}
	h.mux.ServeHTTP(w, r)
}

type operation func(ctx context.Context, thing, name string, payload []byte) ([]byte, string, *Fault)

func (h *Handler) serve(op operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(2*h.keeper.cfg.Limits.Bytes+4097)))
		if err != nil && len(body) <= 2*h.keeper.cfg.Limits.Bytes+4096 {
			refuse(w, fault(http.StatusBadRequest, "The body did not arrive"))
			return
		}
		// From here on the client's going away changes nothing.
		answer, _, f := op(context.WithoutCancel(r.Context()), r.PathValue("thing"), r.URL.Query().Get("name"), body)
		if f != nil {
			refuse(w, f)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}
}

func (h *Handler) names(w http.ResponseWriter, r *http.Request) {
	names, f := h.keeper.Names(r.Context(), r.PathValue("thing"))
	if f != nil {
		refuse(w, f)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(encode(map[string]any{"results": names, "timestamp": time.Now().Unix()}))
}

func refuse(w http.ResponseWriter, f *Fault) {
	kind := "InternalFailureException"
	switch f.Code {
	case http.StatusBadRequest:
		kind = "InvalidRequestException"
	case http.StatusUnauthorized:
		kind = "UnauthorizedException"
		bearer.Ask(w)
	case http.StatusNotFound:
		kind = "ResourceNotFoundException"
	case http.StatusConflict:
		kind = "ConflictException"
	case http.StatusRequestEntityTooLarge:
		kind = "RequestEntityTooLargeException"
	case http.StatusUnsupportedMediaType:
		kind = "UnsupportedDocumentEncodingException"
	case http.StatusTooManyRequests:
		kind = "ThrottlingException"
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Amzn-Errortype", kind)
	w.WriteHeader(f.Code)
	_, _ = w.Write(encode(map[string]string{"message": f.Message}))
}
