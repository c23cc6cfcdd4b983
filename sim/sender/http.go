package sender

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// requestTimeout is how long a request may take before it is sent again.
const requestTimeout = 60 * time.Second

// runHTTP sends a lane's lines in batches, one request at a time, so that order is kept.
func (s *Sender) runHTTP(l *lane) {
	b := batch{}
	linger := time.NewTimer(s.cfg.Linger)
	defer linger.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-l.work:
		}
		l.mu.Lock()
		if len(l.lines) < s.cfg.Batch/2 {
			l.mu.Unlock()
			linger.Reset(s.cfg.Linger)
			select {
			case <-s.ctx.Done():
				return
			case <-linger.C:
			}
			l.mu.Lock()
		}
		b.lines, l.lines = l.lines, b.lines[:0]
		b.ends, l.ends = l.ends, b.ends[:0]
		l.sending = len(b.ends)
		l.room.Broadcast()
		l.mu.Unlock()
		if err := s.deliver(l, &b); err != nil {
			if s.ctx.Err() == nil {
				s.cfg.Log.Error("the door refuses us: nothing more is sent", "address", s.url, "err", err)
				l.fail(err)
			}
			return
		}
		l.wake()
	}
}

// A batch is lines of one request.
type batch struct {
	lines []byte
	ends  []int
}

func (b *batch) line(i int) []byte {
	start := 0
	if i > 0 {
		start = b.ends[i-1]
	}
	return b.lines[start : b.ends[i]-1]
}

// keep leaves only the lines that want says.
func (b *batch) keep(want func(i int) bool) {
	to, n := 0, 0
	for i := range b.ends {
		line := b.line(i)
		if !want(i) {
			continue
		}
		to += copy(b.lines[to:], line)
		b.lines[to] = '\n'
		to++
		b.ends[n] = to
		n++
	}
	b.lines, b.ends = b.lines[:to], b.ends[:n]
}

// An answer is what the door says of a batch.
type answer struct {
	Accepted int `json:"accepted"`
	Refused  []struct {
		Line      int    `json:"line"` // from 1
		Reason    string `json:"reason"`
		Retryable bool   `json:"retryable"`
	} `json:"refused"`
	RefusedTotal int    `json:"refused_total"`
	Detail       string `json:"detail"`
}

// deliver sends a batch until each of its lines is acknowledged or refused.
func (s *Sender) deliver(l *lane, b *batch) error {
	down := false
	for attempt := 0; len(b.ends) > 0; attempt++ {
		if attempt > 0 {
			s.resent.Add(int64(len(b.ends)))
		}
		before := len(b.ends)
		wait, err := s.post(b)
		if fatal, ok := err.(*DoorError); ok { //nolint:errorlint // post never wraps it
			return fatal
		}
		if len(b.ends) < before {
			attempt = 0
			l.mu.Lock()
			l.sending = len(b.ends)
			l.mu.Unlock()
		}
		if len(b.ends) == 0 {
			break
		}
		if err != nil && !down {
			down = true
			s.cfg.Log.Warn("the door does not take readings: sending again until it does", "address", s.url, "err", err)
		}
		if !s.backoff(attempt, wait) {
			return s.ctx.Err()
		}
	}
	if down {
		s.cfg.Log.Info("the door takes readings again", "address", s.url)
	}
	return nil
}

// post sends a batch once and leaves in it what has to be sent again, after the wait that it returns.
func (s *Sender) post(b *batch) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(b.lines))
	if err != nil {
		return 0, &DoorError{err.Error()}
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	if s.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return 0, fmt.Errorf("read answer: %w", err)
	}
	wait := time.Duration(0)
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
		wait = time.Duration(seconds) * time.Second
	}
	var a answer
	isAnswer := json.Unmarshal(body, &a) == nil
	said := strings.TrimSpace(a.Detail)
	if said == "" {
		said = strings.TrimSpace(string(body[:min(len(body), 200)]))
	}
	switch code := res.StatusCode; {
	case code == http.StatusOK || code == http.StatusAccepted || code == http.StatusNoContent:
		s.settle(b, &a, wait == 0)
		return wait, nil
	case code == http.StatusTooManyRequests || code >= 500:
		if isAnswer && a.RefusedTotal > 0 {
			s.settle(b, &a, false)
		}
		return wait, fmt.Errorf("%s: %s", res.Status, said)
	case code == http.StatusBadRequest && isAnswer && a.RefusedTotal > 0:
		s.settle(b, &a, true)
		return wait, nil
	case code == http.StatusRequestEntityTooLarge && len(b.ends) > 1:
		return 0, s.halve(b)
	case code == http.StatusRequestEntityTooLarge || code == http.StatusBadRequest:
		for i := range b.ends {
			s.refuse(b.line(i), res.Status+": "+said)
		}
		b.keep(func(int) bool { return false })
		return 0, nil
	default:
		return 0, &DoorError{fmt.Sprintf("%s answers %s: %s: check the address and the token", s.url, res.Status, said)}
	}
}

// settle acknowledges and refuses lines as the answer says. The answer names only so many lines: if it names fewer than it
// refused, a good answer has nothing retryable beyond what it names, and after a bad one everything not named is sent again;
// the server knows duplicates.
func (s *Sender) settle(b *batch, a *answer, good bool) {
	var again []int
	named := 0
	for _, r := range a.Refused {
		i := r.Line - 1
		if i < 0 || i >= len(b.ends) {
			continue
		}
		named++
		if r.Retryable {
			again = append(again, i)
		} else {
			s.refuse(b.line(i), r.Reason)
		}
	}
	slices.Sort(again)
	total := len(b.ends)
	if unnamed := a.RefusedTotal - named; unnamed > 0 {
		if !good || len(again) > 0 {
			refused := make(map[int]bool, named)
			for _, r := range a.Refused {
				refused[r.Line-1] = !r.Retryable
			}
			b.keep(func(i int) bool { return !refused[i] })
			return
		}
		s.refused.Add(int64(unnamed))
		named += unnamed
	}
	s.acked.Add(int64(total - named))
	b.keep(func(i int) bool { _, ok := slices.BinarySearch(again, i); return ok })
}

// halve sends the halves of a batch that is too large for the door, the first before the second.
func (s *Sender) halve(b *batch) error {
	half := len(b.ends) / 2
	cut := b.ends[half-1]
	first := batch{lines: slices.Clone(b.lines[:cut]), ends: slices.Clone(b.ends[:half])}
	var second batch
	second.lines = slices.Clone(b.lines[cut:])
	for _, end := range b.ends[half:] {
		second.ends = append(second.ends, end-cut)
	}
	for _, part := range []*batch{&first, &second} {
		if err := s.deliver(&lane{}, part); err != nil {
			return err
		}
	}
	b.keep(func(int) bool { return false })
	return nil
}
