"""What a new engine needs to know of the sessions of one that died: one append-only record a session.

For every request that must not run twice its encoded *reply* is written before that leaves, and, if running
it again would do more than running it once, an *intent* before it runs (what :func:`.settle.prepare` saw).
Written by plain write(2): it survives the death of the process, not of the machine, and neither do the
sessions.

A record is ``u32le length | u32le crc32 | msgpack``. Reading stops at the first one that is not whole: the
process was killed while writing it, and nothing that depended on it can have happened. Acknowledged requests
are dropped when the file is written anew, which happens when they are most of it.

The folder is private (0700, files 0600), used by one engine at a time, and its lock file's time says until
when that engine lived, so that sessions are not taken up again after their grace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import WsFuseError
from ..protocol.messages import Identity
from ..protocol.tickets import TokenClaims
from .locks import Hold, Key

_PREFIX: Final = struct.Struct("<II")
_SESSION_NAME: Final = re.compile(r"[0-9a-f]{32}\.record")
#: A record is written anew when it is larger than this and less than a quarter of it is still needed.
COMPACT: Final = 256 << 10
#: Bytes of one record that is believed when reading: the largest reply is a page of a directory.
MAX_RECORD: Final = 4 << 20


class Meta(msgspec.Struct, array_like=True, tag="session"):
    """Whose record this is, and by what right. ``boot``: the machine's boot id; a record of an earlier boot is worth
    nothing."""

    session: str
    tenant: str
    principal: str
    client: str
    links: str
    since: float
    boot: str
    groups: tuple[str, ...] = ()
    address: str = ""
    token: TokenClaims | None = None


class Intended(msgspec.Struct, array_like=True, tag="intent"):
    """Request ``seq`` is about to run; ``intent`` for :func:`.settle.settle`."""

    seq: int
    intent: dict[str, Any]


class Answered(msgspec.Struct, array_like=True, tag="reply"):
    """Request ``seq`` has run; ``frame`` is the encoded reply."""

    seq: int
    frame: bytes


class Acked(msgspec.Struct, array_like=True, tag="ack"):
    """Nobody will ask for these again."""

    seqs: list[int]


class Held(msgspec.Struct, array_like=True, tag="lock"):
    """The session started (``held``) or stopped holding something on a file."""

    dev: int
    ino: int
    btime: int
    flock: bool
    holder: int
    held: bool


Record = Meta | Intended | Answered | Acked | Held

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Record).decode


def _pack(record: Record) -> bytes:
    body = _encode(record)
    return _PREFIX.pack(len(body), zlib.crc32(body)) + body


def read_records(data: bytes) -> tuple[list[Record], int]:
    """The whole records at the start of *data*, and how many bytes they take."""
    records: list[Record] = []
    position = 0
    while position + _PREFIX.size <= len(data):
        length, checksum = _PREFIX.unpack_from(data, position)
        body = data[position + _PREFIX.size : position + _PREFIX.size + length]
        if length > MAX_RECORD or len(body) < length or zlib.crc32(body) != checksum:
            break
        try:
            records.append(_decode(body))
        except msgspec.MsgspecError:  # whole, but written by another version of us
            break
        position += _PREFIX.size + length
    return records, position


class ReplayLog:
    """The record of one session. May be used from several threads.

    Writing raises :class:`OSError`; what was written before stays readable then.
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path = path
        self.meta = meta
        #: Replies and intents that the former engine left and nobody has asked for yet.
        self.replies: dict[int, bytes] = {}
        self.intents: dict[int, dict[str, Any]] = {}
        self._holds: dict[Hold, bytes] = {}
        self._live: dict[int, bytes] = {}  # records of a request that is not acknowledged
        self._live_bytes = 0
        self._acks: deque[int] = deque()  # not written yet
        self._lock = threading.Lock()
        self._size = 0
        self._fd = -1

    @classmethod
    def create(cls, path: Path, meta: Meta) -> ReplayLog:
        """Start the record of a new session."""
        log = cls(path, meta)
        log._rewrite()
        return log

    @classmethod
    def recover(cls, path: Path) -> ReplayLog | None:
        """Read a record back and continue it; None if it does not even say whose it is."""
        records, size = read_records(path.read_bytes())
        if not records or not isinstance(records[0], Meta):
            return None
        log = cls(path, records[0])
        for record in records[1:]:
            log._replay(record)
        log._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(log._fd, size)
        log._size = size
        return log

    def _replay(self, record: Record) -> None:
        match record:
            case Intended():
                self.intents[record.seq] = record.intent
                self._keep(record.seq, _pack(record))
            case Answered():
                self.intents.pop(record.seq, None)
                self.replies[record.seq] = record.frame
                self._keep(record.seq, _pack(record))
            case Acked():
                self._forget(record.seqs)
            case Held():
                self._hold(record, _pack(record))
            case Meta():
                pass

    @property
    def holds(self) -> list[Hold]:
        """On which files the session holds locks."""
        return list(self._holds)

    def intend(self, seq: int, intent: dict[str, Any]) -> None:
        """Before request *seq* runs. Raises OSError: then it must not run."""
        data = _pack(Intended(seq, intent))
        with self._lock:
            self._forget([seq])  # of an engine before this one, which did not get to it
            self._append(data)
            self._keep(seq, data)

    def answer(self, seq: int, frame: bytes) -> None:
        """After request *seq* ran and before its reply leaves."""
        data = _pack(Answered(seq, frame))
        with self._lock:
            self._append(data)
            self._keep(seq, data)

    def acked(self, seqs: Iterable[int]) -> None:
        """The client has these replies for good. Does not wait: it is written before the next record.

        (A client whose acknowledgement got lost says so again after a recovery.)
        """
        self._acks.extend(seqs)

    def hold(self, hold: Hold, held: bool) -> None:
        """The session starts or stops holding locks on a file."""
        identity, key = hold
        record = Held(identity.dev, identity.ino, identity.btime, key.flock, key.holder, held)
        data = _pack(record)
        with self._lock:
            self._append(data)
            self._hold(record, data)

    def close(self) -> None:
        """Stop writing; the file stays for another engine."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def remove(self) -> None:
        """The session has ended."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _keep(self, seq: int, data: bytes) -> None:
        self._live[seq] = self._live.get(seq, b"") + data
        self._live_bytes += len(data)

    def _forget(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self._live_bytes -= len(self._live.pop(seq, b""))
            self.replies.pop(seq, None)
            self.intents.pop(seq, None)

    def _hold(self, record: Held, data: bytes) -> None:
        key = Key(self.meta.session, record.flock, record.holder)
        hold = Hold(Identity(record.dev, record.ino, record.btime), key)
        if record.held:
            self._holds[hold] = data
        else:
            self._holds.pop(hold, None)

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            return  # the session ended while a worker thread was at work for it
        if self._acks:
            data = self._take_acks() + data
        if self._size > COMPACT and self._live_bytes * 4 < self._size:
            self._rewrite()
        # At the known end, not O_APPEND: what a failed write leaves is overwritten by the next.
        if os.pwrite(self._fd, data, self._size) != len(data):
            raise OSError(errno.ENOSPC, "no space left for the record of the session")
        self._size += len(data)

    def _take_acks(self) -> bytes:
        acks = [self._acks.popleft() for _ in range(len(self._acks))]
        known = [seq for seq in acks if seq in self._live]
        self._forget(known)
        return _pack(Acked(known)) if known else b""

    def _rewrite(self) -> None:
        """Write the file anew with what is still needed."""
        parts = [_pack(self.meta), *self._holds.values(), *self._live.values()]
        temporary = self.path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(b"".join(parts))
            os.replace(temporary, self.path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = sum(map(len, parts))


class StateError(WsFuseError):
    """The state folder cannot be used; the message says why."""


def boot_id() -> str:
    """Differs after every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class StateDir:
    """The folder with the records of all sessions of one engine."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        wait: float = 10.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make the folder if need be and take it; waits up to *wait* seconds for a former engine to be gone.

        Raises :class:`StateError` or :class:`OSError`.
        """
        self.path = Path(path)
        self._clock = clock
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.path.stat()
        if status.st_uid != os.geteuid():
            raise StateError("the state folder belongs to somebody else")
        if status.st_mode & 0o077:
            self.path.chmod(0o700)
        self._fd = os.open(self.path / "engine.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(self._fd)
                    raise StateError("the state folder is in use by another engine") from None
                sleep(0.02)
        #: Seconds since the former engine was last known to live.
        self.silence = self._clock() - os.fstat(self._fd).st_mtime
        self.boot = boot_id()
        self.alive()

    def alive(self) -> None:
        """Note that this engine lives; call it several times in a grace period."""
        now = self._clock()
        os.utime(self._fd, (now, now))

    def create(self, meta: Meta) -> ReplayLog:
        """Start a record; ``meta.session`` must be 32 hexadecimal digits."""
        return ReplayLog.create(self.path / f"{meta.session}.record", meta)

    def recover(self, grace: float) -> list[ReplayLog]:
        """The records of sessions that may be taken up again; all others are removed."""
        logs = []
        for path in sorted(self.path.iterdir()):
            if path.suffix == ".new":
                path.unlink()
            elif _SESSION_NAME.fullmatch(path.name):
                log = ReplayLog.recover(path) if self.silence <= grace else None
                if log is None:
                    path.unlink()
                elif log.meta.boot == self.boot and path.stem == log.meta.session:
                    logs.append(log)
                else:
                    log.remove()
        return logs

    def close(self) -> None:
        """Let another engine have the folder."""
        os.close(self._fd)
