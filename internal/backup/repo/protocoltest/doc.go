// Package protocoltest simulates the protocol by which backups are committed, collected and read, before and beside
// the real thing. A World is one random history of writers, readers, collectors, compactions and retention on
// several hosts over a model store, with crashes, sleep, twins, and lost, late and repeated requests; there is no
// time, only order. A Model is the protocol, whole or broken by one Mutation. It has to hold that
//
//   - every record of the newest head restores, bit for bit, after every change of the store,
//   - who was told "committed" finds the record in the chain until somebody removes it on purpose,
//   - no reader is given wrong bytes, a backup that was never committed, or a false "deleted" or "corrupt",
//   - after everything ended, one undisturbed collection leaves exactly the live packs and the kept heads.
//
// An Engine that adapts the real repository to Process (its Put, Get, List and Delete are a store, with []byte for
// objects) runs the same histories: Perform does a Job by the real code, Applied restores all records of a new head.
//
// # Names and what the store must do
//
// Below a prefix of the lineage's own, for a collector deletes what its lineage does not know: head/<number>,
// zero-padded, from 1, is the chain; sessions/<session>/<random> is everything else. No object is ever changed. Put
// is exclusive and atomic. A list shows, page by page and in order, what is there while it runs; what a Put or
// Delete that returned has done is seen by every request begun afterwards. Delete is idempotent.
//
// # What a head contains
//
//   - number, a random nonce, the parent's nonce, and the sequence number of the next record,
//   - the records: id (the owner nonce of the run that wrote it), sequence, root id, and what a restore needs,
//   - the live packs by name, inline: 1 MB for a TiB in packs of 32 MiB (objects that hold parts of the list would
//     need a session in every writer of heads, and marks; that is not simulated),
//   - the sessions: id, owner nonce, host, kind of work, and the root ids of its bases: the roots, because their
//     records may be removed while the session lasts.
//
// A head is the whole state; none refers to an older one. Trees refer to children by id alone. Where an id is found
// is told by the indexes of the live packs, which are write-once and may be cached for ever by the name of the pack.
// So a compaction changes no tree. An id may be in several live packs.
//
// # Reading and writing heads
//
// Kept is 64 (in the model 3), a constant of the format: whoever cleans keeps the 64 highest numbers, and everybody
// counts on it.
//
//   - Newest: list head/ from the highest number ever seen on; the highest name listed is it. (From there the
//     listing is short, however many old heads are left. An empty listing is a store that was set back: refuse it.)
//     Get it; if it is gone, list again. What is read may never have been in the chain: a writer that slept since
//     before a number was used can create it again after it was cleaned up.
//   - Genuine(head): list, after the head was read or put; if newest - number < 64, the head is of the chain. (Its
//     number was not cleaned up before the listing, so it was created only once.) Otherwise nothing is known: read
//     the newest head, and judge by it.
//   - Write(next): number = parent's + 1, a fresh nonce, Put. If it succeeded, or if it failed in any way and a Get
//     of that name shows the own nonce, the head is there; it counts only when Genuine says so, after the Put. In
//     all other cases (another nonce, nothing there, not genuine) it is unknown whether the head is in the chain or
//     will be.
//   - Change(edit), the only way to write: read the newest head; edit tells what to put in its place, or that what
//     is wanted has happened already, or cannot happen any more; in the latter cases the head must be Genuine, or
//     all begins anew; otherwise Write; if the outcome is not "in the chain", begin anew. Each attempt decides
//     everything from the head it replaces; nothing decided from another head is carried over, since that one may
//     never have been in the chain. Edits recognise their own effect by the owner nonce, so lost replies and late
//     puts do no harm.
//
// Who knows a head may start Change from it without reading: the Put proves that it is the newest. A commit to a
// head that did not move is then one Put and one list. But what needs no Put ("nothing to do", "fenced") is
// concluded only from a head that was read after Change began; and a collection reads its head in any case (rule 3).
// To init is to write head 1 by Change, from the empty state: no heads, and nothing under sessions/. With packs and no heads
// the lineage is damaged, and nobody writes to it. The newest head is never deleted, not even with the
// last record.
//
// # The rules
//
// 0. Heads. Exclusive creation; the 64 highest numbers kept; a head counts only when confirmed after its Put, for
// collectors and compactions as for writers; only a Genuine head supports a conclusion that no Put of one's own
// proves: committed, fenced, deleted, corrupt, nothing to do. (HeadsOverwritten, HeadsKeptTooShort,
// CommitUnconfirmed, CollectionUnconfirmed, UncertainConclusion, LostReplyIsSuccess)
//
// 1. Register, then upload. A session is registered, and its head confirmed, before the first upload under its name;
// its bases are records of the very head that is replaced. An upload counts when it was acknowledged or when a Get
// (or its like) shows it; otherwise it is sent again, same name, same bytes. An object in a live pack may be
// referred to, and says nothing of those below it: each child is looked up too. Only below a base is everything
// there. (UploadBeforeRegister, BaseNotARecord, LostUploadIsSuccess, ConflictIsSuccess, SubtreeTrusted)
//
// 2. Commit is one head, and looks again. It adds the record and the session's packs, and removes the session; every
// object of the tree that neither a base nor an own pack holds is in a live pack of the head it replaces, or
// written anew first. (NoSecondLook)
//
// 3. List before read. A collector lists before it reads the head that it will go by, and deletes only names of that
// listing which that head neither lists as live nor has a session for. A listing may be old, and kept across a
// crash; but a run uses the one it began with, and shares it with none that runs beside it. Whoever uploads has a
// session, compactions too. (ListAfterHead, CompactionUnregistered)
//
// 4. Fenced is dead. A session that is missing from the head, or has another owner, is over: new owner nonce, new
// session id, everything uploaded again, and a base only if it is a record now. Session ids are never used again.
// Taking over is for registered sessions only, and sets a new owner nonce. (FencedCommits, FencedKeepsPacks,
// FencedKeepsBase, AdoptedKeepsOwner)
//
// 5. Removal never rebases. What a head takes off the live list was marked in the head it replaces.
// (CollectorRebases, CompactionRebases)
//
// 6. Bases are marked, as records are: those of all sessions that stay registered in the head to be written.
// (BasesUnmarked)
//
// 7. Stalling is policy. Any session may be taken for stalled at any moment, by anyone, and be fenced by a head;
// nothing is deleted, and nothing committed, on the strength of a beat. (StalledIsDeleted, BeatIsLease)
//
// 8. Missing is not corrupt, and order is by sequence. (MissingIsCorrupt, OrderByClock)
//
// # Each step
//
// Register: Change. If a session has my owner nonce, it is mine: done. Otherwise add {a session id drawn for this
// attempt, owner, host, kind, bases}: a base is a record of this head. Or take over a session, of a dead process of
// this host, that is in this head: same id, my owner nonce, its bases and, if wanted, another that is a record of
// this head. After taking over, list sessions/<id>/ and read the indexes: those packs are mine now. What the old
// owner uploads from then on is nobody's, and is collected when the session ends; its commit finds another owner:
// fenced.
//
// Upload: walk the tree from the root. Skip whatever is in a base, with all below it. For the rest, look each object
// up in the own packs, then in the live packs; upload what is in neither, chunks before nodes. Pack names are
// random, so that two processes that hold one session cannot meet.
//
// Commit: Change. If a record has my owner nonce: committed. If no session has my id and my owner nonce: fenced
// (rule 4). If a pack of the head is gone when its index is read: read the newest head. Look again (rule 2). Next:
// record with the head's sequence number, which rises by one; own packs live; session removed. A run whose outcome
// is unknown when it ends has either committed or not; its successor on the same host sees which in a Genuine head.
// If a record was committed and removed again before its writer looked, the writer finds itself fenced and backs up
// again.
//
// Forget: Change. Decide from this head which records go, by sequence; one chosen earlier goes only if it is
// still there and still not the newest. Only records are removed: a session that builds on one has it as a base.
//
// Collect: list sessions/ (or take up the listing of the run that was cut short). Change: remove the sessions that
// policy calls stalled, and then the live packs in which nothing is marked: reachable from the records, or from the
// bases of the sessions that are left. If there is nothing to remove, write nothing: the head read, Genuine, serves
// as well. If an object cannot be found while marking, collect nothing. Then, by the head that Change returned,
// delete listed names (rule 3), those of the sessions it fenced among them. These deletions may be late, repeated,
// cut short, and done years after: a name that is dead once is dead for ever, because its session is never
// registered again and packs come to life only by the commit of a registered session. Last, clean up.
//
// Clean up: list head/, delete numbers up to the highest listed less 64. No head needs to be read.
//
// Compact: register a session without bases. Change: if the session is gone, the own packs are live (done) or not
// (fenced). Mark as a collection does, choose partly dead packs once, keep those that are still live; upload what is
// marked in them and neither in own packs nor, readable, in live packs that stay; next: the chosen packs out, own packs in,
// session removed. When the head moved, mark again, and upload what has come to be needed. The next collection
// deletes.
//
// Restore: take records from a Genuine head. Look ids up in its live packs. If a pack or an id is missing, read a
// Genuine newest head: the record is gone: deleted meanwhile; the pack is not live any more: go on with this head;
// the pack is live and still missing on a second Get: corrupt. Collectors, writers and compactions that miss a pack
// do the same.
//
// Stalled, by policy: the set of names under sessions/<id>/, which a collector lists anyway, did not change over the
// observer's own monotonic clock; a writer with nothing to upload puts small objects there from time to time. A host
// takes over or ends sessions of its own dead processes at once.
package protocoltest
