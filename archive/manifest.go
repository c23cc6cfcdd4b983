package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state"
	"github.com/milepost/milepost/stream"
)

// Keys in the state store. A file row is a File in JSON; a gone row names an object that a transaction replaced or expired
// and that has not been removed yet.
const (
	filePrefix = "archive/file/"
	gonePrefix = "archive/gone/"
)

// A File is one committed object.
type File struct {
	Name       string          `json:"name"`  // below the root, with slashes: date=2026-11-21/….parquet
	Date       string          `json:"date"`  // the event day, UTC
	Shard      stream.ShardID  `json:"shard"` // "" for a merged object
	From       stream.Position `json:"from,omitempty"`
	To         stream.Position `json:"to,omitempty"`
	Rows       int64           `json:"rows"`
	Bytes      int64           `json:"bytes"`
	MinTime    int64           `json:"min_time"` // event time, Unix ms
	MaxTime    int64           `json:"max_time"`
	MinVehicle string          `json:"min_vehicle"`
	MaxVehicle string          `json:"max_vehicle"`
	Written    int64           `json:"written"`          // Unix ms
	Merged     int             `json:"merged,omitempty"` // how often its rows were merged
	Run        bool            `json:"run,omitempty"`    // one of the objects that hold the whole day as it was, sorted
	Schema     int             `json:"schema"`

	path string // where it is now: its final place, or its temporary one when the rename failed
}

// Path is where the object is; valid while a Snapshot holds it.
func (f *File) Path() string { return f.path }

func (a *Archive) final(name string) string {
	return a.cfg.FS.PathJoin(append([]string{a.root}, strings.Split(name, "/")...)...)
}

// temporary is hidden from engines that list directories: Hadoop's and DuckDB's conventions skip a leading underscore or
// another suffix.
func (a *Archive) temporary(name string) string {
	dir, base, _ := strings.Cut(name, "/")
	return a.cfg.FS.PathJoin(a.root, dir, "_"+base+tmpSuffix)
}

const tmpSuffix = ".tmp"

func dateOf(day int32) string {
	return time.Unix(int64(day)*86400, 0).UTC().Format(time.DateOnly)
}

// objectName names what a flush of one shard wrote of one day (P5).
func objectName(date string, shard stream.ShardID, from, to stream.Position) string {
	f := "0"
	if from != "" {
		f = fileSafe(string(from))
	}
	return "date=" + date + "/" + fileSafe(string(shard)) + "-" + f + "-" + fileSafe(string(to)) + ".parquet"
}

// fileSafe keeps letters, digits, '_' and '.', writes any other byte as ~hh, and shortens nothing: names must be unique.
func fileSafe(s string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		case c == '-' && i > 0:
			b.WriteByte(c)
		default:
			b.WriteByte('~')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

func setFile(tx state.Tx, f *File) error {
	v, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return tx.Set([]byte(filePrefix+f.Name), v)
}

func byDayAndName(a, b *File) int {
	if c := strings.Compare(a.Date, b.Date); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// recover loads the manifest and makes the directory agree with it.
func (a *Archive) recover(ctx context.Context) error {
	fs := a.cfg.FS
	if err := vfs.MakeDir(fs, a.root); err != nil {
		return err
	}
	files := map[string]*File{}
	gone := map[string]bool{}
	err := a.cfg.Store.View(ctx, func(r state.Reader) error {
		err := r.Scan([]byte(filePrefix), state.PrefixEnd([]byte(filePrefix)), func(k, v []byte) error {
			f := &File{}
			if err := json.Unmarshal(v, f); err != nil {
				return fmt.Errorf("manifest row %s: %w", k, err)
			}
			if f.Schema > SchemaVersion {
				return fmt.Errorf("manifest row %s has schema %d, this build knows %d: use a newer build", k, f.Schema, SchemaVersion)
			}
			files[f.Name] = f
			return nil
		})
		if err != nil {
			return err
		}
		return r.Scan([]byte(gonePrefix), state.PrefixEnd([]byte(gonePrefix)), func(k, _ []byte) error {
			gone[string(k[len(gonePrefix):])] = true
			return nil
		})
	})
	if err != nil {
		return err
	}
	found, err := a.tidy(files, gone)
	if err != nil {
		return err
	}
	for name, f := range files {
		if f.path = found[name]; f.path == "" {
			a.cfg.Log.ErrorContext(ctx, "archive object is missing: its rows cannot be queried; restore it from a backup and restart",
				"object", name, "rows", f.Rows)
			a.missing = append(a.missing, f)
			continue
		}
		a.files = append(a.files, f)
	}
	slices.SortFunc(a.files, byDayAndName)
	if len(gone) == 0 {
		return nil
	}
	return a.cfg.Store.Update(ctx, func(tx state.Tx) error {
		return tx.DeleteRange([]byte(gonePrefix), state.PrefixEnd([]byte(gonePrefix)))
	})
}

// tidy walks the day directories: it removes temporary and gone files, renames committed ones to their final names, and moves
// what it does not know to quarantine. It returns where each file of the manifest is.
func (a *Archive) tidy(files map[string]*File, gone map[string]bool) (map[string]string, error) {
	fs := a.cfg.FS
	found := map[string]string{}
	days, err := fs.List(a.root)
	if err != nil {
		return nil, err
	}
	for _, day := range days {
		dir := fs.PathJoin(a.root, day)
		if st, err := fs.Stat(dir); err != nil || !st.IsDir() {
			continue
		}
		bases, err := fs.List(dir)
		if err != nil {
			return nil, err
		}
		slices.Sort(bases)
		changed, kept := false, 0
		for _, base := range bases {
			path := fs.PathJoin(dir, base)
			name, tmp := day+"/"+base, false
			if strings.HasPrefix(base, "_") && strings.HasSuffix(base, tmpSuffix) {
				name, tmp = day+"/"+base[1:len(base)-len(tmpSuffix)], true
			}
			switch f := files[name]; {
			case tmp && f == nil, gone[name] && f == nil:
				err = fs.Remove(path)
				changed = true
			case tmp && f != nil:
				if found[name] == "" {
					err = fs.Rename(path, a.final(name))
					found[name] = a.final(name)
				}
				kept++
				changed = true
			case f != nil:
				found[name] = path
				kept++
			default:
				err = a.quarantine(path, day, base)
				changed = true
			}
			if err != nil {
				return nil, err
			}
		}
		if changed {
			if err := a.syncDirs(dir); err != nil {
				return nil, err
			}
		}
		if kept == 0 && strings.HasPrefix(day, "date=") {
			_ = fs.Remove(dir) // an empty directory harms nobody if it stays
		}
	}
	return found, nil
}

func (a *Archive) quarantine(path, day, base string) error {
	fs := a.cfg.FS
	dir := fs.PathJoin(a.cfg.Dir, "quarantine")
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	to := fs.PathJoin(dir, fileSafe(day)+"_"+base)
	a.cfg.Log.Warn("unknown file in the archive moved aside", "path", path, "to", to)
	if err := fs.Rename(path, to); err != nil {
		return err
	}
	return a.syncDirs(dir, a.cfg.Dir)
}

func (a *Archive) syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		d, err := a.cfg.FS.OpenDir(dir)
		if err != nil {
			return err
		}
		err = d.Sync()
		if cerr := d.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("sync directory %s: %w", dir, err)
		}
	}
	return nil
}

// dayDir makes the directory of a day, durably. A directory that exists proves nothing: the sync after an earlier attempt may
// have failed. So each is synced once by this process.
func (a *Archive) dayDir(date string) (string, error) {
	dir := a.cfg.FS.PathJoin(a.root, "date="+date)
	if a.durable[date] {
		return dir, nil
	}
	if err := a.cfg.FS.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := a.syncDirs(a.root); err != nil {
		return "", err
	}
	a.durable[date] = true
	return dir, nil
}

// settle gives committed files their final names. A file that cannot be renamed now is used where it is and renamed at the
// next Open.
func (a *Archive) settle(files []*File) {
	dirs := map[string]bool{}
	for _, f := range files {
		tmp := a.temporary(f.Name)
		f.path = a.final(f.Name)
		if err := a.cfg.FS.Rename(tmp, f.path); err != nil {
			a.cfg.Log.Error("archive object keeps its temporary name until the next start", "object", f.Name, "err", err)
			f.path = tmp
			continue
		}
		dirs[a.cfg.FS.PathDir(f.path)] = true
	}
	for dir := range dirs {
		if err := a.syncDirs(dir); err != nil {
			// The manifest row is durable, so the next Open repeats the rename if the disk forgot it.
			a.cfg.Log.Warn("archive directory not synced", "dir", dir, "err", err)
		}
	}
}

func (a *Archive) discard(files []*File) {
	for _, f := range files {
		if err := a.cfg.FS.Remove(a.temporary(f.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			a.cfg.Log.Warn("temporary archive file not removed; the next start will", "object", f.Name, "err", err)
		}
	}
}
