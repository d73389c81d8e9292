package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

func (c *cli) backupRestoreCommand() *urfave.Command {
	return &urfave.Command{
		Name: "restore", Usage: "restore a backup to a new volume and print its name, or to a file", ArgsUsage: "URL|DEST [NAME]",
		Description: "With --all DEST is a destination, and every volume in it is restored.\n" +
			"The volume has the name of the one that was backed up, unless NAME is given. It appears once it is complete, and an\n" +
			"interrupted restore resumes, also after a restart of the daemon. With --to-file no daemon is needed; until IMAGE is\n" +
			"complete it is IMAGE.orlop-part, and the same command resumes it.\n" +
			"Example: orlop backup restore 'file:///mnt/nas/orlop?volume=db' --key-file /root/orlop.key",
		Flags: append([]urfave.Flag{keyFileFlag(), s3CredentialsFlag(), &urfave.StringFlag{Name: "to-file", Usage: "create IMAGE, a sparse file of the volume's size; needs no daemon"}}, restoreFlags()...),
		Action: func(ctx *urfave.Context) error {
			if ctx.Bool("all") {
				if ctx.IsSet("to-file") {
					return fault.Errorf(fault.ErrInvalid, "backup restore: --all and --to-file exclude each other")
				}
				at, err := destinationOf(ctx)
				if err != nil {
					return err
				}
				return c.restoreAll(ctx, at)
			}
			if ctx.IsSet("host") {
				return fault.Errorf(fault.ErrInvalid, "backup restore: --host goes with --all")
			}
			args, err := arguments(ctx, 1, 2)
			if err != nil {
				return err
			}
			u, err := destination.ParseURL(args[0])
			if err != nil {
				return err
			}
			switch {
			case ctx.IsSet("to-file") && len(args) == 2:
				return fault.Errorf(fault.ErrInvalid, "backup restore: a name and --to-file exclude each other")
			case ctx.IsSet("to-file"):
				return c.restoreFile(ctx, u)
			case len(args) == 2 && args[1] == "":
				return emptyName("backup restore")
			}
			return c.restoreVolume(ctx, u, ctx.Args().Get(1))
		},
	}
}

// restoreFile restores a backup to an image file.
func (c *cli) restoreFile(ctx *urfave.Context, u destination.URL) error {
	if ctx.String("to-file") == "" {
		return fault.Errorf(fault.ErrInvalid, "backup restore: --to-file needs the name of a file")
	}
	for _, name := range append([]string{"in-place", "discard-current"}, restoreOptions...) {
		if ctx.IsSet(name) {
			return fault.Errorf(fault.ErrInvalid, "backup restore: --%s goes with a volume, not with --to-file", name)
		}
	}
	image, err := newFile(ctx, ctx.String("to-file"))
	if err != nil {
		return err
	}
	return c.openRepository(ctx, u.Destination, func(r *destination.Repository) error {
		b, err := r.Find(ctx.Context, u, r.RememberedDamage().Hurts)
		if err != nil {
			return err
		}
		shown := c.newProgress("syncing")
		done, err := r.RestoreFile(ctx.Context, b, image, shown.show)
		shown.end()
		if err != nil {
			return err
		}
		if c.json {
			return c.printEvent(restoredView{Event: "done", File: image, Backup: backup.NewView(r, b), Restored: done, Warnings: c.warned.all()})
		}
		return c.print(image, nil)
	})
}

// restoredView is what --json tells of a finished restore, after a progressEvent a second.
type restoredView struct {
	Event  string      `json:"event"` // "done"
	File   string      `json:"file"`
	Backup backup.View `json:"backup"`
	repo.Restored

	Warnings []string `json:"warnings"`
}

// printEvent prints JSON on a line.
func (c *cli) printEvent(event any) error {
	text, err := marshal(event)
	if err != nil {
		return err
	}
	if _, err := c.stdout.Write(text); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// marshal returns JSON on a line, in which the & of a URL is one.
func marshal(value any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, fmt.Errorf("write output: %w", err)
	}
	return text.Bytes(), nil
}
