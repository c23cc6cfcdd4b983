package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"sync"

	"github.com/milepost/milepost/stream"
	"github.com/milepost/milepost/web"
)

// lettersShown is how many of the newest dead letters the dashboard can list. Older ones stay in the stream.
const lettersShown = 1000

// letterBox follows the dead-letter stream and knows the newest letters by position, so that a page of them needs no scan.
type letterBox struct {
	log    stream.Log
	logger *slog.Logger

	mu    sync.Mutex // guards the rest
	known []letterRef
	total uint64
}

// A letterRef finds a letter again: positions are opaque, so it is read as the record that follows prev.
type letterRef struct {
	shard     stream.ShardID
	prev, pos stream.Position
}

func (l letterRef) String() string { return string(l.shard) + "." + string(l.pos) }

// follow reads the stream until ctx ends. server.run waits for it.
func (b *letterBox) follow(ctx context.Context) {
	shards, err := b.log.Shards(ctx)
	if err != nil {
		if ctx.Err() == nil { // not when a start was given up
			b.logger.WarnContext(ctx, "list dead letters", "error", err)
		}
		return
	}
	var wg sync.WaitGroup
	for _, sh := range shards {
		wg.Go(func() { // waited for below
			if err := b.followShard(ctx, sh.ID); err != nil && ctx.Err() == nil {
				b.logger.WarnContext(ctx, "follow dead letters", "shard", string(sh.ID), "error", err)
			}
		})
	}
	wg.Wait()
}

func (b *letterBox) followShard(ctx context.Context, shard stream.ShardID) error {
	rd, err := b.log.Read(ctx, shard, "")
	if err != nil {
		return err
	}
	defer rd.Close() //nolint:errcheck // a reader writes nothing
	var prev stream.Position
	for {
		recs, err := rd.Next(ctx, 1000)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		for i := range recs {
			pos := stream.Position([]byte(recs[i].Pos)) // a copy: the record's is valid until the next call
			b.known = append(b.known, letterRef{shard, prev, pos})
			prev = pos
		}
		b.total += uint64(len(recs))
		if n := len(b.known) - lettersShown; n > 0 {
			b.known = append(b.known[:0], b.known[n:]...)
		}
		b.mu.Unlock()
	}
}

// DeadLetters implements web.DeadLetters.
func (b *letterBox) DeadLetters(ctx context.Context, limit int, before string) ([]web.StoredLetter, error) {
	b.mu.Lock()
	refs := append([]letterRef(nil), b.known...)
	b.mu.Unlock()
	end := len(refs)
	if before != "" {
		for end = 0; end < len(refs) && refs[end].String() != before; end++ {
		}
		if end == len(refs) {
			return nil, nil
		}
	}
	var out []web.StoredLetter
	for i := end - 1; i >= 0 && len(out) < limit; i-- {
		l, err := b.read(ctx, refs[i])
		if errors.Is(err, web.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// DeadLetter implements web.DeadLetters.
func (b *letterBox) DeadLetter(ctx context.Context, ref string) (web.StoredLetter, error) {
	b.mu.Lock()
	var at letterRef
	for _, k := range b.known {
		if k.String() == ref {
			at = k
		}
	}
	b.mu.Unlock()
	if at.pos == "" {
		return web.StoredLetter{}, web.ErrNotFound
	}
	return b.read(ctx, at)
}

func (b *letterBox) read(ctx context.Context, at letterRef) (web.StoredLetter, error) {
	rd, err := b.log.Read(ctx, at.shard, at.prev)
	if err != nil {
		return web.StoredLetter{}, err
	}
	defer rd.Close() //nolint:errcheck // a reader writes nothing
	recs, err := rd.Next(ctx, 1)
	if err != nil {
		return web.StoredLetter{}, err
	}
	if recs[0].Pos != at.pos { // retention took it
		return web.StoredLetter{}, web.ErrNotFound
	}
	l := web.StoredLetter{Ref: at.String()}
	if err := json.Unmarshal(recs[0].Data, &l.DeadLetter); err != nil {
		l.DeadLetter = stream.DeadLetter{Reason: "the letter itself cannot be read: " + err.Error(), Source: "dead-letters", Data: append([]byte(nil), recs[0].Data...)}
	}
	return l, nil
}

// Total is how many letters the stream was seen to hold.
func (b *letterBox) Total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}
