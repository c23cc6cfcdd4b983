package kinesisapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strconv"

	"github.com/milepost/milepost/internal/vfs"
)

// The metadata file is one line, "milepost-kinesis 1 " and the CRC-32C of the rest in eight hexadecimal digits, and then JSON.
const (
	metaFile   = "kinesis.json"
	metaHeader = "milepost-kinesis 1 "
)

// writeFile replaces a file of dir atomically and durably.
func writeFile(fsys vfs.FS, dir, name string, data []byte) error {
	path := fsys.PathJoin(dir, name)
	tmp := path + ".new"
	f, err := fsys.Create(tmp, vfs.Category)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := fsys.Rename(tmp, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return syncDir(fsys, dir)
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

// makeDir makes a directory and its parents, durable as far as they are ours to sync.
func makeDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(dir); err == nil {
		return nil
	}
	if err := fsys.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	for range 2 { // the last two names may be new
		if dir = fsys.PathDir(dir); dir == "" {
			return nil
		}
		if err := syncDir(fsys, dir); err != nil {
			return err
		}
	}
	return nil
}

// encodeMeta returns the bytes of the metadata file.
func encodeMeta(v any) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return nil, err
	}
	sum := crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
	return fmt.Appendf(nil, "%s%08x\n%s", metaHeader, sum, body), nil
}

// readMeta reads the metadata file into v; false if there is none.
func readMeta(fsys vfs.FS, dir string, v any) (bool, error) {
	path := fsys.PathJoin(dir, metaFile)
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s: %w", path, err)
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	if err := decodeMeta(b, v); err != nil {
		return false, fmt.Errorf("%s: %w: restore it from a copy, or move it aside: the streams' records are safe in the log", path, err)
	}
	return true, nil
}

func decodeMeta(b []byte, v any) error {
	head, body, found := bytes.Cut(b, []byte("\n"))
	text, ours := bytes.CutPrefix(head, []byte(metaHeader))
	if !found || !ours {
		return errors.New("not a metadata file of this version")
	}
	sum, err := strconv.ParseUint(string(text), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) {
		return errors.New("wrong checksum")
	}
	return json.Unmarshal(body, v)
}
