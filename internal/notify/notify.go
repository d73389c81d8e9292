// Package notify tells others how a backup run went: a dead-man service by pings, people by notifications.
//
// Neither changes the result of a run: what cannot be delivered is a warning. All of it together delays a run by at most
// DefaultLimit. The URLs are secrets, as most hold a token: no error or warning of this package contains one.
package notify

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"
)

// DefaultLimit bounds the time that pings and notifications add to a run, all together.
const DefaultLimit = 8 * time.Second

// A Config says where to report. Its zero value reports nowhere.
type Config struct {
	Ping   string   // http or https URL of a dead-man service; empty for none
	Notify []string // URLs of shoutrrr's services, or http and https URLs that take JSON

	State State         // remembers failed runs; used only with Notify
	Limit time.Duration // DefaultLimit if zero
	Warn  func(error)   // called with what could not be delivered, one call at a time
}

// A Notifier reports on runs, one at a time.
type Notifier struct {
	ping   *url.URL // nil for none
	notify []target
	state  State
	limit  time.Duration
	warn   func(error)
	mu     sync.Mutex // held by calls of warn
}

// New checks the URLs and connects to none. It fails with fault.ErrInvalid.
func New(config Config) (*Notifier, error) {
	n := &Notifier{state: config.State, limit: config.Limit}
	if n.limit == 0 {
		n.limit = DefaultLimit
	}
	n.warn = func(err error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if config.Warn != nil {
			config.Warn(err)
		}
	}
	if config.Ping != "" {
		var err error
		if n.ping, err = parsePing(config.Ping); err != nil {
			return nil, err
		}
	}
	for i, text := range config.Notify {
		t, err := parseTarget(i+1, text)
		if err != nil {
			return nil, err
		}
		n.notify = append(n.notify, t)
	}
	return n, nil
}

// A Run is a run that has begun. Finish must be called once.
type Run struct {
	*Notifier
	began  chan struct{}      // closed once the first ping has ended
	cancel context.CancelFunc // of the first ping
}

// Start pings URL/start and does not wait for an answer.
func (n *Notifier) Start(ctx context.Context) *Run {
	run := &Run{Notifier: n, began: make(chan struct{})}
	ctx, run.cancel = context.WithTimeout(ctx, n.limit)
	go func() {
		defer close(run.began)
		n.send(ctx, call{of: "start"})
	}()
	return run
}

// Finish pings URL, or URL/fail with the report as the body, and notifies: of a failure, and of the first success after
// one. It returns within the limit, also where ctx has ended already, as that of an interrupted run has.
func (run *Run) Finish(ctx context.Context, report Report) {
	defer run.cancel()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.limit)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { run.tellPeople(ctx, report) })
	run.awaitStart(ctx)
	if report.OK() {
		run.send(ctx, call{of: "success"})
	} else {
		run.send(ctx, call{of: "fail", body: report.body(maxPingBody)})
	}
	all.Wait()
}

// awaitStart waits for the first ping, which must not arrive after the last, and cancels it at half the limit.
func (run *Run) awaitStart(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, run.limit/2)
	defer cancel()
	select {
	case <-run.began:
	case <-ctx.Done():
		run.cancel()
		<-run.began
	}
}

// send pings once, or not at all without a URL.
func (n *Notifier) send(ctx context.Context, c call) {
	if n.ping == nil {
		return
	}
	if err := c.send(ctx, n.ping, n.limit/pauses); err != nil {
		n.warn(fmt.Errorf("cannot send the %s ping: %s", c.of, redact(err, n.ping)))
	}
}

// tellPeople sends the notification that a run calls for, if any. A recovery that reached no target stays to be told
// after the next success.
func (n *Notifier) tellPeople(ctx context.Context, report Report) {
	if len(n.notify) == 0 {
		return
	}
	failed, err := n.state.failed(report)
	if err != nil {
		n.warn(fmt.Errorf("cannot tell whether the previous run failed: %w", err))
	}
	switch {
	case !report.OK():
		if err := n.state.fail(report); err != nil {
			n.warn(fmt.Errorf("cannot remember that this run failed: %w", err))
		}
		n.deliver(ctx, message{report.failedTitle(), report.body(maxMessage)})
	case failed:
		if n.deliver(ctx, message{report.recoveredTitle(), report.body(maxMessage)}) == 0 {
			return
		}
		if err := n.state.succeed(report); err != nil {
			n.warn(fmt.Errorf("cannot remember that this run succeeded: %w", err))
		}
	}
}

// deliver sends a message to all targets at once and returns how many took it.
func (n *Notifier) deliver(ctx context.Context, m message) (delivered int) {
	var all sync.WaitGroup
	errs := make([]error, len(n.notify))
	for i, t := range n.notify {
		all.Go(func() { errs[i] = t.send(ctx, m) })
	}
	all.Wait()
	for i, err := range errs {
		if err == nil {
			delivered++
			continue
		}
		n.warn(fmt.Errorf("cannot notify by %s: %s", n.notify[i].name, redact(err, n.notify[i].given)))
	}
	return delivered
}
