package lvm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
)

// script is a stand-in for lvm(8), for answers that the real one cannot be made to give. It notes each call, says what
// is in $FAKE/words, prints the reports in $FAKE, and runs what a test has put into $FAKE/COMMAND.
const script = `#!/bin/sh
echo "$@" >> "$FAKE/calls"
cat "$FAKE/words" >&2
case $1 in
lvs) case $* in *segtype*) cat "$FAKE/pool";; *) cat "$FAKE/volumes";; esac;;
lvmconfig) echo thin_pool_autoextend_threshold=100;;
esac
[ ! -e "$FAKE/$1" ] || . "$FAKE/$1"
`

// A fake is a scripted lvm(8) and a kernel in memory.
type fake struct {
	t    *testing.T
	dir  string
	pool map[string]string // what is reported of the thin pool

	mu      sync.Mutex
	devices map[string]status // by name
	busy    bool              // a metadata snapshot is reserved by another program
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, dir: t.TempDir(), devices: map[string]status{}, pool: map[string]string{
		"lv_name": "pool", "lv_uuid": "pool-uuid", "segtype": "thin-pool", "zero": "zero", "discards": "passdown", "chunk_size": "65536",
		"metadata_lv": "[pool_tmeta]", "lv_permissions": "writeable", "seg_monitor": "monitored", "vg_uuid": "vg-uuid", "vg_extent_size": "4194304",
		"vg_permissions": "writeable", "vg_mda_size": "1044480", "vg_mda_free": "1000000", "lv_tags": "",
	}}
	bin := t.TempDir()
	f.write(filepath.Join(bin, "lvm"), script, 0o755)
	for _, tool := range []string{"thin_ls", "thin_delta", "thin_dump"} {
		f.write(filepath.Join(bin, tool), "#!/bin/sh\ncat \"$FAKE/"+tool+"\"\n", 0o755)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("FAKE", f.dir)
	f.put("words", "")
	f.put("thin_ls", "")
	f.volumes()
	f.devices["v--g-pool"] = status{name: "v--g-pool", target: "linear"}
	f.devices["v--g-pool-tpool"] = status{name: "v--g-pool-tpool", target: "thin-pool", params: "1 10/4096 10/8192 - rw discard_passdown queue_if_no_space - 1024"}
	return f
}

func (f *fake) write(path, text string, mode os.FileMode) {
	f.t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) put(name, text string) {
	f.t.Helper()
	f.write(filepath.Join(f.dir, name), text, 0o600)
}

// volumes sets which LVs are reported besides the thin pool.
func (f *fake) volumes(lines ...string) { f.put("volumes", string(reportOf(lines...))) }

// ours is a line of a device that LVM reports.
func ours(name, uuid, id, thin string) string {
	return line(name, uuid, "orlop,orlop.id="+id, "pool", thin)
}

func (f *fake) open(c Config) (*Pool, error) {
	var fields []string
	for name, value := range f.pool {
		fields = append(fields, fmt.Sprintf("%q:%q", name, value))
	}
	f.put("pool", string(reportOf("{"+strings.Join(fields, ",")+"}")))
	c.VG, c.ThinPool = "v-g", "pool"
	p, err := open(f.t.Context(), c, f, f.t.TempDir())
	if err == nil {
		f.t.Cleanup(p.Close)
	}
	return p, err
}

func (f *fake) opened(lines ...string) *Pool {
	f.t.Helper()
	f.pool["lv_tags"] = "orlop.pool=known"
	f.volumes(lines...)
	p, err := f.open(Config{UUID: "known"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.put("calls", "")
	return p
}

// calls are the commands that were run, without what only reports.
func (f *fake) calls() (changes []string) {
	text, err := os.ReadFile(filepath.Join(f.dir, "calls"))
	if err != nil {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "lvs ") && !strings.HasPrefix(line, "lvmconfig ") {
			changes = append(changes, strings.TrimSpace(line))
		}
	}
	return changes
}

func (f *fake) status(uuid, name string) (status, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.devices {
		if uuid != "" && s.uuid == uuid || uuid == "" && s.name == name {
			return s, true, nil
		}
	}
	return status{}, false, nil
}

func (f *fake) message(_, text string) error {
	if f.busy && text == "reserve_metadata_snap" {
		return fmt.Errorf("message: %w", unix.EBUSY)
	}
	return nil
}

// activate makes the kernel show an LV of this UUID.
func (f *fake) activate(name, uuid string, opens int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mapper := mapperName("v-g", name)
	f.devices[mapper] = status{name: mapper, uuid: "LVM-vguuid" + uuid, opens: opens, target: "thin", params: "128 127", size: 8 << 20}
}

func names(infos []blockdev.Info) (ids []string) {
	for _, info := range infos {
		ids = append(ids, string(info.ID))
	}
	slices.Sort(ids)
	return ids
}
