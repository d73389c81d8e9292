package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/fault"
)

func (c *cli) infoCommand() *urfave.Command {
	return &urfave.Command{
		Name: "info", Usage: "show the daemon, its pools and their space as JSON",
		Description: "Example: orlop info",
		Action: func(ctx *urfave.Context) error {
			if _, err := arguments(ctx, 0, 0); err != nil {
				return err
			}
			var info json.RawMessage
			if err := c.client.Get(ctx.Context, "/info", nil, &info); err != nil {
				return err
			}
			return c.printJSON(info)
		},
	}
}

func (c *cli) shutdownCommand() *urfave.Command {
	return &urfave.Command{
		Name: "shutdown", Usage: "stop the daemon; mounted volumes stay mounted",
		Description: "Example: orlop shutdown --detach",
		Flags:       []urfave.Flag{&urfave.BoolFlag{Name: "detach", Usage: "also unmount the pools and free their loop devices; refuses while volumes are in use"}},
		Action: func(ctx *urfave.Context) error {
			if _, err := arguments(ctx, 0, 0); err != nil {
				return err
			}
			return c.client.Post(ctx.Context, "/shutdown", control.Request{Detach: ctx.Bool("detach")}, nil)
		},
	}
}

func (c *cli) versionCommand() *urfave.Command {
	return &urfave.Command{
		Name: "version", Usage: "show the versions of this command and of the daemon",
		Description: "Example: orlop version",
		Action: func(ctx *urfave.Context) error {
			if _, err := arguments(ctx, 0, 0); err != nil {
				return err
			}
			both := struct {
				Client control.Version  `json:"client"`
				Daemon *control.Version `json:"daemon"`
			}{Client: control.Version{Version: version, API: control.Prefix[1:]}}
			var daemonSide control.Version
			err := c.client.Get(ctx.Context, "/version", nil, &daemonSide)
			if err == nil {
				both.Daemon = &daemonSide
			} else if !fault.Is(err, fault.ErrUnreachable) && !errors.Is(err, os.ErrPermission) {
				return err
			}
			if c.json {
				return c.printJSON(both)
			}
			unreachable := "not reachable at " + ctx.String("socket")
			if errors.Is(err, os.ErrPermission) {
				unreachable = "not reachable by this user at " + ctx.String("socket")
			}
			text := fmt.Sprintf("orlop   %s (API %s)\ndaemon  %s", both.Client.Version, both.Client.API, unreachable)
			if both.Daemon != nil {
				text = fmt.Sprintf("orlop   %s (API %s)\ndaemon  %s (API %s)", both.Client.Version, both.Client.API, both.Daemon.Version, both.Daemon.API)
			}
			return c.print(text, nil)
		},
	}
}
