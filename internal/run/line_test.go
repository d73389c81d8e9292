package run_test

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"orlop/internal/run"
)

func TestLineShowsPlainWordsAsTheyAre(t *testing.T) {
	for want, argv := range map[string][]string{
		"umount /var/lib/orlop/mounts/a_b-1.2": {"umount", "/var/lib/orlop/mounts/a_b-1.2"},
		"mv '/a b/it'\\''s' ''":                {"mv", "/a b/it's", ""},
		"rm 'größe'":                           {"rm", "größe"},
	} {
		if got := run.Line(argv...); got != want {
			t.Errorf("%q: %s, want %s", argv, got, want)
		}
	}
}

// FuzzLineIsReadByAShellAsItWasMeant has bash itself split the line.
func FuzzLineIsReadByAShellAsItWasMeant(f *testing.F) {
	for _, word := range []string{"", "~", "a b", "$(reboot)", "`reboot`", "it's", `"`, `\`, "a\nb", "\x1b[31m", "!!", "*", "-n", "{a,b}", "#", "\xff", "\u200e", "größe", "a;b", "x=1", "\\'", "=ls"} {
		f.Add(word)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if strings.ContainsRune(word, 0) {
			return // no argument of a command has a NUL
		}
		line := run.Line("printf", "%s.", word)
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: a terminal would take a part of %q for something else", word, line)
		}
		cmd := exec.Command("bash", "-c", line)
		out, err := cmd.Output()
		if err != nil || string(out) != word+"." {
			t.Errorf("%q: bash reads %s as %q: %v", word, line, out, err)
		}
	})
}
