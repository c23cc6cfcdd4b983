// Package vfs is the file system that everything durable writes through, so that crash tests see every write.
//
// It names Pebble's vfs, which already has what those tests need: a memory file system whose CrashClone is the disk after
// power loss, injected errors (errorfs), and a full disk. The log, the state and the archive of one test share one such
// file system, so a single CrashClone is one moment of the whole machine.
//
// An FS has no truncate. Whoever must forget the end of a file starts a new file and records how much of the old one counts.
package vfs

import (
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
