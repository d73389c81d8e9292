package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"orlop/internal/control"
	"orlop/internal/fault"
)

const defaultSocket = "/run/orlop/control.sock"

// cli is one invocation of the command line.
type cli struct {
	stdout, stderr io.Writer
	json           bool
	warned         warnings
	shown          *progress // of the work at hand, nil without
	client         *control.Client
	release        []func() // at the end
	reportOnly     bool     // show no progress: one report at the end is all that --json prints
	answered       bool     // the daemon has answered: when it is away, it restarts
}

// run is main with everything given to it. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr, json: wantsJSON(args)}
	app := c.app()
	if len(args) > 1 && args[1] == completeVerb {
		c.complete(ctx, app, args[2:], stdout)
		return 0
	}
	err := checkText(args)
	if err == nil {
		words, help := arrange(app, args)
		if help {
			err = c.printHelp(app, words)
		} else {
			err = app.RunContext(ctx, words)
		}
	}
	for _, release := range c.release {
		release()
	}
	var told reported
	if err != nil && !errors.As(err, &told) {
		report(stderr, err, c.json)
	}
	return exitCode(err)
}

// wantsJSON reports whether --json is among the flags, for errors in reading them.
func wantsJSON(args []string) bool {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "-json")
}

// checkText refuses arguments that are no UTF-8: JSON would carry them to the daemon as something else.
func checkText(args []string) error {
	for _, arg := range args {
		if !utf8.ValidString(arg) {
			return fault.Errorf(fault.ErrInvalid, "argument %q: is not UTF-8", arg)
		}
	}
	return nil
}

func (c *cli) app() *urfave.App {
	app := &urfave.App{
		Name:                      "orlop",
		Usage:                     "block-device volumes for Docker containers",
		UsageText:                 "orlop [--socket PATH] [--json] [--verbose] COMMAND",
		HideVersion:               true,
		HideHelp:                  true, // run shows it
		DisableSliceFlagSeparator: true,
		Writer:                    c.stdout,
		ErrWriter:                 c.stderr,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "socket", Usage: "control socket of the daemon", Value: defaultSocket, EnvVars: []string{"ORLOP_SOCKET"}},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
			&urfave.BoolFlag{Name: "verbose", Usage: "daemon: log every call; other commands: print the socket of the daemon they call"},
		},
		Before: func(ctx *urfave.Context) error {
			c.json = ctx.Bool("json") // --json=false too
			c.client = control.NewClient(ctx.String("socket"))
			c.release = append(c.release, c.client.Close)
			if ctx.Args().First() == "daemon" {
				return nil
			}
			var restore func()
			ctx.Context, restore = notifyContext(ctx.Context, unix.SIGHUP) // the daemon outlives it
			c.release = append(c.release, restore)
			if ctx.Bool("verbose") {
				fmt.Fprintf(c.stderr, "orlop: daemon at %s\n", ctx.String("socket"))
			}
			return nil
		},
		Action:         c.unknownCommand,
		ExitErrHandler: func(*urfave.Context, error) {}, // run decides the exit code
		OnUsageError:   usageError,
	}
	for _, group := range []struct {
		name     string
		commands []*urfave.Command
	}{
		{"VOLUME", []*urfave.Command{
			c.createCommand(), c.listCommand(), c.inspectCommand(), c.setCommand(), c.resizeCommand(), c.trimCommand(),
			c.mountCommand(), c.umountCommand(), c.deleteCommand(),
		}},
		{"SNAPSHOT AND BACKUP", []*urfave.Command{c.snapshotCommand(), c.backupCommand(), c.keyCommand(), c.jobCommand()}},
		{"DAEMON", []*urfave.Command{c.daemonCommand(), c.shutdownCommand(), c.infoCommand(), c.doctorCommand(), c.deviceCommand()}},
		{"OTHER", []*urfave.Command{c.versionCommand(), c.completionCommand()}},
	} {
		for _, command := range group.commands {
			command.Category = group.name
		}
		app.Commands = append(app.Commands, group.commands...)
	}
	for _, command := range app.Commands {
		for _, c := range append(command.Subcommands, command) {
			c.OnUsageError = usageError
			c.HideHelp = true
			if takesDestination(c) {
				c.Description = strings.Replace(c.Description, "Example: ", environmentHelp+"Example: ", 1)
			}
		}
	}
	return app
}

// environmentHelp is in the help of each command that takes a destination.
const environmentHelp = "In the environment, ORLOP_DEST stands for DEST, ORLOP_KEY_FILE for --key-file, ORLOP_S3_CREDENTIALS for --s3-credentials.\n"

// takesDestination reports whether ORLOP_DEST stands for the command's first argument.
func takesDestination(c *urfave.Command) bool { return strings.HasPrefix(c.ArgsUsage, "DEST") }

// arguments checks how many arguments a command got.
func arguments(ctx *urfave.Context, least, most int) ([]string, error) {
	args := ctx.Args().Slice()
	switch {
	case len(args) < least && takesDestination(ctx.Command):
		return nil, fault.Errorf(fault.ErrInvalid, "%s: missing argument: orlop %s %s, or set ORLOP_DEST", commandPath(ctx), commandPath(ctx), ctx.Command.ArgsUsage)
	case len(args) < least:
		return nil, fault.Errorf(fault.ErrInvalid, "%s: missing argument: orlop %s %s", commandPath(ctx), commandPath(ctx), ctx.Command.ArgsUsage)
	case most >= 0 && len(args) > most:
		return nil, fault.Errorf(fault.ErrInvalid, "%s: unexpected argument %q: orlop %s %s", commandPath(ctx), args[most], commandPath(ctx), ctx.Command.ArgsUsage)
	}
	return args, nil
}

// newFile is the absolute path of a file that a command is to make. It fails with fault.ErrInvalid if that is the name of a
// directory, and with fault.ErrNotFound if there is no directory for it.
func newFile(ctx *urfave.Context, path string) (string, error) {
	if strings.HasSuffix(path, "/") {
		return "", fault.Errorf(fault.ErrInvalid, "%s: %q must name a file, not a directory", commandPath(ctx), path)
	}
	file, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", commandPath(ctx), err)
	}
	dir := filepath.Dir(file)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "", fault.Errorf(fault.ErrNotFound, "%s: directory %s does not exist", commandPath(ctx), dir)
	case err == nil && !info.IsDir():
		return "", fault.Errorf(fault.ErrNotFound, "%s: %s is not a directory", commandPath(ctx), dir)
	}
	return file, nil // whoever makes the file says what else is wrong
}

// commandPath is the whole name of a command, as in "snapshot delete": "delete" alone is another one.
func commandPath(ctx *urfave.Context) string {
	var words []string
	for _, level := range ctx.Lineage() {
		if level.Command != nil && level.Command.Name != "" && level.Command.Name != ctx.App.Name {
			words = append(words, level.Command.Name)
		}
	}
	slices.Reverse(words)
	return strings.Join(words, " ")
}

// print writes a line, or with --json whatever of the answer stands behind it.
func (c *cli) print(text string, full any) error {
	if c.json {
		return c.printJSON(full)
	}
	if _, err := fmt.Fprintln(c.stdout, text); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func (c *cli) printJSON(value any) error {
	encoder := json.NewEncoder(c.stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
