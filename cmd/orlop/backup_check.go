package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func (c *cli) backupVerifyCommand() *urfave.Command {
	return &urfave.Command{
		Name: "verify", Usage: "check a repository for damage", ArgsUsage: "DEST|URL",
		Description: "Checks that every object exists and that they are consistent; --data also reads all data. With the URL of a\n" +
			"backup it checks that one only. Exits with 7 if it finds damage to what it checked.\n" +
			"Example: orlop backup verify file:///mnt/nas/orlop --data --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), s3CredentialsFlag(),
			&urfave.BoolFlag{Name: "data", Usage: "read all data, the least recently read first"},
			&urfave.StringFlag{Name: "sample", Usage: "read PART of the data, such as 5%: the least recently read"},
		},
		Action: func(ctx *urfave.Context) error {
			at, u, err := verifySubject(ctx)
			if err != nil {
				return err
			}
			options := repo.VerifyOptions{Data: ctx.Bool("data")}
			if ctx.IsSet("sample") {
				if options.Data {
					return fault.Errorf(fault.ErrInvalid, "backup verify: both --data and --sample are given")
				}
				if options.Sample, err = parsePercent(ctx.String("sample")); err != nil {
					return err
				}
			}
			return c.openRepository(ctx, at, func(r *destination.Repository) error {
				if u != nil {
					b, err := r.Find(ctx.Context, *u, nil)
					if err != nil {
						return err
					}
					options.Only = b
				}
				shown := c.newProgress("")
				if !c.json { // whose only output is the report
					options.Progress = shown.show
				}
				options.Command = "orlop backup repair " + at.Quoted() + " --dry-run" + keyFlag(ctx)
				report, err := r.Verify(ctx.Context, options)
				shown.end()
				return c.verified(r, report, options.Only, err)
			})
		},
	}
}

// verified tells what verify found, and then what kept it from finding more. Where damage hurts what it was to look at, the
// exit code is that of damage, whatever else went wrong.
func (c *cli) verified(r *destination.Repository, found repo.Report, only *repo.Backup, failed error) error {
	if failed != nil && len(found.Findings) == 0 {
		return failed
	}
	if err := c.printReport(found, only); err != nil || !affects(found, only) {
		return errors.Join(failed, err)
	}
	if failed != nil {
		report(c.stderr, fmt.Errorf("%s: %w", r.Destination, failed), c.json)
	}
	return reported{errDamaged}
}

// verifySubject is what verify is to look at: a destination, or one backup.
func verifySubject(ctx *urfave.Context) (destination.Destination, *destination.URL, error) {
	if text := ctx.Args().First(); destination.IsURL(text) {
		if _, err := arguments(ctx, 1, 1); err != nil {
			return destination.Destination{}, nil, err
		}
		u, err := destination.ParseURL(text)
		return u.Destination, &u, err
	}
	at, err := destinationOf(ctx)
	return at, nil, err
}

// parsePercent reads "5%" as 0.05.
func parsePercent(text string) (float64, error) {
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || math.IsNaN(percent) || percent <= 0 || percent > 100 {
		return 0, fault.Errorf(fault.ErrInvalid, "backup verify: --sample %q: want a part above 0 %% and up to 100 %%, as 5%%", text)
	}
	return percent / 100, nil
}

// errDamaged is what verify ends with when it has told of what it found.
var errDamaged = fault.Errorf(fault.ErrCorrupt, "damage was found")

// affects reports whether something is wrong with what verify was to look at: the repository, or one backup.
func affects(report repo.Report, only *repo.Backup) bool {
	return slices.ContainsFunc(report.Findings, func(f repo.Finding) bool {
		return only == nil || slices.Contains(f.Backups, only.ID())
	})
}

func (c *cli) printReport(report repo.Report, only *repo.Backup) error {
	if c.json {
		return c.printJSON(report)
	}
	var text strings.Builder
	for _, f := range report.Findings {
		fmt.Fprintf(&text, "%s\n  problem: %s\n", f.Object, f.Problem)
		if f.Unnamed {
			fmt.Fprintf(&text, "  affects: backups made since then, of which nothing else is known\n")
		} else if len(f.Backups) == 0 {
			fmt.Fprintf(&text, "  affects: no backup\n")
		}
		for _, id := range f.Backups {
			fmt.Fprintf(&text, "  affects: backup %s\n", id)
		}
		if len(f.Volumes) > 0 {
			fmt.Fprintf(&text, "  of:      volume %s\n", strings.Join(f.Volumes, ", "))
		}
		fmt.Fprintf(&text, "  next:    %s\n", f.Command)
	}
	verdict := "no damage found"
	if n := len(report.Findings); n > 0 {
		verdict = counted(n, "damaged object")
	}
	of := counted(report.Backups, "backup")
	if only != nil {
		of = fmt.Sprintf("backup %s of %s", only.ID(), dated(only))
	}
	fmt.Fprintf(&text, "%s: %s, %s, %d of them read (%s)\n", verdict, of, counted(report.Packs, "pack"), report.Read, daemon.Bytes(report.Bytes))
	if _, err := c.stdout.Write([]byte(text.String())); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// counted is a number of things, in words: 1 pack, 2 packs.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func (c *cli) backupRepairCommand() *urfave.Command {
	return &urfave.Command{
		Name: "repair", Usage: "repair a damaged repository", ArgsUsage: "DEST",
		Description: "Rebuilds a lost config and lost heads from what is left, and saves what is good in damaged packs. Backups whose data\n" +
			"is lost are named; only --drop-damaged drops them, and until then it exits with 7. Run it with --dry-run first, and\n" +
			"while nothing else writes to DEST.\n" +
			"Example: orlop backup repair file:///mnt/nas/orlop --dry-run --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), s3CredentialsFlag(),
			&urfave.BoolFlag{Name: "dry-run", Usage: "show what would be done, change nothing"},
			&urfave.BoolFlag{Name: "drop-damaged", Usage: "drop the backups whose data is lost"},
		},
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			options, err := c.newOpener(ctx).options()
			if err != nil {
				return err
			}
			steps, err := destination.Repair(ctx.Context, at, options, ctx.Bool("dry-run"), ctx.Bool("drop-damaged"))
			if err == nil || len(steps) > 0 {
				err = errors.Join(err, c.printSteps(steps))
			}
			if err == nil && slices.ContainsFunc(steps, func(s repo.Step) bool { return s.Lost }) {
				return reported{errDamaged} // the step says what is to be decided
			}
			return err
		},
	}
}

func (c *cli) printSteps(steps []repo.Step) error {
	if c.json {
		if steps == nil {
			steps = []repo.Step{}
		}
		return c.printJSON(steps)
	}
	for _, step := range steps {
		if err := c.print(step.String(), nil); err != nil {
			return err
		}
	}
	if len(steps) == 0 {
		return c.print("nothing to repair", nil)
	}
	return nil
}

func (c *cli) backupPruneCommand() *urfave.Command {
	flags := append([]urfave.Flag{keyFileFlag(), s3CredentialsFlag()}, keepFlags()...)
	return &urfave.Command{
		Name: "prune", Usage: "delete old backups by rules, and free what no backup needs", ArgsUsage: "DEST",
		Description: "Without a rule no backup is deleted. The newest good backup of each volume is always kept.\n" +
			"Example: orlop backup prune file:///mnt/nas/orlop --keep-daily 7 --keep-weekly 5 --key-file /root/orlop.key",
		Flags: append(flags,
			&urfave.StringFlag{Name: "volume-name", Usage: "only volumes named NAME"},
			&urfave.StringFlag{Name: "host", Usage: "only backups made by host NAME"},
			&urfave.BoolFlag{Name: "dry-run", Usage: "show what would be deleted, change nothing"},
			&urfave.BoolFlag{Name: "force", Usage: "apply the rules to the dates of backups as they are, though a clock may have been wrong"},
		),
		Action: func(ctx *urfave.Context) error {
			at, err := destinationOf(ctx)
			if err != nil {
				return err
			}
			for _, name := range []string{"volume-name", "host"} {
				if ctx.IsSet(name) && ctx.String(name) == "" {
					return fault.Errorf(fault.ErrInvalid, "backup prune: --%s is empty: leave it out for all", name)
				}
			}
			policy, err := policyOf(ctx)
			if err != nil {
				return err
			}
			return c.openRepository(ctx, at, func(r *destination.Repository) error { return c.prune(ctx, r, policy) })
		},
	}
}

// keepRules are the rules of retention that are numbers.
var keepRules = []struct {
	flag, usage string
	field       func(*repo.Policy) *int
}{
	{"keep-last", "keep the newest N backups", func(p *repo.Policy) *int { return &p.Last }},
	{"keep-hourly", "keep the newest backup of each of N hours, UTC", func(p *repo.Policy) *int { return &p.Hourly }},
	{"keep-daily", "keep the newest backup of each of N days", func(p *repo.Policy) *int { return &p.Daily }},
	{"keep-weekly", "keep the newest backup of each of N weeks", func(p *repo.Policy) *int { return &p.Weekly }},
	{"keep-monthly", "keep the newest backup of each of N months", func(p *repo.Policy) *int { return &p.Monthly }},
	{"keep-yearly", "keep the newest backup of each of N years", func(p *repo.Policy) *int { return &p.Yearly }},
}

// keepFlags are the flags of the rules of retention.
func keepFlags() (flags []urfave.Flag) {
	for _, rule := range keepRules {
		flags = append(flags, &urfave.IntFlag{Name: rule.flag, Usage: rule.usage})
	}
	return append(flags, &urfave.StringFlag{Name: "keep-within", Usage: "keep all that are at most AGE older than the newest, such as 1y6m7d12h"})
}

func policyOf(ctx *urfave.Context) (policy repo.Policy, err error) {
	given := false
	for _, rule := range keepRules {
		*rule.field(&policy) = ctx.Int(rule.flag)
		given = given || ctx.IsSet(rule.flag)
	}
	if text := ctx.String("keep-within"); ctx.IsSet("keep-within") {
		given = true
		if policy.Within, err = repo.ParseSpan(text); err != nil {
			return policy, err
		}
	}
	if given && policy.IsZero() {
		return policy, fault.Errorf(fault.ErrInvalid, "%s: rules that keep nothing would delete all backups but the newest: use --keep-last 1 for that", commandPath(ctx))
	}
	return policy, policy.Check()
}

// pruneView is what --json tells of a prune.
type pruneView struct {
	Removed []backup.View `json:"removed"`
	Kept    int           `json:"kept"`
	Freed   int64         `json:"freed"` // bytes
	DryRun  bool          `json:"dry_run"`

	Warnings []string `json:"warnings"`
}

// prune applies a policy to every volume, and frees what no backup needs. What fails in one lineage keeps it from no other.
func (c *cli) prune(ctx *urfave.Context, r *destination.Repository, policy repo.Policy) error {
	if !ctx.Bool("dry-run") {
		if err := r.CheckStore(ctx.Context); err != nil {
			return err
		}
	}
	plan, err := r.PlanPrune(ctx.Context, repo.PruneOptions{
		Policy: policy, Match: func(b *repo.Backup) bool { return matches(ctx, b) }, Force: ctx.Bool("force"),
	})
	if err != nil {
		return err
	}
	view := pruneView{Removed: []backup.View{}, DryRun: ctx.Bool("dry-run")}
	done, failed := repo.Pruned{Removed: plan.Remove, Kept: plan.Kept}, plan.Err
	if !view.DryRun {
		done, failed = plan.Execute(ctx.Context)
	}
	view.Kept, view.Freed = done.Kept, done.Freed
	for _, b := range done.Removed {
		view.Removed = append(view.Removed, backup.NewView(r, b))
	}
	for _, doubt := range plan.Doubts {
		c.warn(doubt)
	}
	if !plan.Matched && failed == nil && (ctx.IsSet("volume-name") || ctx.IsSet("host")) {
		failed = errNoMatch(ctx)
	}
	return fault.Join(failed, c.printPrune(view, policy.IsZero(), failed == nil))
}

// matches reports whether a backup is of the volume and the host that prune was limited to.
func matches(ctx *urfave.Context, b *repo.Backup) bool {
	return (!ctx.IsSet("volume-name") || b.Volume.Name == ctx.String("volume-name")) && (!ctx.IsSet("host") || b.Host == ctx.String("host"))
}

// errNoMatch is what prune says if no backup is what it was to be limited to.
func errNoMatch(ctx *urfave.Context) error {
	what := ""
	if ctx.IsSet("volume-name") {
		what += fmt.Sprintf(" of a volume %q", ctx.String("volume-name"))
	}
	if ctx.IsSet("host") {
		what += fmt.Sprintf(" that host %q made", ctx.String("host"))
	}
	return fault.Errorf(fault.ErrNotFound, "backup prune: there is no backup%s", what)
}

// printPrune tells what was done. What is kept is known only if all could be looked at.
func (c *cli) printPrune(view pruneView, unruled, all bool) error {
	if c.json {
		view.Warnings = c.warned.all()
		return c.printJSON(view)
	}
	verb := "deleted"
	if view.DryRun {
		verb = "would delete"
	}
	for _, v := range view.Removed {
		if err := c.print(fmt.Sprintf("%s %s of volume %s, %s", verb, v.ID, v.Volume, v.Created), nil); err != nil {
			return err
		}
	}
	text := verb + " " + counted(len(view.Removed), "backup")
	if unruled {
		text = "no rule given, no backup deleted: see --keep-daily and the like in orlop backup prune --help"
	}
	if all {
		text += fmt.Sprintf(", kept %d", view.Kept)
	}
	if !view.DryRun {
		text += ", freed " + daemon.Bytes(view.Freed)
	}
	return c.print(text, nil)
}
