package run

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain are the characters besides letters and digits that mean themselves to a shell.
const plain = "@%+=:,./_-"

// Line returns a command line that a shell splits into argv: what is shown to be pasted. It is a single line that no
// terminal takes for anything but text. Control characters and bytes that are not UTF-8 are written as bash, zsh and ksh
// read them.
func Line(argv ...string) string {
	words := make([]string, len(argv))
	for i, word := range argv {
		words[i] = quote(word)
	}
	return strings.Join(words, " ")
}

func quote(word string) string {
	special := func(r rune) bool {
		return (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)) && !strings.ContainsRune(plain, r)
	}
	switch {
	case word != "" && word[0] != '=' && !strings.ContainsFunc(word, special): // zsh takes =name for a command's path
		return word
	case utf8.ValidString(word) && !strings.ContainsFunc(word, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for i := 0; i < len(word); i++ {
		switch c := word[i]; {
		case c == '\'' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteString("'")
	return b.String()
}
