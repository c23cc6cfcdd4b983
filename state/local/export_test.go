package local

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/milepost/milepost/internal/vfs"
)

// SetFormat forges the format version of a closed store; nil removes it.
func SetFormat(fs vfs.FS, dir string, v []byte) error {
	return edit(fs, dir, func(db *pebble.DB) error {
		if v == nil {
			return errors.Join(db.Delete([]byte(metaFormat), pebble.Sync), db.Delete([]byte(metaSequence), pebble.Sync))
		}
		return db.Set([]byte(metaFormat), v, pebble.Sync)
	})
}

// SetUser writes a key behind the store's back.
func SetUser(fs vfs.FS, dir, key string) error {
	return edit(fs, dir, func(db *pebble.DB) error { return db.Set([]byte(key), nil, pebble.Sync) })
}

func edit(fs vfs.FS, dir string, f func(*pebble.DB) error) error {
	db, err := pebble.Open(dir, &pebble.Options{FS: fs, Logger: pebbleLog{newGuard(fs, dir, 0, nil)}})
	if err != nil {
		return err
	}
	return errors.Join(f(db), db.Close())
}
