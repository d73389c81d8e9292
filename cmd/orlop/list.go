package main

import (
	"net/url"
	"strconv"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func quietFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print names only"}
}

func wideFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "wide", Aliases: []string{"w"}, Usage: "print more columns, in lines of any length"}
}

func (c *cli) listCommand() *urfave.Command {
	return &urfave.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list volumes", ArgsUsage: "[NAME...]",
		Description: "A filter is label=KEY, label=KEY=VALUE, pool=NAME, state=STATE or mounted[=true|false].\n" +
			"Example: orlop list --filter label=app=shop",
		Flags: []urfave.Flag{
			&urfave.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "list only volumes that match; may be repeated"},
			quietFlag(), wideFlag(),
		},
		Action: func(ctx *urfave.Context) error {
			if err := c.checkListFlags(ctx); err != nil {
				return err
			}
			names := ctx.Args().Slice()
			if len(names) > 0 && ctx.IsSet("filter") {
				return fault.Errorf(fault.ErrInvalid, "list: --filter and NAME exclude each other")
			}
			if len(names) == 0 {
				var views []daemon.View
				if err := c.client.Get(ctx.Context, "/volumes", url.Values{"filter": ctx.StringSlice("filter")}, &views); err != nil {
					return err
				}
				return c.printVolumes(ctx, views)
			}
			views := []daemon.View{}
			err := c.forEach(names, func(name string) error {
				var view daemon.View
				err := c.client.Get(ctx.Context, "/volumes/inspect", url.Values{"name": {name}}, &view)
				if err == nil {
					views = append(views, view)
				}
				return err
			})
			if printErr := c.printVolumes(ctx, views); err == nil {
				err = printErr
			}
			return err
		},
	}
}

// checkListFlags refuses flags that ask for different shapes of a list.
func (c *cli) checkListFlags(ctx *urfave.Context) error {
	if quiet, wide := ctx.Bool("quiet"), ctx.Bool("wide"); quiet && (wide || c.json) {
		return fault.Errorf(fault.ErrInvalid, "%s: --quiet excludes --wide and --json", commandPath(ctx))
	}
	return nil
}

func (c *cli) printVolumes(ctx *urfave.Context, views []daemon.View) error {
	switch {
	case c.json:
		return c.printJSON(views)
	case ctx.Bool("quiet"):
		for _, v := range views {
			if err := c.print(v.Name, nil); err != nil {
				return err
			}
		}
		return nil
	}
	header, limit := []string{"NAME", "SIZE", "USED", "USE%", "FS", "STATE", "MOUNTED"}, lineWidth
	if ctx.Bool("wide") {
		header, limit = []string{"NAME", "SIZE", "USED", "USE%", "FREE", "FS", "POOL", "STATE", "HOLDERS", "MOUNTED"}, 0
	}
	rows := make([]row, len(views))
	for i, v := range views {
		used, free := "-", "-"
		if v.FillView != nil {
			used, free = daemon.Percent(v.FSUsed()), daemon.Bytes(v.FSFree)
		}
		mounted := map[bool]string{true: "yes", false: "-"}[v.Mounted]
		cells := []string{v.Name, daemon.Bytes(v.Size), daemon.Bytes(v.Used), used, v.Filesystem, v.State, mounted}
		if limit == 0 {
			if v.Mounted {
				mounted = v.Mountpoint
			}
			cells = []string{v.Name, daemon.Bytes(v.Size), daemon.Bytes(v.Used), used, free, v.Filesystem, v.Pool, v.State, strconv.Itoa(len(v.Holders)), mounted}
		}
		rows[i].cells = cells
		if v.Problem != "" {
			rows[i].notes = []string{v.Problem}
		}
	}
	return c.printTable(limit, header, rows)
}
