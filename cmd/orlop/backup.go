package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

func (c *cli) backupCommand() *urfave.Command {
	return &urfave.Command{
		Name: "backup", Usage: "manage backups: create, list, verify, restore, prune",
		Description: "Example: orlop backup list file:///mnt/nas/orlop --key-file /root/orlop.key",
		Action:      c.unknownCommand,
		Subcommands: []*urfave.Command{
			c.backupInitCommand(), c.backupCreateCommand(), c.backupRunCommand(), c.backupListCommand(), c.backupInspectCommand(), c.backupDeleteCommand(),
			c.backupRestoreCommand(), c.backupVerifyCommand(), c.backupRepairCommand(), c.backupPruneCommand(), c.backupProbeCommand(),
		},
	}
}

func keyFileFlag() urfave.Flag {
	return &urfave.StringFlag{Name: "key-file", Usage: "key FILE of an encrypted repository; see 'orlop key create'", EnvVars: []string{"ORLOP_KEY_FILE"}}
}

func s3CredentialsFlag() urfave.Flag {
	return &urfave.StringFlag{Name: "s3-credentials", Usage: "FILE with the keys for a bucket, in the form of ~/.aws/credentials", EnvVars: []string{"ORLOP_S3_CREDENTIALS"}}
}

// credentialsOf returns the credentials that a command was given: in a file, or in the environment. There may be none.
func credentialsOf(ctx *urfave.Context) (c destination.Credentials, err error) {
	if path := ctx.String("s3-credentials"); path != "" {
		if c.File, err = filepath.Abs(path); err != nil {
			return c, fmt.Errorf("S3 credentials: %w", err)
		}
	}
	environment, err := destination.EnvironmentCredentials()
	if c.File != "" {
		c.CABundle = environment.CABundle // what else may be wrong there does not matter
		return c, nil
	}
	return environment, err
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
	text := ""
	if path := ctx.String("key-file"); path != "" && path != os.Getenv("ORLOP_KEY_FILE") {
		text += " --key-file " + quoted(path)
	}
	if path := ctx.String("s3-credentials"); path != "" && path != os.Getenv("ORLOP_S3_CREDENTIALS") {
		text += " --s3-credentials " + quoted(path)
	}
	return text
}

// destinationOf is the only argument, or ORLOP_DEST.
func destinationOf(ctx *urfave.Context) (destination.Destination, error) {
	text := os.Getenv("ORLOP_DEST")
	least := 0
	if text == "" {
		least = 1
	}
	args, err := arguments(ctx, least, 1)
	if err != nil {
		return destination.Destination{}, err
	}
	if len(args) == 1 {
		text = args[0]
	}
	return destination.Parse(text)
}

// An opener opens repositories for one run of a command. It is safe for concurrent use.
type opener struct {
	c    *cli
	ctx  *urfave.Context
	lost sync.Once
}

func (c *cli) newOpener(ctx *urfave.Context) *opener { return &opener{c: c, ctx: ctx} }

// options are those that the command was given. What this user's commands remember is in the user's cache.
func (o *opener) options() (destination.Options, error) {
	key, err := keyOf(o.ctx)
	if err != nil {
		return destination.Options{}, err
	}
	options := destination.Options{Key: key, Warn: o.warn}
	if options.Credentials, err = credentialsOf(o.ctx); err != nil {
		return destination.Options{}, err
	}
	if options.StateDir, err = backupState(); err != nil {
		o.warn(err)
	}
	return options, nil
}

// backupState is where commands and daemons of this user remember destinations. What verify finds so reaches the next
// backup. It fails with a StateError, and then nothing is remembered.
func backupState() (string, error) {
	dir, err := cacheDir("backup")
	if err != nil {
		err = &destination.StateError{Dir: filepath.Join(os.Getenv("XDG_CACHE_HOME"), "orlop", "backup"), Err: err}
	}
	return dir, err
}

// warn tells the user, and only once that nothing can be remembered.
func (o *opener) warn(err error) {
	var lost *destination.StateError
	if errors.As(err, &lost) {
		o.lost.Do(func() { o.c.warn(err) })
		return
	}
	o.c.warn(err)
}

// warn tells of what does not keep a command from its work. With --json, stderr is for errors only, and some outputs have room
// for it.
func (c *cli) warn(err error) {
	text := withRemedy(err).Error()
	c.warned.add(text)
	if !c.json {
		_, _ = fmt.Fprintf(c.shown.above(c.stderr), "orlop: warning: %s\n", text)
	}
}

// advise tells a person at a terminal what to do. Elsewhere it says nothing.
func (c *cli) advise(format string, args ...any) {
	if !c.json && isTerminal(c.stderr) {
		fmt.Fprintf(c.stderr, format+"\n", args...)
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
func (c *cli) openRepository(ctx *urfave.Context, at destination.Destination, do func(*destination.Repository) error) error {
	return c.newOpener(ctx).open(at, do)
}

// open opens the repository of a destination with the command's key, and calls do with it.
func (o *opener) open(at destination.Destination, do func(*destination.Repository) error) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	r, err := destination.Open(o.ctx.Context, at, options)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := do(r); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

func (c *cli) backupInitCommand() *urfave.Command {
	return &urfave.Command{
		Name: "init", Usage: "create a repository for backups and print its URL", ArgsUsage: "DEST",
		Description: "DEST must be empty, or not exist yet. Repeating the command with the same key changes nothing.\n" +
			"If this host remembers a repository there that is gone, the disk may not be mounted: only --new creates another.\n" +
			"Example: orlop backup init file:///mnt/nas/orlop --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), s3CredentialsFlag(),
			&urfave.BoolFlag{Name: "unencrypted", Usage: "anyone who can read DEST can read the backups"},
			&urfave.BoolFlag{Name: "new", Usage: "replace a repository that this host remembers but that is gone, or accept the different one that is there"},
		},
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			options, err := c.newOpener(ctx).options()
			switch {
			case err != nil:
				return err
			case options.Key == nil && !ctx.Bool("unencrypted"):
				return fault.Errorf(fault.ErrInvalid, "backup init: use --key-file FILE (see orlop key create), or --unencrypted")
			case options.Key != nil && ctx.Bool("unencrypted"):
				return fault.Errorf(fault.ErrInvalid, "backup init: both a key file, by --key-file or ORLOP_KEY_FILE, and --unencrypted are given: use --key-file '' to give none")
			}
			r, err := destination.OpenOrInit(ctx.Context, at, options, ctx.Bool("new"))
			if err != nil {
				return err
			}
			defer r.Close()
			view := repositoryView{URL: at.String(), ID: r.ID().String(), Encrypted: r.Encrypted()}
			if options.Key != nil {
				view.Key = options.Key.ID()
			}
			if err := c.print(view.URL, view); err != nil || options.Key == nil {
				return err
			}
			c.advise("without the key %s the backups here cannot be read: keep a copy of it elsewhere", ctx.String("key-file"))
			return nil
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

// A backupDetail is all that a record tells.
type backupDetail struct {
	backup.View
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

func detailOf(r *destination.Repository, b *repo.Backup) backupDetail {
	d := backupDetail{
		View: backup.NewView(r, b), Lineage: b.Lineage, Sequence: b.Sequence, Parent: b.Parent, SnapshotID: b.Snapshot.ID,
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
		Name: "list", Aliases: []string{"ls"}, Usage: "list backups by volume, the oldest first", ArgsUsage: "DEST",
		Description: "IDs are shown as far as they are needed; backup= in a URL takes them so.\n" +
			"Example: orlop backup list file:///mnt/nas/orlop --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), s3CredentialsFlag(),
			&urfave.StringFlag{Name: "volume-name", Usage: "only backups of volumes named NAME"},
			wideFlag(),
		},
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			return c.openRepository(ctx, at, func(r *destination.Repository) error {
				backups, err := r.Backups(ctx.Context)
				views := []backup.View{}
				for _, b := range backups {
					if name := ctx.String("volume-name"); name == "" || name == b.Volume.Name {
						views = append(views, backup.NewView(r, b))
					}
				}
				if len(views) == 0 && err != nil {
					return err
				}
				return errors.Join(c.printBackups(views, destination.ShortIDs(backups), ctx.Bool("wide")), err)
			})
		},
	}
}

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// dated is when a backup was made, for people.
func dated(b *repo.Backup) string { return b.Created.UTC().Format(time.DateTime) + " UTC" }

func (c *cli) backupInspectCommand() *urfave.Command {
	return &urfave.Command{
		Name: "inspect", Usage: "show details of backups as JSON", ArgsUsage: "URL...",
		Description: "Example: orlop backup inspect 'file:///mnt/nas/orlop?volume=db' --key-file /root/orlop.key",
		Flags:       []urfave.Flag{keyFileFlag(), s3CredentialsFlag()},
		Action: func(ctx *urfave.Context) error {
			urls, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			opener := c.newOpener(ctx)
			return c.inspectEach(urls, func(text string) (view json.RawMessage, err error) {
				u, err := destination.ParseURL(text)
				if err != nil {
					return nil, err
				}
				err = opener.open(u.Destination, func(r *destination.Repository) error {
					b, err := r.Find(ctx.Context, u, r.RememberedDamage().Hurts)
					if err != nil {
						return err
					}
					view, err = marshal(detailOf(r, b))
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
		Description: "Each URL must contain backup=ID; volume= alone is not enough.\n" +
			"Example: orlop backup delete 'file:///mnt/nas/orlop?backup=0190.0191&volume=db' --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), s3CredentialsFlag()},
		Action: func(ctx *urfave.Context) error {
			urls, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			opener := c.newOpener(ctx)
			return c.forEach(urls, func(text string) error {
				u, err := destination.ParseURL(text)
				if err != nil {
					return err
				}
				if u.Backup == "" {
					return fault.Errorf(fault.ErrInvalid, "backup delete %q: backup= is missing: see orlop backup list %s", text, u.Quoted())
				}
				return opener.open(u.Destination, func(r *destination.Repository) error {
					b, err := r.Find(ctx.Context, u, nil)
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
