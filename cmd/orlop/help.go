package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/fault"
)

// helpIndent is how far below its title a section of a help text is indented.
const helpIndent = "   "

// printHelp prints the help of the command that words name, or of the program for none.
func (c *cli) printHelp(app *urfave.App, words []string) error {
	name, usage, about, flags := "orlop", app.UsageText, app.Usage, []urfave.Flag(nil)
	commands, description := app.Commands, ""
	for _, word := range words {
		command := findCommand(commands, word)
		name += " " + command.Name
		usage, about, flags = strings.TrimRight(name+" "+command.ArgsUsage, " "), command.Usage, command.Flags
		commands, description = command.Subcommands, command.Description
	}
	switch {
	case len(words) == 0:
	case len(commands) > 0:
		usage = name + " COMMAND"
	case slices.ContainsFunc(flags, func(f urfave.Flag) bool { return !strings.Contains(usage, dashed(f.Names()[0])) }):
		usage += " [OPTIONS]"
	}
	var b strings.Builder
	b.WriteString("NAME:\n" + hanging(helpIndent, name+" - "+about))
	b.WriteString("\nUSAGE:\n" + helpIndent + usage + "\n")
	if description != "" {
		b.WriteString("\nDESCRIPTION:\n")
		for _, line := range strings.Split(description, "\n") {
			text, example, found := strings.Cut(line, "Example: ")
			if text != "" {
				b.WriteString(hanging(helpIndent, text))
			}
			if found {
				b.WriteString(helpIndent + "Example: " + example + "\n") // in one line, to be copied
			}
		}
	}
	writeCommands(&b, commands)
	writeFlags(&b, "OPTIONS", flags)
	writeFlags(&b, "GLOBAL OPTIONS", append(slices.Clone(app.Flags),
		&urfave.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show help"},
		&urfave.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "show the version"}))
	if _, err := fmt.Fprint(c.stdout, b.String()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// writeCommands lists commands by their categories, in the order of their first appearance.
func writeCommands(b *strings.Builder, commands []*urfave.Command) {
	if len(commands) == 0 {
		return
	}
	var categories []string
	width := 0
	for _, command := range commands {
		width = max(width, len(strings.Join(command.Names(), ", ")))
		if !slices.Contains(categories, command.Category) {
			categories = append(categories, command.Category)
		}
	}
	for _, category := range categories {
		b.WriteString("\n" + strings.TrimSpace(category+" COMMANDS") + ":\n")
		for _, command := range commands {
			if command.Category == category {
				b.WriteString(hanging(helpIndent+pad(strings.Join(command.Names(), ", "), width)+"  ", command.Usage))
			}
		}
	}
}

func writeFlags(b *strings.Builder, title string, flags []urfave.Flag) {
	if len(flags) == 0 {
		return
	}
	b.WriteString("\n" + title + ":\n")
	width := 0
	for _, flag := range flags {
		width = max(width, len(flagForm(flag)))
	}
	for _, flag := range flags {
		documented := flag.(urfave.DocGenerationFlag)
		text := documented.GetUsage()
		if value := documented.GetValue(); takesValue(flag) && value != "" && value != "0" && value != "[]" {
			text += " (default: " + strings.Trim(value, `"`) + ")"
		}
		for _, variable := range documented.GetEnvVars() {
			text += " [$" + variable + "]"
		}
		b.WriteString(hanging(helpIndent+pad(flagForm(flag), width)+"  ", text))
	}
}

// flagForm is how a flag is typed, as in "--size SIZE" or "--quiet, -q".
func flagForm(flag urfave.Flag) string {
	var names []string
	for _, name := range flag.Names() {
		names = append(names, dashed(name))
	}
	form := strings.Join(names, ", ")
	if !takesValue(flag) {
		return form
	}
	name := flag.Names()[0]
	if word, ok := valueWords[name]; ok {
		return form + " " + word
	}
	if _, number := flag.(*urfave.IntFlag); number {
		return form + " N"
	}
	return form + " " + strings.ToUpper(name[strings.LastIndex(name, "-")+1:])
}

func dashed(flag string) string {
	if len(flag) == 1 {
		return "-" + flag
	}
	return "--" + flag
}

// valueWords stand for the values of flags in help. Without an entry it is the last word of the flag.
var valueWords = map[string]string{
	"from": "VOLUME[@SNAPSHOT]", "label": "KEY=VALUE", "socket": "PATH", "control-socket": "PATH", "plugin-socket": "PATH", "root": "DIR",
	"mountpoint": "DIR", "metrics": "ADDRESS", "pre-snapshot": "COMMAND", "post-snapshot": "COMMAND", "keep-within": "AGE", "sample": "PART",
	"volume-name": "VOLUME", "dest": "URL", "ping": "URL", "notify": "URL", "to-file": "IMAGE", "keep": "POLICY", "backup": "URL",
}

// hanging wraps text behind head, and indents all further lines by its width.
func hanging(head, text string) string {
	indent := pad("", len(head))
	wrapped := wrap(indent+text, indent)
	return head + wrapped[len(indent):]
}

// refusals are the messages of the flag package, and what users read instead. The first group is replaced by the flag.
var refusals = []struct {
	from *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`^flag needs an argument: -+(.+)$`), "flag %[1]s: needs a value"},
	{regexp.MustCompile(`^invalid boolean value ("(?:.*)") for -+(.+): `), "flag %[2]s: %[1]s: must be true or false"},
	{regexp.MustCompile(`^invalid value ("(?:.*)") for flag -+(.+): (?:parse error|strconv)`), "flag %[2]s: %[1]s: must be a number"},
	{regexp.MustCompile(`^invalid value ("(?:.*)") for flag -+(.+): `), "flag %[2]s: %[1]s: not valid"},
}

var unknownFlag = regexp.MustCompile(`^flag provided but not defined: -+(.+)$`)

// usageError words an error in reading flags.
func usageError(ctx *urfave.Context, err error, _ bool) error {
	command, flags := commandPath(ctx), ctx.App.Flags
	see := "see 'orlop help'"
	if command != "" {
		see, flags = fmt.Sprintf("see 'orlop %s --help'", command), append(slices.Clone(ctx.Command.Flags), flags...)
	}
	if found := unknownFlag.FindStringSubmatch(err.Error()); found != nil {
		var names []string
		for _, flag := range flags {
			names = append(names, flag.Names()...)
		}
		return fault.Errorf(fault.ErrInvalid, "unknown flag %s: %s%s", dashed(found[1]), didYouMean(found[1], names, dashed), see)
	}
	for _, r := range refusals {
		found := r.from.FindStringSubmatch(err.Error())
		switch len(found) {
		case 0:
			continue
		case 2:
			return fault.Errorf(fault.ErrInvalid, r.to+": %[2]s", dashed(found[1]), see)
		default:
			return fault.Errorf(fault.ErrInvalid, r.to+": %[3]s", found[1], dashed(found[2]), see)
		}
	}
	return fault.Errorf(fault.ErrInvalid, "%w: %s", err, see)
}

// unknownCommand answers a word that is no command, of the program or of a group; without any argument it shows the help.
func (c *cli) unknownCommand(ctx *urfave.Context) error {
	group := commandPath(ctx)
	words := strings.Fields(group)
	if ctx.NArg() == 0 {
		return c.printHelp(ctx.App, words)
	}
	commands, see := ctx.App.Commands, "see 'orlop help'"
	if group != "" {
		commands, see = ctx.Command.Subcommands, fmt.Sprintf("see 'orlop %s --help'", group)
	}
	var names []string
	for _, command := range commands {
		names = append(names, command.Names()...)
	}
	given := ctx.Args().First()
	full := func(name string) string { return "'orlop " + strings.TrimSpace(group+" "+name) + "'" }
	return fault.Errorf(fault.ErrInvalid, "unknown command %q: %s%s", given, didYouMean(given, names, full), see)
}

// didYouMean offers the name that is most like what was typed, in the form that show gives it, or nothing.
func didYouMean(typed string, names []string, show func(string) string) string {
	best, least := "", 3
	for _, name := range names {
		if d := distance(strings.ToLower(typed), name); d < least && d < len(name) {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return "did you mean " + show(best) + "? "
}

// distance is the number of characters to insert, delete or replace that makes b of a.
func distance(a, b string) int {
	costs := make([]int, len(b)+1)
	for j := range costs {
		costs[j] = j
	}
	for i := range len(a) {
		diagonal := costs[0]
		costs[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = costs[j+1]
			costs[j+1] = min(replace, costs[j]+1, costs[j+1]+1)
		}
	}
	return costs[len(b)]
}
