// Package s3test runs a real S3 server for tests, and a proxy before it that lets requests go wrong as told, or plays servers
// that break the promises of a store.
package s3test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// A Server is a running versitygw, with its data in a directory of the test.
type Server struct {
	URL    string // http://127.0.0.1:PORT
	Access string // keys of its administrator
	Secret string
	Dir    string // its buckets, each a directory
}

// Bucket is the name of the bucket that Start makes.
const Bucket = "backups"

// binary is where make builds the server.
const binary = "bin/tools/versitygw"

// Start starts a server with an empty bucket. It ends with the test, and with the process at the latest.
func Start(t testing.TB) *Server {
	t.Helper()
	path := find(t)
	s := &Server{Access: "test" + rand.Text()[:12], Secret: rand.Text(), Dir: t.TempDir()}
	for attempt := 1; ; attempt++ {
		port := freePort(t)
		if s.run(t, path, port) {
			break
		}
		if attempt == 5 { // another process may have taken the port
			t.Fatal("versitygw does not start")
		}
	}
	s.MakeBucket(t, Bucket)
	return s
}

// find returns the path of the server, which is below the directory of go.mod.
func find(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, binary)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run: make %s", err, binary)
	}
	return path
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// run starts the process and reports whether it answers.
func (s *Server) run(t testing.TB, path, port string) bool {
	t.Helper()
	log := filepath.Join(t.TempDir(), "versitygw.log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	users := t.TempDir()
	command := exec.Command(path, "--port", "127.0.0.1:"+port, "--iam-dir", users, "--quiet", "posix", s.Dir)
	command.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.Access, "ROOT_SECRET_KEY="+s.Secret)
	command.Stdout, command.Stderr = out, out
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		_ = command.Process.Kill() // it may have ended
		ended <- <-ended           // it has now
	})
	s.URL = "http://127.0.0.1:" + port
	for range 600 {
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(log)
			t.Logf("versitygw: %v\n%s", err, text)
			return false
		case <-time.After(50 * time.Millisecond):
		}
		if response, err := http.Get(s.URL); err == nil {
			_ = response.Body.Close() // only read
			return true
		}
	}
	return false
}

// client returns a client with the administrator's keys.
func (s *Server) client() (*minio.Client, error) {
	return minio.New(strings.TrimPrefix(s.URL, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(s.Access, s.Secret, ""), Region: "us-east-1", BucketLookup: minio.BucketLookupPath,
	})
}

// mustClient is client for tests.
func (s *Server) mustClient(t testing.TB) *minio.Client {
	t.Helper()
	c, err := s.client()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// MakeBucket makes an empty bucket.
func (s *Server) MakeBucket(t testing.TB, name string) {
	t.Helper()
	if err := s.mustClient(t).MakeBucket(context.Background(), name, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Keys lists all keys of a bucket.
func (s *Server) Keys(t testing.TB, bucket string) (keys []string) {
	t.Helper()
	for o := range s.mustClient(t).ListObjectsIter(context.Background(), bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

// Remove deletes a key behind the back of whoever uses the bucket.
func (s *Server) Remove(t testing.TB, bucket, key string) {
	t.Helper()
	if err := s.mustClient(t).RemoveObject(context.Background(), bucket, key, minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Policy sets the policy of a bucket, in the language of AWS.
func (s *Server) Policy(t testing.TB, bucket, policy string) {
	t.Helper()
	if err := s.mustClient(t).SetBucketPolicy(context.Background(), bucket, policy); err != nil {
		t.Fatal(err)
	}
}

// AddUser makes a user without permissions besides those that policies of buckets give, and returns the secret key.
func (s *Server) AddUser(t testing.TB, access string) (secret string) {
	t.Helper()
	secret = rand.Text()
	out, err := s.admin(t, "create-user", "--access", access, "--secret", secret, "--role", "user")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return secret
}

func (s *Server) admin(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	command := exec.Command(find(t), append([]string{"admin", "--endpoint-url", s.URL}, args...)...)
	command.Env = append(os.Environ(), "ADMIN_ACCESS_KEY="+s.Access, "ADMIN_SECRET_KEY="+s.Secret)
	out, err := command.CombinedOutput()
	if err != nil {
		return out, errors.Join(fmt.Errorf("versitygw admin %s", args[0]), err)
	}
	return out, nil
}
