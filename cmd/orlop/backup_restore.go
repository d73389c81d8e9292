package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func (c *cli) backupRestoreCommand() *urfave.Command {
	return &urfave.Command{
		Name: "restore", Usage: "restore a backup to an image file and print its path", ArgsUsage: "URL --to-file IMAGE",
		Description: "Needs no daemon. The file must not be there; it appears when it is whole. Until then it is IMAGE.orlop-part,\n" +
			"and the same command goes on where it was cut short.\n" +
			"Example: orlop backup restore 'file:///mnt/nas/orlop?volume=db' --to-file /tmp/db.img --key-file /root/orlop.key",
		Flags: []urfave.Flag{keyFileFlag(), &urfave.StringFlag{Name: "to-file", Usage: "the image to make, sparse, of the volume's size"}},
		Action: func(ctx *urfave.Context) error {
			args, err := arguments(ctx, 1, 1)
			if err != nil {
				return err
			}
			if ctx.String("to-file") == "" {
				return fault.Errorf(fault.ErrInvalid, "backup restore: --to-file IMAGE is missing")
			}
			u, err := destination.ParseURL(args[0])
			if err != nil {
				return err
			}
			image, err := newFile(ctx, ctx.String("to-file"))
			if err != nil {
				return err
			}
			return c.openRepository(ctx, u.Destination, func(r *destination.Repository) error {
				b, err := r.Find(ctx.Context, u, r.RememberedDamage().Hurts)
				if err != nil {
					return err
				}
				shown := c.newProgress()
				done, err := r.RestoreFile(ctx.Context, b, image, shown.show)
				shown.end()
				if err != nil {
					return err
				}
				if c.json {
					return c.printEvent(restoredView{Event: "done", File: image, Backup: viewOf(r, b), Restored: done, Warnings: c.warned.all()})
				}
				return c.print(image, nil)
			})
		},
	}
}

// restoredView is what --json tells of a finished restore, after a progressEvent a second.
type restoredView struct {
	Event  string     `json:"event"` // "done"
	File   string     `json:"file"`
	Backup backupView `json:"backup"`
	repo.Restored

	Warnings []string `json:"warnings"`
}

type progressEvent struct {
	Event string `json:"event"` // "progress"
	Done  int64  `json:"done"`  // bytes
	Total int64  `json:"total"`
}

// printEvent prints JSON on a line.
func (c *cli) printEvent(event any) error {
	text, err := marshal(event)
	if err != nil {
		return err
	}
	if _, err := c.stdout.Write(text); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// marshal returns JSON on a line, in which the & of a URL is one.
func marshal(value any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, fmt.Errorf("write output: %w", err)
	}
	return text.Bytes(), nil
}

// progress shows how far long work is: a line on a terminal, events with --json, and nothing otherwise.
type progress struct {
	c        *cli
	terminal bool
	began    time.Time
	last     time.Time
}

// progressEvery is the least time between two lines.
const progressEvery = time.Second

func (c *cli) newProgress() *progress {
	now := time.Now()
	p := &progress{c: c, began: now, last: now}
	if file, ok := c.stderr.(*os.File); ok && !c.json {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) show(done, total int64) {
	now := time.Now()
	if now.Sub(p.last) < progressEvery || !p.terminal && !p.c.json {
		return
	}
	p.last = now
	if p.c.json {
		_ = p.c.printEvent(progressEvent{"progress", done, total}) // the end of the work says it too
		return
	}
	c := p.c
	fmt.Fprintf(c.stderr, "\r%s\x1b[K", bar(done, total, now.Sub(p.began)))
}

// end clears the line.
func (p *progress) end() {
	if c := p.c; p.terminal {
		fmt.Fprint(c.stderr, "\r\x1b[K")
	}
}

// bar is a line of bytes, rate and time left.
func bar(done, total int64, since time.Duration) string {
	const width = 30
	filled := 0
	if total > 0 {
		filled = int(float64(done) / float64(total) * width)
	}
	line := fmt.Sprintf("[%s%s] %s of %s", strings.Repeat("=", filled), strings.Repeat(" ", width-filled), daemon.Bytes(done), daemon.Bytes(total))
	if rate := float64(done) / since.Seconds(); rate > 0 && since > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second)).Round(time.Second)
		line += fmt.Sprintf(", %s/s, %s left", daemon.Bytes(int64(rate)), left)
	}
	return line
}
