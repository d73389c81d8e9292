package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/metadata"
)

func (c *cli) jobCommand() *urfave.Command {
	one := func(name, usage, example string, do func(ctx *urfave.Context, id string) error) *urfave.Command {
		return &urfave.Command{
			Name: name, Usage: usage, ArgsUsage: "ID", Description: "The beginning of an ID is enough. Example: orlop job " + example,
			Action: func(ctx *urfave.Context) error {
				args, err := arguments(ctx, 1, 1)
				if err != nil {
					return err
				}
				return do(ctx, args[0])
			},
		}
	}
	return &urfave.Command{
		Name: "job", Usage: "show, await and cancel backups and restores that run in the daemon",
		Description: "Example: orlop job list",
		Action:      c.unknownCommand,
		Subcommands: []*urfave.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list jobs, the oldest first", Description: "Example: orlop job list",
				Action: func(ctx *urfave.Context) error {
					if _, err := arguments(ctx, 0, 0); err != nil {
						return err
					}
					var jobs []daemon.JobView
					if err := c.client.Get(ctx.Context, "/jobs", url.Values{}, &jobs); err != nil {
						return err
					}
					return c.printJobs(jobs)
				},
			},
			one("inspect", "show details of a job as JSON", "inspect 0190a1b2", func(ctx *urfave.Context, id string) error {
				var j json.RawMessage
				if err := c.client.Get(ctx.Context, "/jobs/inspect", url.Values{"id": {id}}, &j); err != nil {
					return err
				}
				return c.printJSON(j)
			}),
			one("wait", "wait until a job has ended", "wait 0190a1b2", func(ctx *urfave.Context, id string) error {
				var j daemon.JobView
				if err := c.client.Get(ctx.Context, "/jobs/inspect", url.Values{"id": {id}}, &j); err != nil {
					return err
				}
				j, err := c.follow(ctx.Context, j)
				if err != nil {
					return err
				}
				return errors.Join(c.printIfJSON(j), jobError(j))
			}),
			one("cancel", "end a job; what a backup has uploaded serves the next one", "cancel 0190a1b2", func(ctx *urfave.Context, id string) error {
				var j daemon.JobView
				if err := c.client.Post(ctx.Context, "/jobs/cancel", control.Request{Job: id}, &j); err != nil {
					return err
				}
				return c.printIfJSON(j)
			}),
		},
	}
}

func (c *cli) printIfJSON(value any) error {
	if !c.json {
		return nil
	}
	return c.printJSON(value)
}

func (c *cli) printJobs(jobs []daemon.JobView) error {
	if c.json {
		return c.printJSON(jobs)
	}
	short := shortIDs(jobs)
	var rows []row
	for _, j := range jobs {
		done := "-"
		if j.Total > 0 {
			done = fmt.Sprintf("%d%%", 100*j.Done/j.Total)
		}
		rows = append(rows, row{cells: []string{orDash(j.Volume), j.Kind, j.State, done, shownTime(j.Started, time.DateTime), j.ID[:min(short, len(j.ID))]}})
	}
	return c.printTable(lineWidth, []string{"VOLUME", "KIND", "STATE", "DONE", "STARTED (UTC)", "ID"}, rows)
}

// shortIDs returns how many characters of their IDs tell jobs apart, 8 at least: IDs of one minute begin alike.
func shortIDs(jobs []daemon.JobView) int {
	ids := make([]string, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID
	}
	slices.Sort(ids)
	short := 8
	for i := range len(ids) - 1 {
		for short < len(ids[i]) && strings.HasPrefix(ids[i+1], ids[i][:short]) {
			short++
		}
	}
	return short
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

const (
	reconnectLimit = 60 * time.Second // for a daemon that restarts
	reconnectPause = 250 * time.Millisecond
	resubmitLimit  = 3 // how often work that a stop of the daemon interrupted is asked for again
)

// do asks the daemon for long work and waits until it has ended. A daemon that restarts meanwhile is waited for, and the work
// asked for again, which resumes it. When ctx ends, by ^C say, the job is canceled, unless it is another request's too.
func (c *cli) do(ctx context.Context, path string, request control.Request) (j daemon.JobView, err error) {
	joined := false
	for try := range resubmitLimit + 1 {
		if j, err = c.submit(ctx, path, request, try > 0); err != nil {
			return j, err
		}
		if try == 0 {
			joined = j.Joined // later it is the restore that the daemon resumes itself
		}
		if j, err = c.follow(ctx, j); ctx.Err() != nil {
			return j, c.abandon(j, joined)
		}
		if err != nil {
			return j, err
		}
		if j.State != string(metadata.JobInterrupted) {
			return j, jobError(j)
		}
		if err := c.reconnect(ctx); err != nil { // the daemon is stopping
			return j, err
		}
	}
	return j, jobError(j)
}

// submit asks for long work, which was asked for before if again is set. A daemon that stops before it has answered is waited
// for; one that does not run when the command begins is not.
func (c *cli) submit(ctx context.Context, path string, request control.Request, again bool) (daemon.JobView, error) {
	for deadline := time.Now().Add(reconnectLimit); ; again = true {
		var j daemon.JobView // another one each time: what an answer leaves out is empty
		err := c.client.Post(ctx, path, request, &j)
		if again && path == restorePath && fault.Is(err, fault.ErrExists) {
			if done, ok := c.restoredBefore(ctx, request); ok {
				return done, nil
			}
		}
		if err == nil {
			c.answered = true
			return j, nil
		}
		if !fault.Is(err, fault.ErrUnreachable) || !again && !c.answered && isDial(err) || time.Now().After(deadline) {
			return j, err
		}
		if err := c.reconnect(ctx); err != nil {
			return j, err
		}
	}
}

// isDial reports whether a request failed before it was sent.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// abandon cancels a job that this command has asked for, and says what becomes of it.
func (c *cli) abandon(j daemon.JobView, joined bool) error {
	what := fmt.Sprintf("%s of volume %q", j.Kind, j.Volume)
	if joined {
		return fmt.Errorf("interrupted; the %s continues, as another command asked for it too: orlop job cancel %s", what, j.ID)
	}
	ctx, cancel := context.WithTimeout(context.Background(), reconnectLimit)
	defer cancel()
	if err := c.client.Post(ctx, "/jobs/cancel", control.Request{Job: j.ID}, &j); err != nil {
		return fmt.Errorf("interrupted; cannot cancel the %s: %w", what, err)
	}
	if j.State == string(metadata.JobDone) {
		return fmt.Errorf("interrupted, but the %s was done already", what)
	}
	return fmt.Errorf("interrupted: the %s is canceled", what)
}

// follow shows the progress of a job until it has ended. It waits for a daemon that is away.
func (c *cli) follow(ctx context.Context, j daemon.JobView) (daemon.JobView, error) {
	shown := c.newProgress("")
	defer shown.end()
	for j.State == string(metadata.JobRunning) {
		err := c.client.Stream(ctx, "/jobs/follow", url.Values{"id": {j.ID}}, func(line []byte) error {
			if err := json.Unmarshal(line, &j); err != nil {
				return fmt.Errorf("read answer: %w", err)
			}
			if j.Total > 0 && j.State == string(metadata.JobRunning) && !c.reportOnly {
				shown.show(j.Done, j.Total)
			}
			return nil
		})
		switch {
		case ctx.Err() != nil:
			return j, ctx.Err()
		case j.State != string(metadata.JobRunning):
			return j, nil
		case err != nil && !fault.Is(err, fault.ErrUnreachable):
			return j, err
		}
		if err := c.reconnect(ctx); err != nil {
			return j, err
		}
	}
	return j, nil
}

// reconnect waits until the daemon answers.
func (c *cli) reconnect(ctx context.Context) error {
	deadline := time.Now().Add(reconnectLimit)
	for {
		select {
		case <-time.After(reconnectPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		var v control.Version
		err := c.client.Get(ctx, "/version", url.Values{}, &v)
		if err == nil || !fault.Is(err, fault.ErrUnreachable) || time.Now().After(deadline) {
			return err
		}
	}
}

// jobError is the failure of a job that has ended, or nil.
func jobError(j daemon.JobView) error {
	if j.Error == nil {
		return nil
	}
	return j.Error.Err()
}
