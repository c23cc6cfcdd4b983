package seglog

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream"
)

// metaFile holds what a stream is; see FORMAT.md. It is small, so it is JSON that an operator can read, under a checksum.
const metaFile = "STREAM"

const metaMagic = "milepost-stream"

// metadata is replaced as a whole, by the committer alone.
type metadata struct {
	Name           string      `json:"name"`
	Salt           string      `json:"salt"` // 16 hex digits; seeds every checksum of the stream's segments
	Created        int64       `json:"created_ms"`
	RetentionMS    int64       `json:"retention_ms"`
	RetentionBytes int64       `json:"retention_bytes,omitempty"`
	MaxRecordBytes int         `json:"max_record_bytes"`
	First          uint64      `json:"first_segment"` // older ones are removed, or about to be
	NextShard      uint32      `json:"next_shard"`
	Shards         []shardMeta `json:"shards"` // by number, so parents first

	salt uint64
}

type shardMeta struct {
	Num      uint32   `json:"shard"`
	Parents  []uint32 `json:"parents,omitempty"`
	From     string   `json:"from"` // 32 hex digits
	To       string   `json:"to"`
	Created  int64    `json:"created_ms"`
	ClosedMS int64    `json:"closed_ms,omitempty"` // 0: open
	End      uint64   `json:"end,omitempty"`       // sequence of the last record of a closed shard
}

func (m *metadata) clone() metadata {
	c := *m
	c.Shards = slices.Clone(m.Shards)
	return c
}

func (m *metadata) retention() time.Duration { return time.Duration(m.RetentionMS) * time.Millisecond }

func newMetadata(name string, cfg StreamConfig, now time.Time) metadata {
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	m := metadata{
		Name: name, Created: now.UnixMilli(), RetentionMS: cfg.Retention.Milliseconds(), RetentionBytes: cfg.RetentionBytes,
		MaxRecordBytes: cfg.MaxRecordBytes, First: 1, NextShard: uint32(cfg.Shards), salt: binary.LittleEndian.Uint64(salt[:]),
	}
	m.Salt = fmt.Sprintf("%016x", m.salt)
	for i := range cfg.Shards {
		m.Shards = append(m.Shards, shardMeta{
			Num: uint32(i), From: formatHash(ringPoint(i, cfg.Shards)), To: formatHash(ringPoint(i+1, cfg.Shards).Prev()), Created: m.Created,
		})
	}
	return m
}

// ringPoint is where part i of n equal parts of the ring begins; part n wraps to zero.
func ringPoint(i, n int) stream.Hash {
	p := new(big.Int).Lsh(big.NewInt(1), 128)
	p.Mul(p, big.NewInt(int64(i))).Div(p, big.NewInt(int64(n)))
	var b [17]byte
	p.FillBytes(b[:])
	return stream.Hash{Hi: binary.BigEndian.Uint64(b[1:]), Lo: binary.BigEndian.Uint64(b[9:])}
}

func formatHash(h stream.Hash) string { return fmt.Sprintf("%016x%016x", h.Hi, h.Lo) }

func parseHash(s string) (stream.Hash, error) {
	if len(s) != 32 {
		return stream.Hash{}, fmt.Errorf("hash %q has not 32 digits", s)
	}
	hi, err := strconv.ParseUint(s[:16], 16, 64)
	if err != nil {
		return stream.Hash{}, err
	}
	lo, err := strconv.ParseUint(s[16:], 16, 64)
	return stream.Hash{Hi: hi, Lo: lo}, err
}

func shardID(num uint32) stream.ShardID { return stream.ShardID(fmt.Sprintf("shardId-%012d", num)) }

func parseShardID(id stream.ShardID) (uint32, bool) {
	const prefix = "shardId-"
	if len(id) != len(prefix)+12 || id[:len(prefix)] != prefix {
		return 0, false
	}
	n, err := strconv.ParseUint(string(id[len(prefix):]), 10, 32)
	return uint32(n), err == nil
}

func (m *metadata) encode() ([]byte, error) {
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, "%s %d %08x\n", metaMagic, formatVersion, checksum(body)), body...), nil
}

func decodeMetadata(b []byte) (m metadata, err error) {
	line, body, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return m, errShort
	}
	var magic string
	var version int
	var sum uint32
	if n, err := fmt.Sscanf(string(line), "%s %d %x", &magic, &version, &sum); n != 3 || err != nil || magic != metaMagic {
		return m, errMagic
	}
	if version != formatVersion {
		return m, fmt.Errorf("its version is %d, this program knows %d: use a newer one", version, formatVersion)
	}
	if checksum(body) != sum {
		return m, errChecksum
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, err
	}
	if m.salt, err = strconv.ParseUint(m.Salt, 16, 64); err != nil {
		return m, fmt.Errorf("salt: %w", err)
	}
	return m, nil
}

// readMetadata reads a stream's metadata; a *stream.DamageError if it cannot be believed.
func readMetadata(fsys vfs.FS, dir string) (metadata, error) {
	path := fsys.PathJoin(dir, metaFile)
	b, err := readFile(fsys, path)
	if err != nil {
		return metadata{}, err
	}
	m, err := decodeMetadata(b)
	if err != nil {
		return m, &stream.DamageError{Path: path, Why: err.Error(), Hint: "restore this small file from a backup of the data directory"}
	}
	return m, nil
}

// writeMetadata replaces a stream's metadata. replaced tells, on an error, whether the new one may be the one that a restart finds.
func writeMetadata(fsys vfs.FS, dir string, m *metadata) (replaced bool, err error) {
	b, err := m.encode()
	if err != nil {
		return false, err
	}
	return replaceFile(fsys, dir, metaFile, b)
}

const tmpSuffix = ".tmp"

// replaceFile puts a file in place atomically and durably. replaced tells, on an error, whether the new content may be what a
// restart finds.
func replaceFile(fsys vfs.FS, dir, name string, b []byte) (replaced bool, err error) {
	tmp := fsys.PathJoin(dir, name+tmpSuffix)
	if err := writeFile(fsys, tmp, b); err != nil {
		return false, errors.Join(err, removeFile(fsys, tmp))
	}
	if err := fsys.Rename(tmp, fsys.PathJoin(dir, name)); err != nil {
		return true, fmt.Errorf("replace %s: %w", name, err)
	}
	return true, syncDir(fsys, dir)
}

// writeFile writes and syncs a file; its name is not durable yet.
func writeFile(fsys vfs.FS, path string, b []byte) error {
	f, err := fsys.Create(path, vfs.Category)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func readFile(fsys vfs.FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// removeFile removes a file that may be gone already.
func removeFile(fsys vfs.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
