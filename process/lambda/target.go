package lambda

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// A targetKind is a kind of on-failure destination.
type targetKind int

const (
	toStream targetKind = iota
	toBucket            // a directory below Config.Buckets
	toDir               // any directory; configuration files alone may name one
	toHTTP
)

// A target is an on-failure destination.
type target struct {
	kind targetKind
	name string // of the stream or bucket; the directory; the URL
}

// parseTarget reads a destination. file allows directories outside the buckets.
//
// Queues and topics do not exist here: a queue's or topic's ARN stands for the stream of that name.
func parseTarget(s string, file bool) (target, error) {
	if rest, ok := strings.CutPrefix(s, "arn:"); ok {
		parts := strings.SplitN(rest, ":", 5)
		if len(parts) == 5 {
			switch name := parts[4]; {
			case parts[1] == "s3" && isBucket(name):
				return target{toBucket, name}, nil
			case parts[1] == "kinesis" && isStreamName(strings.TrimPrefix(name, "stream/")) && strings.HasPrefix(name, "stream/"):
				return target{toStream, strings.TrimPrefix(name, "stream/")}, nil
			case (parts[1] == "sqs" || parts[1] == "sns") && isStreamName(name):
				return target{toStream, name}, nil
			}
		}
		return target{}, fmt.Errorf("%q is not the ARN of a destination: use a stream's, an S3 bucket's, or a queue's or topic's whose name is a stream", s)
	}
	u, err := url.Parse(s)
	if err == nil {
		switch {
		case u.Scheme == "stream" && isStreamName(u.Opaque):
			return target{toStream, u.Opaque}, nil
		case u.Scheme == "s3" && isBucket(u.Host) && (u.Path == "" || u.Path == "/"):
			return target{toBucket, u.Host}, nil
		case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
			return target{toHTTP, s}, nil
		case u.Scheme == "file" && !file:
			return target{}, errors.New("a directory is named in the configuration file alone: use an S3 bucket's ARN")
		case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
			return target{toDir, filepath.Clean(u.Path)}, nil
		}
	}
	return target{}, fmt.Errorf("%q is not a destination: write stream:NAME, s3://BUCKET, file:///DIRECTORY or https://…", s)
}

// isBucket keeps names to what S3 allows, which also keeps them inside the directory of buckets.
func isBucket(s string) bool {
	return len(s) >= 3 && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-") == "" && s[0] != '.' && s[0] != '-' && !strings.Contains(s, "..")
}

func isStreamName(s string) bool {
	return s != "" && len(s) <= 128 && strings.Trim(s, nameLetters+".") == ""
}

// A refusal is a destination's final no: it will never take this one.
type refusal struct{ err error }

func (e *refusal) Error() string { return e.err.Error() }
func (e *refusal) Unwrap() error { return e.err }

// deliver brings a failure document to its destination. It may be brought again, under the same id.
func (r *Registry) deliver(ctx context.Context, id string, data []byte) error {
	var p parcel
	if err := json.Unmarshal(data, &p); err != nil {
		return &refusal{fmt.Errorf("not a failure document: %w", err)}
	}
	t, err := parseTarget(p.Target, true)
	if err != nil {
		return &refusal{err}
	}
	switch t.kind {
	case toStream:
		return r.toStream(ctx, t.name, p)
	case toHTTP:
		return r.post(ctx, t.name, id, p.Document)
	case toBucket:
		return r.put(r.cfg.FS.PathJoin(r.cfg.Buckets, t.name), p)
	case toDir:
		return r.put(t.name, p)
	}
	panic("lambda: bug: unknown kind of target")
}

func (r *Registry) toStream(ctx context.Context, name string, p parcel) error {
	log, err := r.cfg.Stream(name)
	if err != nil {
		return fmt.Errorf("open stream %s for failures: %w", name, err)
	}
	err = log.Append(ctx, []stream.Record{{Key: p.Key, Data: p.Document}})
	if errors.Is(err, stream.ErrTooLarge) {
		return &refusal{err}
	}
	if err != nil {
		return fmt.Errorf("append failure to stream %s: %w", name, err)
	}
	return nil
}

const postTimeout = 30 * time.Second

// post posts a document. The header Idempotency-Key is the failure's id, so that the receiver recognises a repetition.
func (r *Registry) post(ctx context.Context, to, id string, doc []byte) error {
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(doc))
	if err != nil {
		return &refusal{err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", id)
	req.Header.Set("User-Agent", "Milepost")
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("post failure: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return nil
	}
	err = fmt.Errorf("receiver of failures answered %s: %.200q", resp.Status, bytes.TrimSpace(answer))
	if code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code == http.StatusTooEarly {
		return err
	}
	return &refusal{err}
}

// put writes an object. It is whole or not there: a name of its own first, then the right one.
func (r *Registry) put(dir string, p parcel) error {
	if r.cfg.Buckets == "" && !filepath.IsAbs(dir) {
		return errors.New("write failure: no directory of buckets is configured")
	}
	doc := p.Document
	return writeObject(r.cfg.FS, dir, p.Name, doc)
}

func writeObject(fs vfs.FS, dir, name string, doc []byte) (err error) {
	file := fs.PathJoin(dir, filepath.FromSlash(name))
	parent := fs.PathDir(file)
	if err := vfs.MakeDir(fs, parent); err != nil {
		return fmt.Errorf("make directory of failures: %w", err)
	}
	tmp := file + ".tmp"
	f, err := fs.Create(tmp, vfs.Category)
	if err != nil {
		return fmt.Errorf("write failure: %w", err)
	}
	_, err = f.Write(doc)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write failure %s: %w", name, err)
	}
	if err := fs.Rename(tmp, file); err != nil {
		return fmt.Errorf("write failure: %w", err)
	}
	d, err := fs.OpenDir(parent)
	if err != nil {
		return fmt.Errorf("write failure: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write failure: %w", err)
	}
	return nil
}
