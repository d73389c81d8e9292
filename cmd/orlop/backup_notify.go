package main

import (
	"context"
	"fmt"
	"os"
	"time"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/fault"
	"orlop/internal/notify"
)

// notifyFlags are the flags that startRun reads.
func notifyFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringFlag{Name: "ping", Usage: "dead-man service to tell of the run: GETs URL/start and URL, or POSTs the report to URL/fail; file:PATH reads the URL from a file, as does ORLOP_PING"},
		&urfave.StringSliceFlag{Name: "notify", Usage: "where to report a failure and the first success after it: a webhook's or a shoutrrr URL; may be repeated; file:PATH reads URLs from a file, as does ORLOP_NOTIFY"},
	}
}

// startRun tells the dead-man service that a run begins. The caller calls finish once with the run's outcome, of which it
// need give only what went wrong: the volumes, and the error of the run as a whole. Neither fails, and both together take
// ten seconds at most; what cannot be delivered is a warning.
//
// startRun fails with fault.ErrInvalid or fault.ErrNotFound if the command was given what is no URL, or a file that is not
// there. Then nothing has begun.
func (c *cli) startRun(ctx *urfave.Context, destination, selection string) (finish func(volumes []notify.Volume, failed error), err error) {
	config := notify.Config{Warn: c.warn}
	if config.Ping, err = pingURL(ctx); err != nil {
		return nil, err
	}
	if config.Notify, err = notifyURLs(ctx); err != nil {
		return nil, err
	}
	if len(config.Notify) > 0 {
		dir, err := cacheDir("notify")
		if err != nil {
			c.warn(fmt.Errorf("cannot remember failed runs: %w; a recovery is not notified", err))
		}
		config.State = notify.NewState(dir)
	}
	notifier, err := notify.New(config)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("find the name of this host: %w", err)
	}
	report := notify.Report{Host: host, Destination: destination, Selection: selection, Started: time.Now()}
	run := notifier.Start(ctx.Context)
	return func(volumes []notify.Volume, failed error) {
		report.Ended, report.Volumes, report.Err = time.Now(), volumes, interrupted(failed)
		run.Finish(context.WithoutCancel(ctx.Context), report)
	}, nil
}

// pingURL is the URL of --ping or ORLOP_PING, empty without either.
func pingURL(ctx *urfave.Context) (string, error) {
	text, from := ctx.String("ping"), "--ping"
	if !ctx.IsSet("ping") {
		text, from = os.Getenv("ORLOP_PING"), "ORLOP_PING"
	}
	urls, err := notify.URLs(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", from, err)
	case len(urls) > 1:
		return "", fault.Errorf(fault.ErrInvalid, "%s: takes one URL", from)
	case len(urls) == 0:
		return "", nil
	}
	return urls[0], nil
}

// notifyURLs are the URLs of --notify or ORLOP_NOTIFY.
func notifyURLs(ctx *urfave.Context) ([]string, error) {
	given, from := ctx.StringSlice("notify"), "--notify"
	if !ctx.IsSet("notify") {
		given, from = []string{os.Getenv("ORLOP_NOTIFY")}, "ORLOP_NOTIFY"
	}
	var all []string
	for _, text := range given {
		urls, err := notify.URLs(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		all = append(all, urls...)
	}
	return all, nil
}
