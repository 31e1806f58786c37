"""The files of one tenant's audit log, as the engine writes them: chain, segments, seals, head, recovery.

Used by one thread at a time. What :meth:`LogFiles.append` raised for is not in the log and may be given again: what
a failed write left behind the end is cut off or overwritten.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from ..auditlog.entries import (
    END,
    EXPIRED,
    HASH_KEY,
    HEAD,
    KEYS,
    MAX_LINE,
    SEAL,
    SEGMENT,
    SIGNATURE_KEY,
    VERSION,
    ZERO,
    Stream,
    decode,
    escape,
    link,
    segment_name,
    stamp,
    to_sign,
    unchain,
    unsign,
)
from ..auditlog.proof import Keys, read_head
from .auditkeys import Signer, create
from .tenants import AuditOptions

#: Entries that are encoded before another thread gets the interpreter: about a sixth of a millisecond. Passing it
#: to and fro more often costs the event loop more than waiting for it.
CHUNK: Final = 64
_STREAMS: Final = 1000  # engines that may write one tenant's log at a time
_SECOND: Final = 1_000_000_000


class Entry(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """A line of the log; what has its default is not written.

    ``path`` and ``new_path`` are relative to the workspace, ``.`` for its root. ``count``: operations that this
    stands for, ``bytes`` and ``duration_us`` those of all of them.
    """

    time: str
    seq: int = 0
    session: str = ""
    tenant: str = ""
    principal: str = ""
    token: str = ""
    address: str = ""
    client: str = ""
    operation: str
    path: str = ""
    new_path: str = ""
    success: bool
    errno: str = ""
    message: str = ""
    bytes: int = 0
    count: int = 1
    duration_us: int = 0
    rule: str = ""
    denied: bool = False
    details: dict[str, Any] = {}


_json: Final = msgspec.json.Encoder().encode


#: An entry as JSON without its closing brace, in two parts: its number comes between them.
Line: TypeAlias = tuple[bytes, bytes]


def as_json(value: Any) -> bytes:
    """*value* as JSON. Bytes of names that are not UTF-8 are escaped surrogates in it."""
    try:
        return _json(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode()


def encode(entry: Entry) -> bytes:
    """An entry as JSON without its closing brace. Raises :class:`TypeError` for details that are no JSON."""
    return as_json(entry)[:-1]


class LogFiles:
    """The open log. ``seq`` and ``hash`` are the last entry's, ``segment`` its segment, ``stream`` its stream."""

    def __init__(
        self, tenant: str, directory: Path, key: Signer, options: AuditOptions, clock: Callable[[], int]
    ) -> None:
        """Take a stream of *tenant* below *directory* and go on with it. *clock*: nanoseconds since the epoch.

        Raises :class:`OSError`.
        """
        self.tenant = tenant
        self.key = key
        self.options = options
        self._clock = clock
        self.seq = 0
        self.hash = ZERO
        self.segment = 0
        self.stream = -1
        self._fd = self._lock = -1
        self._size = 0
        self._began = clock()
        self.dirty = False  # something is not known to be on disk
        self._signed = -1
        self._sealed = False
        self._keys = Keys((directory / KEYS).read_bytes())
        try:
            self._take(directory)
            self._resume()
        except BaseException:
            self._release()
            raise

    # --- beginning and end ----------------------------------------------------------------------------------

    def _take(self, directory: Path) -> None:
        folder = directory / escape(self.tenant)
        for path in (directory, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(_STREAMS):
            self.path = folder / str(number)
            self.path.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            except OSError:
                os.close(fd)
                raise
            self._lock, self.stream = fd, number
            return
        raise OSError(errno.EBUSY, f"{_STREAMS} engines write the audit log of this tenant")

    def _release(self) -> None:
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    def close(self) -> None:
        """Sign what was written and let go. Raises :class:`OSError`, and has let go then as well."""
        try:
            self.append([self.own("stop")])
            self.sign(closed=True)
        finally:
            self._release()

    def own(self, operation: str, message: str = "", **details: Any) -> Entry:
        """An entry of the log about itself."""
        time = stamp(self._clock())
        return Entry(
            time=time, tenant=self.tenant, operation=operation, success=True, message=message, details=details
        )

    def _resume(self) -> None:
        """Go on where the last engine stopped, or begin."""
        segments = Stream(self.tenant, self.stream, self.path).segments()
        raw = read_head(self.path)
        if not segments and raw is None:
            self.sign()  # first, so that a log without one was tampered with
            self._begin()
            self.append([self.own("start")])
            self.sign()
            return
        fault, head, torn, sealed = "", {}, 0, True
        try:
            head = self._check_head(raw)
            self.seq, self.hash = head["count"], head["hash"].encode()
            if segments:
                torn, sealed = self._read(segments, head)
            elif head["count"]:
                raise ValueError("the segments of the log are gone")
        except (ValueError, KeyError, TypeError) as exc:
            fault = str(exc)
        signed = int(head.get("count", 0)) if not fault else 0
        unsigned = self.seq - signed if not fault else 0
        self.segment = segments[-1][0] if segments else 0
        if fault or sealed:
            if fault:
                self.seq = max(self.seq, int(head.get("count", 0)))
            self._begin(fault)
        else:
            self._open(torn)
        clean = not fault and bool(head.get("closed"))
        message = "" if clean else "the engine before this one did not end in order"
        details = {"unsigned": unsigned, "torn_bytes": torn} if not clean else {}
        self.sign()  # not closed any more, before there is more than it was signed for
        self.append([self.own("start" if clean else "restart", message, **details)])
        self.sign()

    def _check_head(self, raw: bytes | None) -> dict[str, Any]:
        if raw is None:
            raise ValueError(f"{HEAD} is missing")
        body, signature = unsign(raw)
        head = decode(body + b"}")
        if head["key"] not in self._keys or not self._keys.valid(
            head["key"], signature, to_sign("head", b"", body)
        ):
            raise ValueError(f"the signature of {HEAD} is wrong")
        if (head["tenant"], head["stream"]) != (self.tenant, self.stream):
            raise ValueError(f"{HEAD} belongs to another log")
        return head

    def _read(self, segments: list[tuple[int, Path]], head: dict[str, Any]) -> tuple[int, bool]:
        """Follow the chain from the segment that the head was signed in to the end. Returns the bytes of a line
        that was not finished, and whether the last segment is sealed. Raises :class:`ValueError`."""
        chosen = [pair for pair in segments if pair[0] >= max(head["segment"], 1)] or segments[-1:]
        found, sealed, torn, size = not head["count"], False, 0, 0
        for number, path in chosen:
            size, torn, sealed = 0, 0, False
            with open(path, "rb") as file:
                for count, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                    if not line.endswith(b"\n") and number == segments[-1][0]:
                        torn = len(line) + len(file.read())
                        break
                    where = f"{path.name}, line {count}"
                    try:
                        body, hash = unchain(line)
                        entry = decode(line)
                    except ValueError as exc:
                        raise ValueError(f"{where}: {exc}") from None
                    if count == 1 and number == chosen[0][0]:
                        self.hash, self.seq = entry["details"]["previous"].encode(), entry["seq"] - 1
                    if link(self.hash, body) != hash or entry["seq"] != self.seq + 1:
                        raise ValueError(f"{where} was changed, or a line before it is missing")
                    self.hash, self.seq, sealed = hash, entry["seq"], entry["operation"] == SEAL
                    found = found or (self.seq == head["count"] and hash.decode() == head["hash"])
                    size += len(line)
                    if count == 1:
                        self._began = _nanoseconds(entry["time"])
        if not found:
            raise ValueError(f"{HEAD} was signed for {head['count']} entries, which the log does not have")
        if head["closed"] and self.seq > head["count"]:
            raise ValueError(
                f"{self.seq - head['count']} entries were appended after the log had been closed"
            )
        self._size = size
        return torn, sealed

    def _open(self, torn: int) -> None:
        """Go on with the last segment; *torn* bytes at its end are put aside."""
        path = self.path / segment_name(self.segment)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if torn:
            aside = path.with_suffix(".torn")
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "ab") as file:
                file.write(os.pread(self._fd, torn, self._size) + b"\n")
            os.ftruncate(self._fd, self._size)
        if not self._size:
            self._first_line("")

    # --- segments -------------------------------------------------------------------------------------------

    def _begin(self, fault: str = "") -> None:
        """A new segment. On failure the old one is still the present one."""
        name = self.path / segment_name(self.segment + 1)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        before = self._fd, self.segment, self._size, self._sealed
        self._fd, self.segment, self._size, self._sealed = fd, self.segment + 1, 0, False
        try:
            self._first_line(fault)
            with _folder(self.path) as folder:
                os.fsync(folder)
        except OSError:
            os.close(fd)
            self._fd, self.segment, self._size, self._sealed = before
            os.unlink(name)
            raise
        if before[0] >= 0:
            os.close(before[0])

    def _first_line(self, fault: str) -> None:
        self._began = self._clock()
        details: dict[str, Any] = {
            "segment": self.segment,
            "stream": self.stream,
            "previous": self.hash.decode(),
            "version": VERSION,
        }
        if fault:
            details["fault"] = fault[:1000]
        self.append([self.own(SEGMENT, **details)])

    def rotate(self) -> None:
        """Seal the present segment and begin another. Goes on where it failed before."""
        if not self._sealed:
            self._seal()
        self._begin()
        self.sign()

    def _seal(self) -> None:
        entry = self.own(SEAL)
        entry.seq = self.seq + 1
        signed = encode(entry) + b',"key":"%s"' % self.key.name.encode()
        signature = self.key.sign(to_sign("seal", self.hash, signed))
        body = signed + SIGNATURE_KEY + signature + b'"'
        hash = link(self.hash, body)
        self._write(body + HASH_KEY + hash + END)
        self.seq, self.hash, self._sealed = self.seq + 1, hash, True
        self.sync()

    def due(self) -> float:
        """Seconds until :meth:`maintain` has something to do."""
        left = self.options.segment_age - (self._clock() - self._began) / _SECOND
        return min(max(left, 0.0), 3600.0)

    def maintain(self) -> None:
        """Begin a new segment if it is time, and remove those that have expired."""
        if self._sealed or self._size >= self.options.segment_bytes or not self.due():
            self.rotate()
            self.expire()

    def expire(self) -> None:
        """Remove the segments that are older or more than :attr:`options` say, and say so in the log before."""
        options = self.options
        segments = Stream(self.tenant, self.stream, self.path).segments()
        sizes = {number: os.stat(path).st_size for number, path in segments}
        total, oldest = sum(sizes.values()), self._clock() - int(options.retention * _SECOND)
        entries, chosen = [], []
        for number, path in segments[:-1]:
            hash, seq, time = _last_line(path)
            old = bool(options.retention) and time < stamp(oldest)
            if not old and not (options.max_bytes and total > options.max_bytes):
                break
            why = "its retention was over" if old else "the log was larger than it may be"
            entries.append(self.own(EXPIRED, why, segment=number, hash=hash, seq=seq))
            chosen.append(path)
            total -= sizes[number]
        if entries:
            self.append(entries)
            self.sign()
        for path in chosen:
            path.unlink()
            path.with_suffix(".torn").unlink(missing_ok=True)

    # --- writing --------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry | Line], pause: Callable[[], None] = lambda: None) -> None:
        """Number, chain and write *entries*: all of them, or none and :class:`OSError`.

        *pause* is called every few entries.
        """
        if self._sealed:  # a rotation has failed half-way
            self._begin()
        seq, last = self.seq, self.hash
        parts: list[bytes] = []
        sha256 = hashlib.sha256
        for entry in entries:
            seq += 1
            if isinstance(entry, tuple):
                body = b"%b%d%b" % (entry[0], seq, entry[1])
            else:
                entry.seq = seq
                body = encode(entry)
            last = sha256(last + body).hexdigest().encode()
            parts += (body, HASH_KEY, last, END)
            if not seq % CHUNK:
                pause()
        self._write(b"".join(parts))
        self.seq, self.hash = seq, last

    def _write(self, data: bytes) -> None:
        view, at = memoryview(data), self._size
        self.dirty = True
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size = at

    def sync(self) -> None:
        """Everything appended is on disk."""
        if self.dirty:
            os.fdatasync(self._fd)
            self.dirty = False

    @property
    def unsigned(self) -> int:
        """Entries after the head."""
        return self.seq - self._signed

    def sign(self, closed: bool = False) -> None:
        """Write the head anew: it never names what is not on disk."""
        if self._fd >= 0:
            self.sync()
        said = {
            "version": VERSION,
            "time": stamp(self._clock()),
            "tenant": self.tenant,
            "stream": self.stream,
            "segment": self.segment,
            "count": self.seq,
            "hash": self.hash.decode(),
            "closed": closed,
            "key": self.key.name,
        }
        body = json.dumps(said, separators=(",", ":")).encode()[:-1]
        temporary = self.path / f".{HEAD}"
        with suppress(FileNotFoundError):
            temporary.unlink()
        create(temporary, body + SIGNATURE_KEY + self.key.sign(to_sign("head", b"", body)) + END)
        os.replace(temporary, self.path / HEAD)
        self._signed = self.seq


def _nanoseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * _SECOND)


def _last_line(path: Path) -> tuple[str, int, str]:
    """Hash, number and time of a segment's last entry; of one that is damaged, what no other entry has."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE))
        lines = file.read().splitlines()
    try:
        entry = decode(lines[-1])
        return str(entry["hash"]), int(entry["seq"]), str(entry["time"])
    except (ValueError, IndexError, KeyError, TypeError):
        return "", 0, stamp(os.stat(path).st_mtime_ns)


class _folder:
    """A descriptor of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
