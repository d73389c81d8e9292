package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"orlop/internal/backup/repo/protocoltest"
	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// An engine runs the histories of protocoltest over the real repository, and holds every effect on the store against what
// has to be.
type engine struct {
	world *protocoltest.World
	keys  *Keyring

	wroteBy   map[string]protocoltest.Job // heads, by their bytes' end
	sizes     map[string]int64
	newest    *Head
	chain     map[ID]bool                 // nonces of heads that ever were the newest
	packs     map[string]map[ChunkID]byte // what packs hold: the first byte of chunks, 0 for others
	nodes     map[ChunkID]*node
	removed   map[string]bool
	committed map[string]protocoltest.Content
	processes int
}

func newEngine(w *protocoltest.World) (*engine, error) {
	e := &engine{
		world: w, wroteBy: map[string]protocoltest.Job{}, sizes: map[string]int64{}, newest: &Head{Lineage: testLineage, Sequence: 1},
		chain: map[ID]bool{{}: true}, packs: map[string]map[ChunkID]byte{}, nodes: map[ChunkID]*node{}, removed: map[string]bool{},
		committed: map[string]protocoltest.Content{},
	}
	_, _, keys, err := NewRepository(nil, e)
	e.keys = keys
	return e, err
}

// Read draws from the world's dice, so that a history can be repeated.
func (e *engine) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e.world.Choose(256))
	}
	return len(p), nil
}

// hostMemory is what a host keeps across crashes.
type hostMemory struct {
	known Known
	index *Index // of packs that were live
	last  *Backup
}

func (m *hostMemory) Recall() (Known, error) { return m.known, nil }

func (m *hostMemory) Change(change func(*Known)) error { change(&m.known); return nil }

// open returns the repository as a process sees it.
func (e *engine) open(ctx context.Context, objects store.Store, p *protocoltest.Process, origin Origin) (*Repository, *hostMemory, error) {
	if p.Host.Memory == nil {
		p.Host.Memory = &hostMemory{index: NewIndex()}
	}
	memory := p.Host.Memory.(*hostMemory)
	r, err := newRepository(ctx, objects, e.keys, nil, nil, []Option{From(origin), RememberedBy(memory)})
	if err != nil {
		return nil, nil, err
	}
	r.kept, r.serial = 3, true
	c, err := r.chain(testLineage)
	if err == nil {
		c.index = memory.index
	}
	return r, memory, err
}

// Perform implements protocoltest.Engine. The job runs in goroutines of its own; its requests are sent from here.
func (e *engine) Perform(p *protocoltest.Process, job protocoltest.Job) {
	e.processes++
	origin := Origin{Host: fmt.Sprintf("host-%d", p.Host.ID), Boot: "b", Process: fmt.Sprintf("999999999:%d", e.processes)}
	e.relay(p, job, func(ctx context.Context, objects store.Store) {
		r, memory, err := e.open(ctx, objects, p, origin)
		if err != nil {
			e.world.Fail("%s: %v", p, err)
			return
		}
		err = e.perform(ctx, p, job, r, memory)
		if c := r.chains[testLineage]; ctx.Err() == nil {
			memory.index = c.index
		}
		if fault.Is(err, fault.ErrCorrupt) || fault.Is(err, fault.ErrInvalid) || fault.Is(err, fault.ErrUnsupported) {
			e.world.Fail("%s: %s: %v", p, job, err)
		}
	})
}

func (e *engine) perform(ctx context.Context, p *protocoltest.Process, job protocoltest.Job, r *Repository, memory *hostMemory) error {
	switch job {
	case protocoltest.Backup:
		return e.backup(ctx, p, r, memory)
	case protocoltest.Forget:
		return e.forget(ctx, r)
	case protocoltest.Collect:
		done, err := r.chains[testLineage].collect(ctx, func(*Session) bool { return e.world.SeemsStalled() })
		if err == nil && done.Sessions > 0 {
			e.world.Saw("session ended by a collection")
		}
		if done.Packs > 0 {
			e.world.Saw("pack collected")
		}
		return err
	case protocoltest.Compact:
		done, err := r.Compact(ctx, testLineage, 0)
		if done.Replaced > 0 {
			e.world.Saw("compaction committed")
		}
		return err
	case protocoltest.Restore:
		return e.restore(ctx, p, r)
	}
	return fmt.Errorf("unknown job %s", job)
}

// The chunks of a content are 0, 1, 256 and 257 of a volume, so that its tree has two levels.
func volumeOf(c protocoltest.Content) *sparse {
	v := newSparse(512*MinChunk, MinChunk)
	for i, value := range c {
		if value != 0 {
			v.blocks[int64(i/2*fanout+i%2)] = noise(MinChunk, value)
		}
	}
	return v
}

func contentName(c protocoltest.Content) string { return fmt.Sprint([4]uint8(c)) }

func (e *engine) backup(ctx context.Context, p *protocoltest.Process, r *Repository, memory *hostMemory) error {
	content := e.world.NextContent()
	v := volumeOf(content)
	var base *Backup
	if e.world.Choose(3) != 0 {
		if base = memory.last; e.world.Choose(2) == 0 && len(e.newest.Records) > 0 {
			base = e.newest.Records[e.world.Choose(len(e.newest.Records))].Backup
		}
	}
	spec := specOf(v, nil, nil)
	spec.Backup.Labels = map[string]string{"content": contentName(content)}
	if base != nil {
		spec.Base = base.Record
	}
	spec.Extents = func(ctx context.Context, used *Backup, fn func(Extent) error) error {
		before := protocoltest.Content{}
		if used != nil {
			e.world.Saw("backup on a base")
			before = e.committed[used.Record]
		}
		for i := range content {
			hole := content[i] == 0
			if content[i] == before[i] && (used != nil || hole) {
				continue
			}
			if err := fn(Extent{Offset: int64(i/2*fanout+i%2) * MinChunk, Length: MinChunk, Hole: hole}); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		w, err := r.Backup(ctx, spec)
		if err == nil {
			e.told(p, w, content)
			memory.last = w.Backup
			return nil
		}
		if fault.Is(err, fault.ErrInUse) {
			e.world.Saw("backup given up because it was fenced again and again")
		}
		if !fault.Is(err, fault.ErrUnreachable) || e.world.Choose(4) == 0 {
			return err
		}
		e.world.Saw("backup run again")
	}
}

// told is called when a writer was told that its backup is committed.
func (e *engine) told(p *protocoltest.Process, w *Written, content protocoltest.Content) {
	if w.Mistrust != nil {
		e.world.Fail("%s: %v", p, w.Mistrust)
	}
	if w.Adopted {
		e.world.Saw("backup with adopted packs committed")
	}
	e.world.Saw("backup committed")
	if _, there := e.newest.Backup(w.Record); !there && !e.removed[w.Record] {
		e.world.Fail("%s was told that backup %s is committed, and it is not there", p, w.Record)
	}
	if e.committed[w.Record] != content {
		e.world.Fail("%s was told that backup %s is of %v, and it is of %v", p, w.Record, content, e.committed[w.Record])
	}
}

func (e *engine) forget(ctx context.Context, r *Repository) error {
	keep := 1 + e.world.Choose(2)
	if e.world.Choose(2) == 0 {
		_, err := r.Thin(ctx, testLineage, func(backups []*Backup) (records []string) {
			for _, b := range backups[:max(0, len(backups)-keep)] {
				records = append(records, b.Record)
			}
			return records
		})
		return err
	}
	if len(e.newest.Records) < 2 {
		return nil
	}
	backups := e.newest.Backups()
	_, err := r.Forget(ctx, testLineage, []string{backups[e.world.Choose(len(backups)-1)].Record})
	return err
}

func (e *engine) restore(ctx context.Context, p *protocoltest.Process, r *Repository) error {
	h, err := r.Newest(ctx, testLineage)
	if err != nil || len(h.Records) == 0 {
		return err
	}
	b := h.Records[e.world.Choose(len(h.Records))].Backup
	content, there := e.committed[b.Record]
	if !there {
		e.world.Fail("%s was shown backup %s, which was never committed", p, b.Record)
	}
	got := &sampled{}
	_, err = r.Restore(ctx, Restore{Backup: b, Target: got})
	switch {
	case fault.Is(err, fault.ErrNotFound):
		e.world.Saw("reader told that its backup was deleted meanwhile")
		if !e.removed[b.Record] {
			e.world.Fail("%s: backup %s is said to be deleted, and was not", p, b.Record)
		}
	case err == nil && got.content != content:
		e.world.Fail("%s: backup %s: read %v, want %v", p, b.Record, got.content, content)
	case err == nil:
		e.world.Saw("backup read")
	}
	return err
}

// sampled is a Target that keeps a byte of each chunk.
type sampled struct{ content protocoltest.Content }

func (s *sampled) WriteAt(p []byte, offset int64) (int, error) {
	index := offset / MinChunk
	s.content[index/fanout*2+index%fanout] = p[0]
	return len(p), nil
}

func (s *sampled) Hole(int64, int64) error { return nil }

// Settle implements protocoltest.Engine.
func (e *engine) Settle(p *protocoltest.Process) {
	e.relay(p, protocoltest.Collect, func(ctx context.Context, objects store.Store) {
		r, _, err := e.open(ctx, objects, p, Origin{})
		if err == nil {
			_, err = r.chains[testLineage].collect(ctx, func(*Session) bool { return true })
		}
		if err != nil {
			e.world.Fail("settle: %v", err)
		}
	})
	if len(e.newest.Sessions) > 0 {
		e.world.Fail("settled: sessions are left")
	}
	var want []string
	for number := max(3, e.newest.Number) - 2; number <= e.newest.Number; number++ {
		want = append(want, short(HeadName(testLineage, number)))
	}
	for _, pack := range e.newest.Live {
		want = append(want, short(pack.Name.String()))
	}
	slices.Sort(want)
	if e.newest.Number > 0 && !slices.Equal(e.world.Names(), want) {
		e.world.Fail("settled: the store holds %v, want %v", e.world.Names(), want)
	}
}

// Applied implements protocoltest.Engine.
func (e *engine) Applied(effect protocoltest.Effect) {
	name := long(effect.Name)
	data, put := effect.Object.([]byte)
	head := strings.HasPrefix(name, HeadPrefix(testLineage))
	switch {
	case !put && head && name == HeadName(testLineage, e.newest.Number):
		e.world.Fail("the newest head was deleted")
	case !put && !head && slices.ContainsFunc(e.newest.Live, func(p LivePack) bool { return p.Name.String() == name }):
		e.world.Fail("live pack %s was deleted", name)
	case put && head && name != HeadName(testLineage, e.newest.Number+1):
		e.world.Saw("old head number created again")
	case put && head:
		if err := e.chained(name, data); err != nil {
			e.world.Fail("%s: %v", name, err)
		}
	case put:
		if err := e.uploaded(name, data); err != nil {
			e.world.Fail("%s: %v", name, err)
		}
	}
}

// uploaded keeps what a pack holds.
func (e *engine) uploaded(name string, data []byte) error {
	if e.packs[name] != nil {
		return nil
	}
	lineage, err := e.keys.Lineage(testLineage)
	if err != nil {
		return err
	}
	holds := map[ChunkID]byte{}
	_, _, err = lineage.OpenPack(name, data, func(entry Entry, plaintext []byte, err error) error {
		holds[entry.ID] = 0
		switch {
		case err != nil:
		case entry.Type == TypeChunk:
			holds[entry.ID] = plaintext[0]
		case entry.Type == TypeNode:
			e.nodes[entry.ID], err = decodeNode(plaintext, int(entry.Level))
		}
		return err
	})
	e.packs[name] = holds
	return err
}

// chained looks at a new newest head.
func (e *engine) chained(name string, data []byte) error {
	plaintext, err := e.keys.OpenObject(name, data)
	if err != nil {
		return err
	}
	next, err := decodeHead(testLineage, e.newest.Number+1, plaintext, e.keys.decoder)
	if err != nil {
		return err
	}
	last := e.newest
	if next.Parent != last.Nonce {
		return fmt.Errorf("it does not follow the head before it")
	}
	e.newest, e.chain[next.Nonce] = next, true
	by := e.wroteBy[string(data[len(data)-32:])]
	for i, b := range last.Backups() {
		if _, there := next.Backup(b.Record); there {
			continue
		}
		if by != protocoltest.Forget || i == len(last.Records)-1 {
			return fmt.Errorf("it (%s) lost backup %s", by, b.Record)
		}
		e.removed[b.Record] = true
	}
	holds := map[ChunkID]byte{}
	for _, pack := range next.Live {
		if e.world.Object(short(pack.Name.String())) == nil {
			return fmt.Errorf("it (%s) lists pack %s, which is not there", by, pack.Name)
		}
		for id, value := range e.packs[pack.Name.String()] {
			holds[id] = value
		}
	}
	for _, b := range next.Backups() {
		content, err := e.assemble(b, holds)
		if err != nil {
			return fmt.Errorf("it (%s) has backup %s that does not restore: %w", by, b.Record, err)
		}
		if contentName(content) != b.Labels["content"] {
			return fmt.Errorf("it (%s) has backup %s that restores as %v, want %s", by, b.Record, content, b.Labels["content"])
		}
		e.committed[b.Record] = content
	}
	return nil
}

// assemble returns what a backup restores to from packs that hold something.
func (e *engine) assemble(b *Backup, holds map[ChunkID]byte) (content protocoltest.Content, err error) {
	child := func(id ChunkID, i int) (ChunkID, error) {
		if id == Hole {
			return Hole, nil
		}
		if _, there := holds[id]; !there {
			return Hole, errDangling{id}
		}
		return e.nodes[id][i], nil
	}
	for i := range content {
		id := b.Tree.Root
		for _, slot := range []int{i / 2, i % 2} {
			if id, err = child(id, slot); err != nil {
				return content, err
			}
		}
		if id == Hole {
			continue
		}
		value, there := holds[id]
		if !there {
			return content, errDangling{id}
		}
		content[i] = value
	}
	return content, nil
}

// short is an object's name as the world knows it, long the other way round.
func short(name string) string {
	rest := strings.TrimPrefix(name, lineagesPrefix+testLineage+"/")
	return strings.Replace(rest, "heads/", "head/", 1)
}

func long(name string) string {
	return lineagesPrefix + testLineage + "/" + strings.Replace(name, "head/", "heads/", 1)
}

// relay runs body with a store whose requests are sent in the name of p. If p crashes, body is ended first.
func (e *engine) relay(p *protocoltest.Process, job protocoltest.Job, body func(context.Context, store.Store)) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &relayed{engine: e, process: p, job: job, calls: make(chan func()), crashed: ctx.Done()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		body(ctx, s)
	}()
	defer func() {
		cancel()
		<-done
	}()
	for {
		select {
		case call := <-s.calls:
			call()
		case <-done:
			return
		}
	}
}

// relayed is a store that is p's requests.
type relayed struct {
	engine  *engine
	process *protocoltest.Process
	job     protocoltest.Job
	calls   chan func()
	crashed <-chan struct{}
}

// do runs a request where they must be sent from. Reads are repeated when their answer was lost, as clients of stores do.
func (s *relayed) do(request func() error) error {
	answer := make(chan error, 1)
	select {
	case s.calls <- func() { answer <- request() }:
	case <-s.crashed:
		return context.Canceled
	}
	select {
	case err := <-answer:
		return err
	case <-s.crashed:
		return context.Canceled
	}
}

func (s *relayed) read(request func() error) error {
	for {
		if err := s.do(request); !fault.Is(err, fault.ErrUnreachable) {
			return err
		}
	}
}

func (s *relayed) Put(_ context.Context, name string, data []byte) error {
	data = slices.Clone(data)
	return s.do(func() error {
		s.engine.sizes[name] = int64(len(data))
		s.engine.wroteBy[string(data[len(data)-32:])] = s.job
		return s.process.Put(short(name), data)
	})
}

func (s *relayed) Get(_ context.Context, name string) (data []byte, err error) {
	err = s.read(func() error {
		object, err := s.process.Get(short(name))
		if err == nil {
			data = slices.Clone(object.([]byte))
		}
		return err
	})
	return data, err
}

func (s *relayed) GetRange(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	data, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if offset+length > int64(len(data)) {
		return nil, store.Truncated(int64(len(data)), offset, length)
	}
	return data[offset : offset+length], nil
}

func (s *relayed) List(_ context.Context, prefix string, fn func(store.Object) error) error {
	for after, more := "", true; more; {
		var names []string
		err := s.read(func() (err error) {
			names, more, err = s.process.List(short(prefix), after)
			return err
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			after = name
			if err := fn(store.Object{Name: long(name), Size: s.engine.sizes[long(name)]}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *relayed) Delete(_ context.Context, name string) error {
	return s.do(func() error { return s.process.Delete(short(name)) })
}

var (
	_ protocoltest.Engine = (*engine)(nil)
	_ store.Store         = (*relayed)(nil)
)
