package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A screen is a terminal's, of which tests read what was written.
type screen struct {
	t        *testing.T
	pty, tty *os.File
	text     []byte
}

func openScreen(t *testing.T, columns uint16) *screen {
	t.Helper()
	s := &screen{t: t}
	s.pty, s.tty = openPty(t)
	t.Cleanup(func() { _ = s.pty.Close() })
	if err := unix.IoctlSetWinsize(int(s.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	return s
}

// read reads what is written until enough is there, or until the terminal is closed.
func (s *screen) read(enough func() bool) {
	s.t.Helper()
	if err := s.pty.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for !enough() {
		n, err := s.pty.Read(buf)
		s.text = append(s.text, buf[:n]...)
		if errors.Is(err, unix.EIO) || errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.t.Fatalf("%v; on the screen: %q", err, s.text)
		}
	}
}

// frame waits until the bar was drawn again.
func (s *screen) frame() {
	s.t.Helper()
	before := bytes.Count(s.text, []byte("\n"))
	s.read(func() bool { return bytes.Count(s.text, []byte("\n")) >= before+2 })
}

// close closes the terminal and returns all that was written to it.
func (s *screen) close() string {
	s.t.Helper()
	if err := s.tty.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.read(func() bool { return false })
	return string(s.text)
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// frames are the lines that were on the screen.
func frames(screen string) (lines []string) {
	for _, line := range strings.Split(escapes.ReplaceAllString(screen, "\n"), "\n") {
		if line = strings.Trim(line, "\r"); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestProgressFitsTheTerminal(t *testing.T) {
	for _, columns := range []uint16{200, 80, 60, 40, 20, 5} {
		terminal := openScreen(t, columns)
		c := &cli{stdout: io.Discard, stderr: terminal.tty}
		p := c.newProgress("syncing")
		for done := range int64(4) {
			p.show(done<<30, 4<<30)
			terminal.frame()
		}
		c.warn(io.ErrUnexpectedEOF)
		p.show(4<<30, 4<<30)
		terminal.frame()
		p.end()
		c.warn(io.ErrClosedPipe)
		screen := terminal.close()
		drawn := frames(screen)
		for _, line := range drawn {
			if n := utf8.RuneCountInString(line); n > int(columns) && !strings.Contains(line, "warning") {
				t.Errorf("%d columns: %d are written: %q", columns, n, line)
			}
		}
		all := strings.Join(drawn, "\n")
		wants := []string{"orlop: warning: unexpected EOF", "orlop: warning: io: read/write on closed pipe"}
		if columns >= 60 {
			wants = append(wants, "[=", "2.0 GiB of 4.0 GiB, ", "/s, ", "s left", "4.0 GiB, syncing…")
		}
		for _, text := range wants {
			if !strings.Contains(all, text) {
				t.Errorf("%d columns: want %q in:\n%s", columns, text, all)
			}
		}
		// Nothing is left of the bar: the cursor is where it was, and what was below is cleared.
		if last := strings.LastIndex(screen, "]"); last >= 0 && !strings.Contains(screen[last:], "\x1b[J") {
			t.Errorf("%d columns: the bar stays: %q", columns, screen[last:])
		}
	}
}

func TestRestoreShowsABarOnATerminalAndOnlyResultsElsewhere(t *testing.T) {
	p := newBackupPlace(t)
	data := bytes.Repeat(contents(1), 8)
	url := p.back("db", "id-1", backupTime, data)
	image := filepath.Join(t.TempDir(), "image")
	restore := func(image string) []string {
		return []string{"orlop", "backup", "restore", url, "--to-file", image, "--key-file", p.key}
	}
	var stdout bytes.Buffer
	terminal := openScreen(t, 80)
	if code := run(context.Background(), restore(image), &stdout, terminal.tty); code != 0 {
		t.Errorf("exit code %d", code)
	}
	screen := terminal.close()
	if stdout.String() != image+"\n" || strings.Contains(screen, image) {
		t.Errorf("stdout %q, terminal %q", stdout.String(), screen)
	}
	if got := p.must(restore(image + "-2")[1:]...); got != image+"-2" {
		t.Errorf("%q", got)
	}
	stdout.Reset()
	terminal = openScreen(t, 80)
	args := append([]string{"orlop", "--json"}, restore(image + "-3")[1:]...)
	if code := run(context.Background(), args, &stdout, terminal.tty); code != 0 {
		t.Errorf("exit code %d", code)
	}
	screen = terminal.close()
	for line := range strings.Lines(stdout.String()) {
		var event progressEvent
		if err := json.Unmarshal([]byte(line), &event); err != nil || event.Event == "" {
			t.Errorf("%q: %v", line, err)
		}
	}
	if screen != "" {
		t.Errorf("terminal with --json: %q", screen)
	}
}

func TestAmountsShowRateAndTimeLeft(t *testing.T) {
	if got := amounts(1<<30, 4<<30, 102<<20); got != "1.0 GiB of 4.0 GiB, 102 MiB/s, 30s left" {
		t.Errorf("%q", got)
	}
	for _, text := range []string{amounts(0, 0, 0), amounts(0, 5, 0), amounts(5, 5, 9), amounts(0, 1<<62, 1.5), amounts(6, 5, 9)} {
		if strings.Contains(text, "NaN") || strings.Contains(text, "-") {
			t.Errorf("%q", text)
		}
	}
}

// A job that began slowly must not look slow for ever, and one that stalls must not look fast.
func TestRateIsThatOfTheLastSeconds(t *testing.T) {
	var r rate
	begun := time.Now()
	if r.add(begun, 0); r.perSecond() != 0 {
		t.Errorf("%f from one point", r.perSecond())
	}
	done := int64(0)
	for tick := range 400 { // 100 ms each
		if tick >= 100 {
			done += 10 << 20
		}
		r.add(begun.Add(time.Duration(tick)*100*time.Millisecond), done)
	}
	if got := r.perSecond(); got < 99<<20 || got > 101<<20 {
		t.Errorf("%.0f bytes per second, want 100 MiB", got)
	}
	for tick := 400; tick < 500; tick++ {
		r.add(begun.Add(time.Duration(tick)*100*time.Millisecond), done)
	}
	if got := r.perSecond(); got != 0 || len(r.points) > 20 {
		t.Errorf("%.0f bytes per second after a stall, %d points", got, len(r.points))
	}
}
