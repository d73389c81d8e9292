package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// notifyContext returns a copy of ctx that is cancelled once one of signals arrives, with no cause but context.Canceled,
// for which callers look; that of signal.NotifyContext is another. Signals that were ignored when the process started stay
// ignored, as nohup and a shell's background want it.
func notifyContext(ctx context.Context, signals ...os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	arrived := make(chan os.Signal, 1)
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(arrived, s)
		}
	}
	go func() {
		select {
		case <-arrived:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(arrived); cancel() }
}

// outliveSignals keeps the daemon running at signals that would end it in the middle of requests: those that make other
// daemons read their settings or open their logs again, a terminal's end, and writing its log to a pipe that has no reader.
// The commands that it starts are not affected.
func outliveSignals() (restore func()) {
	unread := make(chan os.Signal, 1)
	signal.Notify(unread, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE)
	return func() { signal.Stop(unread) }
}
