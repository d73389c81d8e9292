// Package s3store keeps objects in a bucket of an S3 server.
//
// Each object is stored by one request with the condition If-None-Match: *, by which a server creates it exclusively or not at
// all. Servers that ignore or refuse the condition cannot hold a repository; store.Race tells them from others.
//
// A request that fails for a reason that may pass is repeated, with growing pauses, for a few minutes at most. No error, log
// or text of this package contains a secret.
package s3store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A Place says where in which bucket the objects are. It holds no secret, and can be compared.
type Place struct {
	Bucket    string
	Region    string // empty for DefaultRegion
	Prefix    string // of the keys; without a slash at its ends
	Endpoint  string // http://HOST[:PORT] or https://HOST[:PORT]; empty for Amazon S3
	HostStyle bool   // the bucket is a part of the host's name, as it always is at Amazon; otherwise of the path
}

// DefaultRegion is the region of requests to places that name none.
const DefaultRegion = "us-east-1"

const (
	amazon      = "https://s3.amazonaws.com"
	contentType = "application/octet-stream"
)

// endpoint is the URL of the server.
func (p Place) endpoint() string {
	if p.Endpoint == "" {
		return amazon
	}
	return p.Endpoint
}

// A Store is a store.Store in a bucket. It is safe for concurrent use.
type Store struct {
	place     Place
	core      minio.Core
	transport *transport
	keys      *source
	limits    limits
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Batcher = (*Store)(nil)
	_ store.Leaver  = (*Store)(nil)
)

// Open returns the store of a place, with credentials from a source. It sends no request. It fails with fault.ErrInvalid if the
// source has no credentials or the place cannot be one, and as reading the source's files does. The caller closes the store.
func Open(p Place, from Credentials) (*Store, error) {
	return open(p, from, standard, "")
}

// open is Open with limits, and with the address to connect to instead of those of the endpoint, unless it is empty.
func open(p Place, from Credentials, l limits, address string) (*Store, error) {
	if p.Region == "" {
		p.Region = DefaultRegion
	}
	at, err := url.Parse(p.endpoint())
	if err != nil || at.Host == "" {
		return nil, fault.Errorf(fault.ErrInvalid, "S3 endpoint: it is no URL: use http://HOST:PORT or https://HOST:PORT")
	}
	keys, err := newSource(from)
	if err != nil {
		return nil, err
	}
	t, err := newTransport(from.CABundle, l, address)
	if err != nil {
		return nil, err
	}
	lookup := minio.BucketLookupPath
	if p.HostStyle || p.Endpoint == "" {
		lookup = minio.BucketLookupDNS
	}
	client, err := minio.New(at.Host, &minio.Options{
		Creds: credentials.New(keys), Secure: at.Scheme == "https", Region: p.Region, BucketLookup: lookup, Transport: t,
		MaxRetries: 1, // Store.try repeats requests
	})
	if err != nil {
		return nil, fault.Errorf(fault.ErrInvalid, "S3 endpoint %s: %w", p.endpoint(), err)
	}
	return &Store{place: p, core: minio.Core{Client: client}, transport: t, keys: keys, limits: l}, nil
}

// Via returns a store that differs from s by the address, of Addresses, that it connects to.
func (s *Store) Via(address string) (*Store, error) {
	return open(s.place, s.keys.from, s.limits, address)
}

// Addresses returns the addresses of the server that the endpoint's name stands for, as the last new connection found them.
// There are none before the first request, and one if the requests go through a proxy.
func (s *Store) Addresses() []string { return s.transport.addresses() }

// Server returns what the server last said that it is, with its version if it tells that; empty if it says nothing.
func (s *Store) Server() string { return s.transport.server() }

// Place returns where the objects are.
func (s *Store) Place() Place { return s.place }

// Close lets go of idle connections.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// key is what an object is called in the bucket.
func (s *Store) key(name string) string {
	if s.place.Prefix == "" {
		return name
	}
	return s.place.Prefix + "/" + name
}

// Put sends one request, and sends it again if the reply is lost: then the name may be taken by the first. A server that refuses
// the condition on the request is fault.ErrUnsupported.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := store.CheckPut(name, len(data)); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return s.try(ctx, "put", name, func(ctx context.Context) error {
		opts := minio.PutObjectOptions{ContentType: contentType}
		opts.SetMatchETagExcept("*")
		_, err := s.core.PutObject(ctx, s.place.Bucket, s.key(name), bytes.NewReader(data), int64(len(data)), "", hex.EncodeToString(sum[:]), opts)
		if responseOf(err).StatusCode == http.StatusConflict && s.isThere(ctx, name) {
			return errTaken
		}
		return err
	})
}

// PutAndLeave sends the request of a Put once, and closes the connection when it is sent.
func (s *Store) PutAndLeave(ctx context.Context, name string, data []byte) error {
	if err := store.CheckPut(name, len(data)); err != nil {
		return err
	}
	leaving, leave := context.WithCancel(ctx)
	defer leave()
	leaving = httptrace.WithClientTrace(leaving, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { leave() }})
	sum := sha256.Sum256(data)
	opts := minio.PutObjectOptions{ContentType: contentType}
	opts.SetMatchETagExcept("*")
	_, err := s.core.PutObject(leaving, s.place.Bucket, s.key(name), bytes.NewReader(data), int64(len(data)), "", hex.EncodeToString(sum[:]), opts)
	if err != nil && leaving.Err() == nil {
		return fmt.Errorf("put %s: %w", name, s.judge(err, &reply{}).err)
	}
	return ctx.Err()
}

// errTaken is the error of a Put of a name that is taken.
var errTaken = fault.Errorf(fault.ErrExists, "exists already")

// isThere reports whether an object is certainly there. A server answers 409 to some of the writers that race for a name, and
// also while there is no winner yet.
func (s *Store) isThere(ctx context.Context, name string) bool {
	_, err := s.core.StatObject(ctx, s.place.Bucket, s.key(name), minio.StatObjectOptions{})
	return err == nil
}

// Get reads the object by one request.
func (s *Store) Get(ctx context.Context, name string) (data []byte, err error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	err = s.try(ctx, "get", name, func(ctx context.Context) error {
		body, info, _, err := s.core.GetObject(ctx, s.place.Bucket, s.key(name), minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer body.Close()
		if info.Size > store.MaxSize {
			return fault.Errorf(fault.ErrCorrupt, "it has %d bytes: no object is so large", info.Size)
		}
		data, err = readBody(body, info.Size, store.MaxSize)
		return err
	})
	return data, err
}

// readBody reads size bytes, or up to limit and the end if the size is not known.
func readBody(body io.Reader, size, limit int64) ([]byte, error) {
	if size < 0 {
		data, err := io.ReadAll(io.LimitReader(body, limit+1))
		if err == nil && int64(len(data)) > limit {
			return nil, fault.Errorf(fault.ErrCorrupt, "it has more than %d bytes: no object is so large", limit)
		}
		return data, err
	}
	data := make([]byte, size)
	_, err := io.ReadFull(body, data)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the connection was cut
	}
	return data, err
}

// GetRange reads the range by one request.
func (s *Store) GetRange(ctx context.Context, name string, offset, length int64) (data []byte, err error) {
	if err := store.CheckRange(name, offset, length); err != nil {
		return nil, err
	}
	err = s.try(ctx, "get", name, func(ctx context.Context) error {
		data, err = s.getRange(ctx, name, offset, length)
		if responseOf(err).StatusCode != http.StatusRequestedRangeNotSatisfiable {
			return err
		}
		info, err := s.core.StatObject(ctx, s.place.Bucket, s.key(name), minio.StatObjectOptions{})
		if err != nil {
			return err
		}
		return store.Truncated(info.Size, offset, length)
	})
	return data, err
}

func (s *Store) getRange(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	opts := minio.GetObjectOptions{}
	if err := opts.SetRange(offset, offset+length-1); err != nil {
		return nil, err
	}
	body, info, header, err := s.core.GetObject(ctx, s.place.Bucket, s.key(name), opts)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if !strings.HasPrefix(header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
		return nil, fault.Errorf(fault.ErrUnsupported, "the server does not answer with the range that was asked for: it cannot hold backups")
	}
	switch {
	case info.Size > length || info.Size < 0:
		return nil, fault.Errorf(fault.ErrUnsupported, "the server answers with %d bytes to a request for %d: it cannot hold backups", info.Size, length)
	case info.Size < length:
		return nil, store.Truncated(offset+info.Size, offset, length)
	}
	return readBody(body, length, length)
}

// Delete sends one request. On a bucket with versions, the server hides the object and keeps it.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	return s.try(ctx, "delete", name, func(ctx context.Context) error {
		err := s.core.RemoveObject(ctx, s.place.Bucket, s.key(name), minio.RemoveObjectOptions{})
		if responseOf(err).Code == minio.NoSuchKey {
			return nil
		}
		return err
	})
}
