package main

import (
	"fmt"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/fault"
)

func (c *cli) completionCommand(app *urfave.App) *urfave.Command {
	shells := map[string]func(*urfave.App) (string, error){
		"bash": func(app *urfave.App) (string, error) { return bashCompletion(app), nil },
		"zsh": func(app *urfave.App) (string, error) {
			return "autoload -U +X bashcompinit && bashcompinit\n" + bashCompletion(app), nil
		},
		"fish": fishCompletion,
	}
	return &urfave.Command{
		Name: "completion", Usage: "print a script that completes commands in a shell", ArgsUsage: "bash|zsh|fish",
		Description: `Example: eval "$(orlop completion bash)"`,
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			script, ok := shells[args[0]]
			if !ok {
				return fault.Errorf(fault.ErrInvalid, "shell %q: not supported: use bash, zsh or fish", args[0])
			}
			text, err := script(app)
			if err != nil {
				return fmt.Errorf("completion: %w", err)
			}
			_, err = fmt.Fprint(c.stdout, text)
			return err
		},
	}
}

// fileFlags are the flags whose values are files.
var fileFlags = []string{"key-file", "to-file"}

// takesFiles tells whether arguments of a command are files, or destinations, most of which are directories.
func takesFiles(command *urfave.Command) bool {
	usage := command.ArgsUsage
	return strings.Contains(usage, "DEST") || strings.Contains(usage, "URL") || strings.Contains(usage, "FILE")
}

// fishCompletion completes commands and flags, and files after the flags that take them.
func fishCompletion(app *urfave.App) (string, error) {
	for _, command := range app.Commands {
		for _, c := range append(command.Subcommands, command) {
			for _, name := range fileFlags {
				if flag, ok := findFlag(c.Flags, name).(*urfave.StringFlag); ok {
					flag.TakesFile = true
				}
			}
		}
	}
	return app.ToFishCompletion()
}

// bashCompletion completes commands, flags, and the names of volumes, snapshots and files after what takes them.
func bashCompletion(app *urfave.App) string {
	var b strings.Builder
	names := commandWords(app.Commands)
	b.WriteString("_orlop() {\n  local cur=${COMP_WORDS[COMP_CWORD]} word command= words files= line known=\n")
	b.WriteString("  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n    case $command in\n")
	fmt.Fprintf(&b, "      '') case ' %s ' in *\" $word \"*) command=$word;; esac;;\n", names)
	for _, command := range app.Commands {
		if len(command.Subcommands) > 0 {
			fmt.Fprintf(&b, "      %s) case ' %s ' in *\" $word \"*) command+=\" $word\";; esac;;\n",
				strings.Join(command.Names(), "|"), commandWords(command.Subcommands))
		}
	}
	fmt.Fprintf(&b, "    esac\n  done\n  case $command in\n    '') words='%s %s';;\n", names, flagWords(app.Flags))
	for _, command := range app.Commands {
		bashCase(&b, command, "")
		for _, sub := range command.Subcommands {
			bashCase(&b, sub, command.Name+"' '")
		}
	}
	fmt.Fprintf(&b, "  esac\n  case ${COMP_WORDS[COMP_CWORD-1]} in --%s) words= files=1;; esac\n", strings.Join(fileFlags, "|--"))
	b.WriteString(bashReply + "}\ncomplete -F _orlop orlop\n")
	return b.String()
}

// bashReply completes the word at the cursor. Where bash takes db@s for three words, it wants only what follows the '@'.
const bashReply = `  line=${COMP_LINE:0:COMP_POINT}
  line=${line##*[[:space:]]}
  case "$COMP_WORDBREAKS $line" in *@*' '*@*) cur=$line known=${line%"${line##*@}"};; esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [ -n "$files" ]; then
    compopt -o filenames 2>/dev/null
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$cur")
  fi
  COMPREPLY=("${COMPREPLY[@]#"$known"}")
`

// bashCase writes which words may follow a command, whose names in the shell's pattern begin with prefix.
func bashCase(b *strings.Builder, command *urfave.Command, prefix string) {
	words := []string{commandWords(command.Subcommands), flagWords(command.Flags)}
	if strings.Contains(command.ArgsUsage, "|") && strings.ToLower(command.ArgsUsage) == command.ArgsUsage {
		words = append(words, strings.ReplaceAll(command.ArgsUsage, "|", " "))
	}
	list := ""
	switch usage := command.ArgsUsage; {
	case strings.Contains(usage, "SNAP"):
		list = `" $(orlop snapshot list 2>/dev/null | awk 'NR > 1 { print $1 "@" $2 }')"`
	case strings.Contains(usage, "VOLUME"), strings.Contains(usage, "NAME") && command.Name != "create" && command.Name != "adopt":
		list = `" $(orlop list 2>/dev/null | awk 'NR > 1 { print $1 }')"`
	}
	if takesFiles(command) {
		list += " files=1"
	}
	pattern := prefix + strings.Join(command.Names(), "|"+prefix)
	fmt.Fprintf(b, "    %s) words='%s'%s;;\n", pattern, strings.TrimSpace(strings.Join(words, " ")), list)
}

func commandWords(commands []*urfave.Command) string {
	var words []string
	for _, command := range commands {
		words = append(words, command.Names()...)
	}
	return strings.Join(words, " ")
}

func flagWords(flags []urfave.Flag) string {
	var words []string
	for _, flag := range flags {
		words = append(words, "--"+flag.Names()[0])
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}
