package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	urfave "github.com/urfave/cli/v2"
)

var (
	// ourCommand matches a command of ours in a line of code: alone, in a crontab, behind a pipe or xargs.
	ourCommand = regexp.MustCompile(`(?:^|[ |(])(?:/usr/local/bin/)?orlop ([^|#;)]*)`)
	// quotedWord matches what is between quotes in it.
	quotedWord = regexp.MustCompile(`"[^"]*"|'[^']*'`)
)

// TestDocumentedCommandsExist looks up each command and flag that the code blocks of the documents show.
func TestDocumentedCommandsExist(t *testing.T) {
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(docs) == 0 {
		t.Fatalf("%q, %v", docs, err)
	}
	app := (&cli{stdout: io.Discard, stderr: io.Discard}).app()
	found, ok := 0, false
	for _, doc := range append(docs, "../../README.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line, ok = strings.CutPrefix(line, "    "); !ok || strings.HasPrefix(line, " ") {
				continue // text, or YAML
			}
			line = strings.ReplaceAll(quotedWord.ReplaceAllString(line, "quoted"), " -d orlop", "") // Docker's
			for _, m := range ourCommand.FindAllStringSubmatch(strings.TrimSpace(line), -1) {
				found++
				if problem := unknownWord(app, strings.Fields(m[1])); problem != "" {
					t.Errorf("%s: %s: %s", filepath.Base(doc), strings.TrimSpace(line), problem)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("found %d commands only", found)
	}
}

// unknownWord returns what is wrong with the words of a command line, or nothing.
func unknownWord(app *urfave.App, words []string) string {
	var command *urfave.Command
	commands, flags := app.Commands, app.Flags
	for _, word := range words {
		if strings.HasPrefix(word, "--") {
			name, _, _ := strings.Cut(word[2:], "=")
			if findFlag(flags, name) == nil && findFlag(app.Flags, name) == nil {
				return "flag --" + name + " does not exist"
			}
			continue
		}
		if len(commands) == 0 || command != nil && len(command.Subcommands) == 0 {
			continue
		}
		found := findCommand(commands, word)
		if found == nil {
			if slices.ContainsFunc(flags, takesValue) {
				continue // the value of a global flag
			}
			return "command " + word + " does not exist"
		}
		command, commands, flags = found, found.Subcommands, found.Flags
	}
	if command == nil || len(command.Subcommands) > 0 {
		return "is no command"
	}
	return ""
}

// TestSettingsShowEveryFlagOfTheDaemon: the file is where its users look for what can be set.
func TestSettingsShowEveryFlagOfTheDaemon(t *testing.T) {
	text, err := os.ReadFile("../../packaging/orlop.default")
	if err != nil {
		t.Fatal(err)
	}
	flags := findCommand((&cli{stdout: io.Discard, stderr: io.Discard}).app().Commands, "daemon").Flags
	if len(flags) == 0 {
		t.Fatal("the daemon has no flags")
	}
	for _, flag := range flags {
		name := "ORLOP_" + strings.ToUpper(strings.ReplaceAll(flag.Names()[0], "-", "_"))
		if !strings.Contains(string(text), "\n#"+name+"=") {
			t.Errorf("no line for --%s, #%s=", flag.Names()[0], name)
		}
	}
}
