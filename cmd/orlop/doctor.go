package main

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// errFindings makes doctor exit with 1; the findings have been printed.
var errFindings = errors.New("problems found")

func (c *cli) doctorCommand() *urfave.Command {
	return &urfave.Command{
		Name: "doctor", Usage: "report problems and the commands that fix them; changes nothing",
		Description: "Exits with 1 if it finds something. Example: orlop doctor",
		Flags:       []urfave.Flag{&urfave.StringFlag{Name: "max-backup-age", Usage: "also report volumes that were not backed up within this time, as in 26h or 2d"}},
		Action: func(ctx *urfave.Context) error {
			if _, err := arguments(ctx, 0, 0); err != nil {
				return err
			}
			query := url.Values{}
			if ctx.IsSet("max-backup-age") {
				age, err := parseAge(ctx.String("max-backup-age"))
				if err != nil {
					return err
				}
				query.Set("max_backup_age", age.String())
			}
			var findings []daemon.Finding
			if err := c.client.Get(ctx.Context, "/doctor", query, &findings); err != nil {
				return err
			}
			if err := c.printFindings(findings); err != nil {
				return err
			}
			if len(findings) > 0 {
				return reported{errFindings}
			}
			return nil
		},
	}
}

// parseAge reads a duration in hours and less, as time.ParseDuration does, or in days.
func parseAge(text string) (time.Duration, error) {
	age, err := time.ParseDuration(text)
	if number, ok := strings.CutSuffix(text, "d"); ok {
		var days uint64
		if days, err = strconv.ParseUint(number, 10, 16); err == nil {
			age = time.Duration(days) * 24 * time.Hour
		}
	}
	if err != nil || age <= 0 {
		return 0, fault.Errorf(fault.ErrInvalid, "doctor: --max-backup-age %q: use hours or days, as in 26h or 2d", text)
	}
	return age, nil
}

func (c *cli) printFindings(findings []daemon.Finding) error {
	if c.json {
		return c.printJSON(findings)
	}
	if len(findings) == 0 {
		return c.print("no problems found", nil)
	}
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(wrap(fmt.Sprintf("%s: %s: %s", f.Severity, f.Subject, f.Problem), "  "))
		b.WriteString("  fix: " + f.Command + "\n") // in one line, to be copied
	}
	if _, err := fmt.Fprint(c.stdout, b.String()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func (c *cli) deviceCommand() *urfave.Command {
	return &urfave.Command{
		Name: "device", Usage: "adopt or delete devices that doctor lists as unknown",
		Action: c.unknownCommand,
		Subcommands: []*urfave.Command{
			{
				Name: "adopt", Usage: "turn an unknown device into a volume", ArgsUsage: "ID NAME",
				Description: "Example: orlop device adopt 0192e1c4-8c6f-7d1c-9f60-0a8b5f1c2d3e db",
				Action: func(ctx *urfave.Context) error {
					args, err := arguments(ctx, 2, 2)
					if err != nil {
						return err
					}
					var view daemon.View
					if err := c.client.Post(ctx.Context, "/devices/adopt", control.Request{Device: args[0], Name: args[1]}, &view); err != nil {
						return err
					}
					return c.print(view.Name, view)
				},
			},
			{
				Name: "delete", Aliases: []string{"rm"}, Usage: "delete an unknown device and its data", ArgsUsage: "ID",
				Description: "Example: orlop device delete 0192e1c4-8c6f-7d1c-9f60-0a8b5f1c2d3e",
				Action: func(ctx *urfave.Context) error {
					args, err := arguments(ctx, 1, 1)
					if err != nil {
						return err
					}
					return c.printDeleted(args[0], c.client.Post(ctx.Context, "/devices/delete", control.Request{Device: args[0]}, nil))
				},
			},
		},
	}
}
