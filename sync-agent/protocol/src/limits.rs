//! Bounds on everything that comes from the other side, each with its reason. Those visible on the wire are also in
//! `sync.proto`; a change here is a change of the contract.

/// Linux's `PATH_MAX`: longer paths cannot be opened in one call.
pub const PATH_BYTES_MAX: usize = 4096;
/// Linux's `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// Linux's limit for a symbolic link's target (`PATH_MAX` less the NUL).
pub const LINK_TARGET_BYTES_MAX: usize = 4095;

/// Chunk sizes: small enough to find equal parts in databases, large enough that a list of them stays short.
pub const CHUNK_BYTES_MIN: u32 = 4 * 1024;
pub const CHUNK_BYTES_AVERAGE: u32 = 16 * 1024;
pub const CHUNK_BYTES_MAX: u32 = 64 * 1024;
/// Chunks of one file: about 2 GiB at the average size, and an event of about 5 MiB.
pub const FILE_CHUNKS_MAX: usize = 131_072;

/// Events in one batch.
pub const BATCH_EVENTS_MAX: usize = 4096;
/// A batch before compression: room for the largest event several times over.
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Any gRPC message, to be set on both sides: hashes do not compress, so a batch may be as large as its events.
pub const MESSAGE_BYTES_MAX: usize = BATCH_BYTES_MAX + 64 * 1024;

/// Hashes in one `NeedChunks`.
pub const NEED_CHUNKS_MAX: usize = 4096;
/// Compressed data in one `Chunks` message: keeps the stream responsive for what waits behind it.
pub const CHUNKS_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Input events in one SYN frame. The kernel's own packets stay far below it.
pub const FRAME_EVENTS_MAX: usize = 256;
/// Frames in one `Input` command.
pub const INPUT_FRAMES_MAX: usize = 256;
/// Changes in one `Apply` command.
pub const APPLY_CHANGES_MAX: usize = 256;
/// Entries in one answer to `ListRequest`.
pub const LIST_ENTRIES_MAX: usize = 1024;
/// Results that an agent remembers, so that a repeated command is answered, not repeated.
pub const RESULTS_REMEMBERED: usize = 1024;
/// Longest drive lease before it has to be renewed.
pub const LEASE_DURATION_MS_MAX: u32 = 3_600_000;

/// Free text for people.
pub const TEXT_BYTES_MAX: usize = 1024;
/// One claim of a phone about itself, and an operator's name.
pub const CLAIM_BYTES_MAX: usize = 256;
/// Certification request.
pub const CSR_BYTES_MAX: usize = 8 * 1024;
/// Roots, and excludes, in one set of rules.
pub const SCOPE_PATHS_MAX: usize = 1024;

/// The name of a modem: ModemManager's device identifiers have 40.
pub const MODEM_BYTES_MAX: usize = 64;
/// The name of a call.
pub const CALL_NAME_BYTES_MAX: usize = 128;
/// The other party of a call or message: twenty digits (3GPP TS 24.008, 10.5.4.7), or a name of eleven characters.
pub const PARTY_BYTES_MAX: usize = 64;
/// What a network calls itself (3GPP TS 27.007, +COPS: 16 characters).
pub const OPERATOR_NAME_BYTES_MAX: usize = 64;
/// An ISO 8601 time stamp.
pub const NETWORK_TIME_BYTES_MAX: usize = 32;
