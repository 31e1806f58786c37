"""Everything that is said between a client and an engine, as typed structs.

A message is the header of one frame (see :mod:`.codec`); file data travels beside it as the
frame's payload and is never copied through msgpack. Structs are encoded as msgpack arrays that
start with the tag, so the order of fields is the wire format: append, never reorder.

Names and paths are :class:`bytes`: relative to the workspace root, components joined by ``/``, no
leading slash, ``b""`` for the root itself. No path needs a symbolic link resolved, because the
kernel on the client's side has done that.

Times are integer nanoseconds since the epoch. ``errno`` travels by name.

:data:`REQUESTS` maps every request to the reply that answers it; :class:`Error` answers any.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

PROTOCOL_VERSION: Final = 1
SUBPROTOCOL: Final = "wsfuse.v1"

#: Why a handshake was refused: code -> the sentence shown to people.
REFUSALS: Final[dict[str, str]] = {
    "ticket-forged": "the ticket was not issued by this server",
    "ticket-expired": "the ticket has expired; ask the server for a new one",
    "ticket-replayed": "the ticket was used before; ask the server for a new one",
    "ticket-foreign": "the ticket was issued for another engine",
    "token-revoked": "the token was revoked; ask whoever made it for another one",
    "session-foreign": "the session belongs to somebody else",
    "version": "no common protocol version; update the older side",
    "busy": "the server has reached its number of sessions; try again later",
    "stopping": "the server is stopping",
    "workspace": "the workspace cannot be opened on the server",
}

_SHOWN: Final = 64  # characters of one field that a log line may carry


def _show(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        text = bytes(value[:_SHOWN]).decode("utf-8", "backslashreplace")
        return repr(text) if len(value) <= _SHOWN else f"{text!r}...({len(value)} bytes)"
    if isinstance(value, (list, tuple, dict)) and len(value) > 4 and not isinstance(value, Ref | Identity):
        return f"<{len(value)} items>"
    text = repr(value) if not isinstance(value, msgspec.Struct) else str(value)
    return text if len(text) <= 4 * _SHOWN else text[: 4 * _SHOWN] + "..."


class Struct(msgspec.Struct, array_like=True, forbid_unknown_fields=False, gc=False):
    """Base of all wire structs. ``str()`` gives one bounded line for the log, with no secrets."""

    hidden: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        parts = []
        for name in self.__struct_fields__:
            shown = "***" if name in self.hidden else _show(getattr(self, name))
            parts.append(f"{name}={shown}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Identity(Struct, frozen=True):  # type: ignore[misc]  # msgspec, unlike dataclasses, allows it
    """What makes a file itself, whatever it is called: device, inode, birth time (ns; 0: unknown)."""

    dev: int
    ino: int
    btime: int


class Attr(Struct):
    """statx(2) of a file. Times in nanoseconds, ``blocks`` in units of 512 bytes."""

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime: int
    mtime: int
    ctime: int
    btime: int

    @property
    def identity(self) -> Identity:
        return Identity(self.dev, self.ino, self.btime)


class Ref(Struct):
    """A file as the client knows it.

    With ``handle`` the open description is meant, whatever became of the name. Otherwise the
    path is resolved, and if ``identity`` is given and another file stands there now, or none
    does, the answer is ``ESTALE``.
    """

    path: bytes
    identity: Identity | None = None
    handle: int = 0


#: What a lease covers, as bits of ``AttrReply.lease`` and ``FetchReply.lease``; see :class:`AttrReply`.
LEASE_PARENT: Final = 1
LEASE_SELF: Final = 2

#: Bits of ``DirEntry.flags``: a lease on this very file is granted; it has no extended attributes; access(2) allows to
#: read it, and to execute or search it.
ENTRY_LEASED: Final = 1
ENTRY_PLAIN: Final = 2
ENTRY_READABLE: Final = 4
ENTRY_EXECUTABLE: Final = 8


class DirEntry(Struct):
    """One name in a directory. ``cookie`` continues after it. ``attr`` is None if it vanished,
    may not be read, or is ``.`` or ``..``. ``type`` is the ``DT_*`` value, ``flags`` are ``ENTRY_*``."""

    name: bytes
    cookie: int
    ino: int
    type: int
    attr: Attr | None = None
    flags: int = 0


class TreeDirectory(Struct):
    """A directory in the answer to :class:`ListTree`: its ``path`` from the workspace root, its attributes, and its
    entries in the order of a listing, without ``.`` and ``..``. ``complete``: these are all of them.
    ``lease``: a lease on it is granted."""

    path: bytes
    attr: Attr
    entries: list[DirEntry]
    complete: bool
    lease: bool = False


class Lock(Struct):
    """A lock as ``fcntl`` has it: ``[start, end]`` inclusive, ``end`` = 2**63-1 for "to the end".

    ``type`` is "r", "w" or "u" (unlock). ``owner`` is the client kernel's lock owner, unique within
    a session. ``flock`` tells the two families apart; a flock covers the whole file.
    """

    owner: int
    start: int
    end: int
    type: str
    pid: int
    flock: bool = False


class Change(Struct):
    """What another session (or somebody on the server) changed.

    ``name`` None: attributes or data of the file ``identity``. Otherwise the entry ``name`` of the
    directory ``identity`` appeared, vanished or names another file now; what it named before may have changed
    as well.
    """

    identity: Identity
    name: bytes | None = None


# --- the handshake and the session ----------------------------------------------------------------


class Hello(Struct, tag=1):
    """First message of every connection. ``session`` empty: a new one; else take it up again.

    ``epoch`` is the engine's epoch that the client last saw (0: none). ``handles`` lists, on a resume, what
    the client still holds: the engine closes every other handle of the session. None: keep all.
    """

    hidden: ClassVar = ("ticket", "session")
    versions: list[int]
    ticket: str
    session: str = ""
    epoch: int = 0
    client: str = ""
    transport: str = "direct"
    links: str = "keep"
    handles: list[int] | None = None
    features: list[str] = []


class Welcome(Struct, tag=2):
    """The engine admits the client.

    ``resumed``: the session was still there, its handles and locks with it. ``recovered``: this
    engine (another epoch) has taken the session's record over from one that died: replies are
    remembered, handles and locks are gone and may be claimed with :class:`Reopen`. Neither, although
    a session was asked for: the session is lost, this is a new one.
    ``unwatched``: why a client that asked for leases gets none, in words.
    ``window`` and ``window_bytes`` bound what may be unanswered at a time.
    """

    hidden: ClassVar = ("session",)
    version: int
    session: str
    epoch: int
    resumed: bool
    recovered: bool
    window: int
    window_bytes: int
    max_payload: int
    tenant: str
    root: Attr
    uid: int
    gid: int
    read_only: bool = False
    raw_owner: bool = False
    grace: float = 0.0
    features: list[str] = []
    unwatched: str = ""


class Refused(Struct, tag=3):
    """The engine does not admit the client and closes. ``code`` is a key of :data:`REFUSALS`."""

    code: str
    message: str


class Ack(Struct, tag=4):
    """The client needs the remembered replies to these requests no longer.

    ``keep`` not None: nor any other reply that is remembered now, except to these. Said after a resume, when
    acknowledgements may have been lost with the connection.
    """

    seqs: list[int]
    keep: list[int] | None = None


class Ping(Struct, tag=5):
    nonce: int


class Pong(Struct, tag=6):
    nonce: int


class Bye(Struct, tag=7):
    """The sender ends the session for good: handles closed, locks released, nothing remembered."""

    reason: str = ""


class Cancel(Struct, tag=8):
    """Give up waiting for ``seq`` if it still waits (for a lock): its reply will be ``EINTR``.
    What has begun is finished and answered as usual."""

    seq: int


class Changed(Struct, tag=9):
    changes: list[Change]


class InvalidateAll(Struct, tag=10):
    """Forget everything cached: notifications were lost. Leases that were granted go on."""

    reason: str = ""


class Released(Struct, tag=11):
    """The leases on these files have ended: their changes will not be told any more."""

    identities: list[Identity]


#: How much of a :class:`Report` is taken: things rescued, bytes of a path, characters of a text.
MOST_RESCUED: Final = 8
_REPORTED_PATH: Final = 512
_REPORTED_TEXT: Final = 160


class Rescued(Struct):
    """What could not be brought to the server, and is kept by the client as ``name``: ``size`` bytes of ``path``."""

    name: str
    path: bytes
    reason: str
    size: int
    time: int


class Report(Struct, tag=12):
    """What the client knows of itself, for people: nothing depends on it, and nothing of it is to be believed.

    Sent by a client with the feature "reports" while :class:`Watched` says so, when something in it is another, and
    when it parks. ``state``: "connected" or "parked". ``path``: where it is mounted on ``host``. ``rtt``: nanoseconds
    of a round trip, 0 if unknown. ``operations`` since it was mounted, and how much was asked of its caches.
    ``unsynced``: bytes that are not on the server yet. ``held``: requests that wait to be sent.
    """

    state: str
    host: str
    path: bytes
    rtt: int
    operations: int
    hits: int
    misses: int
    unsynced: int
    held: int
    rescue: list[Rescued] = []

    def cut(self) -> Report:
        """The same in bounded size."""
        rescue = [
            Rescued(
                each.name[:_REPORTED_TEXT],
                each.path[:_REPORTED_PATH],
                each.reason[:_REPORTED_TEXT],
                each.size,
                each.time,
            )
            for each in self.rescue[:MOST_RESCUED]
        ]
        return Report(
            self.state[:_REPORTED_TEXT], self.host[:_REPORTED_TEXT], self.path[:_REPORTED_PATH], self.rtt,
            self.operations, self.hits, self.misses, self.unsynced, self.held, rescue,
        )  # fmt: skip


class Watched(Struct, tag=13):
    """Whether somebody looks at what a :class:`Report` says. False until it is said, after each Welcome."""

    on: bool


# --- requests --------------------------------------------------------------------------------------


class Request(Struct):
    """Base of requests. ``seq`` is unique in the session and chosen by the client.

    ``once``: the engine remembers the reply until it is acknowledged, so that sending the
    request again (same ``seq``) never executes it again. ``waits``: may wait without bound
    for somebody else. ``mutating``: refused on a read-only session with ``EROFS``.
    """

    once: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    mutating: ClassVar[bool] = False
    seq: int


class Mutation(Request):
    """Base of requests that change the workspace."""

    once: ClassVar[bool] = True
    mutating: ClassVar[bool] = True


class Lookup(Request, tag=20):
    """What ``name`` in ``parent`` is. Asks for a lease on ``parent``, see :class:`AttrReply`."""

    parent: Ref
    name: bytes


class GetAttr(Request, tag=21):
    ref: Ref


class SetAttr(Mutation, tag=22):
    """Every field that is not None is set. ``atime``/``mtime`` of -1: the server's present time.
    ``kill_priv``: clear set-user-ID, set-group-ID (group executable) and capabilities as well."""

    ref: Ref
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    kill_priv: bool = False


class Access(Request, tag=23):
    """access(2) with the engine's effective identity; ``mask`` of ``os.R_OK | W_OK | X_OK``."""

    ref: Ref
    mask: int


class ReadLink(Request, tag=24):
    ref: Ref


class OpenDir(Request, tag=25):
    """``handle`` not 0: the number that it is to have, as in :class:`Open`."""

    once: ClassVar = True
    ref: Ref
    handle: int = 0


class ReadDir(Request, tag=26):
    """Entries after ``cookie`` (0: from the start), at most ``limit``; ``plus``: with attributes."""

    handle: int
    cookie: int
    limit: int
    plus: bool = True


class Open(Request, tag=27):
    """``flags``: ``O_ACCMODE | O_APPEND | O_TRUNC | O_DIRECT...`` with Linux numbers; the rest is ignored.

    ``handle`` not 0: the number that the client chose for it (``EEXIST`` if it is in use), so that requests by that
    number can be sent right behind this one: they are executed after it. ``inline``: as many of the file's first
    bytes come with the reply, if it is opened for reading.
    """

    once: ClassVar = True
    ref: Ref
    flags: int
    kill_priv: bool = False
    handle: int = 0
    inline: int = 0


class Create(Mutation, tag=28):
    """Create and open. With ``O_EXCL`` in ``flags`` the name must be new. ``uid``/``gid`` None: the engine's own."""

    parent: Ref
    name: bytes
    mode: int
    flags: int
    uid: int | None = None
    gid: int | None = None
    kill_priv: bool = False


class TmpFile(Mutation, tag=29):
    """``O_TMPFILE`` in the directory ``parent``: an open file without a name."""

    parent: Ref
    mode: int
    flags: int
    uid: int | None = None
    gid: int | None = None


class Close(Request, tag=30):
    """Forget a handle or a pin. Closing an unknown one is no error: it may have been closed before a resume."""

    once: ClassVar = False
    handle: int


class Read(Request, tag=31):
    handle: int
    offset: int
    size: int


class Write(Mutation, tag=32):
    """The payload at ``offset``; at the end of the file if the handle was opened with ``O_APPEND``."""

    handle: int
    offset: int
    kill_priv: bool = False


class Fsync(Request, tag=33):
    """Answered when the file (or directory) is durable on the server."""

    handle: int
    data_only: bool = False


class Fallocate(Mutation, tag=34):
    """``mode``: ``FALLOC_FL_*`` of Linux."""

    handle: int
    mode: int
    offset: int
    length: int


class Seek(Request, tag=35):
    """``SEEK_DATA`` (3) or ``SEEK_HOLE`` (4)."""

    handle: int
    offset: int
    whence: int


class CopyRange(Mutation, tag=36):
    source: int
    source_offset: int
    target: int
    target_offset: int
    length: int


class MkDir(Mutation, tag=37):
    parent: Ref
    name: bytes
    mode: int
    uid: int | None = None
    gid: int | None = None


class MkNod(Mutation, tag=38):
    """Regular file, fifo or socket; device nodes are refused with ``EPERM``."""

    parent: Ref
    name: bytes
    mode: int
    rdev: int = 0
    uid: int | None = None
    gid: int | None = None


class SymLink(Mutation, tag=39):
    parent: Ref
    name: bytes
    target: bytes
    uid: int | None = None
    gid: int | None = None


class Link(Mutation, tag=40):
    ref: Ref
    parent: Ref
    name: bytes


class Unlink(Mutation, tag=41):
    """``pin``: if that was the last name, keep the file reachable by the handle in the reply
    (for GetAttr, SetAttr and the like by ``Ref.handle``) until :class:`Close`."""

    parent: Ref
    name: bytes
    pin: bool = False


class RmDir(Mutation, tag=42):
    parent: Ref
    name: bytes
    pin: bool = False


class Rename(Mutation, tag=43):
    """``flags``: ``RENAME_NOREPLACE`` (1), ``RENAME_EXCHANGE`` (2). ``pin`` as in Unlink, for the replaced file."""

    parent: Ref
    name: bytes
    new_parent: Ref
    new_name: bytes
    flags: int = 0
    pin: bool = False


class StatFs(Request, tag=44):
    ref: Ref


class SyncFs(Request, tag=45):
    """syncfs(2) of the workspace's file system."""


class GetXattr(Request, tag=46):
    ref: Ref
    name: bytes


class SetXattr(Mutation, tag=47):
    """``flags``: ``XATTR_CREATE`` (1), ``XATTR_REPLACE`` (2)."""

    ref: Ref
    name: bytes
    value: bytes
    flags: int = 0


class ListXattr(Request, tag=48):
    ref: Ref


class RemoveXattr(Mutation, tag=49):
    ref: Ref
    name: bytes


class GetLock(Request, tag=50):
    """The first lock that conflicts with ``lock``, or one of type "u"."""

    handle: int
    lock: Lock


class SetLock(Request, tag=51):
    """Set or, with type "u", clear. ``wait``: until granted or cancelled; otherwise ``EAGAIN``."""

    once: ClassVar = True
    waits: ClassVar = True
    handle: int
    lock: Lock
    wait: bool = False


class Reopen(Request, tag=52):
    """After an engine was replaced: take ``handle`` up again, under its old number.

    The file is found by ``ref`` (path and identity); ``ESTALE`` if it is not there any more.
    ``locks`` that the handle's session held are set again before anyone else can have them;
    ``ENOLCK`` if that is no longer certain, and then the handle is not opened.
    """

    once: ClassVar = True
    ref: Ref
    handle: int
    flags: int
    directory: bool = False
    locks: list[Lock] = []


class Stats(Request, tag=53):
    """What the requests of this session have cost the engine so far."""


class Fetch(Request, tag=54):
    """Attributes of a regular file, and up to ``size`` bytes of it at ``offset``, as if it was opened for reading.
    Asks for a lease on it, see :class:`AttrReply`. ``background``: nobody waits for it, other requests of the
    session go first."""

    ref: Ref
    offset: int
    size: int
    background: bool = False


class ListTree(Request, tag=55):
    """The directories ``refs``, and those up to ``depth`` levels below them (0: none), breadth first, until
    about ``limit`` entries were found; leases on them are asked for. What cannot be listed is left out.
    ``background`` as in :class:`Fetch`."""

    refs: list[Ref]
    limit: int
    depth: int = 0
    background: bool = False


# --- replies ---------------------------------------------------------------------------------------


class Reply(Struct):
    """Base of replies; ``seq`` is the request's."""

    seq: int


class Error(Reply, tag=80):
    """``errno`` by name; ``message`` for people, with no path outside the workspace."""

    errno: str
    message: str = ""


class Done(Reply, tag=81):
    pass


class AttrReply(Reply, tag=82):
    """``lease``: bits that say which leases are granted. Whoever holds one is told (:class:`Changed`) of every change
    by others, also by processes on the server, until :class:`Released`.

    ``LEASE_PARENT``, for a Lookup: on the directory, and so on its entries, the missing ones too, and on attributes and
    data of each file in it that is no directory and has no other name. ``LEASE_SELF``: on the file itself, that
    is on its attributes and data, or, of a directory, on its attributes and entries.
    """

    attr: Attr
    lease: int = 0


class LinkReply(Reply, tag=83):
    target: bytes


class OpenReply(Reply, tag=84):
    """The payload is what ``Open.inline`` asked for. ``attr`` is not younger than that."""

    handle: int
    attr: Attr


class DirReply(Reply, tag=85):
    """``lease``: one on the directory is granted."""

    entries: list[DirEntry]
    end: bool
    lease: bool = False


class DataReply(Reply, tag=86):
    """The payload is the data, shorter than asked only at the end of the file."""


class CountReply(Reply, tag=87):
    """Bytes written or copied, or the offset of a seek."""

    count: int


class RemovedReply(Reply, tag=88):
    """``attr`` of the removed or replaced file as it is now (``nlink`` 0 if that was its last name);
    None if nothing was replaced. ``moved``: for Rename, the attributes of the moved file."""

    attr: Attr | None = None
    pin: int = 0
    moved: Attr | None = None


class StatFsReply(Reply, tag=89):
    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namemax: int


class ValueReply(Reply, tag=90):
    value: bytes


class NamesReply(Reply, tag=91):
    names: list[bytes]


class LockReply(Reply, tag=92):
    """``lock``: for GetLock the conflicting one. ``attr``: the file's attributes once a lock is held,
    so that the client can tell whether what it has cached is still true."""

    lock: Lock | None = None
    attr: Attr | None = None


class StatsReply(Reply, tag=93):
    """By the name of the request: how many were answered, how many of them with an error, and in nanoseconds the
    time from arrival to reply, of it that at work on the files, and that held back by a rate limit; last the bytes
    of file data moved. Counted from the session's beginning or the engine's, whichever was later."""

    operations: dict[str, list[int]]


class FetchReply(Reply, tag=94):
    """The payload is the data, shorter than asked only at the end of the file; ``attr`` is not younger than that.
    ``lease`` as in :class:`AttrReply`."""

    attr: Attr
    lease: int = 0


class TreeReply(Reply, tag=95):
    """In the order in which they were found. A directory that is in the entries of another and not here itself was not
    reached, or cannot be listed."""

    directories: list[TreeDirectory]


#: Every request, and the reply to it when it succeeds.
REQUESTS: Final[dict[type[Request], type[Reply]]] = {
    Lookup: AttrReply,
    GetAttr: AttrReply,
    SetAttr: AttrReply,
    Access: Done,
    ReadLink: LinkReply,
    OpenDir: OpenReply,
    ReadDir: DirReply,
    Open: OpenReply,
    Create: OpenReply,
    TmpFile: OpenReply,
    Close: Done,
    Read: DataReply,
    Write: CountReply,
    Fsync: Done,
    Fallocate: Done,
    Seek: CountReply,
    CopyRange: CountReply,
    MkDir: AttrReply,
    MkNod: AttrReply,
    SymLink: AttrReply,
    Link: AttrReply,
    Unlink: RemovedReply,
    RmDir: RemovedReply,
    Rename: RemovedReply,
    StatFs: StatFsReply,
    SyncFs: Done,
    GetXattr: ValueReply,
    SetXattr: Done,
    ListXattr: NamesReply,
    RemoveXattr: Done,
    GetLock: LockReply,
    SetLock: LockReply,
    Reopen: OpenReply,
    Stats: StatsReply,
    Fetch: FetchReply,
    ListTree: TreeReply,
}

REPLIES: Final[tuple[type[Reply], ...]] = (
    Error, Done, AttrReply, LinkReply, OpenReply, DirReply, DataReply, CountReply, RemovedReply,
    StatFsReply, ValueReply, NamesReply, LockReply, StatsReply, FetchReply, TreeReply,
)  # fmt: skip

#: What the session itself says, in either direction.
CONTROL: Final[tuple[type[Struct], ...]] = (
    Hello, Welcome, Refused, Ack, Ping, Pong, Bye, Cancel, Changed, InvalidateAll, Released,
    Report, Watched,
)  # fmt: skip

#: Requests and replies that may carry a payload; every other frame must have none.
WITH_PAYLOAD: Final[tuple[type[Struct], ...]] = (Write, DataReply, OpenReply, FetchReply)

#: What a client and an engine may have beyond the first version: ``Hello.features`` and ``Welcome.features``.
#: "leases": changes are told, the watching of the workspace is possible.
#: "reports": see :class:`Report`.
LEASES: Final = "leases"
REPORTS: Final = "reports"
