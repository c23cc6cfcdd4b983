// Package seglog is Milepost's own log: named streams of shards in segment files on one machine.
//
// A Store is a directory. Each stream in it has one sequence of segment files, shared by all of its shards, and one committer that
// writes them. Producers encode and route their records in their own goroutine and hand the bytes over; the committer gathers
// whatever waits, writes it as one group, syncs once, shows it to readers and answers all producers: a thousand devices with a
// record each cost a few syncs. Readers have their own file handles, are woken rather than polling, and see only what is durable.
//
// What it promises beyond the contract of stream.Log:
//
//   - The records of an Append of up to 4 MiB share a group: after a crash all of them are there, or none.
//   - After a failed write or sync nothing more is written until a restart (stream.ErrFenced); reads go on.
//   - A full disk refuses appends (stream.ErrFull) before anything is written, and appends succeed again when there is room.
//   - Recovery forgets a torn write at the end, of which nothing was acknowledged. Unreadable bytes anywhere else are a
//     *stream.DamageError, from Open or from a reader; Verify finds them, Salvage keeps what is readable. Nothing is deleted.
//
// FORMAT.md has the bytes and the steps of recovery.
//
// # Non-obvious
//
//   - Recovery syncs before it shows: a group that only the page cache holds must not be read by anyone (Log.openLast).
//   - A new segment's header ends the old one. So once a header may be durable, a failure fences: appending to the old segment
//     could be lost (committer.roll).
//   - The salt in every checksum is random and secret to the file system, so that no record can hold bytes that look like a group.
//   - There is no truncate. A torn tail stays where it is, behind the valid length that the next segment's header states.
package seglog
