package repo

import (
	"encoding/json"
	"fmt"
	"time"

	"orlop/internal/fault"
)

// backupVersion is the version of backup records that is written here.
const backupVersion = 1

// A Backup is the record of one backup: all that another host needs to make the volume again. It is stored as JSON, its
// fields in this order, maps sorted by their keys, without spaces between; so that one backup has one encoding. Readers
// ignore fields that they do not know, and refuse a record whose min_reader is above what they can read.
type Backup struct {
	Version   int    `json:"version"`
	MinReader int    `json:"min_reader"`
	Lineage   string `json:"lineage"`
	Record    string `json:"record"`           // with the lineage, the backup's ID
	Parent    string `json:"parent,omitempty"` // the record it was built on
	Sequence  uint64 `json:"sequence"`         // in the lineage, from 1: backups are ordered by it and not by time

	Size        int64  `json:"size"`       // of the volume, bytes
	ChunkSize   int    `json:"chunk_size"` // bytes
	Tree        Tree   `json:"tree"`
	Hash        string `json:"hash"` // as in the Config
	Compression string `json:"compression"`

	Volume       Named             `json:"volume"`
	Snapshot     Named             `json:"snapshot"`
	BlockSize    int               `json:"block_size"` // logical block size of the volume, bytes
	Filesystem   string            `json:"filesystem"`
	MkfsParams   []string          `json:"mkfs_params,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	UID          int               `json:"uid"`  // owner of the root directory when made
	GID          int               `json:"gid"`  //
	Mode         uint32            `json:"mode"` // permission bits of it
	MountOptions []string          `json:"mount_options,omitempty"`

	Consistency string `json:"consistency"`     // how the snapshot came to be whole: "unmounted", "frozen", "quiesced"
	Hooks       bool   `json:"hooks"`           // whether the volume's commands ran around it
	Group       string `json:"group,omitempty"` // shared by snapshots of one point in time

	Writer   string        `json:"writer"`  // version of the program
	Host     string        `json:"host"`    // name of the host
	Created  time.Time     `json:"created"` // when the snapshot was taken, UTC
	Duration time.Duration `json:"duration_ns"`
	Stats    Stats         `json:"stats"`
}

// Named is the ID and the name of a volume or a snapshot.
type Named struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// ID is the backup's name to users: <lineage>.<record>.
func (b *Backup) ID() string { return b.Lineage + "." + b.Record }

// Encode returns the backup's JSON. It fails with fault.ErrInvalid if DecodeBackup would refuse that.
func (b *Backup) Encode() ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, fault.Errorf(fault.ErrInvalid, "encode backup %s: %w", b.ID(), err)
	}
	data, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode backup %s: %w", b.ID(), err)
	}
	if len(data) > maxBackup {
		return nil, fault.Errorf(fault.ErrInvalid, "encode backup %s: it takes %d bytes, at most %d are allowed", b.ID(), len(data), maxBackup)
	}
	return data, nil
}

// DecodeBackup reads a backup's JSON. It fails with fault.ErrCorrupt if no writer can have written it, and with
// fault.ErrUnsupported if this program is too old for it.
func DecodeBackup(data []byte) (*Backup, error) {
	var version struct {
		MinReader int `json:"min_reader"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, fault.Errorf(fault.ErrCorrupt, "decode a backup record: %w", err)
	}
	if version.MinReader > backupVersion {
		return nil, fault.Errorf(fault.ErrUnsupported, "a backup record wants a program that reads version %d, this one reads up to %d", version.MinReader, backupVersion)
	}
	b := new(Backup)
	if err := json.Unmarshal(data, b); err != nil {
		return nil, fault.Errorf(fault.ErrCorrupt, "decode a backup record: %w", err)
	}
	if b.Hash != hashHMAC || b.Compression != compressionZstd {
		return nil, fault.Errorf(fault.ErrUnsupported, "backup %s uses the algorithms %q and %q, this program only %q and %q", b.ID(), b.Hash, b.Compression, hashHMAC, compressionZstd)
	}
	if err := b.check(); err != nil {
		return nil, fault.Errorf(fault.ErrCorrupt, "backup %s: %w", b.ID(), err)
	}
	return b, nil
}

// NewBackup returns a record of the version written here, to be filled in.
func NewBackup() *Backup {
	return &Backup{Version: backupVersion, MinReader: backupVersion, Hash: hashHMAC, Compression: compressionZstd}
}

// check refuses values that cannot be.
func (b *Backup) check() error {
	for _, label := range []string{b.Lineage, b.Record} {
		if err := CheckLabel(label); err != nil {
			return err
		}
	}
	if b.Parent != "" {
		if err := CheckLabel(b.Parent); err != nil {
			return err
		}
	}
	if err := checkChunkSize(b.ChunkSize); err != nil {
		return err
	}
	switch {
	case b.Version < 1 || b.MinReader < 1 || b.Sequence < 1:
		return fmt.Errorf("version %d, min_reader %d, sequence %d", b.Version, b.MinReader, b.Sequence)
	case b.Size < 1 || b.Tree.Chunks != chunksOf(b.Size, b.ChunkSize):
		return fmt.Errorf("%d bytes in %d chunks of %d", b.Size, b.Tree.Chunks, b.ChunkSize)
	case b.BlockSize < 0 || b.UID < 0 || b.GID < 0 || b.Mode > 0o7777 || b.Duration < 0 || b.Created.IsZero():
		return fmt.Errorf("block size %d, owner %d:%d, mode %o, created %s", b.BlockSize, b.UID, b.GID, b.Mode, b.Created)
	}
	return b.Tree.check()
}

// checkChunkSize fails with fault.ErrInvalid unless chunks may be of that size.
func checkChunkSize(size int) error {
	if size < MinChunk || size > MaxChunk || size&(size-1) != 0 {
		return fault.Errorf(fault.ErrInvalid, "chunk size %d: a power of two from %d to %d is wanted", size, MinChunk, MaxChunk)
	}
	return nil
}

// chunksOf is how many chunks a volume has, the last perhaps not full.
func chunksOf(size int64, chunkSize int) int64 {
	count := size / int64(chunkSize)
	if size%int64(chunkSize) > 0 {
		count++
	}
	return count
}
