package protocoltest

// A Job is what a process is told to do.
type Job string

// The jobs.
const (
	Backup  Job = "back up"       // a content that World.NextContent draws
	Forget  Job = "forget"        // retention, or a person, removes records
	Collect Job = "collect"       // fence some sessions, delete what is dead, clean old heads
	Compact Job = "compact"       // rewrite the live chunks of partly dead packs
	Restore Job = "read a backup" // any
)

// plan draws the hosts of a history, each with its jobs.
func (w *World) plan() (hosts [][]Job) {
	add := func(job Job, fewest, most, jobsFewest, jobsMost int) {
		for range fewest + w.Choose(most-fewest+1) {
			jobs := make([]Job, jobsFewest+w.Choose(jobsMost-jobsFewest+1))
			for i := range jobs {
				jobs[i] = job
			}
			hosts = append(hosts, jobs)
		}
	}
	add(Backup, 2, 4, 3, 6)
	add(Forget, 1, 3, 3, 8)
	add(Collect, 1, 3, 3, 8)
	add(Compact, 1, 2, 2, 5)
	add(Restore, 1, 2, 3, 8)
	return hosts
}

// NextContent draws what a volume holds now: often what some volume held before, or nearly so.
func (w *World) NextContent() Content {
	var c Content
	if len(w.contents) > 0 {
		c = w.contents[w.Choose(len(w.contents))]
	}
	if len(w.contents) == 0 || w.Choose(4) != 0 {
		for range 1 + w.Choose(3) {
			c[w.Choose(len(c))] = uint8(w.Choose(10))
		}
	}
	w.contents = append(w.contents, c)
	return c
}
