//go:build root

package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A stunted host cannot grow filesystems.
type stunted struct{ volume.Host }

func (stunted) Grow(fs.Type, string, string, int64) error { return errors.New("cannot grow today") }

func (stunted) GrowOffline(context.Context, fs.Type, string, int64) (bool, error) {
	return false, errors.New("cannot grow today")
}

// stunt has growths fail until heal is called.
func (w *world) stunt() (heal func()) {
	records := cutRecords{w.store, w.cut}
	w.Decorate(records, cutHost{stunted{volume.Kernel{}}, w.cut})
	return func() { w.Decorate(records, cutHost{volume.Kernel{}, w.cut}) }
}

// wish records a size to which nothing has grown yet, as older versions did.
func (w *world) wish(t *testing.T, name string, size int64) {
	t.Helper()
	v := w.volume(t, name)
	v.Size = size
	w.put(t, v)
}

// put replaces a volume's record.
func (w *world) put(t *testing.T, v metadata.Volume) {
	t.Helper()
	check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutVolume(v) }))
}

// failedGrowth is what is noted of a volume's last growth.
func (w *world) failedGrowth(t *testing.T, name string) *metadata.FailedGrowth {
	t.Helper()
	var device metadata.Device
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		device, err = tx.Device(w.volume(t, name).Device)
		return err
	}))
	return device.FailedGrowth
}

// filesystemSize is what a volume's filesystem, which is not mounted, says of itself.
func (w *world) filesystemSize(t testing.TB, name string) int64 {
	t.Helper()
	v := w.volume(t, name)
	kind, err := fs.Lookup(v.Filesystem)
	check(t, err)
	size, err := kind.Size(w.image(v))
	check(t, err)
	return size
}

// wantUsable checks that a volume can be mounted with its content and is of this size, recorded and real.
func (w *world) wantUsable(t *testing.T, name string, size int64) {
	t.Helper()
	v := w.volume(t, name)
	w.with(t, name, func(dir string) { w.wantFiles(t, v, dir) })
	if real := w.filesystemSize(t, name); v.Size != size || real != size {
		t.Errorf("volume %s: recorded %d bytes, has %d, want %d", name, v.Size, real, size)
	}
	wantClean(t, name, v.Filesystem, w.image(v))
}

func eachSubject(t *testing.T, test func(t *testing.T, w *world, name string, size int64)) {
	s := newSite(t)
	for name, size := range map[string]int64{subject: sizeExt4, subjectXFS: sizeXFS} {
		t.Run(name, func(t *testing.T) { test(t, s.newWorld(t, true), name, size) })
	}
}

func TestResizeThatFailsLeavesTheVolumeAsItWas(t *testing.T) {
	eachSubject(t, func(t *testing.T, w *world, name string, size int64) {
		heal := w.stunt()
		for range 2 {
			if _, err := w.Resize(t.Context(), w.id(t, name), 2*size); err == nil {
				t.Fatal("grown by what cannot grow")
			}
			w.wantUsable(t, name, size)
			if failed := w.failedGrowth(t, name); failed != nil {
				t.Errorf("a size that is not recorded is missed: %+v", failed)
			}
		}
		w.wantSound(t)
		heal()
		check(t, resize(name, 2*size)(t.Context(), w))
		w.wantUsable(t, name, 2*size)
		w.wantRelease(t)
	})
}

func TestVolumeThatCannotGrowToItsRecordedSizeIsMountedAtThePresentOne(t *testing.T) {
	eachSubject(t, func(t *testing.T, w *world, name string, size int64) {
		heal := w.stunt()
		w.wish(t, name, 2*size)
		for range 2 {
			w.with(t, name, func(dir string) { w.wantFiles(t, w.volume(t, name), dir) })
			want := metadata.FailedGrowth{Wanted: 2 * size, Size: size, Problem: "cannot grow today"}
			if failed := w.failedGrowth(t, name); failed == nil || failed.Wanted != want.Wanted || failed.Size != want.Size || !strings.Contains(failed.Problem, want.Problem) || failed.Retry {
				t.Fatalf("noted: %+v, want %+v", failed, want)
			}
			if real := w.filesystemSize(t, name); real != size {
				t.Errorf("its filesystem has %d bytes", real)
			}
		}
		heal()
		w.effects = nil
		w.with(t, name, func(string) {})
		for _, effect := range w.effects {
			if strings.Contains(effect, "Grow") {
				t.Errorf("a mount tries again what failed: %v", w.effects)
			}
		}
		if err := resize(name, size-mebibyte)(t.Context(), w); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("shrunk: %v", err)
		}
		check(t, resize(name, size)(t.Context(), w)) // taken back
		w.wantUsable(t, name, size)
		if failed := w.failedGrowth(t, name); failed != nil {
			t.Errorf("noted after it was taken back: %+v", failed)
		}
		w.wish(t, name, 2*size)
		check(t, resize(name, 2*size)(t.Context(), w)) // or tried again
		w.wantUsable(t, name, 2*size)
	})
}

func TestGrowthThatWaitsForSpaceIsDoneByTheNextMount(t *testing.T) {
	eachSubject(t, func(t *testing.T, w *world, name string, size int64) {
		w.wish(t, name, 2*size)
		waiting := metadata.FailedGrowth{Wanted: 2 * size, Size: size, Problem: "full", Retry: true}
		check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error {
			device, err := tx.Device(w.volume(t, name).Device)
			device.FailedGrowth = &waiting
			return errors.Join(err, tx.PutDevice(device))
		}))
		w.wantUsable(t, name, 2*size)
		if failed := w.failedGrowth(t, name); failed != nil {
			t.Errorf("noted after it was grown: %+v", failed)
		}
	})
}

func TestResizeMountsAgainWhatItUnmountedWhateverHappens(t *testing.T) {
	s := newSite(t)
	w := s.newWorld(t, false)
	_, err := w.MountUser(t.Context(), w.id(t, subject), "")
	check(t, err)
	heal := w.stunt()
	if err := resize(subject, 2*sizeExt4)(t.Context(), w); err == nil {
		t.Error("grown by what cannot grow")
	}
	w.wantMounted(t, subject, volume.UserHolder)
	heal()
	check(t, resize(subject, 2*sizeExt4)(t.Context(), w))
	w.wantMounted(t, subject, volume.UserHolder)
	w.wantRelease(t)
}

func TestNextMountGrowsAMountedVolumeWhoseGrowthWasInterrupted(t *testing.T) {
	eachSubject(t, func(t *testing.T, w *world, name string, size int64) {
		kind, err := fs.Lookup(w.volume(t, name).Filesystem)
		check(t, err)
		check(t, mount(name, "first")(t.Context(), w))
		w.wish(t, name, 2*size)
		check(t, mount(name, "second")(t.Context(), w))
		if kind.GrowsMounted() {
			info := w.info(t, name)
			if now, err := kind.MountedSize(info.Path, w.Mountpoint(name)); err != nil || now != 2*size {
				t.Errorf("mounted by two, it has %d bytes: %v", now, err)
			}
		}
		check(t, errors.Join(unmount(name, "first")(t.Context(), w), unmount(name, "second")(t.Context(), w)))
		w.wantUsable(t, name, 2*size)
	})
}

// fillInodes leaves a volume without a free inode.
func (w *world) fillInodes(t *testing.T, name string) {
	t.Helper()
	w.with(t, name, func(dir string) {
		below := filepath.Join(dir, "many")
		check(t, os.Mkdir(below, 0o700))
		for i := 0; ; i++ {
			err := os.WriteFile(filepath.Join(below, strconv.Itoa(i)), nil, 0o600)
			if errors.Is(err, unix.ENOSPC) {
				return
			}
			check(t, err)
		}
	})
}

func TestVolumeWithoutAFreeInodeGrowsIsCopiedAndRolledBack(t *testing.T) {
	s := newSite(t)
	w := s.newWorld(t, false)
	w.fillInodes(t, subject)
	full := func(name string, size int64) {
		t.Helper()
		w.with(t, name, func(dir string) {
			if text, err := os.ReadFile(filepath.Join(dir, fileName)); err != nil || string(text) != w.content[subject] {
				t.Errorf("%s has lost its content: %v", name, err)
			}
			if files := entries(t, dir); len(files) != 2 {
				t.Errorf("%s has %v", name, files)
			}
		})
		if real := w.filesystemSize(t, name); real != size {
			t.Errorf("%s has %d bytes, want %d", name, real, size)
		}
		wantClean(t, name, "ext4", w.image(w.volume(t, name)))
	}
	taken, err := w.snaps.Create(t.Context(), []string{w.id(t, subject)}, snapshot.Spec{Name: "full"})
	check(t, err)
	check(t, resize(subject, 2*sizeExt4)(t.Context(), w))
	full(subject, 2*sizeExt4)
	spec := specOf(created)
	spec.Size, spec.Copy = 2*sizeExt4, &volume.Copy{}
	_, err = w.snaps.CopySnapshot(t.Context(), taken[0].ID, spec)
	check(t, err)
	full(created, 2*sizeExt4)
	_, err = w.snaps.Restore(t.Context(), taken[0].ID, true)
	check(t, err)
	full(subject, 2*sizeExt4)
	w.wantSound(t)
}

// The size of an ext4 may grow by a factor for which resize2fs has reserved nothing and then often fails, leaving
// damage behind.
func TestGrowthBeyondWhatResize2fsCanDoTouchesNothing(t *testing.T) {
	s := newSite(t)
	w := s.newWorld(t, false)
	const far = 100 * gibibyte
	size := sizeExt4
	if err := resize(subject, far)(t.Context(), w); err == nil {
		size = far // another version can do it
	}
	w.wantUsable(t, subject, size)
	w.wantRelease(t)
}

func TestResizeRefusesAnXFSOfTooManyGroups(t *testing.T) {
	s := newSite(t)
	w := s.newWorld(t, true)
	if err := resize(subjectXFS, 101*sizeXFS)(t.Context(), w); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("grown by 101: %v", err)
	}
	w.wantUsable(t, subjectXFS, sizeXFS)
	check(t, resize(subjectXFS, 3*sizeXFS)(t.Context(), w))
	w.wantUsable(t, subjectXFS, 3*sizeXFS)
	w.wish(t, subjectXFS, 1000*sizeXFS)
	w.with(t, subjectXFS, func(string) {})
	if failed := w.failedGrowth(t, subjectXFS); failed == nil || failed.Size != 3*sizeXFS {
		t.Errorf("grown by a mount beyond what a resize may do: %+v", failed)
	}
}

func TestReadOnlyVolumeGrowsWhileNothingUsesIt(t *testing.T) {
	eachSubject(t, func(t *testing.T, w *world, name string, size int64) {
		v := w.volume(t, name)
		v.MountOptions = []string{"ro"}
		w.put(t, v)
		check(t, resize(name, 2*size)(t.Context(), w))
		w.wantUsable(t, name, 2*size)
		_, err := w.MountUser(t.Context(), v.ID, "")
		check(t, err)
		check(t, resize(name, 3*size)(t.Context(), w))
		w.wantMounted(t, name, volume.UserHolder)
		open, err := os.Open(filepath.Join(w.Mountpoint(name), fileName))
		check(t, err)
		if err := resize(name, 4*size)(t.Context(), w); !fault.Is(err, fault.ErrUnsupported) {
			t.Errorf("grown while it is used read-only: %v", err)
		}
		check(t, errors.Join(open.Close(), unmountUser(t.Context(), w, v.ID)))
		w.wantUsable(t, name, 3*size)
	})
}

func TestWhatAUserCallsLostAndFoundStays(t *testing.T) {
	for what, put := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("mine"), 0o600) },
		"link":      func(path string) error { return os.Symlink("elsewhere", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"someone's": func(path string) error { return errors.Join(os.Mkdir(path, 0o750), os.Chown(path, 1000, 1000)) },
	} {
		t.Run(what, func(t *testing.T) {
			eachSubject(t, func(t *testing.T, w *world, name string, size int64) {
				stays := func(dir string) {
					t.Helper()
					if _, err := os.Lstat(filepath.Join(dir, "lost+found")); err != nil {
						t.Error(err)
					}
				}
				w.with(t, name, func(dir string) { check(t, put(filepath.Join(dir, "lost+found"))) })
				w.with(t, name, func(dir string) {
					check(t, mount(name, "beside")(t.Context(), w))
					stays(dir)
				})
				check(t, unmount(name, "beside")(t.Context(), w))
				if what == "file" || what == "link" { // e2fsck wants a directory
					return
				}
				check(t, resize(name, 2*size)(t.Context(), w))
				w.with(t, name, stays)
				spec := specOf(created)
				if name == subjectXFS {
					spec = specOf(created + "-xfs")
				}
				spec.Size, spec.Copy = 3*size, &volume.Copy{SetOwner: true}
				_, err := w.snaps.CopyVolume(t.Context(), w.id(t, name), spec)
				check(t, err)
				w.with(t, spec.Name, stays)
			})
		})
	}
}

// TestLostAndFoundOfARepairGoes: e2fsck makes one, and a user's does not become e2fsck's.
func TestLostAndFoundOfARepairGoes(t *testing.T) {
	s := newSite(t)
	w := s.newWorld(t, false)
	for _, mine := range []bool{false, true} {
		w.with(t, subject, func(dir string) {
			if mine {
				check(t, os.Mkdir(filepath.Join(dir, "lost+found"), 0o700))
				syncFilesystem(t, dir)
			}
			trigger := filepath.Join("/sys/fs/ext4", filepath.Base(w.info(t, subject).Path), "trigger_fs_error")
			check(t, os.WriteFile(trigger, []byte("test"), 0o200))
		})
		w.with(t, subject, func(dir string) {
			if _, err := os.Lstat(filepath.Join(dir, "lost+found")); mine != (err == nil) {
				t.Errorf("after the repair of a volume with a lost+found of its own (%t): %v", mine, err)
			}
		})
	}
}
