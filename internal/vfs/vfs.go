// Package vfs is the file system that everything durable writes through, so that crash tests see every write.
//
// It names Pebble's vfs, which already has what those tests need: a memory file system whose CrashClone is the disk after
// power loss, injected errors (errorfs), and a full disk. The log, the state and the archive of one test share one such
// file system, so a single CrashClone is one moment of the whole machine.
//
// An FS has no truncate. Whoever must forget the end of a file starts a new file and records how much of the old one counts.
package vfs

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

type (
	// FS is a namespace for files.
	FS = vfs.FS
	// File is an open file. WriteAt works only on files from FS.OpenReadWrite.
	File = vfs.File
	// MemFS is a file system in memory that knows what was synced.
	MemFS = vfs.MemFS
	// CrashCloneCfg says how much unsynced data survives a crash.
	CrashCloneCfg = vfs.CrashCloneCfg
	// DiskUsage tells free and total space in bytes.
	DiskUsage = vfs.DiskUsage
)

// Category is passed where Pebble's vfs wants to know what a write is for; we do not tell writes apart.
const Category = vfs.WriteCategoryUnspecified

// Disk is the operating system's file system.
//
//nolint:gochecknoglobals // a stateless value, as os.Stdout is
var Disk FS = vfs.Default

// NewCrashable returns an empty file system in memory whose CrashClone forgets what was not synced.
func NewCrashable() *MemFS { return vfs.NewCrashableMem() }

// SequentialReads opens a file that will be read from front to back: the system reads ahead.
//
//nolint:gochecknoglobals // a stateless value
var SequentialReads = vfs.SequentialReadsOption

// LinkOrCopy gives a file a second name, or copies it where the file system cannot.
func LinkOrCopy(fs FS, oldname, newname string) error { return vfs.LinkOrCopy(fs, oldname, newname) }

// MakeDir makes a directory, with the parents it lacks, that is still there after a crash.
//
// A name is durable once the directory that holds it is synced, and a directory that exists proves nothing: an earlier start may
// have made it and lost its power. So every directory from dir to the root is synced, each time. What lies above dir, was there
// before and cannot be synced is somebody else's to keep, and no error.
func MakeDir(fs FS, dir string) error {
	made := 0 // how many of dir and its parents do not exist
	for d := dir; d != fs.PathDir(d); d = fs.PathDir(d) {
		if _, err := fs.Stat(d); err == nil {
			break
		}
		made++
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i, d := 0, dir; ; i, d = i+1, fs.PathDir(d) {
		if err := syncDir(fs, d); err != nil && i <= made { // the last of these holds the topmost new name
			return err
		}
		if d == fs.PathDir(d) {
			return nil
		}
	}
}

func syncDir(fs FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
