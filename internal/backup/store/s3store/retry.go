package s3store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// limits bound the time that requests take.
type limits struct {
	connect   time.Duration // to connect, TLS included
	stall     time.Duration // without a byte of a request or a reply
	attempts  int           // of one request
	unproven  int           // of one request to a server that has not answered yet: the address may be wrong
	firstWait time.Duration // the longest pause after the first attempt; it doubles
	maxWait   time.Duration // the longest pause
	total     time.Duration // after which no attempt begins
}

// standard are the limits of every Store outside tests.
var standard = limits{
	connect: 10 * time.Second, stall: time.Minute, attempts: 10, unproven: 4,
	firstWait: 400 * time.Millisecond, maxWait: 20 * time.Second, total: 5 * time.Minute,
}

// try sends a request until it succeeds, fails for good, or the limits are reached. Its errors name the verb and the object.
func (s *Store) try(ctx context.Context, verb, name string, request func(context.Context) error) error {
	began := time.Now()
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s %s: %w", verb, name, err)
		}
		keys := s.keys.generation()
		var seen reply
		err := request(context.WithValue(ctx, replyKey{}, &seen))
		if err == nil {
			return nil
		}
		if canceled := ctx.Err(); canceled != nil {
			return fmt.Errorf("%s %s: %w", verb, name, canceled)
		}
		v := s.judge(err, &seen)
		most := s.limits.attempts
		if !s.transport.hasAnswered() {
			most = s.limits.unproven
		}
		again := v.passing && n < most || v.keys && n < most && s.keys.renew(keys)
		wait := s.pause(n, seen.retryAfter)
		if !again || time.Since(began)+wait > s.limits.total {
			if v.passing && n > 1 {
				return fmt.Errorf("%s %s: %w (tried %d times)", verb, name, v.err, n)
			}
			return fmt.Errorf("%s %s: %w", verb, name, v.err)
		}
		if v.keys {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pause is how long to wait after the nth attempt: a random part of a time that doubles, or what the server asked for and a
// random bit more.
func (s *Store) pause(n int, asked time.Duration) time.Duration {
	most := s.limits.maxWait
	if n < 16 {
		most = min(most, s.limits.firstWait<<(n-1))
	}
	wait := rand.N(most) + 1
	if asked > 0 {
		wait = asked + wait/4
	}
	return wait
}

// longestAsked is the longest Retry-After that is heeded. A server that wants a longer pause is asked after this one.
const longestAsked = time.Minute

// retryAfter reads the header of that name: seconds or a date.
func retryAfter(header http.Header, now time.Time) time.Duration {
	text := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return min(max(time.Duration(seconds)*time.Second, 0), longestAsked)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), longestAsked)
	}
	return 0
}
