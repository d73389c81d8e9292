package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

func (c *cli) backupRestoreCommand() *urfave.Command {
	return &urfave.Command{
		Name: "restore", Usage: "restore a backup to an image file and print its path", ArgsUsage: "URL --to-file IMAGE",
		Description: "Needs no daemon. IMAGE must not exist; it appears once it is complete. Until then it is IMAGE.orlop-part, and the\n" +
			"same command resumes an interrupted restore.\n" +
			"Example: orlop backup restore 'file:///mnt/nas/orlop?volume=db' --to-file /tmp/db.img --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), &urfave.StringFlag{Name: "to-file", Usage: "create `IMAGE`, a sparse file of the volume's size"}},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			if ctx.String("to-file") == "" {
				return fault.Errorf(fault.ErrInvalid, "backup restore: --to-file IMAGE is missing")
			}
			u, err := destination.ParseURL(args[0])
			if err != nil {
				return err
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
					return c.printEvent(restoredView{Event: "done", File: image, Backup: viewOf(r, b), Restored: done, Warnings: c.warned.all()})
				}
				return c.print(image, nil)
			})
		},
	}
}

// restoredView is what --json tells of a finished restore, after a progressEvent a second.
type restoredView struct {
	Event  string     `json:"event"` // "done"
	File   string     `json:"file"`
	Backup backupView `json:"backup"`
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
