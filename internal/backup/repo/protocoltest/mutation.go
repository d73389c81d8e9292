package protocoltest

// A Mutation breaks one part of the protocol.
type Mutation int

// The mutations, in the order of the rules that they break.
const (
	Whole Mutation = iota // nothing is broken
	HeadsOverwritten
	HeadsKeptTooShort
	CommitUnconfirmed
	CollectionUnconfirmed
	UncertainConclusion
	LostReplyIsSuccess
	UploadBeforeRegister
	BaseNotARecord
	LostUploadIsSuccess
	ConflictIsSuccess
	SubtreeTrusted
	NoSecondLook
	ListAfterHead
	CompactionUnregistered
	FencedCommits
	FencedKeepsPacks
	FencedKeepsBase
	AdoptedKeepsOwner
	CollectorRebases
	CompactionRebases
	BasesUnmarked
	StalledIsDeleted
	BeatIsLease
	MissingIsCorrupt
	OrderByClock
)

// A Case tells which rule of doc.go a mutation breaks, and how.
type Case struct {
	Mutation Mutation
	Rule     int
	Name     string
	Broken   string
}

// Mutations are all but Whole.
var Mutations = []Case{
	{HeadsOverwritten, 0, "HeadsOverwritten", "a put of a head replaces the one that is there"},
	{HeadsKeptTooShort, 0, "HeadsKeptTooShort", "the clean-up keeps fewer heads than confirming counts on"},
	{CommitUnconfirmed, 0, "CommitUnconfirmed", "a writer does not list after it put a head"},
	{CollectionUnconfirmed, 0, "CollectionUnconfirmed", "a collector does not list after the put of its head, and deletes"},
	{UncertainConclusion, 0, "UncertainConclusion", "a head that was read, and not confirmed, proves that something has happened"},
	{LostReplyIsSuccess, 0, "LostReplyIsSuccess", "a lost reply to the put of a head counts as success"},
	{UploadBeforeRegister, 1, "UploadBeforeRegister", "a writer uploads, and then registers"},
	{BaseNotARecord, 1, "BaseNotARecord", "a session's base was a record of an earlier head than the one it extends"},
	{LostUploadIsSuccess, 1, "LostUploadIsSuccess", "a lost reply to an upload counts as success"},
	{ConflictIsSuccess, 1, "ConflictIsSuccess", "an upload that is told that its name exists does not look"},
	{SubtreeTrusted, 1, "SubtreeTrusted", "a node in a live pack is taken to have its subtree"},
	{NoSecondLook, 2, "NoSecondLook", "a writer whose head moved does not look again for what it refers to"},
	{ListAfterHead, 3, "ListAfterHead", "a collector lists the objects after its head"},
	{CompactionUnregistered, 3, "CompactionUnregistered", "a compaction uploads without a session"},
	{FencedCommits, 4, "FencedCommits", "a fenced writer commits"},
	{FencedKeepsPacks, 4, "FencedKeepsPacks", "a fenced writer registers its session again and keeps its packs"},
	{FencedKeepsBase, 4, "FencedKeepsBase", "a fenced writer keeps its base"},
	{AdoptedKeepsOwner, 4, "AdoptedKeepsOwner", "a session is adopted under its old owner nonce"},
	{CollectorRebases, 5, "CollectorRebases", "a collector whose head moved drops what it marked in the old one"},
	{CompactionRebases, 5, "CompactionRebases", "a compaction whose head moved swaps what it rewrote for the old one"},
	{BasesUnmarked, 6, "BasesUnmarked", "the bases of sessions are not marked"},
	{StalledIsDeleted, 7, "StalledIsDeleted", "objects of a session that seems stalled are deleted while it is registered"},
	{BeatIsLease, 7, "BeatIsLease", "a writer whose beat is fresh does not look whether it is registered"},
	{MissingIsCorrupt, 8, "MissingIsCorrupt", "a reader that misses a pack says corrupt"},
	{OrderByClock, 8, "OrderByClock", "retention goes by the writers' clocks"},
}
