package main

import (
	"fmt"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup/destination"
	"orlop/internal/fault"
)

func (c *cli) backupProbeCommand() *urfave.Command {
	return &urfave.Command{
		Name: "probe", Usage: "find out by trying whether DEST can hold a repository", ArgsUsage: "DEST",
		Description: "Lets 16 writers race for each of 20 names, and looks whether one of them wins. The report has no secrets and can\n" +
			"be sent to the vendor. It writes below probe/ in DEST, and deletes that if it may.\n" +
			"Example: orlop backup probe 's3://my-backups@eu-central-1/orlop' --s3-credentials /etc/orlop/s3",
		Flags: []urfave.Flag{s3CredentialsFlag()},
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			options, err := c.newOpener(ctx).options()
			if err != nil {
				return err
			}
			report, err := destination.Probe(ctx.Context, at, options)
			return fault.Join(err, c.printProbe(report))
		},
	}
}

// printProbe prints what a probe saw, also of one that failed.
func (c *cli) printProbe(r destination.ProbeReport) error {
	if c.json {
		return c.printJSON(r)
	}
	lines := []string{"destination  " + r.Destination, "time         " + r.Time.Format("2006-01-02 15:04:05 UTC")}
	if r.Server != "" {
		lines = append(lines, "server       "+r.Server)
	}
	if len(r.Addresses) > 0 {
		lines = append(lines, "addresses    "+strings.Join(r.Addresses, " "))
	}
	for _, t := range r.Trials {
		lines = append(lines, fmt.Sprintf("%-12s %s: %s", map[bool]string{true: "passed", false: "FAILED"}[t.OK], t.What, t.Saw))
	}
	return c.print(strings.Join(lines, "\n"), nil)
}
