package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"orlop/internal/fault"
)

const maxURLFile = 64 << 10 // bytes

// URLs reads what a flag or a variable holds: URLs separated by white space, or file:PATH, the name of a file that holds
// them, in which lines beginning with # are comments. It fails with fault.ErrNotFound if there is no such file, and with
// fault.ErrInvalid if that is empty, too large, or a file of the caller's own that others may read.
func URLs(text string) ([]string, error) {
	text = strings.TrimSpace(text)
	path, ok := strings.CutPrefix(text, "file:")
	if !ok {
		return strings.Fields(text), nil
	}
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		path = rest // file:///path
	}
	content, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	var urls []string
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			urls = append(urls, strings.Fields(line)...)
		}
	}
	if len(urls) == 0 {
		return nil, fault.Errorf(fault.ErrInvalid, "URL file %s: holds no URL", path)
	}
	return urls, nil
}

func readSecret(path string) (string, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.Errorf(fault.ErrNotFound, "URL file %s: not found", path)
	}
	if err != nil {
		return "", fmt.Errorf("cannot read URL file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot read URL file: %w", err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && int(owner.Uid) == os.Geteuid() && info.Mode().Perm()&0o077 != 0 {
		return "", fault.Errorf(fault.ErrInvalid, "URL file %s: is open to others (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	content, err := io.ReadAll(io.LimitReader(file, maxURLFile+1))
	if err != nil {
		return "", fmt.Errorf("cannot read URL file: %w", err)
	}
	if len(content) > maxURLFile {
		return "", fault.Errorf(fault.ErrInvalid, "URL file %s: is larger than %d bytes", path, maxURLFile)
	}
	return string(content), nil
}

// anyURL matches what looks like a URL, with the quotes around it.
var anyURL = regexp.MustCompile(`["']?[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"']*["']?`)

// redact returns the text of an error without any URL in it, and without the parts of the one that is secret: libraries quote
// both. A host stays, as it says what could not be reached.
func redact(err error, secret *url.URL) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	text := anyURL.ReplaceAllString(err.Error(), "URL")
	for _, part := range secretParts(secret) {
		text = strings.ReplaceAll(text, part, "***")
	}
	return strings.ReplaceAll(text, "\n", " ")
}

// secretParts returns what a token may be made of, the longest first: user, password, path and query, as they are and
// unescaped, whole and in the pieces that services split them into. Fewer than four characters are no secret.
func secretParts(u *url.URL) []string {
	password, _ := u.User.Password()
	whole := []string{u.User.Username(), password, u.User.String(), u.Path, u.EscapedPath(), u.Opaque, u.RawQuery, u.Fragment}
	for _, values := range u.Query() {
		whole = append(whole, values...)
	}
	if host := u.Hostname(); !strings.ContainsAny(host, ".:") && host != "localhost" && host != u.Scheme {
		whole = append(whole, host) // a token, as in discord://TOKEN@ID
	}
	parts := slices.Clone(whole)
	for _, text := range whole {
		parts = append(parts, strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune("/&=", r) })...)
		parts = append(parts, strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })...)
	}
	parts = slices.DeleteFunc(parts, func(part string) bool { return len(part) < 4 })
	slices.SortFunc(parts, func(a, b string) int { return len(b) - len(a) })
	return slices.Compact(parts)
}
