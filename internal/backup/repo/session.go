package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// An Origin is what runs a session: a host, its boot and a process of that boot. Each is at most 255 bytes.
//
// The process is "<process ID>:<when it started, in ticks since the boot>:<PID namespace>", the last being the number
// that /proc/self/ns/pid leads to. Earlier programs left out that number and its colon.
type Origin struct {
	Host    string
	Boot    string
	Process string
}

const (
	machineIDPath = "/etc/machine-id"
	bootIDPath    = "/proc/sys/kernel/random/boot_id"
	procPath      = "/proc"
	namespacePath = "/proc/self/ns/pid"
)

// LocalOrigin is the origin of the process that calls it. The host is known by its machine ID, or by its name if it has
// none.
func LocalOrigin() (Origin, error) {
	host, err := os.ReadFile(machineIDPath)
	if name := string(bytes.TrimSpace(host)); err != nil || name == "" {
		if name, err = os.Hostname(); err != nil {
			return Origin{}, fmt.Errorf("identify this host: %w", err)
		}
		host = []byte(name)
	}
	boot, err := os.ReadFile(bootIDPath)
	if err != nil {
		return Origin{}, fmt.Errorf("identify this boot: %w", err)
	}
	pid := os.Getpid()
	started, err := startOf(pid)
	if err != nil {
		return Origin{}, fmt.Errorf("identify this process: %w", err)
	}
	namespace, err := os.Readlink(namespacePath)
	if err != nil {
		return Origin{}, fmt.Errorf("identify this process: %w", err)
	}
	return Origin{
		Host:    string(bytes.TrimSpace(host)),
		Boot:    string(bytes.TrimSpace(boot)),
		Process: fmt.Sprintf("%d:%s:%s", pid, started, strings.Trim(namespace, "pid:[]")),
	}, nil
}

// process splits what the process is known by. An earlier program's has no namespace.
func (o Origin) process() (pid, started, namespace string) {
	pid, rest, _ := strings.Cut(o.Process, ":")
	started, namespace, _ = strings.Cut(rest, ":")
	return pid, started, namespace
}

// startOf returns when a process began, as the kernel writes it.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(filepath.Join(procPath, strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	// The second field is the command in parentheses, which may hold anything; the start is the twenty-second.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("%s/%d/stat has %d fields", procPath, pid, len(fields))
	}
	return fields[19], nil
}

// ended tells whether what ran at the other origin was of this host and runs no more. The own process is not judged. Nor
// are, during one boot, those of other PID namespaces, as of containers that share a machine ID: they cannot be seen.
func (o Origin) ended(other Origin) bool {
	if o.Host == "" || other.Host != o.Host || other.Process == o.Process && other.Boot == o.Boot {
		return false
	}
	if other.Boot != o.Boot {
		return true
	}
	pid, started, namespace := other.process()
	if _, _, own := o.process(); namespace != own {
		return false
	}
	number, err := strconv.Atoi(pid)
	if err != nil {
		return true
	}
	now, err := startOf(number)
	return os.IsNotExist(err) || err == nil && now != started
}

// A Stall is what a host saw of a session, to tell whether anything happens in it.
type Stall struct {
	Seen  string        `json:"seen"`  // digest of the names under the session
	Boot  string        `json:"boot"`  // of the host
	Since time.Duration `json:"since"` // how long the host was up when it saw them first
}

// Stalled returns what tells of the sessions of a lineage whether nothing was uploaded under them for a while, by the
// host's clock that nobody sets, as far as this host looked: it begins to count when it is asked for the first time, and
// anew after a boot. It is for Collect, and fails with fault.ErrUnsupported if the repository has no memory. Writers that
// are alive put something there every 6 hours.
func (r *Repository) Stalled(ctx context.Context, lineage string, after time.Duration) (func(*Session) bool, error) {
	memory := r.options.memory
	if memory == nil {
		return nil, fault.Errorf(fault.ErrUnsupported, "tell stalled sessions: this host remembers nothing of the repository")
	}
	c, err := r.chain(lineage)
	if err != nil {
		return nil, err
	}
	h, err := c.certain(ctx)
	if err != nil {
		return nil, err
	}
	uploaded, err := c.uploaded(ctx)
	if err != nil {
		return nil, err
	}
	up, err := r.uptime()
	if err != nil {
		return nil, err
	}
	type owned struct{ id, owner ID }
	stalled := map[owned]bool{} // who takes one over meanwhile is alive
	err = memory.Change(func(k *Known) {
		before := k.Stalls
		k.Stalls = map[string]Stall{}
		for name, s := range before {
			if !strings.HasPrefix(name, lineage+"/") {
				k.Stalls[name] = s
			}
		}
		for i := range h.Sessions {
			s := &h.Sessions[i]
			now := Stall{Seen: digest(s, uploaded), Boot: r.options.origin.Boot, Since: up}
			if last := before[lineage+"/"+s.Name()]; last.Seen == now.Seen && last.Boot == now.Boot && last.Since <= up {
				now.Since = last.Since
			}
			k.Stalls[lineage+"/"+s.Name()] = now
			stalled[owned{s.ID, s.Owner}] = up-now.Since >= after
		}
	})
	return func(s *Session) bool { return stalled[owned{s.ID, s.Owner}] }, err
}

// digest sums up who owns a session and what is under it.
func digest(s *Session, uploaded []store.Object) string {
	sum := sha256.New()
	sum.Write(s.Owner[:])
	for _, o := range uploaded {
		if strings.Contains(o.Name, "/sessions/"+s.Name()+"/") {
			sum.Write([]byte(o.Name))
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// uptime is how long the host has been up, also while it slept.
func uptime() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
