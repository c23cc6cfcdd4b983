package web

import "net/http"

func (s *Server) getPipeline(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Pipeline == nil {
		return notBuilt("the pipeline's state")
	}
	st, err := s.cfg.Pipeline.Status(r.Context())
	if err != nil {
		return err
	}
	// Lists are never null, so that readers need not check.
	if st.Doors == nil {
		st.Doors = []DoorStatus{}
	}
	if st.Streams == nil {
		st.Streams = []StreamStatus{}
	}
	if st.Functions == nil {
		st.Functions = []FunctionStatus{}
	}
	if st.Sinks == nil {
		st.Sinks = []SinkStatus{}
	}
	return writeJSON(w, st)
}

const (
	lettersPage = 50
	lettersMost = 500
	letterBrief = 256 // bytes of the payload that a list shows; the detail has all
)

type letterList struct {
	Letters []StoredLetter `json:"dead_letters"`
	Next    string         `json:"next,omitempty"` // pass as before
}

func (s *Server) listDeadLetters(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.DeadLetters == nil {
		return notBuilt("the list of dead letters")
	}
	limit, err := intParam(r, "limit", lettersPage, lettersMost)
	if err != nil {
		return err
	}
	found, err := s.cfg.DeadLetters.DeadLetters(r.Context(), limit+1, r.URL.Query().Get("before"))
	if err != nil {
		return err
	}
	list := letterList{Letters: []StoredLetter{}}
	for i := range found {
		if i == limit {
			list.Next = found[i-1].Ref
			break
		}
		l := found[i]
		if n := len(l.Data) - letterBrief; n > 0 {
			l.Data, l.Cut = l.Data[:letterBrief], l.Cut+n
		}
		list.Letters = append(list.Letters, l)
	}
	return writeJSON(w, list)
}

func (s *Server) getDeadLetter(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.DeadLetters == nil {
		return notBuilt("the list of dead letters")
	}
	l, err := s.cfg.DeadLetters.DeadLetter(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, l)
}
