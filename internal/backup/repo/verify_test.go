package repo

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// stock is a repository with backups, and what they hold.
type stock struct {
	t        testing.TB
	objects  *storetest.Memory
	key      *Key
	contents map[string][]byte // by the backups' IDs
	chunks   map[string]map[int64][]byte
	backups  []*Backup
	known    known // what a host remembers of the repository
}

// known is a Memory that learns nothing.
type known Known

func (k known) Recall() (Known, error)    { return Known(k), nil }
func (k known) Change(func(*Known)) error { return nil }

// stocks are what newStock gives copies of: one that is encrypted, and one that is not.
var stocks = map[bool]func(t testing.TB) *stock{true: onlyOnce(true), false: onlyOnce(false)}

func onlyOnce(encrypted bool) func(testing.TB) *stock {
	var (
		mu   sync.Mutex
		made *stock
	)
	return func(t testing.TB) *stock {
		mu.Lock()
		defer mu.Unlock()
		if made == nil {
			made = makeStock(t, encrypted)
		}
		return made
	}
}

// newStock returns a repository in memory with three backups in each of two lineages. What is done to it shows in no other.
func newStock(t testing.TB, encrypted bool) *stock {
	t.Helper()
	s := *stocks[encrypted](t)
	s.t, s.objects = t, s.objects.Clone()
	s.contents, s.chunks = maps.Clone(s.contents), maps.Clone(s.chunks)
	s.backups = slices.Clone(s.backups)
	for i, b := range s.backups {
		again := *b
		s.backups[i] = &again
	}
	s.known.Heads = maps.Clone(s.known.Heads)
	return &s
}

// makeStock makes a repository like newStock's that is another.
func makeStock(t testing.TB, encrypted bool) *stock {
	t.Helper()
	s := &stock{t: t, objects: storetest.NewMemory(), contents: map[string][]byte{}, chunks: map[string]map[int64][]byte{}}
	if encrypted {
		key, err := NewKey(rand.NewChaCha8([32]byte{9}))
		if err != nil {
			t.Fatal(err)
		}
		s.key = key
	}
	r, err := Init(t.Context(), s.objects, s.key)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, lineage := range []string{"lineage-a", "lineage-b"} {
		data := make([]byte, 25*MinChunk+1000)
		if lineage == "lineage-a" {
			data = make([]byte, 257*MinChunk+1000) // a tree of two levels
		}
		mix(random, data[:20*MinChunk])
		mix(random, data[len(data)-5000:])
		for n := range 3 {
			mix(random, data[(n+1)*MinChunk:(n+2)*MinChunk+5])
			s.add(r, lineage, fmt.Sprintf("%032x", n+1), data)
		}
	}
	s.known = known{Repository: r.ID(), Encrypted: encrypted, Heads: map[string]uint64{"lineage-a": 3, "lineage-b": 3}}
	if encrypted {
		s.known.Key = s.key.ID()
	}
	return s
}

// nodesOf reads nodes by a Loader and writes them with a MetaWriter.
type nodesOf struct {
	Loader
	*MetaWriter
}

// add backs up data as the next backup of a lineage, in a session of its own.
func (s *stock) add(r *Repository, lineage, record string, data []byte) *Backup {
	s.t.Helper()
	ctx := s.t.Context()
	var session ID
	if err := fill(nil, session[:]); err != nil {
		s.t.Fatal(err)
	}
	h, index, err := r.NewestIndexed(ctx, lineage)
	if err != nil {
		s.t.Fatal(err)
	}
	loader, err := r.Loader(lineage, index)
	if err != nil {
		s.t.Fatal(err)
	}
	var packs []LivePack
	emit := func(ctx context.Context, pack Pack) error {
		packs = append(packs, LivePack{pack.Ref.Name, pack.Ref.Size})
		return r.objects.Put(ctx, pack.Ref.Name.String(), pack.Bytes)
	}
	b := NewBackup()
	b.Lineage, b.Record, b.Sequence = lineage, record, h.Sequence
	b.Size, b.ChunkSize, b.Created, b.Host, b.Writer = int64(len(data)), MinChunk, time.Now().UTC(), "host", "test"
	b.Volume = Named{"id-of-" + lineage, "volume-of-" + lineage}
	b.Tree = s.write(loader, session.String(), data, emit)
	writer, err := loader.Lineage.NewMetaWriter(session.String(), index, emit)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := writer.StoreBackup(ctx, b); err != nil {
		s.t.Fatal(err)
	}
	if err := writer.Flush(ctx); err != nil {
		s.t.Fatal(err)
	}
	s.commit(r, b, packs)
	s.contents[b.ID()] = bytes.Clone(data)
	s.chunks[b.ID()] = chunksOfContent(s.contents[b.ID()])
	s.backups = append(s.backups, b)
	return b
}

// write writes data's chunks and nodes.
func (s *stock) write(loader Loader, session string, data []byte, emit func(context.Context, Pack) error) Tree {
	s.t.Helper()
	writer, err := loader.Lineage.NewMetaWriter(session, loader.Index, emit)
	if err != nil {
		s.t.Fatal(err)
	}
	plan := planOf(s.t, int64(len(data)), MinChunk)
	builder, err := NewBuilder(s.t.Context(), nodesOf{loader, writer}, Tree{}, chunksOf(plan.size, MinChunk))
	if err != nil {
		s.t.Fatal(err)
	}
	pipeline := &Pipeline{Lineage: loader.Lineage, Session: session, Index: loader.Index, Source: bytes.NewReader(data), Plan: plan, Emit: emit, Chunk: builder.Range}
	if _, err := pipeline.Run(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	tree, err := builder.Finish(s.t.Context())
	if err == nil {
		err = writer.Flush(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return tree
}

// commit adds a backup and its packs to the lineage.
func (s *stock) commit(r *Repository, b *Backup, packs []LivePack) {
	s.t.Helper()
	c, err := r.chain(b.Lineage)
	if err != nil {
		s.t.Fatal(err)
	}
	encoded, err := b.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	h, err := c.read(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	next := h.child()
	next.Sequence++
	next.Records = append(next.Records, Record{b, encoded})
	next.Live = append(next.Live, packs...)
	written, err := c.write(s.t.Context(), next, h.Number)
	if err != nil || !written {
		s.t.Fatalf("commit: %t, %v", written, err)
	}
}

// hurt returns a copy of the stock in which an object is damaged; change nil deletes it.
func (s *stock) hurt(name string, change func([]byte) []byte) *stock {
	s.t.Helper()
	c := *s
	c.objects = s.objects.Clone()
	if change != nil {
		storetest.Tamper(s.t, c.objects, name, change)
	} else if err := c.objects.Delete(s.t.Context(), name); err != nil {
		s.t.Fatal(err)
	}
	return &c
}

// open opens the repository as another host would.
func (s *stock) open() *Repository {
	s.t.Helper()
	r, err := Open(s.t.Context(), s.objects, s.key, At("DEST"), RememberedBy(s.known))
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// verify opens and verifies the repository.
func (s *stock) verify(o VerifyOptions) Report {
	s.t.Helper()
	o.Command = "mend it"
	report, err := s.open().Verify(s.t.Context(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	return report
}

// chunksInMemory is a Target that keeps the chunks that were written, by their offsets. What was not written is zeroes.
type chunksInMemory struct {
	mu     sync.Mutex
	chunks map[int64][]byte
}

func (c *chunksInMemory) WriteAt(p []byte, offset int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chunks[offset] = bytes.Clone(p)
	return len(p), nil
}

func (c *chunksInMemory) Hole(offset, length int64) error {
	return fmt.Errorf("a hole of %d bytes at %d in what reads as zeroes", length, offset)
}

// chunksOfContent returns the chunks of data that are not zeroes.
func chunksOfContent(data []byte) map[int64][]byte {
	chunks := map[int64][]byte{}
	for at := 0; at < len(data); at += MinChunk {
		if part := data[at:min(at+MinChunk, len(data))]; !bytes.Equal(part, zeroes[:len(part)]) {
			chunks[int64(at)] = part
		}
	}
	return chunks
}

// restores makes sure that the backups named hurt fail as corrupt, and the others come back. It never suffers a wrong byte.
func (s *stock) restores(what string, hurt []string) {
	s.t.Helper()
	r := s.open()
	for _, b := range s.backups {
		want := s.chunks[b.ID()]
		got := &chunksInMemory{chunks: map[int64][]byte{}}
		_, err := r.Restore(s.t.Context(), Restore{Backup: b, Target: got})
		whole := maps.EqualFunc(got.chunks, want, bytes.Equal)
		switch isHurt := slices.Contains(hurt, b.ID()); {
		case isHurt && !fault.Is(err, fault.ErrCorrupt):
			s.t.Errorf("%s: backup %s is hurt, restoring it says %v", what, b.ID(), err)
		case !isHurt && (err != nil || !whole):
			s.t.Errorf("%s: backup %s is not hurt, restoring it says %v, right: %t", what, b.ID(), err, whole)
		}
		for at, chunk := range got.chunks {
			if !bytes.Equal(chunk, want[at]) {
				s.t.Errorf("%s: backup %s: wrong bytes in the chunk at %d", what, b.ID(), at)
			}
		}
	}
}

func TestVerifyOfAGoodRepositoryFindsNothing(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		for name, o := range map[string]VerifyOptions{
			"structure": {}, "data": {Data: true}, "sample": {Sample: 0.3}, "only": {Only: s.backups[1], Data: true},
		} {
			report := s.verify(o)
			if len(report.Findings) > 0 || report.Packs == 0 {
				t.Errorf("%s: %+v", name, report)
			}
			if (report.Read > 0) != (name != "structure") || name == "data" && report.Read != report.Packs {
				t.Errorf("%s: %d packs of %d read", name, report.Read, report.Packs)
			}
			if name == "only" && (report.Backups != 1 || report.Read >= report.Packs) {
				t.Errorf("%s: %+v", name, report)
			}
		}
		s.restores("untouched", nil)
	}
}

// fieldGroup is a part of an object, as FORMAT.md has it.
type fieldGroup struct {
	name       string
	from, upTo int
}

// fieldGroupKinds is how many parts are told apart: three of the config, five of a head, and nine of either kind of pack.
const fieldGroupKinds = 3 + 5 + 2*9

// fieldGroups returns the parts of an object.
func fieldGroups(t testing.TB, name string, data []byte) []fieldGroup {
	t.Helper()
	switch {
	case name == ConfigName:
		lines := bytes.SplitAfter(data, []byte("\n"))
		first, second := len(lines[0]), len(lines[0])+len(lines[1])
		return []fieldGroup{{"config", 0, first}, {"config's MAC", first, second}, {"config's checksum", second, len(data)}}
	case strings.Contains(name, "/heads/"):
		return []fieldGroup{{"head's beginning", 0, 24}, {"head's salt", 24, 56}, {"head's content", 56, len(data) - 48},
			{"head's tag", len(data) - 48, len(data) - 32}, {"head's checksum", len(data) - 32, len(data)}}
	}
	h, tr, err := splitPack(name, data)
	if err != nil {
		t.Fatal(err)
	}
	kind := map[PackKind]string{DataPack: "data pack's ", MetaPack: "metadata pack's "}[h.Name.Kind]
	groups := []fieldGroup{{kind + "lengths", 0, 24}, {kind + "IDs", 24, 56}, {kind + "salt", 56, 88}, {kind + "names", 88, 88 + len(h.Name.Lineage) + len(h.Name.Session)}}
	if len(h.Slots) > 0 {
		groups = append(groups, fieldGroup{kind + "slots", h.length - len(h.Slots), h.length})
	}
	return append(groups, fieldGroup{kind + "records", h.length, tr.offset}, fieldGroup{kind + "footer", tr.offset, tr.offset + tr.length},
		fieldGroup{kind + "trailer", len(data) - 48, len(data) - 32}, fieldGroup{kind + "checksum", len(data) - 32, len(data)})
}

// Whatever is damaged, verify names the object and exactly the backups that it hurts, those fail as corrupt, and all
// others come back bit for bit. An older head, the config and a checksum for keyless checks hurt none.
func TestVerifyNamesEveryDamageAndWhatItHurts(t *testing.T) {
	t.Parallel()
	least := 1 // times for each group of fields, of an encrypted repository or of another
	if soaking() {
		least = 30 // of each
	}
	random := newRandom(t)
	hit := map[string]int{}
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		objects := map[string][]fieldGroup{}
		groups := map[string][]string{} // objects by the group
		for _, name := range s.objects.Names() {
			data, err := s.objects.Get(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			objects[name] = fieldGroups(t, name, data)
			for _, g := range objects[name] {
				groups[g.name] = append(groups[g.name], name)
			}
		}
		for _, group := range slices.Sorted(maps.Keys(groups)) {
			names := groups[group]
			for range least {
				name := names[random.IntN(len(names))]
				g := objects[name][slices.IndexFunc(objects[name], func(g fieldGroup) bool { return g.name == group })]
				at, with := g.from+random.IntN(g.upTo-g.from), byte(1+random.IntN(255))
				for _, kind := range []struct {
					name   string
					change func([]byte) []byte
				}{
					{"flipped", func(data []byte) []byte { data[at] ^= with; return data }},
					{"cut", storetest.Truncate(at)},
					{"missing", nil},
				} {
					what := kind.name + " " + group
					if left := random.IntN(2) == 0 && !strings.HasSuffix(group, "slots"); !soaking() && (encrypted && left || !encrypted && hit[what] > 0) {
						continue // the other repository's turn; only an encrypted one has slots
					}
					s.damage(fmt.Sprintf("%s at %d of %s", what, at, name), name, kind.change)
					hit[what]++
				}
			}
		}
	}
	if len(hit) != fieldGroupKinds*3 {
		t.Errorf("%d kinds of damage: %v", len(hit), hit)
	}
	for group, times := range hit {
		if times < least {
			t.Errorf("%s: %d times", group, times)
		}
	}
	t.Logf("%d kinds of damage, each at least %d times", len(hit), least)
}

// damage checks one damage.
func (s *stock) damage(what, name string, change func([]byte) []byte) {
	s.t.Helper()
	hurt := s.hurt(name, change)
	report := hurt.verify(VerifyOptions{Data: true})
	var named []string
	found := false
	for _, f := range report.Findings {
		found = found || f.Object == name
		named = append(named, f.Backups...)
		if f.Command == "" || f.Problem == "" {
			s.t.Errorf("%s: %+v", what, f)
		}
	}
	if !found && s.isOldestHead(name) && change == nil {
		found = true // as after a clean-up
	}
	if !found || len(report.Findings) > 1 {
		s.t.Errorf("%s: verify says %+v", what, report.Findings)
	}
	hurt.restores(what, named)
}

// isOldestHead tells whether no head of the lineage has a lower number.
func (s *stock) isOldestHead(name string) bool {
	return strings.HasSuffix(name, fmt.Sprintf("%016d", 1))
}

func TestVerifyReadsFirstWhatWasNotReadForLongest(t *testing.T) {
	s := newStock(t, true)
	memory := filepath.Join(t.TempDir(), "verified.json")
	all := s.verify(VerifyOptions{}).Packs
	for range 4 { // each reads a quarter of the bytes, or more
		s.verify(VerifyOptions{Sample: 0.25, Memory: memory})
	}
	if v, err := readVerified(memory); err != nil || len(v.Packs) != all {
		t.Fatalf("%d packs of %d were read, %v", len(v.Packs), all, err)
	}
	// What was read longest ago is read first.
	v, err := readVerified(memory)
	if err != nil {
		t.Fatal(err)
	}
	for name := range v.Packs {
		v.Packs[name] = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	victim := slices.Sorted(maps.Keys(v.Packs))[all-1]
	v.Packs[victim] = time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)
	if err := v.save(); err != nil {
		t.Fatal(err)
	}
	report := s.verify(VerifyOptions{Sample: 1e-9, Memory: memory})
	if v, err = readVerified(memory); err != nil || report.Read != 2 || v.Packs[victim].Year() == 2025 { // one in each lineage
		t.Errorf("%+v, %v", report, err)
	}
}

func TestVerifyRemembersWhichBackupsAreHurt(t *testing.T) {
	s := newStock(t, true)
	memory := filepath.Join(t.TempDir(), "verified.json")
	pack, most := "", int64(0) // the largest: another may be shorter than where it is damaged
	err := s.objects.List(t.Context(), "", func(o store.Object) error {
		if strings.HasSuffix(o.Name, ".data") && o.Size > most {
			pack, most = o.Name, o.Size
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	damaged := s.hurt(pack, storetest.Flip(2000))
	found := damaged.verify(VerifyOptions{Data: true, Memory: memory}).Findings
	if len(found) != 1 || len(found[0].Backups) == 0 {
		t.Fatalf("%+v", found)
	}
	hurt := func() (ids []string) {
		for _, b := range s.backups {
			if RememberedDamage(memory).Hurts(b) {
				ids = append(ids, b.ID())
			}
		}
		return ids
	}
	if !slices.Equal(hurt(), found[0].Backups) {
		t.Errorf("remembered %v of %v", hurt(), found[0].Backups)
	}
	damaged.verify(VerifyOptions{Memory: memory}) // looks at no data, and learns nothing
	if !slices.Equal(hurt(), found[0].Backups) {
		t.Errorf("forgot %v", found[0].Backups)
	}
	s.verify(VerifyOptions{Data: true, Memory: memory})
	if len(hurt()) != 0 {
		t.Errorf("still %v", hurt())
	}
	if err := os.WriteFile(memory, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if report := s.verify(VerifyOptions{Data: true, Memory: memory}); len(report.Findings) > 0 {
		t.Errorf("%+v", report)
	}
}

// Compaction may replace packs between the reading of the head and the reading of the packs.
func TestVerifyDoesNotTakeForDamageWhatWasReplacedMeanwhile(t *testing.T) {
	s := newStock(t, true)
	r := s.open()
	h, err := r.Newest(t.Context(), "lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	victim := h.Live[0].Name
	faults := storetest.NewFaults(s.objects)
	faults.On(storetest.GetRange, victim.String(), 1, func(_ *storetest.Request, do func() error) error {
		s.move(victim)
		return do()
	})
	r.objects = faults
	report, err := r.Verify(t.Context(), VerifyOptions{Data: true})
	if err != nil || len(report.Findings) > 0 || report.Backups != len(s.backups) {
		t.Errorf("%+v, %v", report, err)
	}
}

// move replaces a pack by one of another name, as a compaction and a collection do.
func (s *stock) move(victim PackName) {
	s.t.Helper()
	ctx := s.t.Context()
	r := s.open()
	c, err := r.chain(victim.Lineage)
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := s.objects.Get(ctx, victim.String())
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := c.lineage.newPackWriter(strings.Repeat("ab", 16), victim.Kind, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, _, err := c.lineage.OpenPack(victim.String(), data, func(e Entry, plaintext []byte, err error) error {
		w.add(Entry{ID: e.ID, Type: e.Type, Level: e.Level, Length: e.Length}, plaintext)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	pack := w.finish()
	if err := s.objects.Put(ctx, pack.Ref.Name.String(), pack.Bytes); err != nil {
		s.t.Fatal(err)
	}
	if _, _, err := c.change(ctx, nil, func(h *Head) (*Head, error) {
		next := h.child()
		next.drop(map[PackName]bool{victim: true})
		next.Live = append(next.Live, LivePack{pack.Ref.Name, pack.Ref.Size})
		return next, nil
	}); err != nil {
		s.t.Fatal(err)
	}
	if err := s.objects.Delete(ctx, victim.String()); err != nil {
		s.t.Fatal(err)
	}
}

func TestVerifyFailsWhereItCannotLook(t *testing.T) {
	s := newStock(t, true)
	for n := 1; ; n++ {
		r := s.open()
		faults := storetest.NewFaults(s.objects)
		faults.On(storetest.Any, "", n, storetest.FailBefore(nil))
		r.objects = faults
		report, err := r.Verify(t.Context(), VerifyOptions{Data: true})
		if faults.Pending() > 0 {
			if err != nil || len(report.Findings) > 0 {
				t.Errorf("%+v, %v", report, err)
			}
			break
		}
		if !fault.Is(err, fault.ErrUnreachable) {
			t.Errorf("request %d fails: %+v, %v", n, report, err)
		}
	}
}

func TestRestoreFollowsHeadsWhilePacksMove(t *testing.T) {
	s := newStock(t, true)
	b := s.backups[2]
	h, err := s.open().Newest(t.Context(), b.Lineage)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range h.Live {
		c := *s
		c.objects = s.objects.Clone()
		r := c.open()
		records, err := r.read(t.Context(), b, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.move(p.Name)
		got := &disk{data: make([]byte, b.Size)}
		if _, err := (Restore{Backup: b, Target: got}).restore(t.Context(), records); err != nil || !bytes.Equal(got.data, s.contents[b.ID()]) {
			t.Errorf("%s moved: %v", p.Name, err)
		}
	}
}

func TestRestoreOfADeletedBackupSaysSo(t *testing.T) {
	s := newStock(t, true)
	b := s.backups[0]
	r := s.open()
	records, err := r.read(t.Context(), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.chain(b.Lineage)
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := c.change(t.Context(), nil, func(h *Head) (*Head, error) {
		next := h.child()
		next.Records, next.Live = next.Records[1:], nil
		return next, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range s.objects.Names() {
		if strings.HasPrefix(name, SessionsPrefix(b.Lineage)) {
			if err := s.objects.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := &disk{data: make([]byte, b.Size)}
	_, err = Restore{Backup: b, Target: got}.restore(t.Context(), records)
	if !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("while it is read: %v", err)
	}
	if _, err = r.Restore(t.Context(), Restore{Backup: b, Target: got}); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("afterwards, head %d: %v", h.Number, err)
	}
}
