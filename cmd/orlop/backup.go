package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func (c *cli) backupCommand() *urfave.Command {
	return &urfave.Command{
		Name: "backup", Usage: "copies of volumes elsewhere: look at them, check them, restore them",
		Description: "Example: orlop backup list file:///mnt/nas/orlop --key-file /root/orlop.key",
		Action:      unknownCommand,
		Subcommands: []*urfave.Command{
			c.backupInitCommand(), c.backupListCommand(), c.backupInspectCommand(), c.backupDeleteCommand(),
			c.backupRestoreCommand(), c.backupVerifyCommand(), c.backupRepairCommand(), c.backupPruneCommand(),
		},
	}
}

func keyFileFlag() urfave.Flag {
	return &urfave.StringFlag{Name: "key-file", Usage: "the key of an encrypted repository; see orlop key create", EnvVars: []string{"ORLOP_KEY_FILE"}}
}

// keyOf reads the key that a command was given, nil if it was given none.
func keyOf(ctx *urfave.Context) (*repo.Key, error) {
	path := ctx.String("key-file")
	if path == "" {
		return nil, nil
	}
	return repo.ReadKeyFile(path)
}

// keyFlag is what commands that are to be run next need besides the destination, if not from the environment.
func keyFlag(ctx *urfave.Context) string {
	path := ctx.String("key-file")
	if path == "" || path == os.Getenv("ORLOP_KEY_FILE") {
		return ""
	}
	return " --key-file " + quoted(path)
}

// destinationOf is the only argument, or ORLOP_DEST.
func destinationOf(ctx *urfave.Context) (destination, error) {
	text := os.Getenv("ORLOP_DEST")
	least := 0
	if text == "" {
		least = 1
	}
	args, err := arguments(ctx, least, 1)
	if err != nil {
		return destination{}, err
	}
	if len(args) == 1 {
		text = args[0]
	}
	return parseDestination(text)
}

// An openRepository is a repository and the store that it is in.
type openRepository struct {
	*repo.Repository
	at    destination
	local localState
	warn  func(format string, args ...any)
}

// A place is what it takes to open the repository of a destination, or to mend it.
type place struct {
	at      destination
	key     *repo.Key // nil without --key-file
	objects *dirstore.Store
	local   localState
	known   repo.Known // what this host remembers of it
}

// openPlace opens a destination. The caller closes the objects.
func (o *opener) openPlace(at destination) (p place, err error) {
	p.at = at
	if p.key, err = keyOf(o.ctx); err != nil {
		return p, err
	}
	p.local = at.local(o.lose)
	if p.known, err = p.local.Recall(); err != nil {
		return p, fmt.Errorf("%s: %w", at, err)
	}
	p.objects, err = dirstore.Open(at.dir)
	switch {
	case fault.Is(err, fault.ErrNotFound) && at.isTaken(): // which the error tells
		return p, err
	case fault.Is(err, fault.ErrNotFound) && p.isKnown():
		return p, fmt.Errorf("%w This host knows repository %s there", err, p.known.Repository)
	case fault.Is(err, fault.ErrNotFound):
		return p, fmt.Errorf("%w %s", err, at.initHint())
	}
	return p, err
}

// isKnown tells whether this host knows a repository there.
func (p *place) isKnown() bool { return p.known.Repository != repo.ID{} }

// repository opens the repository, which must be there.
func (p *place) repository(ctx context.Context) (*repo.Repository, error) {
	options, err := p.local.options(p.at)
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, p.objects, p.key, options...)
	switch {
	case fault.Is(err, fault.ErrNotFound) && p.isKnown(): // which the error tells
		return nil, fmt.Errorf("%s: %w: is the disk mounted?", p.at, err)
	case fault.Is(err, fault.ErrNotFound):
		return nil, fmt.Errorf("%s: %w; is the disk mounted? %s", p.at, err, p.at.initHint())
	case p.key == nil && fault.Is(err, fault.ErrInvalid):
		return nil, fmt.Errorf("%s: %w: say --key-file FILE, or set ORLOP_KEY_FILE", p.at, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", p.at, err)
	}
	return r, nil
}

// An opener opens repositories for one run of a command. It is safe for concurrent use.
type opener struct {
	c    *cli
	ctx  *urfave.Context
	lost sync.Once
}

func (c *cli) newOpener(ctx *urfave.Context) *opener { return &opener{c: c, ctx: ctx} }

// lose tells once that what a command should remember is lost to the next.
func (o *opener) lose(dir string, err error) {
	o.lost.Do(func() {
		o.c.warn("cannot remember anything in %s: %v; nobody would notice if the destination were set back to an older state", dir, err)
	})
}

// warn tells of what does not keep a command from its work. With --json, stderr is for errors only, and some outputs have room
// for it.
func (c *cli) warn(format string, args ...any) {
	c.warned.add(fmt.Sprintf(format, args...))
	if !c.json {
		fmt.Fprintf(c.stderr, "orlop: warning: "+format+"\n", args...)
	}
}

// warnings are those of one run. They are safe for concurrent use.
type warnings struct {
	mu   sync.Mutex
	told []string
}

func (w *warnings) add(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, text)
}

// all is what was told so far, for JSON.
func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string{}, w.told...)
}

// openRepository opens the only repository that a command needs, and calls do with it.
func (c *cli) openRepository(ctx *urfave.Context, at destination, do func(*openRepository) error) error {
	return c.newOpener(ctx).open(at, do)
}

// open opens the repository of a destination with the command's key, and calls do with it.
func (o *opener) open(at destination, do func(*openRepository) error) error {
	p, err := o.openPlace(at)
	if err != nil {
		return err
	}
	defer p.objects.Close()
	r, err := p.repository(o.ctx.Context)
	if err != nil {
		return err
	}
	if damage := r.Damage(); damage != nil {
		o.c.warn("%v", damage)
	}
	if err := do(&openRepository{r, at, p.local, o.c.warn}); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

func (c *cli) backupInitCommand() *urfave.Command {
	return &urfave.Command{
		Name: "init", Usage: "make a repository for backups and print its URL", ArgsUsage: "DEST",
		Description: "The place must be empty, or not be there yet. Done again with the same key it changes nothing. Where this host\n" +
			"knows a repository that is not there, the disk may not be mounted: only with --new it makes another.\n" +
			"Example: orlop backup init file:///mnt/nas/orlop --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(),
			&urfave.BoolFlag{Name: "unencrypted", Usage: "anybody who can read the place can read the backups"},
			&urfave.BoolFlag{Name: "new", Usage: "make one although this host knows another there, which is gone; or take the one that is there for the right one"},
		},
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			key, err := keyOf(ctx)
			switch {
			case err != nil:
				return err
			case key == nil && !ctx.Bool("unencrypted"):
				return fault.Errorf(fault.ErrInvalid, "backup init: say --key-file FILE (see orlop key create), or --unencrypted")
			case key != nil && ctx.Bool("unencrypted"):
				return fault.Errorf(fault.ErrInvalid, "backup init: both a key file, by --key-file or ORLOP_KEY_FILE, and --unencrypted are given: say --key-file '' to give none")
			}
			r, err := initRepository(ctx.Context, at, key, at.local(c.newOpener(ctx).lose), ctx.Bool("new"))
			if err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
			view := repositoryView{URL: at.String(), ID: r.ID().String(), Encrypted: key != nil}
			if key != nil {
				view.Key = key.ID()
			}
			return c.print(view.URL, view)
		},
	}
}

// repositoryView is what --json tells of a new repository.
type repositoryView struct {
	URL       string `json:"url"`
	ID        string `json:"id"`
	Encrypted bool   `json:"encrypted"`
	Key       string `json:"key_id,omitempty"`
}

// A backupView is what users see of a backup. Its JSON is a contract: names never change.
type backupView struct {
	URL        string `json:"url"`
	ID         string `json:"id"`
	Volume     string `json:"volume"`
	VolumeID   string `json:"volume_id"`
	Host       string `json:"host"`
	Snapshot   string `json:"snapshot"`
	Created    string `json:"created"`
	Size       int64  `json:"size"`   // of the volume, bytes
	Stored     int64  `json:"stored"` // bytes that the backup added to the repository
	New        int64  `json:"new"`    // bytes of the volume in these
	DurationMS int64  `json:"duration_ms"`
	Encrypted  bool   `json:"encrypted"`
}

func (o *openRepository) view(b *repo.Backup) backupView {
	return backupView{
		URL: backupURL{destination: o.at, backup: b.ID(), volume: b.Volume.Name}.String(), ID: b.ID(),
		Volume: b.Volume.Name, VolumeID: b.Volume.ID, Host: b.Host, Snapshot: b.Snapshot.Name,
		Created: b.Created.UTC().Format(time.RFC3339Nano), Size: b.Size, Stored: b.Stats.Stored, New: b.Stats.New,
		DurationMS: b.Duration.Milliseconds(), Encrypted: o.Encrypted(),
	}
}

// A backupDetail is all that a record tells.
type backupDetail struct {
	backupView
	Lineage      string            `json:"lineage"`
	Sequence     uint64            `json:"sequence"`
	Parent       string            `json:"parent"`
	SnapshotID   string            `json:"snapshot_id"`
	ChunkSize    int               `json:"chunk_size"`
	BlockSize    int               `json:"block_size"`
	Filesystem   string            `json:"filesystem"`
	Labels       map[string]string `json:"labels"`
	UID          int               `json:"uid"`
	GID          int               `json:"gid"`
	Mode         string            `json:"mode"`
	MountOptions []string          `json:"mount_options"`
	Consistency  string            `json:"consistency"`
	Hooks        bool              `json:"hooks"`
	Group        string            `json:"group"`
	Read         int64             `json:"read"` // bytes of the volume that were read
	Writer       string            `json:"writer"`
}

func (o *openRepository) detail(b *repo.Backup) backupDetail {
	d := backupDetail{
		backupView: o.view(b), Lineage: b.Lineage, Sequence: b.Sequence, Parent: b.Parent, SnapshotID: b.Snapshot.ID,
		ChunkSize: b.ChunkSize, BlockSize: b.BlockSize, Filesystem: b.Filesystem, Labels: b.Labels, UID: b.UID, GID: b.GID,
		Mode: fmt.Sprintf("%04o", b.Mode), MountOptions: b.MountOptions, Consistency: b.Consistency, Hooks: b.Hooks,
		Group: b.Group, Read: b.Stats.Read, Writer: b.Writer,
	}
	if d.Labels == nil {
		d.Labels = map[string]string{}
	}
	if d.MountOptions == nil {
		d.MountOptions = []string{}
	}
	return d
}

func (c *cli) backupListCommand() *urfave.Command {
	return &urfave.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list backups, those of one volume together, the oldest first", ArgsUsage: "DEST",
		Description: "Example: orlop backup list file:///mnt/nas/orlop --key-file /root/orlop.key",
		Flags:       []urfave.Flag{keyFileFlag(), &urfave.StringFlag{Name: "volume-name", Usage: "only backups of volumes of this name"}},
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			return c.openRepository(ctx, at, func(r *openRepository) error {
				backups, err := r.Backups(ctx.Context)
				views := []backupView{}
				for _, b := range backups {
					if name := ctx.String("volume-name"); name == "" || name == b.Volume.Name {
						views = append(views, r.view(b))
					}
				}
				if len(views) == 0 && err != nil {
					return err
				}
				return errors.Join(c.printBackups(views), err)
			})
		},
	}
}

func (c *cli) printBackups(views []backupView) error {
	slices.SortStableFunc(views, func(a, b backupView) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.VolumeID, b.VolumeID))
	})
	if c.json {
		return c.printJSON(views)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tCREATED\tSIZE\tSTORED\tHOST\tID")
	for _, v := range views {
		created := v.Created
		if at, err := time.Parse(time.RFC3339Nano, created); err == nil {
			created = at.Format(time.DateTime) + " UTC"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Volume, created, daemon.Bytes(v.Size), daemon.Bytes(v.Stored), v.Host, v.ID)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// hurt tells whether a backup is known to be damaged.
func (o *openRepository) hurt() func(*repo.Backup) bool {
	return repo.RememberedDamage(o.local.verified()).Hurts
}

// find returns the backup that a URL names: of a volume's the newest that is not to be passed over.
func (o *openRepository) find(ctx context.Context, u backupURL, pass func(*repo.Backup) bool) (*repo.Backup, error) {
	backups, err := o.Backups(ctx)
	if u.backup != "" {
		for _, b := range backups {
			if b.ID() == u.backup && (u.volume == "" || u.volume == b.Volume.Name) {
				return b, nil // that other lineages may be damaged does not matter
			}
		}
		if err != nil {
			return nil, err
		}
		return nil, fault.Errorf(fault.ErrNotFound, "backup %q: not found: see orlop backup list %s", u.backup, o.at.quoted())
	}
	b, failed := o.newestOf(backups, u, pass)
	switch {
	case err == nil:
		return b, failed
	case failed == nil && ctx.Err() == nil:
		o.warn("not everything can be read, and there may be newer backups of volume %q: %v", u.volume, err)
		return b, nil
	case fault.Is(failed, fault.ErrNotFound):
		return nil, fault.Errorf(fault.KindOf(err), "no backup of a volume %q is in what can be read: %w", u.volume, err)
	}
	return nil, errors.Join(failed, err)
}

// newestOf returns the newest backup of the volume of a name that is not to be passed over, and tells of newer ones that are.
func (o *openRepository) newestOf(backups []*repo.Backup, u backupURL, pass func(*repo.Backup) bool) (*repo.Backup, error) {
	var newest, passed *repo.Backup
	var ids []string
	for _, b := range backups {
		if b.Volume.Name != u.volume {
			continue
		}
		if !slices.Contains(ids, b.Volume.ID) {
			ids = append(ids, b.Volume.ID)
		}
		of := &newest
		if pass(b) {
			of = &passed
		}
		if *of == nil || b.Sequence > (*of).Sequence {
			*of = b
		}
	}
	if len(ids) == 1 && newest != nil && passed != nil && passed.Sequence > newest.Sequence {
		o.warn("the newest backup of volume %q, %s of %s, is damaged: this is %s of %s; see orlop backup verify %s", u.volume,
			passed.ID(), dated(passed), newest.ID(), dated(newest), o.at.quoted())
	}
	switch {
	case len(ids) == 0:
		return nil, fault.Errorf(fault.ErrNotFound, "no backup of a volume %q: see orlop backup list %s", u.volume, o.at.quoted())
	case len(ids) > 1:
		slices.Sort(ids)
		return nil, fault.Errorf(fault.ErrInvalid, "there are backups of several volumes named %q, of IDs %q: choose one with backup=, see orlop backup list %s --volume-name %s --json", u.volume, ids, o.at.quoted(), u.volume)
	case newest == nil:
		return nil, fault.Errorf(fault.ErrCorrupt, "every backup of volume %q is damaged: see orlop backup verify %s --data", u.volume, o.at.quoted())
	}
	return newest, nil
}

// dated is when a backup was made, for people.
func dated(b *repo.Backup) string { return b.Created.UTC().Format(time.DateTime) + " UTC" }

func (c *cli) backupInspectCommand() *urfave.Command {
	return &urfave.Command{
		Name: "inspect", Usage: "show all about backups, as JSON", ArgsUsage: "URL...",
		Description: "Example: orlop backup inspect 'file:///mnt/nas/orlop?volume=db' --key-file /root/orlop.key",
		Flags:       []urfave.Flag{keyFileFlag()},
		Action: func(ctx *urfave.Context) error {
			urls, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			opener := c.newOpener(ctx)
			return c.inspectEach(urls, func(text string) (view json.RawMessage, err error) {
				u, err := parseBackupURL(text)
				if err != nil {
					return nil, err
				}
				err = opener.open(u.destination, func(r *openRepository) error {
					b, err := r.find(ctx.Context, u, r.hurt())
					if err != nil {
						return err
					}
					view, err = marshal(r.detail(b))
					return err
				})
				return view, err
			})
		},
	}
}

func (c *cli) backupDeleteCommand() *urfave.Command {
	return &urfave.Command{
		Name: "delete", Aliases: []string{"rm"}, Usage: "delete backups; prune frees their space", ArgsUsage: "URL...",
		Description: "Each URL must name its backup: volume= alone is refused.\n" +
			"Example: orlop backup delete 'file:///mnt/nas/orlop?backup=0190.0191&volume=db' --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag()},
		Action: func(ctx *urfave.Context) error {
			urls, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			opener := c.newOpener(ctx)
			return c.forEach(urls, func(text string) error {
				u, err := parseBackupURL(text)
				if err != nil {
					return err
				}
				if u.backup == "" {
					return fault.Errorf(fault.ErrInvalid, "backup delete %q: backup= is missing: see orlop backup list %s", text, u.quoted())
				}
				return opener.open(u.destination, func(r *openRepository) error {
					b, err := r.find(ctx.Context, u, nil)
					if err != nil {
						return err
					}
					_, err = r.Forget(ctx.Context, b.Lineage, []string{b.Record})
					return err
				})
			})
		},
	}
}
