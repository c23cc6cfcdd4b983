package httpapi

import (
	"context"
	"net/http"

	"github.com/milepost/milepost/ingest"
)

type csvRows struct{}

func (h *Handler) mapping(r *http.Request, vehicle string) (*csvRows, *problem) { return nil, nil }
func (h *Handler) admitCSV(ctx context.Context, s *scratch, rows *csvRows, p ingest.Payload, body []byte) *problem {
	return nil
}
