package daemon

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"orlop/fs"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
)

// An Option is one setting of a new volume as the user gave it: a flag of "orlop create" or an -o of Docker's.
type Option struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// An OptionKind is one row of the table of options.
type OptionKind struct {
	Key      string
	Help     string
	Repeats  bool // may be given several times
	Switch   bool // needs no value on the command line
	NotAFlag bool // for Docker only
	FlagOnly bool // not for Docker
	set      func(*CreateSpec, string) error
}

// CreateSpec collects the options of a new volume before defaults and cross-checks.
type CreateSpec struct {
	volume.Spec
	driver    string
	from      string // volume or snapshot to copy
	backup    string // URL of a backup to restore
	keyFile   string // with which that is opened
	endpoint  string // of the bucket in which it is, if the URL names none
	typedSize string
	given     map[string]bool
}

// OptionKinds is the table of options: every front door reads it. Docker's form of the label option is
// label.<key>=<value>, and mount-option takes a list with commas there.
var OptionKinds = []OptionKind{
	{Key: "size", Help: "size of the volume, as in 512M, 10G or 1.5T", set: func(s *CreateSpec, v string) (err error) {
		s.typedSize = v
		s.Size, err = parseVolumeSize(v)
		return err
	}},
	{Key: "fs", Help: "filesystem: " + strings.Join(fs.Names(), " or "), set: func(s *CreateSpec, v string) error {
		_, err := fs.Lookup(v)
		s.Filesystem = v
		return err
	}},
	{Key: "pool", Help: "pool to create the volume in", set: func(s *CreateSpec, v string) error {
		s.Pool = v
		return nil
	}},
	{Key: "from", Help: "copy this volume or volume@snapshot", set: func(s *CreateSpec, v string) error {
		s.from = v
		return nil
	}},
	{Key: "label", Help: "label as key=value", Repeats: true, set: func(s *CreateSpec, v string) error {
		key, value, err := parseLabel(v)
		if err != nil {
			return err
		}
		return s.addLabel(key, value)
	}},
	{Key: "uid", Help: "numeric owner of the root directory", set: func(s *CreateSpec, v string) (err error) {
		s.UID, err = parseOwner("uid", v)
		return err
	}},
	{Key: "gid", Help: "numeric group of the root directory", set: func(s *CreateSpec, v string) (err error) {
		s.GID, err = parseOwner("gid", v)
		return err
	}},
	{Key: "mode", Help: "permission bits of the root directory in octal, as in 0750", set: func(s *CreateSpec, v string) error {
		mode, err := strconv.ParseUint(v, 8, 32)
		if err != nil || mode > 0o7777 {
			return fault.Errorf(fault.ErrInvalid, "mode %q: must be octal, from 0 to 7777", v)
		}
		s.Mode = uint32(mode)
		return nil
	}},
	{Key: "mount-option", Help: "option for mounting the volume, as in noatime", Repeats: true, set: func(s *CreateSpec, v string) error {
		s.MountOptions = append(s.MountOptions, strings.Split(v, ",")...)
		return nil
	}},
	{Key: "protect", Help: "refuse to delete the volume until it is unprotected", Switch: true, set: func(s *CreateSpec, v string) (err error) {
		if s.Protected, err = strconv.ParseBool(v); err != nil {
			return fault.Errorf(fault.ErrInvalid, "protect %q: must be true or false", v)
		}
		return nil
	}},
	{Key: "backup", Help: "URL of a backup that the new volume is restored from", set: func(s *CreateSpec, v string) error {
		s.backup = v
		return nil
	}},
	{Key: "key-file", Help: "path on this host of the key of the backup's repository", set: func(s *CreateSpec, v string) error {
		s.keyFile = v
		return nil
	}},
	{Key: "endpoint", Help: "S3 endpoint of the backup's bucket, as https://HOST:PORT, if the URL names none", NotAFlag: true, set: func(s *CreateSpec, v string) error {
		s.endpoint = v
		return nil
	}},
	{Key: "keep", Help: "retention policy of the volume's backups, as in daily:7,weekly:4", set: func(s *CreateSpec, v string) (err error) {
		s.Keep, err = parseKeep(v)
		return err
	}},
	{Key: "no-backup", Help: "leave the volume out when all volumes are backed up", Switch: true, set: func(s *CreateSpec, v string) (err error) {
		if s.NoBackup, err = strconv.ParseBool(v); err != nil {
			return fault.Errorf(fault.ErrInvalid, "no-backup %q: must be true or false", v)
		}
		return nil
	}},
	{Key: "pre-snapshot", Help: "command to run on the host before each snapshot", FlagOnly: true, set: func(s *CreateSpec, v string) (err error) {
		s.PreSnapshot, err = parseCommand("pre-snapshot", v)
		return err
	}},
	{Key: "post-snapshot", Help: "command to run on the host after each snapshot, even if that failed", FlagOnly: true, set: func(s *CreateSpec, v string) (err error) {
		s.PostSnapshot, err = parseCommand("post-snapshot", v)
		return err
	}},
	{Key: "driver", Help: "kind of pool, as Convoy had it", NotAFlag: true, set: func(s *CreateSpec, v string) error {
		s.driver = v
		return nil
	}},
}

func parseOwner(key, text string) (int, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil || id == 1<<32-1 { // chown(2) takes the last one for "leave it"
		return 0, fault.Errorf(fault.ErrInvalid, "%s %q: must be a number from 0 to 4294967294", key, text)
	}
	return int(id), nil
}

func (s *CreateSpec) addLabel(key, value string) error {
	if value == "" {
		return fault.Errorf(fault.ErrInvalid, "label %q: the value must not be empty", key)
	}
	if _, twice := s.Labels[key]; twice {
		return fault.Errorf(fault.ErrInvalid, "label %q: given twice", key)
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[key] = value
	return checkLabelCount(s.Labels)
}

const labelPrefix = "label."

// apply sets one option. An unknown one is fault.ErrInvalid with the known ones.
func (s *CreateSpec) apply(o Option) error {
	if key, ok := strings.CutPrefix(o.Key, labelPrefix); ok {
		if err := checkLabel(key, o.Value); err != nil {
			return err
		}
		return s.addLabel(key, o.Value)
	}
	i := slices.IndexFunc(OptionKinds, func(k OptionKind) bool { return k.Key == o.Key })
	if i < 0 {
		return fault.Errorf(fault.ErrInvalid, "option %q: unknown: use %s", o.Key, strings.Join(optionKeys(), ", "))
	}
	return OptionKinds[i].set(s, o.Value)
}

func optionKeys() []string {
	var keys []string
	for _, kind := range OptionKinds {
		key := kind.Key
		if key == "label" {
			key = labelPrefix + "<key>"
		}
		if !kind.FlagOnly {
			keys = append(keys, key)
		}
	}
	return keys
}

// parseKeep reads a retention policy and returns it in its usual spelling.
func parseKeep(text string) (string, error) {
	policy, err := repo.ParsePolicy(text)
	return policy.String(), err
}

// parseOptions reads a new volume's options beside the defaults. The name may be empty here.
func (d *Daemon) parseOptions(name string, options []Option) (CreateSpec, error) {
	s := CreateSpec{Spec: volume.Spec{Name: name, Size: d.defaultSize, Filesystem: d.defaultFS, Mode: 0o755}, given: map[string]bool{}}
	for _, option := range options {
		if err := s.apply(option); err != nil {
			return s, err
		}
		i := slices.IndexFunc(OptionKinds, func(k OptionKind) bool { return k.Key == option.Key })
		if i >= 0 && !OptionKinds[i].Repeats && s.given[option.Key] {
			return s, fault.Errorf(fault.ErrInvalid, "option %q: given twice", option.Key)
		}
		s.given[option.Key] = true
	}
	for _, key := range []string{"key-file", "endpoint"} {
		if s.given[key] && !s.given["backup"] {
			return s, fault.Errorf(fault.ErrInvalid, "option %q: only with %q", key, "backup")
		}
	}
	return s, nil
}

// spec reads a new volume's name and options, and completes them.
func (d *Daemon) spec(name string, options []Option) (CreateSpec, origin, error) {
	if err := checkName(name); err != nil {
		return CreateSpec{}, origin{}, err
	}
	s, err := d.parseOptions(name, options)
	if err != nil {
		return s, origin{}, err
	}
	return d.complete(s)
}

// complete fills in what a copy inherits, and checks what depends on each other. It fails with fault.ErrInvalid, naming the
// value and what is allowed.
func (d *Daemon) complete(s CreateSpec) (CreateSpec, origin, error) {
	var from origin
	if s.given["from"] {
		var err error
		if from, err = d.findOrigin(s.from); err == nil {
			err = s.inherit(from)
		}
		if err != nil {
			return s, from, err
		}
	}
	if err := d.checkHooks(s.PreSnapshot, s.PostSnapshot); err != nil {
		return s, from, err
	}
	if err := s.checkFilesystem(); err != nil {
		return s, from, err
	}
	err := d.choosePool(&s, s.given)
	return s, from, err
}

// inherit fills in what a copy has of its origin, and refuses what a copy cannot have.
func (s *CreateSpec) inherit(from origin) error {
	v := from.volume
	if s.given["pool"] && s.Pool != v.Pool {
		return fault.Errorf(fault.ErrInvalid, "pool %q: a copy of %s is made in its pool, %q", s.Pool, s.from, v.Pool)
	}
	setOwner := s.given["uid"] || s.given["gid"] || s.given["mode"]
	s.Pool, s.given["pool"] = v.Pool, true
	s.Copy = &volume.Copy{SetOwner: setOwner}
	return s.inheritAll(s.from, v, from.size)
}

// inheritAll fills in what a copy or a restored volume has of its origin, a volume whose content has size bytes, and refuses
// what it cannot have.
func (s *CreateSpec) inheritAll(of string, v metadata.Volume, size int64) error {
	if s.given["fs"] && s.Filesystem != v.Filesystem {
		return fault.Errorf(fault.ErrInvalid, "fs %q: a copy of %s keeps its filesystem, %s", s.Filesystem, of, v.Filesystem)
	}
	if s.given["size"] && s.Size < size {
		return fault.Errorf(fault.ErrInvalid, "size %q: a copy of %s needs at least %s", s.typedSize, of, volume.Bytes(size))
	}
	if !s.given["size"] {
		s.Size = size
	}
	if !s.given["uid"] {
		s.UID = v.UID
	}
	if !s.given["gid"] {
		s.GID = v.GID
	}
	if !s.given["mode"] {
		s.Mode = v.Mode
	}
	if !s.given["mount-option"] {
		s.MountOptions = v.MountOptions
	}
	labels := maps.Clone(v.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, s.Labels)
	s.Filesystem, s.Labels = v.Filesystem, labels
	return checkLabelCount(labels)
}

func (s *CreateSpec) checkFilesystem() error {
	kind, err := fs.Lookup(s.Filesystem)
	if err != nil {
		return err
	}
	if s.Size < kind.MinSize || s.Size > kind.MaxSize {
		return fault.Errorf(fault.ErrInvalid, "size %s: out of bounds: %s takes from %s to %s", cmp.Or(s.typedSize, volume.Bytes(s.Size)), kind.Name, Bytes(kind.MinSize), Bytes(kind.MaxSize))
	}
	for _, option := range s.MountOptions {
		if err := kind.CheckMountOption(option); err != nil {
			return err
		}
	}
	return nil
}

// CheckDefaults fails with fault.ErrInvalid if no volume can have this filesystem and size in bytes.
func CheckDefaults(filesystem string, size int64) error {
	s := CreateSpec{Spec: volume.Spec{Filesystem: filesystem, Size: size}}
	if err := s.checkFilesystem(); err != nil {
		return fmt.Errorf("defaults for new volumes: %w", err)
	}
	return nil
}

// choosePool finds the pool: the one named, the first of the kind named, or the first of all where neither is given.
func (d *Daemon) choosePool(s *CreateSpec, given map[string]bool) error {
	var names, kinds []string
	for _, pool := range d.pools {
		names = append(names, pool.Name)
		kinds = append(kinds, pool.Kind)
		if (!given["pool"] || s.Pool == pool.Name) && (!given["driver"] || s.driver == pool.Kind) {
			s.Pool = pool.Name
			s.BlockSize = pool.BlockSize
			return nil
		}
	}
	if given["driver"] && !slices.Contains(kinds, s.driver) {
		slices.Sort(kinds)
		return fault.Errorf(fault.ErrInvalid, "driver %q: no pool of this kind: there is %s", s.driver, strings.Join(slices.Compact(kinds), ", "))
	}
	return fault.Errorf(fault.ErrInvalid, "pool %q: not configured: there is %s", s.Pool, strings.Join(names, ", "))
}
