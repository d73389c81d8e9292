package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A Repository is an open repository. It is safe for concurrent use. It takes over sessions that this process left behind: a
// process that may have one repository open twice needs RunsIn.
type Repository struct {
	objects store.Store
	keys    *Keyring
	options options
	damage  error  // why nothing may be written
	kept    uint64 // heads; Kept, but in tests
	serial  bool   // one request at a time, in tests
	uptime  func() (time.Duration, error)

	mu     sync.Mutex // guards what follows
	chains map[string]*chain
	heads  *compressor // for heads; made when it is first needed
}

// options are what the Options of Init and Open say.
type options struct {
	at     string
	cache  string
	memory Memory
	origin Origin
	runs   *Runs
}

// An Option tells Init or Open what is there besides the store and the key.
type Option func(*options)

// At says how users name the destination, for messages.
func At(destination string) Option { return func(o *options) { o.at = destination } }

// CacheIn keeps the lists of what packs hold in a directory of this repository's own, which must exist. Without, they are
// read from the store by each process.
func CacheIn(dir string) Option { return func(o *options) { o.cache = dir } }

// RememberedBy makes sure that the repository is the one that this host knows, and not set back to an older state.
func RememberedBy(memory Memory) Option { return func(o *options) { o.memory = memory } }

// From says on whose behalf sessions are registered. A host takes over those of its own that ended. Without, nobody's
// sessions are taken over.
func From(origin Origin) Option { return func(o *options) { o.origin = origin } }

// RunsIn says which runs are this process's. Repositories that are open in one process at once, and may be one, share them.
// Without, a Repository knows its own alone.
func RunsIn(runs *Runs) Option { return func(o *options) { o.runs = runs } }

func optionsOf(opts []Option) (o options) {
	o.runs = NewRuns()
	for _, option := range opts {
		option(&o)
	}
	return o
}

func (o *options) destination() string {
	if o.at == "" {
		return "DEST"
	}
	return o.at
}

// Init makes a repository in an empty or absent place, and opens it. With a nil key it is not encrypted. It succeeds again
// with the same key, whoever made the repository. It fails with fault.ErrExists if something else is there, with
// fault.ErrUnsupported if the store cannot hold a repository (see store.Probe), and as Open does if there is a
// repository that the key does not open. Cut short, it may leave an object that the next call does not mind.
func Init(ctx context.Context, objects store.Store, key *Key, opts ...Option) (*Repository, error) {
	o := optionsOf(opts)
	object, err := objects.Get(ctx, ConfigName)
	if err == nil {
		r, err := openConfig(ctx, objects, object, key, opts)
		if isDamagedConfig(object) {
			err = fmt.Errorf("%w; run orlop backup repair %s", err, o.destination())
		}
		return r, err
	}
	if !fault.Is(err, fault.ErrNotFound) {
		return nil, fmt.Errorf("make a repository: %w", err)
	}
	if err := checkEmpty(ctx, objects, o.destination()); err != nil {
		return nil, fmt.Errorf("make a repository: %w", err)
	}
	if err := store.Probe(ctx, objects); err != nil {
		return nil, fmt.Errorf("make a repository: %w", err)
	}
	_, object, _, err = NewRepository(key, nil)
	if err != nil {
		return nil, err
	}
	if err := objects.Put(ctx, ConfigName, object); err != nil {
		// It may be there: this one, or that of somebody who was faster.
		there, failed := objects.Get(ctx, ConfigName)
		if failed != nil {
			return nil, fmt.Errorf("make a repository: %w", err)
		}
		object = there
	}
	return openConfig(ctx, objects, object, key, opts)
}

// errFound ends a listing.
var errFound = errors.New("found")

// checkEmpty fails with fault.ErrExists if there is anything but what a probe may leave behind.
func checkEmpty(ctx context.Context, objects store.Store, destination string) error {
	var first string
	err := objects.List(ctx, "", func(o store.Object) error {
		if strings.HasPrefix(o.Name, "probe/") {
			return nil
		}
		if first = o.Name; strings.HasPrefix(first, lineagesPrefix) {
			if _, err := ParsePackName(first); err != nil {
				return nil // what has packs can be repaired
			}
		}
		return errFound
	})
	switch {
	case err == nil && first == "":
		return nil
	case err == nil:
		return fault.Errorf(fault.ErrExists, "%s and what else is in lineages/ is left of a repository that has no config and no packs, so no backups: delete lineages/ there, and run it again", first)
	case !errors.Is(err, errFound):
		return err
	case strings.HasPrefix(first, lineagesPrefix):
		return fault.Errorf(fault.ErrExists, "there is a repository that has lost its config: run orlop backup repair %s", destination)
	}
	return fault.Errorf(fault.ErrExists, "the place is not empty (%s), and holds no repository", first)
}

// Open opens a repository. It fails with fault.ErrNotFound if there is none; as Config.Unlock does if the key does not
// open it; with fault.ErrUnsupported if this program is too old for it; and with fault.ErrCorrupt if it is
// not the one that the host remembers. If only the config is lost or damaged, what the packs tell of it serves to read:
// see Damage.
func Open(ctx context.Context, objects store.Store, key *Key, opts ...Option) (*Repository, error) {
	object, err := objects.Get(ctx, ConfigName)
	if err == nil {
		r, err := openConfig(ctx, objects, object, key, opts)
		if !isDamagedConfig(object) {
			return r, err
		}
		return openPacks(ctx, objects, key, err, opts)
	}
	if fault.Is(err, fault.ErrCorrupt) {
		return openPacks(ctx, objects, key, err, opts)
	}
	if !fault.Is(err, fault.ErrNotFound) {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	return openPacks(ctx, objects, key, corrupt(ConfigName, "it is missing"), opts)
}

// isDamagedConfig tells whether the config cannot be read at all, as opposed to not being for this program or key.
func isDamagedConfig(object []byte) bool {
	_, err := ParseConfig(object)
	return fault.Is(err, fault.ErrCorrupt)
}

func openConfig(ctx context.Context, objects store.Store, object []byte, key *Key, opts []Option) (*Repository, error) {
	file, err := ParseConfig(object)
	if err != nil {
		return nil, err
	}
	keys, err := file.Unlock(key)
	if err != nil {
		return nil, err
	}
	return newRepository(ctx, objects, keys, key, nil, opts)
}

// openPacks opens a repository whose config is lost by what stands in the header of a pack.
func openPacks(ctx context.Context, objects store.Store, key *Key, damage error, opts []Option) (*Repository, error) {
	keys, err := findKeyring(ctx, objects, key)
	if err != nil {
		return nil, err
	}
	if keys == nil {
		if _, gone := objects.Get(ctx, ConfigName); gone == nil {
			return nil, damage
		}
		return nil, errNoRepository(opts)
	}
	o := optionsOf(opts)
	damage = fmt.Errorf("%w; backups can be read, and orlop backup repair %s makes it anew", damage, o.destination())
	return newRepository(ctx, objects, keys, key, damage, opts)
}

// errNoRepository tells apart a place that never held a repository from one where a known one is gone.
func errNoRepository(opts []Option) error {
	if o := optionsOf(opts); o.memory != nil {
		if known, err := o.memory.Recall(); err == nil && known.Repository != (ID{}) {
			return fault.Errorf(fault.ErrNotFound, "repository %s, which this host knows, is not there", known.Repository)
		}
	}
	return fault.Errorf(fault.ErrNotFound, "there is no repository")
}

// packsTried is how many packs are read before one is found that tells what the config did.
const packsTried = 16

// findKeyring returns the keyring of the first pack that is whole; nil if there is no pack.
func findKeyring(ctx context.Context, objects store.Store, key *Key) (*Keyring, error) {
	var packs []store.Object
	err := objects.List(ctx, lineagesPrefix, func(o store.Object) error {
		if _, err := ParsePackName(o.Name); err == nil {
			packs = append(packs, o)
		}
		if len(packs) == packsTried {
			return errFound
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	var failed error
	for _, pack := range packs {
		keys, err := keyringOf(ctx, objects, pack, key)
		if err == nil {
			return keys, nil
		}
		failed = err
	}
	return nil, failed
}

func keyringOf(ctx context.Context, objects store.Store, pack store.Object, key *Key) (*Keyring, error) {
	if pack.Size < packHeaderSize {
		return nil, corrupt(pack.Name, "it is truncated")
	}
	start, err := objects.GetRange(ctx, pack.Name, 0, min(pack.Size, maxPackHeader))
	if err != nil {
		return nil, err
	}
	h, err := ParsePackHeader(pack.Name, start)
	if err != nil {
		return nil, err
	}
	keys, err := KeyringFromSlots(h.Repository, h.Slots, key)
	if err != nil {
		return nil, err
	}
	lineage, err := keys.Lineage(h.Name.Lineage)
	if err != nil {
		return nil, err
	}
	_, _, err = lineage.ReadFooter(ctx, objects, pack.Name, pack.Size)
	return keys, err
}

func newRepository(ctx context.Context, objects store.Store, keys *Keyring, key *Key, damage error, opts []Option) (*Repository, error) {
	r := &Repository{
		objects: objects, keys: keys, damage: damage, kept: Kept, uptime: uptime,
		options: optionsOf(opts), chains: map[string]*chain{},
	}
	if err := r.recognise(key); err != nil {
		return nil, err
	}
	return r, ctx.Err()
}

// ID is the repository's.
func (r *Repository) ID() ID { return r.keys.repository }

// Encrypted tells whether the repository is.
func (r *Repository) Encrypted() bool { return r.keys.encrypted }

// Damage is nil if the config is there. Otherwise it tells what is wrong with it; then backups can be read, and writing
// fails with this error.
func (r *Repository) Damage() error { return r.damage }

// Lineages returns the names of all lineages, in order: those that are there, and those that were when this host looked last,
// since no lineage ever goes. It lists all objects.
func (r *Repository) Lineages(ctx context.Context) ([]string, error) {
	return r.lineages(ctx, r.options.memory)
}

func (r *Repository) lineages(ctx context.Context, memory Memory) (names []string, err error) {
	err = r.objects.List(ctx, lineagesPrefix, func(o store.Object) error {
		name, _, within := strings.Cut(strings.TrimPrefix(o.Name, lineagesPrefix), "/")
		if within && CheckLabel(name) == nil && (len(names) == 0 || names[len(names)-1] != name) {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if memory != nil {
		known, err := memory.Recall()
		if err != nil {
			return nil, err
		}
		names = slices.AppendSeq(names, maps.Keys(known.Heads))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// chain returns the one chain of a lineage.
func (r *Repository) chain(name string) (*chain, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.chains[name]; c != nil {
		return c, nil
	}
	lineage, err := r.keys.Lineage(name)
	if err != nil {
		return nil, err
	}
	c := &chain{repository: r, lineage: lineage, index: NewIndex()}
	if c.highest, c.last, err = knownHeads(r.options.memory, name); err != nil {
		return nil, err
	}
	c.remembered = c.highest
	r.chains[name] = c
	return c, nil
}

// Newest returns the newest head of a lineage, which is certainly of its chain. A lineage without a head is number 0.
func (r *Repository) Newest(ctx context.Context, lineage string) (*Head, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return nil, err
	}
	return c.certain(ctx)
}

// parallel is how many requests may be on their way at once where n would do good.
func (r *Repository) parallel(n int) int {
	if r.serial {
		return 1
	}
	return n
}

// sealHead returns the object of a head.
func (r *Repository) sealHead(name string, h *Head) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heads == nil {
		c, err := newCompressor(DefaultChunk)
		if err != nil {
			return nil, err
		}
		r.heads = c
	}
	data, err := encodeHead(h, r.heads)
	if err != nil {
		return nil, err
	}
	return r.keys.SealObject(name, data)
}
