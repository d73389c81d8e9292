package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/daemon"
)

func (c *cli) snapshotCommand() *urfave.Command {
	return &urfave.Command{
		Name: "snapshot", Usage: "manage instant copies of volumes: take, list, compare, roll back to",
		Description: "Example: orlop snapshot create db --name before-upgrade",
		Action:      c.unknownCommand,
		Subcommands: []*urfave.Command{
			c.snapshotCreateCommand(), c.snapshotListCommand(), c.snapshotInspectCommand(), c.snapshotDeleteCommand(),
			c.snapshotRestoreCommand(), c.snapshotDiffCommand(),
		},
	}
}

func (c *cli) snapshotCreateCommand() *urfave.Command {
	return &urfave.Command{
		Name: "create", Usage: "take a snapshot of each volume at the same point in time and print the names", ArgsUsage: "VOLUME...",
		Description: "Containers keep running; their writes wait for a moment. Without --name, the name is the time in UTC.\n" +
			"Example: orlop snapshot create db --name before-upgrade",
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "name", Aliases: []string{"n"}, Usage: "name of the snapshots"},
			&urfave.StringSliceFlag{Name: "label", Usage: "label as key=value"},
		},
		Action: func(ctx *urfave.Context) error {
			volumes, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			if ctx.IsSet("name") && ctx.String("name") == "" {
				return emptyName("snapshot create")
			}
			request := control.Request{Volumes: volumes, Name: ctx.String("name"), Labels: ctx.StringSlice("label")}
			var views []daemon.SnapshotView
			if err := c.client.Post(ctx.Context, "/snapshots/create", request, &views); err != nil {
				return err
			}
			if len(views) == 1 {
				return c.print(views[0].Name, views[0])
			}
			if c.json {
				return c.printJSON(views)
			}
			for _, view := range views {
				if err := c.print(view.Volume+"@"+view.Name, nil); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (c *cli) snapshotListCommand() *urfave.Command {
	return &urfave.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list snapshots, oldest first", ArgsUsage: "[VOLUME]",
		Description: "Example: orlop snapshot list db",
		Flags:       []urfave.Flag{quietFlag(), wideFlag()},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 0, 1)
			if err != nil {
				return err
			}
			if err := c.checkListFlags(ctx); err != nil {
				return err
			}
			query := url.Values{}
			if len(args) == 1 {
				if args[0] == "" {
					return emptyName("snapshot list")
				}
				query.Set("volume", args[0])
			}
			var views []daemon.SnapshotView
			if err := c.client.Get(ctx.Context, "/snapshots", query, &views); err != nil {
				return err
			}
			return c.printSnapshots(ctx, views)
		},
	}
}

func (c *cli) printSnapshots(ctx *urfave.Context, views []daemon.SnapshotView) error {
	switch {
	case c.json:
		return c.printJSON(views)
	case ctx.Bool("quiet"):
		for _, v := range views {
			if err := c.print(v.Volume+"@"+v.Name, nil); err != nil {
				return err
			}
		}
		return nil
	}
	header, limit := []string{"SNAPSHOT", "USED", "STATE", "CREATED (UTC)"}, lineWidth
	if ctx.Bool("wide") {
		header, limit = []string{"SNAPSHOT", "SIZE", "USED", "STATE", "MANAGED", "CREATED (UTC)"}, 0
	}
	rows := make([]row, len(views))
	for i, v := range views {
		created := v.Created
		if at, err := time.Parse(time.RFC3339Nano, v.Created); err == nil {
			created = at.UTC().Format(time.DateTime)
		}
		name, used := v.Volume+"@"+v.Name, daemon.Bytes(v.Used)
		if limit > 0 {
			state := v.State
			if v.Managed && state == "ready" {
				state = "backup" // kept as the base of the next one
			}
			rows[i].cells = []string{name, used, state, created}
		} else {
			rows[i].cells = []string{name, daemon.Bytes(v.Size), used, v.State, map[bool]string{true: "yes", false: "-"}[v.Managed], created}
		}
		if v.Problem != "" {
			rows[i].notes = []string{v.Problem}
		}
	}
	return c.printTable(limit, header, rows)
}

func (c *cli) snapshotInspectCommand() *urfave.Command {
	return &urfave.Command{
		Name: "inspect", Usage: "show details of snapshots as JSON", ArgsUsage: "SNAP...",
		Description: "SNAP is volume@snapshot, or the snapshot's name or ID alone. Example: orlop snapshot inspect db@before-upgrade",
		Action: func(ctx *urfave.Context) error {
			names, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			return c.inspectEach(names, func(name string) (view json.RawMessage, err error) {
				err = c.client.Get(ctx.Context, "/snapshots/inspect", url.Values{"name": {name}}, &view)
				return view, err
			})
		},
	}
}

func (c *cli) snapshotDeleteCommand() *urfave.Command {
	return &urfave.Command{
		Name: "delete", Aliases: []string{"rm"}, Usage: "delete snapshots", ArgsUsage: "SNAP...",
		Description: "Volumes made from them stay. Example: orlop snapshot delete db@before-upgrade",
		Action: func(ctx *urfave.Context) error {
			names, err := arguments(ctx, 1, -1)
			if err != nil {
				return err
			}
			return c.forEach(names, func(name string) error {
				return c.printDeleted(name, c.client.Post(ctx.Context, "/snapshots/delete", control.Request{Name: name}, nil))
			})
		},
	}
}

func (c *cli) snapshotRestoreCommand() *urfave.Command {
	return &urfave.Command{
		Name: "restore", Usage: "roll a volume back to a snapshot of it", ArgsUsage: "SNAP",
		Description: "The volume must not be in use. Its present state becomes the snapshot before-restore-TIME.\n" +
			"Example: orlop snapshot restore db@before-upgrade",
		Flags: []urfave.Flag{&urfave.BoolFlag{Name: "discard-current", Usage: "discard the present state instead of keeping it as a snapshot"}},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			request := control.Request{Name: args[0], Discard: ctx.Bool("discard-current")}
			var view daemon.View
			if err := c.client.Post(ctx.Context, "/snapshots/restore", request, &view); err != nil || !c.json {
				return err
			}
			return c.printJSON(view)
		},
	}
}

func (c *cli) snapshotDiffCommand() *urfave.Command {
	return &urfave.Command{
		Name: "diff", Usage: "print which extents changed from the older to the newer snapshot, as JSON lines", ArgsUsage: "SNAP [SNAP]",
		Description: "With one snapshot it prints what has data. Example: orlop snapshot diff db@monday db@tuesday",
		Action: func(ctx *urfave.Context) error {
			names, err := arguments(ctx, 1, 2)
			if err != nil {
				return err
			}
			return c.client.Stream(ctx.Context, "/snapshots/diff", url.Values{"name": names}, func(line []byte) error {
				if _, err := fmt.Fprintf(c.stdout, "%s\n", line); err != nil {
					return fmt.Errorf("write output: %w", err)
				}
				return nil
			})
		},
	}
}
