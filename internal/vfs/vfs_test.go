package vfs

import (
	"errors"
	"io/fs"
	"testing"
)

// The power goes off right after MakeDir: the directory is there, however many of its parents were new.
func TestMakeDirSurvivesACrash(t *testing.T) {
	f := func(before []string, dir string) {
		t.Helper()
		mem := NewCrashable()
		for _, d := range before { // made by someone who did not sync
			if err := mem.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := MakeDir(mem, dir); err != nil {
			t.Fatal(err)
		}
		if _, err := mem.CrashClone(CrashCloneCfg{}).Stat(dir); err != nil {
			t.Errorf("%s after a crash: %v", dir, err)
		}
	}
	f(nil, "a")
	f(nil, "a/b/c/d/e")
	f(nil, "/a/b")
	f([]string{"a"}, "a/b/c")
	f([]string{"a/b/c"}, "a/b/c")
}

// closedFS is a disk on which some directories are not ours to open.
type closedFS struct {
	FS
	closed map[string]bool
}

func (f closedFS) OpenDir(name string) (File, error) {
	if f.closed[name] {
		return nil, fs.ErrPermission
	}
	return f.FS.OpenDir(name)
}

func TestMakeDirBelowForeignDirectories(t *testing.T) {
	mem := NewCrashable()
	if err := mem.MkdirAll("/home/me", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := MakeDir(closedFS{mem, map[string]bool{"/": true, "/home": true}}, "/home/me/data/log"); err != nil {
		t.Errorf("below directories that were there and are closed to us: %v", err)
	}
	if err := MakeDir(closedFS{mem, map[string]bool{"/home/me": true}}, "/home/me/other/log"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("in a directory that holds a new name and cannot be synced: %v, want ErrPermission", err)
	}
}
