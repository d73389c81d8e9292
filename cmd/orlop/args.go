package main

import (
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// arrange brings flags before arguments, as urfave/cli wants them: global flags first, then the command, its flags,
// and behind "--" its arguments. Users may write them in any order; "--" ends flags for them too. A flag at the end
// that lacks its value stays at the end, so that nothing else is taken for the value. The word help before or among the
// words of a command is its --help: then help is true, and words are those of the command to explain. --version and -v
// instead of a command are the command version.
func arrange(app *urfave.App, args []string) (words []string, help bool) {
	var global, path, flags, rest []string
	commands, local := app.Commands, []urfave.Flag(nil)
	inPath, helping := true, false
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" && helping {
			break
		}
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if arg == "--help" || arg == "-help" || arg == "-h" || arg == "--h" || arg == "help" && inPath && len(commands) > 0 {
			helping = true
			continue
		}
		if (arg == "--version" || arg == "-v") && len(path) == 0 && inPath {
			arg = "version"
		}
		if len(arg) > 1 && arg[0] == '-' {
			name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			flag := findFlag(local, name)
			into := &flags
			if flag == nil {
				if flag = findFlag(app.Flags, name); flag != nil || inPath && len(path) == 0 {
					into = &global
				}
			}
			*into = append(*into, arg)
			if takesValue(flag) && !hasValue {
				if i++; i == len(args) {
					if into == &global {
						path, flags = nil, nil
					}
					return slices.Concat(args[:1], global, path, flags), false
				}
				*into = append(*into, args[i])
			}
			continue
		}
		if inPath {
			if c := findCommand(commands, arg); c != nil {
				path, commands, local = append(path, arg), c.Subcommands, c.Flags
				continue
			}
			inPath = false
		}
		rest = append(rest, arg)
	}
	if helping && (len(commands) == 0 || len(rest) == 0) { // otherwise the first of the rest is no command
		return path, true
	}
	arranged := slices.Concat(args[:1], global, path, flags)
	if len(rest) > 0 {
		if len(path) > 0 && len(commands) == 0 {
			arranged = append(arranged, "--")
		}
		arranged = append(arranged, rest...)
	}
	return arranged, false
}

func findCommand(commands []*urfave.Command, name string) *urfave.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func findFlag(flags []urfave.Flag, name string) urfave.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f urfave.Flag) bool {
	generating, ok := f.(urfave.DocGenerationFlag)
	return ok && generating.TakesValue()
}
