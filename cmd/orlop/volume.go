package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func (c *cli) createCommand() *urfave.Command {
	command := &urfave.Command{
		Name: "create", Usage: "create a volume and print its name", ArgsUsage: "[NAME]",
		Description: "Without NAME it makes up a name, volume- and 16 hexadecimal digits; without --size the daemon has a default.\n" +
			"Example: orlop create db --size 20G --label app=shop",
		Action: c.create,
	}
	for _, kind := range daemon.OptionKinds {
		switch {
		case kind.NotAFlag || kind.Key == "key-file":
		case kind.Switch:
			command.Flags = append(command.Flags, &urfave.BoolFlag{Name: kind.Key, Usage: kind.Help})
		case kind.Repeats:
			command.Flags = append(command.Flags, &urfave.StringSliceFlag{Name: kind.Key, Usage: kind.Help})
		default:
			command.Flags = append(command.Flags, &urfave.StringFlag{Name: kind.Key, Usage: kind.Help})
		}
	}
	command.Flags = append(command.Flags, keyFileFlag(), s3CredentialsFlag())
	return command
}

func (c *cli) create(ctx *urfave.Context) error {
	args, err := arguments(ctx, 0, 1)
	if err != nil {
		return err
	}
	request := control.Request{Name: ctx.Args().First(), AutoName: len(args) == 0}
	if request.Options, err = settingsOf(ctx); err != nil {
		return err
	}
	switch {
	case ctx.IsSet("backup"):
		return c.createFromBackup(ctx, request)
	case keyFlag(ctx) != "":
		return fault.Errorf(fault.ErrInvalid, "create: --key-file and --s3-credentials go with --backup")
	}
	var view daemon.View
	if err := c.client.Post(ctx.Context, "/volumes/create", request, &view); err != nil {
		return err
	}
	c.warnOf(view)
	return c.print(view.Name, view)
}

// createFromBackup restores a backup to a new volume, as "backup restore" does, and prints it as a volume that was created.
func (c *cli) createFromBackup(ctx *urfave.Context, request control.Request) error {
	if ctx.IsSet("from") {
		return fault.Errorf(fault.ErrInvalid, "create: --from and --backup exclude each other")
	}
	request.AutoName = false // without a name it has that of the volume that was backed up
	key, err := keyPath(ctx)
	if err != nil {
		return err
	}
	request.KeyFile = key
	if request.Credentials, err = wireCredentials(ctx); err != nil {
		return err
	}
	request.Options = slices.DeleteFunc(request.Options, func(s control.Setting) bool {
		if s.Key == "backup" {
			request.URL = s.Value
		}
		return s.Key == "backup"
	})
	c.reportOnly = c.json // what is created is one JSON value
	done, err := c.restoreOne(ctx, request)
	if err != nil {
		return err
	}
	var view daemon.View
	if err := c.client.Get(ctx.Context, "/volumes/inspect", url.Values{"name": {done.VolumeID}}, &view); err != nil {
		return err
	}
	return c.print(view.Name, view)
}

// warnOf prints a volume's warnings for people who have just given it its size. In JSON they are part of the volume.
func (c *cli) warnOf(view daemon.View) {
	if c.json {
		return
	}
	for _, warning := range view.Warnings {
		fmt.Fprintln(c.stderr, "orlop: warning:", warning)
	}
}

// settingsOf reads the options of a new volume that a command was given. Relative paths become absolute: the daemon is
// elsewhere.
func settingsOf(ctx *urfave.Context) (settings []control.Setting, err error) {
	for _, kind := range daemon.OptionKinds {
		if kind.NotAFlag || !ctx.IsSet(kind.Key) || kind.Key == "key-file" { // which goes with the URL, and may be the environment's
			continue
		}
		values := []string{ctx.String(kind.Key)}
		switch {
		case kind.Repeats:
			values = ctx.StringSlice(kind.Key)
		case kind.Switch:
			values = []string{strconv.FormatBool(ctx.Bool(kind.Key))}
		case kind.Key == "backup":
			values[0], err = absoluteURL(values[0])
		}
		if err != nil {
			return nil, err
		}
		for _, value := range values {
			settings = append(settings, control.Setting{Key: kind.Key, Value: value})
		}
	}
	return settings, nil
}

func (c *cli) setCommand() *urfave.Command {
	return &urfave.Command{
		Name: "set", Usage: "change a volume's labels, protection, backup policy and hooks", ArgsUsage: "NAME",
		Description: "Example: orlop set db --label tier=gold --label old= --protect",
		Flags: []urfave.Flag{
			&urfave.StringSliceFlag{Name: "label", Usage: "label as key=value; key= removes it"},
			&urfave.BoolFlag{Name: "protect", Usage: "refuse to delete the volume"},
			&urfave.BoolFlag{Name: "unprotect", Usage: "allow the volume to be deleted again"},
			&urfave.StringFlag{Name: "keep", Usage: "retention policy of its backups, as in daily:7,weekly:4; empty to remove it"},
			&urfave.BoolFlag{Name: "no-backup", Usage: "leave the volume out of 'backup run --all'"},
			&urfave.BoolFlag{Name: "backup", Usage: "back the volume up again with 'backup run --all'"},
			&urfave.StringFlag{Name: "pre-snapshot", Usage: "command to run on the host before each snapshot; empty to remove it"},
			&urfave.StringFlag{Name: "post-snapshot", Usage: "command to run on the host after each snapshot; empty to remove it"},
		},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			request := control.Request{Name: args[0], Labels: ctx.StringSlice("label")}
			on := ctx.Bool("protect")
			if on && ctx.Bool("unprotect") {
				return fault.Errorf(fault.ErrInvalid, "set: --protect and --unprotect exclude each other")
			}
			if on || ctx.Bool("unprotect") {
				request.Protect = &on
			}
			out := ctx.Bool("no-backup")
			if out && ctx.Bool("backup") {
				return fault.Errorf(fault.ErrInvalid, "set: --backup and --no-backup exclude each other")
			}
			if out || ctx.Bool("backup") {
				request.NoBackup = &out
			}
			for flag, field := range map[string]**string{"pre-snapshot": &request.PreSnapshot, "post-snapshot": &request.PostSnapshot, "keep": &request.Keep} {
				if ctx.IsSet(flag) {
					line := ctx.String(flag)
					*field = &line
				}
			}
			var view daemon.View
			if err := c.client.Post(ctx.Context, "/volumes/set", request, &view); err != nil || !c.json {
				return err
			}
			return c.printJSON(view)
		},
	}
}

func (c *cli) inspectCommand() *urfave.Command {
	return &urfave.Command{
		Name: "inspect", Usage: "show details of volumes as JSON", ArgsUsage: "NAME...",
		Description: "Example: orlop inspect db",
		Action: func(ctx *urfave.Context) error {
			names, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			return c.inspectEach(names, func(name string) (view json.RawMessage, err error) {
				err = c.client.Get(ctx.Context, "/volumes/inspect", url.Values{"name": {name}}, &view)
				return view, err
			})
		},
	}
}

// inspectEach prints what get returns for one name, or an array for several.
func (c *cli) inspectEach(names []string, get func(name string) (json.RawMessage, error)) error {
	views := []json.RawMessage{}
	err := c.forEach(names, func(name string) error {
		view, err := get(name)
		if err == nil {
			views = append(views, view)
		}
		return err
	})
	if len(names) > 1 {
		if printErr := c.printJSON(views); err == nil {
			err = printErr
		}
	} else if err == nil {
		err = c.printJSON(views[0])
	}
	return err
}

// emptyName refuses a name that is there but empty: a variable of a script's that is not set.
func emptyName(command string) error {
	return fault.Errorf(fault.ErrInvalid, "%s: the name is empty", command)
}

func (c *cli) deleteCommand() *urfave.Command {
	return &urfave.Command{
		Name: "delete", Aliases: []string{"rm"}, Usage: "delete volumes and their data", ArgsUsage: "NAME...",
		Description: "Refuses volumes that are mounted or protected, or have snapshots. Prints the names of those that it deleted.\n" +
			"Example: orlop delete scratch",
		Flags: []urfave.Flag{&urfave.BoolFlag{Name: "snapshots", Usage: "delete their snapshots too"}},
		Action: func(ctx *urfave.Context) error {
			names, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			return c.forEach(names, func(name string) error {
				err := c.client.Post(ctx.Context, "/volumes/delete", control.Request{Name: name, Snapshots: ctx.Bool("snapshots")}, nil)
				return c.printDeleted(name, err)
			})
		},
	}
}

// printDeleted prints what was deleted, unless err tells that it was not or the output is JSON, which has no shape for it.
func (c *cli) printDeleted(name string, err error) error {
	if err != nil || c.json {
		return err
	}
	return c.print(name, nil)
}

func (c *cli) mountCommand() *urfave.Command {
	return &urfave.Command{
		Name: "mount", Usage: "mount a volume and print the path; stays until 'orlop umount' or a reboot", ArgsUsage: "NAME",
		Description: "Example: orlop mount db --mountpoint /mnt",
		Flags:       []urfave.Flag{&urfave.StringFlag{Name: "mountpoint", Usage: "empty directory to mount the volume at, instead of its own"}},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			request := control.Request{Name: args[0]}
			if ctx.IsSet("mountpoint") {
				if ctx.String("mountpoint") == "" {
					return fault.Errorf(fault.ErrInvalid, "mount: --mountpoint must name a directory")
				}
				if request.Mountpoint, err = filepath.Abs(ctx.String("mountpoint")); err != nil {
					return fmt.Errorf("mount point %q: %w", ctx.String("mountpoint"), err)
				}
			}
			var mounted control.Mounted
			if err := c.client.Post(ctx.Context, "/volumes/mount", request, &mounted); err != nil {
				return err
			}
			return c.printVolume(ctx, mounted.Path, args[0])
		},
	}
}

// printVolume prints text, or with --json what inspect shows of a volume.
func (c *cli) printVolume(ctx *urfave.Context, text, name string) error {
	var view daemon.View
	if c.json {
		if err := c.client.Get(ctx.Context, "/volumes/inspect", url.Values{"name": {name}}, &view); err != nil {
			return err
		}
	}
	return c.print(text, view)
}

func (c *cli) umountCommand() *urfave.Command {
	return &urfave.Command{
		Name: "umount", Aliases: []string{"unmount"}, Usage: "undo 'orlop mount'", ArgsUsage: "NAME",
		Description: "What containers use stays mounted. Example: orlop umount db",
		Flags:       []urfave.Flag{&urfave.BoolFlag{Name: "stale", Usage: "also drop what Docker or Podman hold though no process has used it for 3 minutes"}},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			var answer control.Unmounted
			err = c.client.Post(ctx.Context, "/volumes/umount", control.Request{Name: args[0], Stale: ctx.Bool("stale")}, &answer)
			if err == nil && answer.Held != "" {
				fmt.Fprintf(c.stderr, "orlop: volume %q: stays mounted: in use by %s\n", args[0], answer.Held)
			}
			return err
		},
	}
}

func (c *cli) resizeCommand() *urfave.Command {
	return &urfave.Command{
		Name: "resize", Usage: "grow a volume, even while in use", ArgsUsage: "NAME --size SIZE",
		Description: "Example: orlop resize db --size 50G",
		Flags:       []urfave.Flag{&urfave.StringFlag{Name: "size", Usage: "new size, as in 50G"}},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			if !ctx.IsSet("size") {
				return fault.Errorf(fault.ErrInvalid, "resize: missing --size: orlop resize %s --size SIZE", args[0])
			}
			var view daemon.View
			err = c.client.Post(ctx.Context, "/volumes/resize", control.Request{Name: args[0], Size: ctx.String("size")}, &view)
			if err != nil {
				return err
			}
			c.warnOf(view)
			if !c.json {
				return nil
			}
			return c.printJSON(view)
		},
	}
}

func (c *cli) trimCommand() *urfave.Command {
	return &urfave.Command{
		Name: "trim", Usage: "return unused space to the pool", ArgsUsage: "[NAME...]",
		Description: "Without a name it trims every volume. Example: orlop trim db",
		Action:      c.trim,
	}
}

func (c *cli) trim(ctx *urfave.Context) error {
	names := ctx.Args().Slice()
	if len(names) == 0 {
		var views []daemon.View
		if err := c.client.Get(ctx.Context, "/volumes", nil, &views); err != nil {
			return err
		}
		for _, v := range views {
			names = append(names, v.Name)
		}
	}
	type trimmed struct {
		Name  string `json:"name"`
		Bytes int64  `json:"bytes"`
	}
	all := []trimmed{}
	err := c.forEach(names, func(name string) error {
		var answer control.Trimmed
		if err := c.client.Post(ctx.Context, "/volumes/trim", control.Request{Name: name}, &answer); err != nil {
			return err
		}
		all = append(all, trimmed{name, answer.Bytes})
		if c.json {
			return nil
		}
		return c.print(fmt.Sprintf("%s: %s given back", name, strings.TrimSpace(daemon.Bytes(answer.Bytes))), nil)
	})
	if c.json {
		if printErr := c.printJSON(all); err == nil {
			err = printErr
		}
	}
	return err
}
