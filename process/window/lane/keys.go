package lane

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/stream"
)

// Keys in the state store. W is a window's name, a NUL and the fingerprint of its definition (be64); names hold no NUL. Times are
// be64 with the sign flipped, so that they order.
//
//	window/k/<W><shard>\0<key>                        a key: its times and open panes. The shard is empty for local windows
//	window/p/<W><key length uvarint><key><start><shard>   a pane that was put away
//	window/r/<name>\0<at><key>                        a result, for SQL
//	window/n/<stream>\0<shard>\0<seq>                 notices: windows of spread keys that a lane has news of (combine.go)
//	window/m/<stream>\0<shard>                        how far a lane's event time has come (combine.go)
//	window/x/<W><start><key>                          panes of spread keys, in the order in which they become too old (combine.go)
//	window/v/<stream>\0<source>                       a source's newest rows (seen.go)
//	window/s/<stream>\0<source>\0<minute>             what a source sent in a minute (seen.go)
const (
	keyPrefix    = "window/k/"
	panePrefix   = "window/p/"
	resultPrefix = "window/r/"
	noticePrefix = "window/n/"
	markPrefix   = "window/m/"
	expiryPrefix = "window/x/"
	sourcePrefix = "window/v/"
	seenPrefix   = "window/s/"
)

func defPrefix(prefix string, d *window.Def) []byte {
	return binary.BigEndian.AppendUint64(namePrefix(prefix, d.Spec.Name), d.Fingerprint())
}

// keyKey is where a key's record is; the shard is empty for local windows.
func (b *bound) keyKey(buf []byte, shard stream.ShardID, key string) []byte {
	return append(append(append(append(buf[:0], b.keys...), shard...), 0), key...)
}

// paneKey is where a pane is that was put away; without shard, where those of all shards begin.
func (b *bound) paneKey(buf []byte, key string, start int64, shard stream.ShardID) []byte {
	buf = append(append(buf[:0], b.panes...), binary.AppendUvarint(nil, uint64(len(key)))...)
	return append(appendTime(append(buf, key...), start), shard...)
}

func appendTime(buf []byte, t int64) []byte {
	return binary.BigEndian.AppendUint64(buf, uint64(t)^1<<63) //nolint:gosec // bits
}

func readTime(b []byte) int64 { return int64(binary.BigEndian.Uint64(b) ^ 1<<63) } //nolint:gosec // bits

func resultKey(name string, at int64, key string) []byte {
	return append(appendTime(namePrefix(resultPrefix, name), at), key...)
}

func namePrefix(prefix, name string) []byte {
	return append(append([]byte(prefix), name...), 0)
}

func shardKey(buf []byte, prefix, of string, shard stream.ShardID) []byte {
	buf = append(append(append(buf[:0], prefix...), of...), 0)
	return append(buf, shard...)
}

var errCorrupt = errors.New("stored window state is damaged: rebuild it by reading the log again")

// cutResult takes a result's key apart.
func cutResult(k []byte) (name string, at int64, key string, err error) {
	name, rest, ok := strings.Cut(string(k[len(resultPrefix):]), "\x00")
	if !ok || len(rest) < 8 {
		return "", 0, "", errCorrupt
	}
	return name, readTime([]byte(rest[:8])), rest[8:], nil
}
