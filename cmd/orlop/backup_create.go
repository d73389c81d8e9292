package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/control"
	"orlop/internal/fault"
)

func destFlag() urfave.Flag {
	return &urfave.StringFlag{Name: "dest", Usage: "destination URL of the repository", EnvVars: []string{"ORLOP_DEST"}}
}

func dropSnapshotFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "drop-snapshot", Usage: "delete the snapshot afterwards: the next backup must read all of the volume"}
}

func (c *cli) backupCreateCommand() *urfave.Command {
	return &urfave.Command{
		Name: "create", Usage: "back up a volume, or a snapshot, and print the backup's URL", ArgsUsage: "VOLUME|SNAP",
		Description: "The daemon takes a snapshot of a volume first, also while containers write, and keeps it, so that the next backup\n" +
			"reads and stores only what changed. A backup that was interrupted resumes when the command is repeated.\n" +
			"Example: orlop backup create db --dest file:///mnt/nas/orlop --key-file /root/orlop.key",
		Flags: []urfave.Flag{destFlag(), keyFileFlag(), s3CredentialsFlag(), dropSnapshotFlag()},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			request, err := backupRequest(ctx)
			if err != nil {
				return err
			}
			request.Name = args[0]
			made, err := c.backUp(ctx, request)
			if err != nil {
				return err
			}
			if c.json {
				return c.printEvent(madeEvent{"done", made})
			}
			return c.print(made.URL, nil)
		},
	}
}

// madeEvent is what --json tells of a backup, after a progressEvent a second.
type madeEvent struct {
	Event string `json:"event"` // "done"
	backup.Made
}

// backupRequest reads the destination and the key of a command that backs up.
func backupRequest(ctx *urfave.Context) (control.Request, error) {
	if ctx.String("dest") == "" {
		return control.Request{}, fault.Errorf(fault.ErrInvalid, "%s: use --dest URL, or set ORLOP_DEST", commandPath(ctx))
	}
	at, err := destination.Parse(ctx.String("dest"))
	if err != nil {
		return control.Request{}, err
	}
	key, err := keyPath(ctx)
	if err != nil {
		return control.Request{}, err
	}
	credentials, err := wireCredentials(ctx)
	return control.Request{Destination: at.String(), KeyFile: key, Credentials: credentials, DropSnapshot: ctx.Bool("drop-snapshot")}, err
}

// wireCredentials are the credentials that the daemon is to use for this request; nil for its own.
func wireCredentials(ctx *urfave.Context) (*control.Credentials, error) {
	c, err := credentialsOf(ctx)
	if err != nil || c == (destination.Credentials{}) {
		return nil, err
	}
	return &control.Credentials{File: c.File, AccessKey: c.Access, SecretKey: c.Secret, SessionToken: c.Token, CABundle: c.CABundle}, nil
}

// keyPath is the path of the key that a command was given, absolute, as the daemon opens it.
func keyPath(ctx *urfave.Context) (string, error) {
	path := ctx.String("key-file")
	if path == "" {
		return "", nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("key file: %w", err)
	}
	return path, nil
}

// absoluteURL makes the path in the URL of a backup absolute.
func absoluteURL(text string) (string, error) {
	u, err := destination.ParseURL(text)
	return u.String(), err
}

// backUp has the daemon make one backup, and tells its warnings.
func (c *cli) backUp(ctx *urfave.Context, request control.Request) (made backup.Made, err error) {
	j, err := c.do(ctx.Context, "/backups/create", request)
	if err != nil {
		return made, err
	}
	if err := json.Unmarshal(j.Result, &made); err != nil {
		return made, fmt.Errorf("read result of backup: %w", err)
	}
	for _, warning := range made.Warnings {
		c.warned.add(warning)
		if !c.json {
			fmt.Fprintf(c.stderr, "orlop: warning: volume %q: %s\n", made.Volume, warning)
		}
	}
	return made, nil
}
