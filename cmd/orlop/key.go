package main

import (
	"errors"
	"os"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup/repo"
)

func (c *cli) keyCommand() *urfave.Command {
	return &urfave.Command{
		Name: "key", Usage: "keys of encrypted backups",
		Description: "Example: orlop key create /root/orlop.key",
		Action:      c.unknownCommand,
		Subcommands: []*urfave.Command{c.keyCreateCommand(), c.keyPrintCommand()},
	}
}

// keyView is what --json tells of a new key. The key itself is in its file only.
type keyView struct {
	ID   string `json:"id"`
	File string `json:"file"`
}

func (c *cli) keyCreateCommand() *urfave.Command {
	return &urfave.Command{
		Name: "create", Usage: "create a key for encrypted backups and print its ID", ArgsUsage: "FILE",
		Description: "Keep a copy of the file elsewhere: without it the backups cannot be read.\nExample: orlop key create /root/orlop.key",
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			if args[0] == "" {
				return emptyName("key create")
			}
			path, err := newFile(ctx, args[0])
			if err != nil {
				return err
			}
			key, err := repo.NewKey(nil)
			if err != nil {
				return err
			}
			if err := key.WriteFile(path); err != nil {
				return err
			}
			if err := c.print(key.ID(), keyView{ID: key.ID(), File: path}); err != nil {
				return errors.Join(err, os.Remove(path)) // nothing else shows the ID, and nobody has used the key
			}
			c.advise("keep a copy of %s elsewhere, one of them on paper (orlop key print %s): without it the backups cannot be read", path, quoted(path))
			return nil
		},
	}
}
