package repo

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// RepairOptions say what Repair may do.
type RepairOptions struct {
	DryRun bool // only say what would be done

	// DropDamaged lets backups go whose data is lost. Without it they stay, and so does what is damaged of their data.
	DropDamaged bool

	Origin Origin // what runs it: the next run there goes on with what one that was cut short leaves; may be empty

	At     string // how users name the destination
	Cache  string // this host's directory for CacheIn, for lists of records that are damaged in their packs; may be empty
	Memory Memory // what this host remembers of the repository, to be told that an older state is the right one; may be nil
}

// A Step is something that Repair did, or would do, or leaves to a person. As long as one is Lost, backups cannot be restored,
// and Repair keeps what is left of them: only DropDamaged decides otherwise.
type Step struct {
	Object  string   `json:"object"`
	Problem string   `json:"problem"`
	Action  string   `json:"action"`
	Backups []string `json:"backups"` // IDs of those that the action is about: found again, dropped, or lost
	Done    bool     `json:"done"`
	Lost    bool     `json:"lost"` // data of backups is, and a person is to decide; never with Done
}

// String is the step as people read it.
func (s Step) String() string {
	text := fmt.Sprintf("%s: %s\n  %s: %s", s.Object, s.Problem, map[bool]string{true: "done", false: "to do"}[s.Done], s.Action)
	for _, id := range s.Backups {
		text += "\n  backup " + id
	}
	return text
}

// repairer is one run of Repair.
type repairer struct {
	RepairOptions
	repository *Repository
	steps      []Step
	planned    *Head // that of the lineage at hand which a dry run does not write; nil if none is to be written
}

// Repair mends a repository as far as what is there allows, and says what it did. A config that is lost is made again from
// what stands in packs. Where the newest head of a lineage is lost, a new one is made from the last that is good, and
// from all packs and the backup records in them: backups that were deleted lately may come back. What is good in a damaged pack
// is saved into a new one. Nothing else may write to the repository meanwhile: a collection that runs at the same time
// may delete what Repair has just found again. Cut short, it can be run again.
//
// It fails as Open does where Open has no remedy.
func Repair(ctx context.Context, objects store.Store, key *Key, o RepairOptions) ([]Step, error) {
	r, err := Open(ctx, objects, key, At(o.At), CacheIn(o.Cache), From(o.Origin))
	if err != nil {
		return nil, err
	}
	f := &repairer{RepairOptions: o, repository: r}
	if err := f.recognise(key); err != nil {
		return nil, err
	}
	if err := f.config(ctx); err != nil {
		return f.steps, err
	}
	lineages, err := r.lineages(ctx, o.Memory)
	if err != nil {
		return f.steps, err
	}
	for _, name := range lineages {
		c, err := r.chain(name)
		if err != nil {
			return f.steps, err
		}
		f.planned = nil
		if err := f.heads(ctx, c); err != nil {
			return f.steps, fmt.Errorf("repair lineage %s: %w", name, err)
		}
		if err := f.packs(ctx, c); err != nil {
			return f.steps, fmt.Errorf("repair lineage %s: %w", name, err)
		}
	}
	return f.steps, nil
}

// recognise refuses another repository than the one that the host remembers: only an older state of it can be mended.
func (f *repairer) recognise(key *Key) error {
	if f.Memory == nil {
		return nil
	}
	r := &Repository{keys: f.repository.keys, options: options{memory: f.Memory}}
	return r.recognise(key)
}

// step reports a step, and does it unless this is a dry run.
func (f *repairer) step(s Step, do func() error) error {
	if s.Backups == nil {
		s.Backups = []string{}
	}
	var err error
	if do != nil && !f.DryRun {
		err = do()
		s.Done = err == nil
	}
	f.steps = append(f.steps, s)
	return err
}

// config makes a lost config anew.
func (f *repairer) config(ctx context.Context) error {
	damage := f.repository.damage
	if damage == nil {
		return nil
	}
	if err := f.readable(ctx); err != nil {
		return err
	}
	problem, _, _ := strings.Cut(damage.Error(), "; ")
	return f.step(Step{Object: ConfigName, Problem: problem, Action: "make it anew from what stands in the packs"}, func() error {
		object, err := rebuiltConfig(f.repository.keys)
		if err != nil {
			return err
		}
		if err := f.repository.objects.Delete(ctx, ConfigName); err != nil {
			return err
		}
		if err := f.repository.objects.Put(ctx, ConfigName, object); err != nil && !fault.Is(err, fault.ErrExists) {
			return err
		}
		f.repository.damage = nil
		return nil
	})
}

// readable fails with fault.ErrUnsupported if a pack says that this program is too old for the repository: then the config
// did so too, and one that does not would let old programs write.
func (f *repairer) readable(ctx context.Context) error {
	return f.repository.objects.List(ctx, lineagesPrefix, func(o store.Object) error {
		name, err := ParsePackName(o.Name)
		if err != nil {
			return nil
		}
		lineage, err := f.repository.keys.Lineage(name.Lineage)
		if err == nil {
			_, _, err = lineage.ReadFooter(ctx, f.repository.objects, o.Name, o.Size)
		}
		return unsupported(err)
	})
}

// rebuiltConfig returns the object of a config for what a keyring opens.
func rebuiltConfig(keys *Keyring) ([]byte, error) {
	config := Config{
		Magic: configMagic, Format: Format, MinReader: minReader, Features: []string{}, Repository: keys.repository, Hash: hashHMAC,
		Cipher: cipherMAC, Compression: compressionZstd, ChunkMin: MinChunk, ChunkMax: MaxChunk, Slots: []Slot{},
	}
	if keys.encrypted {
		config.Encrypted, config.Cipher = true, cipherGCM
		if err := json.Unmarshal(keys.slots, &config.Slots); err != nil {
			return nil, fault.Errorf(fault.ErrCorrupt, "repository %s: read key slots: %w", keys.repository, err)
		}
	}
	return encodeConfig(config, keys)
}
