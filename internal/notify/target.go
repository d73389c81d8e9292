package notify

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/nicholas-fedor/shoutrrr/pkg/format"
	"github.com/nicholas-fedor/shoutrrr/pkg/router"
	"github.com/nicholas-fedor/shoutrrr/pkg/types"

	"orlop/internal/fault"
)

// A target takes notifications, by shoutrrr (MIT licence), which adds 0.8 MB to the stripped static binary.
type target struct {
	name    string   // of the service, for warnings; not secret
	given   *url.URL // as the user wrote it
	url     *url.URL // as the service wants it
	service types.Service
}

// A message is one notification.
type message struct{ title, text string }

// parseTarget reads the URL of a notification service, the nth of several. It fails with fault.ErrInvalid.
func parseTarget(nth int, text string) (target, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" { // err quotes the URL
		return target{}, fault.Errorf(fault.ErrInvalid, "notification URL %d: is not a URL", nth)
	}
	t := target{given: u, url: u}
	if t.name, _, _ = strings.Cut(strings.ToLower(u.Scheme), "+"); t.name == "http" || t.name == "https" {
		if u.Hostname() == "" {
			return target{}, fault.Errorf(fault.ErrInvalid, "notification URL %d: names no host", nth)
		}
		t.name, t.url = "generic", webhook(u)
	}
	if t.service, err = new(router.ServiceRouter).NewService(t.name); err != nil {
		return target{}, fault.Errorf(fault.ErrInvalid, "notification URL %d: unknown service: use http, https or a service of shoutrrr, such as smtp, ntfy, telegram or generic", nth)
	}
	if err := t.convert(); err != nil {
		return target{}, fault.Errorf(fault.ErrInvalid, "notification URL %d: %s", nth, redact(err, u))
	}
	if t.name == matrix {
		return t, nil
	}
	if err := t.service.Initialize(t.url, nil); err != nil {
		return target{}, fault.Errorf(fault.ErrInvalid, "notification URL %d, of service %s: %s", nth, t.name, redact(err, u))
	}
	return t, nil
}

// matrix is the service that logs in when it is initialized. The others then only read their URL.
const matrix = "matrix"

// convert makes a URL of the service's own from one such as generic+https://….
func (t *target) convert() error {
	if strings.EqualFold(t.url.Scheme, t.name) {
		return nil
	}
	custom, ok := t.service.(types.CustomURLService)
	if !ok {
		return fmt.Errorf("service %s takes no URL of another scheme", t.name)
	}
	converted, err := custom.GetConfigURLFromCustom(t.url)
	if err == nil {
		t.url = converted
	}
	return err
}

// reserved are the query fields that shoutrrr's generic service takes for itself unless they are escaped.
var reserved = []string{"contenttype", "disabletls", "template", "title", "titlekey", "messagekey", "method"}

// webhook is shoutrrr's URL for a POST of {"title":…,"message":…} to u.
func webhook(u *url.URL) *url.URL {
	query := u.Query()
	for _, key := range reserved {
		if query.Has(key) {
			query[format.EscapeKey(key)] = query[key]
			query.Del(key)
		}
	}
	hook := *u
	hook.Scheme = "generic"
	query.Set("template", "json")
	if strings.EqualFold(u.Scheme, "http") {
		query.Set("disabletls", "yes")
	}
	hook.RawQuery = query.Encode()
	return &hook
}

// send delivers a message, or gives up when ctx ends: the library takes no context, so that its goroutine then stays for
// the rest of the process. The error may contain the URL.
func (t target) send(ctx context.Context, m message) error {
	done := make(chan error, 1)
	go func() {
		if t.name == matrix {
			if err := t.service.Initialize(t.url, nil); err != nil {
				done <- err
				return
			}
		}
		done <- t.service.Send(m.text, &types.Params{types.TitleKey: m.title})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
