package main

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/fault"
)

// completeVerb is the hidden command that the shells' scripts call, with the words up to the cursor.
const completeVerb = "__complete"

// completionLimit bounds how long Tab waits for the daemon.
const completionLimit = 3 * time.Second

var (
	//go:embed completion.bash
	bashCompletion string
	//go:embed completion.zsh
	zshCompletion string
	//go:embed completion.fish
	fishCompletion string

	completionScripts = map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
)

func (c *cli) completionCommand() *urfave.Command {
	return &urfave.Command{
		Name: "completion", Usage: "print a script that completes commands in a shell", ArgsUsage: "bash|zsh|fish",
		Description: "Example: source <(orlop completion bash), or in fish: orlop completion fish | source",
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			script, ok := completionScripts[args[0]]
			if !ok {
				return fault.Errorf(fault.ErrInvalid, "shell %q: not supported: use bash, zsh or fish", args[0])
			}
			if _, err := fmt.Fprint(c.stdout, script); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			return nil
		},
	}
}

// A candidate is a word that can complete the one at the cursor. One that ends in '=' or '@' is only the beginning of a
// word. One that begins with ':' asks the shell for a completion of its own.
type candidate struct{ word, about string }

// Candidates that the shell completes by itself.
const (
	shellFiles       = ":files"
	shellDirectories = ":directories"
)

// complete prints the candidates for the last of words, one a line, with a tab and a description if it has one. The other
// words precede it on the command line. It never fails: without a daemon it offers no names.
func (c *cli) complete(ctx context.Context, app *urfave.App, words []string, w io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, completionLimit)
	defer cancel()
	if len(words) == 0 {
		return
	}
	before, current := words[:len(words)-1], words[len(words)-1]
	at := locate(app, before)
	client := control.NewClient(at.socket)
	defer client.Close()
	printed := map[string]bool{}
	for _, found := range at.candidates(ctx, app, client, current) {
		if (strings.HasPrefix(found.word, current) || strings.HasPrefix(found.word, ":")) && !printed[found.word] {
			printed[found.word] = true
			fmt.Fprintln(w, strings.TrimSuffix(found.word+"\t"+found.about, "\t"))
		}
	}
}

// A cursor is the place on the command line where a word is to be completed.
type cursor struct {
	commands  []*urfave.Command // that may follow
	command   *urfave.Command   // the innermost one given, or nil
	path      string            // its whole name
	arguments []string          // given to it
	flags     []string          // given
	value     string            // the flag whose value comes next
	flagsOver bool              // by "--"
	socket    string
}

// locate reads the words before the cursor as arrange does.
func locate(app *urfave.App, words []string) cursor {
	at := cursor{commands: app.Commands, socket: cmp.Or(os.Getenv("ORLOP_SOCKET"), defaultSocket)}
	for _, word := range words {
		switch {
		case at.value != "":
			if at.value == "socket" {
				at.socket = word
			}
			at.value = ""
		case at.flagsOver:
			at.arguments = append(at.arguments, word)
		case word == "--":
			at.flagsOver, at.commands = true, nil
		case strings.HasPrefix(word, "-") && word != "-":
			name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
			flag := at.flag(app, name)
			if flag == nil {
				continue
			}
			name = flag.Names()[0]
			at.flags = append(at.flags, name)
			if hasValue && name == "socket" {
				at.socket = value
			}
			if takesValue(flag) && !hasValue {
				at.value = name
			}
		default:
			if command := findCommand(at.commands, word); command != nil {
				at.path = strings.TrimSpace(at.path + " " + command.Name)
				at.command, at.commands = command, command.Subcommands
				continue
			}
			at.commands = nil
			at.arguments = append(at.arguments, word)
		}
	}
	return at
}

// flag returns the command's flag of a name, or the program's, or nil.
func (at cursor) flag(app *urfave.App, name string) urfave.Flag {
	if at.command != nil {
		if flag := findFlag(at.command.Flags, name); flag != nil {
			return flag
		}
	}
	return findFlag(app.Flags, name)
}

// candidates lists the candidates for the word current, and perhaps others.
func (at cursor) candidates(ctx context.Context, app *urfave.App, client *control.Client, current string) []candidate {
	q := question{ctx: ctx, client: client, current: current}
	name, value, isValue := strings.Cut(current, "=")
	switch {
	case at.value != "":
		return at.source("--" + at.value)(q)
	case at.flagsOver:
	case strings.HasPrefix(current, "--") && isValue:
		q.current = value
		found := at.source(name)(q)
		for i, f := range found {
			if !strings.HasPrefix(f.word, ":") {
				found[i].word = name + "=" + f.word
			}
		}
		return found
	case strings.HasPrefix(current, "-"):
		return at.listFlags(app)
	}
	if len(at.commands) > 0 {
		return listCommands(at.commands, current)
	}
	if at.command == nil {
		return nil
	}
	parameter := at.parameter()
	if parameter == "" && len(at.arguments) == 0 && !at.flagsOver {
		return at.listFlags(app)
	}
	var found []candidate
	for _, word := range strings.Split(parameter, "|") {
		found = append(found, at.source(word)(q)...)
	}
	return slices.DeleteFunc(found, func(f candidate) bool { return slices.Contains(at.arguments, f.word) })
}

// listFlags lists the flags of the command and of the program that can still be given.
func (at cursor) listFlags(app *urfave.App) (found []candidate) {
	var flags []urfave.Flag
	if at.command != nil {
		flags = at.command.Flags
	}
	for _, flag := range append(slices.Clone(flags), app.Flags...) {
		name := flag.Names()[0]
		_, repeats := flag.(*urfave.StringSliceFlag)
		if !slices.Contains(at.flags, name) || repeats {
			found = append(found, candidate{"--" + name, flag.(urfave.DocGenerationFlag).GetUsage()})
		}
	}
	return append(found, candidate{"--help", "show help"})
}

// listCommands lists the commands that have a name beginning with current, each once.
func listCommands(commands []*urfave.Command, current string) (found []candidate) {
	for _, command := range commands {
		names := slices.DeleteFunc(command.Names(), func(name string) bool { return !strings.HasPrefix(name, current) })
		if len(names) > 0 && !command.Hidden {
			found = append(found, candidate{names[0], command.Usage})
		}
	}
	return found
}

// parameter returns the name that the command's usage has for the argument at the cursor, or "" if it takes no more.
func (at cursor) parameter() string {
	parameters, repeats := parametersOf(at.command)
	n := len(at.arguments)
	if repeats {
		n = min(n, len(parameters)-1)
	}
	if n >= len(parameters) {
		return ""
	}
	return parameters[n]
}

// parametersOf lists the arguments of a command as its usage names them, without brackets and dots, and reports whether
// the last may be repeated. Flags that stand there because they are required are left out.
func parametersOf(command *urfave.Command) (parameters []string, repeats bool) {
	words := strings.Fields(command.ArgsUsage)
	for i := 0; i < len(words); i++ {
		word := strings.Trim(words[i], "[]")
		if strings.HasPrefix(word, "-") {
			i++
			continue
		}
		name, dots := strings.CutSuffix(word, "...")
		parameters, repeats = append(parameters, strings.Trim(name, "[]")), dots
	}
	return parameters, repeats
}

// source returns the source for a parameter, or a flag with dashes, of the command.
func (at cursor) source(name string) source {
	for _, key := range []string{at.path + " " + name, name} {
		if complete, ok := sources[key]; ok {
			return complete
		}
	}
	if name != "" && name == strings.ToLower(name) && !strings.HasPrefix(name, "-") { // a word to be typed as it is
		return oneOf(name)
	}
	return question.nothing
}
