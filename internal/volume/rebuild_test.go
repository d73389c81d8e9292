//go:build root

package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/metadata"
)

const manyVolumes = 50

// Names, sizes, labels, snapshots, rollbacks and bytes survive the database, whatever is left of it: its copy is older
// than the devices.
func TestRebuildBringsBackEveryVolume(t *testing.T) {
	s := newSite(t)
	full := s.fullTemplate(t)
	for _, loss := range []struct {
		name   string
		damage func(database, copied string) error
	}{
		{"the metadata is gone", func(database, _ string) error { return os.Remove(database) }},
		{"the metadata and its copy are gone", func(database, copied string) error {
			return errors.Join(os.Remove(database), os.Remove(copied))
		}},
		{"the metadata is damaged", func(database, _ string) error { return scribble(database) }},
		{"the metadata and its copy are damaged", func(database, copied string) error {
			return errors.Join(scribble(database), scribble(copied))
		}},
		{"the metadata is cut off, and its copy is empty", func(database, copied string) error {
			return errors.Join(os.Truncate(database, 10_000), os.Truncate(copied, 0))
		}},
	} {
		t.Run(loss.name, func(t *testing.T) {
			w := s.worldOf(t, full.template)
			copyFile(t, filepath.Join(full.root, metadata.CopyName), filepath.Join(w.root, metadata.CopyName))
			check(t, loss.damage(w.database(), filepath.Join(w.root, metadata.CopyName)))
			w.rebuild = true
			w.begin(t)
			w.wantSound(t)
			wantOneOf(t, w.picture(t), full.picture)
			w.wantContent(t)
			w.wantRelease(t)
			w.die(t)
			w.life(t, func() { wantOneOf(t, w.picture(t), full.picture) })
		})
	}
}

// scribble writes over the middle of a file.
func scribble(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	junk := make([]byte, 64<<10)
	for i := range junk {
		junk[i] = byte(i * 7)
	}
	_, err = f.WriteAt(junk, 0)
	return errors.Join(err, f.Close())
}

type fullTemplate struct {
	*template
	picture picture
}

// fullTemplate makes a template of many volumes. Its copy of the metadata is stale: since it was made, volumes have
// been made, changed, grown, rolled back and deleted, snapshots taken and deleted, and a name has gone from one volume to
// another.
func (s *site) fullTemplate(t *testing.T) fullTemplate {
	t.Helper()
	w := s.emptyWorld(t)
	w.begin(t)
	name := func(i int) string { return fmt.Sprintf("volume-%d", i) }
	half := manyVolumes / 2
	for i := range half + 2 {
		w.createWithContent(t, name(i))
	}
	ctx := t.Context()
	check(t, snapshotOf("early", name(2))(ctx, w))
	keeps("early", name(2))(t, w)
	check(t, snapshotOf("deleted-since", name(3))(ctx, w))
	w.die(t)
	w.begin(t) // makes the copy
	check(t, deleteSnapshot(name(3), "deleted-since")(ctx, w))
	for i, discard := range []bool{false, true} {
		take(name(4+i))(t, w)
		check(t, restore(name(4+i), discard)(ctx, w))
	}
	check(t, snapshotOf("group", name(6), name(7))(ctx, w))
	keeps("group", name(6), name(7))(t, w)
	check(t, resize(name(0), 2*sizeExt4)(ctx, w))
	check(t, set(name(1))(ctx, w))
	check(t, remove(name(half+1))(ctx, w))
	delete(w.content, name(half+1))
	check(t, remove(name(half))(ctx, w))
	for i := half; i < manyVolumes; i++ {
		if i != half+1 {
			w.createWithContent(t, name(i))
		}
	}
	w.createWithContent(t, "one-more")
	if n := len(w.volumes(t)); n != manyVolumes {
		t.Fatalf("made %d volumes", n)
	}
	f := fullTemplate{template: &template{root: w.root, dir: w.dir, content: w.content, held: w.held, ids: map[string]bool{}}}
	for _, v := range w.volumes(t) {
		f.ids[v.ID] = true
	}
	w.original = f.ids
	f.picture = w.picture(t)
	f.picture.Epoch = 1 // a rebuild makes every holder suspect
	// The copy must stay as it is: no other life begins here.
	w.die(t)
	return f
}

func (w *world) createWithContent(t *testing.T, name string) {
	t.Helper()
	check(t, create(name)(t.Context(), w))
	w.write(t, name)
}

// What is wrong with one image is that volume's trouble only, and it is told for what it is.
func TestADamagedImageIsThatVolumesTroubleOnly(t *testing.T) {
	s := newSite(t)
	grown := 2 * sizeExt4
	for _, trouble := range []struct {
		name   string
		damage func(image string) error
		kind   fault.Kind // of the failure to mount; empty for none
	}{
		{"missing", os.Remove, fault.ErrNotFound},
		{"truncated", func(image string) error { return os.Truncate(image, sizeExt4/2) }, fault.ErrCorrupt},
		{"empty", func(image string) error { return os.Truncate(image, 0) }, fault.ErrCorrupt},
		{"blank", func(image string) error { return errors.Join(os.Truncate(image, 0), os.Truncate(image, sizeExt4)) }, fault.ErrCorrupt},
		{"larger than it was", func(image string) error { return os.Truncate(image, grown) }, ""},
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, metadata lost %t", trouble.name, lost), func(t *testing.T) {
				w := s.newWorld(t, false)
				v := w.volume(t, subject)
				w.die(t)
				check(t, trouble.damage(w.image(v)))
				check(t, os.WriteFile(filepath.Join(w.dir, "images", "stranger.txt"), nil, 0o600))
				if lost {
					check(t, errors.Join(os.Remove(w.database()), os.Remove(w.database()+".copy")))
					w.rebuild = true
				}
				w.begin(t)
				if got := w.volume(t, subject); got.Size != v.Size || got.State != metadata.Ready {
					t.Errorf("the volume is %+v", got)
				}
				if unknown, err := w.Unknowns(t.Context()); err != nil || len(unknown) > 0 {
					t.Errorf("unknown: %v, %v", unknown, err)
				}
				_, err := w.Mount(t.Context(), v.ID, "docker")
				if fault.KindOf(err) != trouble.kind {
					t.Errorf("mount: kind %q, %v; want kind %q", fault.KindOf(err), err, trouble.kind)
				}
				if err == nil {
					w.wantFiles(t, v, w.Mountpoint(subject))
				}
				check(t, w.Unmount(t.Context(), v.ID, "docker"))
				w.with(t, witness, func(dir string) { w.wantFiles(t, w.volume(t, witness), dir) })
				check(t, w.Delete(t.Context(), v.ID, false))
				if left := entries(t, filepath.Join(w.dir, "images")); len(left) != 3 { // the witness's and the stranger's
					t.Errorf("in the pool: %v", left)
				}
			})
		}
	}
}

// A pool whose directory is gone, or shows another pool or none, is missing: nothing is made in its place.
func TestAMissingPoolIsNotMadeAnew(t *testing.T) {
	s := newSite(t)
	for _, trouble := range []struct {
		name   string
		damage func(dir string) error
		kind   fault.Kind
	}{
		{"directory gone", func(dir string) error { return os.Rename(dir, dir+".away") }, fault.ErrNotFound},
		{"directory empty", func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700))
		}, fault.ErrNotFound},
		{"another pool", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "orlop-pool.json"), []byte(`{"format":1,"uuid":"`+string(blockdev.NewID())+`"}`), 0o600)
		}, fault.ErrCorrupt},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			w := s.newWorld(t, false)
			w.die(t)
			check(t, trouble.damage(w.dir))
			before := tree(t, w.dir)
			_, err := w.prepare(t.Context())
			if !fault.Is(err, trouble.kind) {
				t.Errorf("open: kind %q, %v; want kind %q", fault.KindOf(err), err, trouble.kind)
			}
			if after := tree(t, w.dir); after != before {
				t.Errorf("made in its place: %s; before: %s", after, before)
			}
			check(t, os.RemoveAll(w.dir+".away"))
		})
	}
}

// tree lists what is below a directory, as text.
func tree(t *testing.T, dir string) (text string) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			text += path + " "
			return nil
		}
		return err
	}))
	return text
}
