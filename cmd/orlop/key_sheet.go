package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"rsc.io/qr"

	"orlop/internal/backup/repo"
)

// sheetView is what --json tells of a recovery sheet.
type sheetView struct {
	ID   string `json:"id"`
	File string `json:"file"`
	Key  string `json:"key"` // the line of the key file: the secret
}

func (c *cli) keyPrintCommand() *urfave.Command {
	return &urfave.Command{
		Name: "print", Usage: "print a recovery sheet: the key in groups and as a QR code", ArgsUsage: "FILE",
		Description: "Print it on paper and keep it where the host is not: it is the key itself. A file into which its lines were typed, in\n" +
			"letters of either case and with or without spaces, is a key file; so is what a scanner reads from the code.\n" +
			"Example: orlop key print /root/orlop.key | lpr",
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			key, err := repo.ReadKeyFile(args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(sheetView{key.ID(), args[0], key.Line()})
			}
			sheet, err := recoverySheet(key, isTerminal(c.stdout))
			if err != nil {
				return err
			}
			if _, err := io.WriteString(c.stdout, sheet); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			return nil
		},
	}
}

// recoverySheet is a page of text of less than 80 columns. A coloured one has its code in black on white whatever the colours of
// the terminal.
func recoverySheet(key *repo.Key, coloured bool) (string, error) {
	code, err := qr.Encode(key.Line(), qr.M) // which has only characters of the alphanumeric mode
	if err != nil {
		return "", fmt.Errorf("draw the QR code of a key: %w", err)
	}
	groups := key.Groups()
	var text strings.Builder
	fmt.Fprintf(&text, `ORLOP RECOVERY SHEET                                  key ID %s

Without this key the backups cannot be read. Whoever has it can read them all.

    %s
    %s
    %s

To use it, type these three lines into a file, in letters of either case, or
scan the code into it. There is no 0, 1, 8 or 9 in the groups; the last of them
hold a checksum that shows typing errors. Then:

    chmod 600 FILE
    orlop backup list DEST --key-file FILE

`, key.ID(), repo.KeyMagic, strings.Join(groups[:7], " "), strings.Join(groups[7:], " "))
	for _, line := range drawn(code) {
		if coloured {
			line = "\x1b[30;107m" + line + "\x1b[0m"
		}
		text.WriteString("    " + line + "\n")
	}
	return text.String(), nil
}

// quiet is how many light modules must be around a QR code.
const quiet = 4

// drawn are the lines of a QR code, of which each shows two rows of modules.
func drawn(code *qr.Code) (lines []string) {
	halves := map[[2]bool]string{{false, false}: " ", {true, false}: "▀", {false, true}: "▄", {true, true}: "█"}
	for y := -quiet; y < code.Size+quiet; y += 2 {
		var line strings.Builder
		for x := -quiet; x < code.Size+quiet; x++ {
			line.WriteString(halves[[2]bool{code.Black(x, y), code.Black(x, y+1)}])
		}
		lines = append(lines, line.String())
	}
	return lines
}

// isTerminal reports whether what is written goes to a terminal.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
