package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"orlop/internal/daemon"
)

const (
	barWidth      = 40 // columns at most, without the text behind it; in 80 columns there are always some for it
	barEvery      = 100 * time.Millisecond
	progressEvery = time.Second // between two events
	rateOver      = 5 * time.Second
)

// A progressEvent is what --json tells of long work while it lasts.
type progressEvent struct {
	Event string `json:"event"` // "progress"
	Done  int64  `json:"done"`  // bytes
	Total int64  `json:"total"`
}

// A progress shows how far long work is: a bar on a terminal, an event a second with --json, and nothing otherwise. It is safe
// for concurrent use.
type progress struct {
	c        *cli
	terminal bool
	after    string // what follows once all bytes are done, as "syncing"

	rate rate

	mu   sync.Mutex    // guards what follows; the bar, which draws itself, must not wait for it
	told time.Time     // when the last event was printed
	bars *mpb.Progress // nil until there is something to show
	bar  *mpb.Bar
}

// newProgress begins to show work. After says what follows once all bytes are done; it may be empty. The caller ends it.
func (c *cli) newProgress(after string) *progress {
	c.shown = &progress{c: c, after: after, told: time.Now(), terminal: !c.json && isTerminal(c.stderr)}
	return c.shown
}

// show tells how many bytes are done.
func (p *progress) show(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.c.json:
		if now.Sub(p.told) >= progressEvery {
			p.told = now
			_ = p.c.printEvent(progressEvent{"progress", done, total}) // the end of the work says it too
		}
	case p.terminal:
		p.rate.add(now, done)
		if p.bar == nil {
			p.begin()
		}
		p.bar.SetTotal(total, false)
		p.bar.SetCurrent(done)
	}
}

// begin draws the bar. It is never complete by itself: end removes it.
func (p *progress) begin() {
	p.bars = mpb.New(mpb.WithOutput(p.c.stderr), mpb.WithWidth(barWidth), mpb.WithRefreshRate(barEvery))
	style := mpb.BarStyle().Lbound("[").Filler("=").Tip("=").Padding(" ").Rbound("]")
	p.bar = p.bars.New(0, style, mpb.BarFillerTrim(), mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
		return " " + p.text(s.Current, s.Total)
	})))
}

// text stands behind the bar.
func (p *progress) text(done, total int64) string {
	if done >= total && p.after != "" {
		return fmt.Sprintf("%s, %s…", daemon.Bytes(total), p.after)
	}
	return amounts(done, total, p.rate.perSecond())
}

// above is where lines are to be written that appear above the bar, and other where there is none. It may be called on nil.
func (p *progress) above(other io.Writer) io.Writer {
	if p == nil {
		return other
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars == nil {
		return other
	}
	return p.bars
}

// end removes the bar.
func (p *progress) end() {
	p.mu.Lock()
	bars, bar := p.bars, p.bar
	p.bars, p.terminal = nil, false
	p.mu.Unlock()
	if bars != nil {
		bar.Abort(true)
		bars.Wait()
	}
}

// amounts is how many bytes are done, how fast, and how long the rest will take, as far as is known.
func amounts(done, total int64, perSecond float64) string {
	text := fmt.Sprintf("%s of %s", daemon.Bytes(done), daemon.Bytes(total))
	if perSecond < 1 || done > total {
		return text
	}
	left := time.Duration(float64(total-done) / perSecond * float64(time.Second))
	if left < 0 { // beyond 292 years
		return text
	}
	return text + fmt.Sprintf(", %s/s, %s left", daemon.Bytes(int64(perSecond)), left.Round(time.Second))
}

// A rate is bytes per second over the last seconds. It is safe for concurrent use.
type rate struct {
	mu     sync.Mutex
	points []ratePoint
}

type ratePoint struct {
	at   time.Time
	done int64
}

// add notes how many bytes are done at a time. It keeps a point for each tenth of the time that it looks back.
func (r *rate) add(now time.Time, done int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.points); n > 1 && now.Sub(r.points[n-2].at) < rateOver/10 {
		r.points[n-1] = ratePoint{now, done}
	} else {
		r.points = append(r.points, ratePoint{now, done})
	}
	for len(r.points) > 2 && now.Sub(r.points[1].at) >= rateOver {
		r.points = r.points[1:]
	}
}

// perSecond is 0 as long as nothing is known.
func (r *rate) perSecond() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.points) < 2 {
		return 0
	}
	first, last := r.points[0], r.points[len(r.points)-1]
	if !last.at.After(first.at) {
		return 0
	}
	return float64(last.done-first.done) / last.at.Sub(first.at).Seconds()
}
