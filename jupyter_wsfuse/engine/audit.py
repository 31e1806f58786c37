"""The audit of one tenant: who did what, when, to which file, from where, and how it ended.

The event loop puts a tuple into a queue for each request (:meth:`TenantAudit.record`); a thread makes entries of
them, chains, writes and signs them (:mod:`.auditfiles`). So what was recorded is in the log after
:data:`FLUSH_AGE`, or when :meth:`TenantAudit.barrier` returns, and signed within :data:`SIGN_AGE` after that. What
was not written when the process was killed is lost, and nothing else.

A log that cannot be written is not silent: ``state()`` and *on_state* say so; with ``on_failure`` "refuse" the
dispatcher changes nothing in the workspace as long as :attr:`TenantAudit.refusing`; with "continue" what does not fit
into the queue meanwhile is counted, and an entry ("gap") says how many when it works again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from ..auditlog.entries import DENIALS, stamp
from ..protocol import messages as m
from ..protocol.messages import Error, Request
from .auditfiles import Entry, Line, LogFiles, as_json, encode
from .auditkeys import Signer
from .auditpaths import Paths
from .tenants import AuditOptions

_LOG = logging.getLogger(__name__)

#: Seconds after which what was recorded is written, and after which the end of what was written is signed.
FLUSH_AGE: Final = 0.2
SIGN_AGE: Final = 1.0
#: Seconds between two attempts to write to a log that fails.
RETRY: Final = 1.0
#: Records that wait to be written; more are lost and counted, at twice as many also those of a failing log whose
#: policy is to refuse.
QUEUE: Final = 1 << 15
#: Records that are written at a time. Reads and writes of one handle among them become one entry.
BATCH: Final = 512
#: Seconds for which the thread leaves the interpreter to others after every few entries, unless it is far behind.
PAUSE: Final = 0.0002
#: Records between two pauses.
PAUSE_EVERY: Final = 128
_CLOSE_TIMEOUT: Final = 10.0

_EVERYTHING: Final = frozenset(m.REQUESTS)
_MUTATIONS: Final = frozenset(kind for kind in m.REQUESTS if kind.mutating)
#: By the option ``record``: requests that are recorded whatever becomes of them. Of Open, see :func:`_writes`.
WANTED: Final[dict[str, frozenset[type[Request]]]] = {
    "all": _EVERYTHING,
    "mutations": _MUTATIONS | {m.Open, m.Reopen},
    "denials": frozenset(),
    "off": frozenset(),
}
_MERGED: Final = frozenset({m.Read, m.Write})
_NAMES: Final = {kind: kind.__name__.encode() for kind in m.REQUESTS}


class Subject(Protocol):
    """What is recorded of a session."""

    id: str
    principal: str
    address: str
    client: str

    @property
    def token_id(self) -> str: ...


#: time (ns), session, its address and token, request type, handle, paths, error, rule, bytes, duration (ns), details
_Record = tuple[
    int, Subject, str, str, type[Request], int, Paths, Error | None, str, int, int, bytes
]  # fmt: skip


def is_denied(error: Error | None, rule: str) -> bool:
    """Whether a request that ended so was denied, by a rule or otherwise."""
    return bool(rule) or (error is not None and error.errno in DENIALS)


def _writes(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def _set(request: m.SetAttr) -> bytes:
    """What is set, as members of a JSON object."""
    found = []
    if request.mode is not None:
        found.append(b'"mode":"%04o"' % (request.mode & 0o7777))
    for name in ("uid", "gid", "size"):
        value = getattr(request, name)
        if value is not None:
            found.append(b'"%b":%d' % (name.encode(), value))
    if request.atime is not None or request.mtime is not None:
        found.append(b'"times":true')
    return b",".join(found)


def _details(kind: type[Request], request: Any) -> bytes:
    """What the name of the operation leaves open, as members of a JSON object; ``b""`` for most."""
    if kind is m.SetAttr:
        return _set(request)
    if (kind is m.Open or kind is m.Create) and request.flags & os.O_TRUNC:
        return b'"truncate":true'
    return b""


def _text(name: bytes) -> bytes:
    return as_json(name.decode("utf-8", "surrogateescape"))


class _Several:
    """Reads or writes in a row that become one line, at ``place`` among the others."""

    __slots__ = ("place", "start", "text", "count", "size", "total_ns")

    def __init__(self, place: int, start: bytes, text: bytes, size: int, total_ns: int) -> None:
        self.place = place
        self.start = start
        self.text = text
        self.count = 1
        self.size = size
        self.total_ns = total_ns


class TenantAudit:
    """The audit of *tenant* in the folder *directory* of all tenants' logs, signed by *key*.

    *clock*: nanoseconds since the epoch. *on_state* is called in the audit's own thread with :meth:`state` when the
    log fails, works again or has lost something. Nothing is opened before the first record, unless mutations are to
    be refused without a log.
    """

    def __init__(
        self,
        tenant: str,
        options: AuditOptions,
        directory: Path,
        key: Signer,
        *,
        clock: Callable[[], int] = time.time_ns,
        on_state: Callable[[dict[str, Any]], None] | None = None,
        retry: float = RETRY,
    ) -> None:
        self.tenant = tenant
        self.options = options
        #: Nothing may change in the workspace: it could not be recorded.
        self.refusing = False
        self._directory = directory
        self._key = key
        self._clock = clock
        self._on_state = on_state
        self._retry = retry
        self._wanted = WANTED[options.record]
        self._off = options.record == "off"
        self._only_writing = options.record == "mutations"
        self._pending: deque[_Record | Entry] = deque()
        self._held: list[Entry | Line] = []  # taken from the queue, and not in the log yet
        self._files: LogFiles | None = None
        self._lost = self._reported = 0
        self._error, self._failed_at = "", 0.0
        self._signed_at = 0.0
        self._second, self._prefix = -1, b""
        self._whose: tuple[str, str, str] | None = None
        self._who = b""
        # _awake is only ever cleared by the thread, which looks at the queue once more afterwards: a record that is
        # queued behind that look finds it cleared, and wakes the thread.
        self._awake = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._clean = True  # nothing taken from the queue is not on disk
        self._turns = threading.Condition()
        self._asked = self._served = 0
        self._closing = self._closed = False
        self._thread: threading.Thread | None = None
        if not self._off and options.on_failure == "refuse":
            self._wake_up()

    # --- on the event loop ----------------------------------------------------------------------------------

    def wants(self, kind: type[Request], failed: bool, denied: bool) -> bool:
        """Whether a request of this kind that ended so is recorded."""
        return kind in self._wanted or (denied and not self._off)

    def record(
        self,
        session: Subject,
        request: Any,
        paths: Paths,
        error: Error | None,
        rule: str,
        size: int,
        total_ns: int,
    ) -> None:
        """Record a request that was answered. *rule*: the one that denied it. *size*: bytes of file data moved."""
        kind = type(request)
        if (
            self._only_writing
            and (kind is m.Open or kind is m.Reopen)
            and not _writes(request.flags)
            and not is_denied(error, rule)
        ):
            return
        self._queue(
            (
                self._clock(),
                session,
                session.address,
                session.token_id,
                kind,
                request.handle if kind in _MERGED else 0,
                paths,
                error,
                rule,
                size,
                total_ns,
                _details(kind, request),
            )
        )

    def event(
        self,
        operation: str,
        session: Subject | None = None,
        *,
        success: bool = True,
        message: str = "",
        denied: bool = False,
        principal: str = "",
        token: str = "",
        address: str = "",
        client: str = "",
        **details: Any,
    ) -> None:
        """Record what is no request: a session that begins, resumes, ends; a token used; a definition reloaded.

        *details*: JSON. While only denials are recorded, only with *denied*.
        """
        if self._off or (self.options.record == "denials" and not denied):
            return
        entry = Entry(
            time=stamp(self._clock()),
            session="" if session is None else session.id[:16],
            tenant=self.tenant,
            principal=principal if session is None else session.principal,
            token=token if session is None else session.token_id,
            address=address if session is None else session.address,
            client=client if session is None else session.client,
            operation=operation,
            success=success,
            message=message,
            denied=denied,
            details=details,
        )
        encode(entry)  # what is no JSON fails here, and not in the thread
        self._queue(entry)

    def _queue(self, record: _Record | Entry) -> None:
        waiting = len(self._pending)
        if waiting >= QUEUE and (waiting >= 2 * QUEUE or not self.refusing):
            self._lost += 1
            return
        self._pending.append(record)
        if not self._awake:
            self._wake_up()
        elif waiting == QUEUE // 4:
            self._hurry.set()

    def _wake_up(self) -> None:
        self._awake = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="wsfuse-audit", daemon=True)
            self._thread.start()
        self._wake.set()

    # --- from any thread ------------------------------------------------------------------------------------

    def barrier(self, timeout: float = 30.0) -> bool:
        """Wait until everything recorded so far is on disk. False if it is not: the log fails, or takes too long."""
        if self._clean_now():
            return True
        with self._turns:
            if self._closed or self._off:
                return self._clean_now()
            self._asked += 1
            ticket = self._asked
            if self._thread is None or not self._awake:
                self._wake_up()
            self._hurry.set()
            self._turns.wait_for(lambda: self._served >= ticket or self._closed, timeout)
        return not self._error and self._served >= ticket

    def _clean_now(self) -> bool:
        # In this order: _clean is unset before anything is taken from the queue.
        return not self._pending and self._clean

    def reconfigure(self, options: AuditOptions) -> None:
        """Go by other *options* from now on. On the event loop."""
        if options == self.options:
            return
        before, self.options = self.options, options
        if options.record != before.record:
            self._queue(self._own("configured", record=options.record, before=before.record))
        self._wanted = WANTED[options.record]
        self._off = options.record == "off"
        self._only_writing = options.record == "mutations"
        self.refusing = bool(self._error) and options.on_failure == "refuse" and not self._off
        if not self._off:
            self._wake_up()

    def state(self) -> dict[str, Any]:
        """For the status page. ``lag``: seconds that the oldest record has waited to be written. ``lost``: records
        that are not in the log and never will be. ``hash``: the chain's head, to be noted elsewhere."""
        files = self._files
        lag = time.monotonic() - self._failed_at if self._error else 0.0
        try:
            oldest = self._pending[0]
            lag = max(lag, (self._clock() - oldest[0]) / 1e9) if isinstance(oldest, tuple) else lag
        except IndexError:
            pass
        return {
            "record": self.options.record,
            "state": "off" if self._off else "failing" if self._error else "ok",
            "error": self._error,
            "refusing": self.refusing,
            "lag": round(lag, 3),
            "pending": len(self._pending) + len(self._held),
            "lost": self._lost,
            "entries": 0 if files is None else files.seq,
            "segment": 0 if files is None else files.segment,
            "stream": -1 if files is None else files.stream,
            "hash": "" if files is None else files.hash.decode(),
        }

    def close(self) -> None:
        """Write and sign what was recorded, and end. Blocks."""
        if self._thread is None:
            self._closed = True
            return
        self._closing = True
        self._hurry.set()
        self._wake_up()
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            _LOG.error("the audit log of a tenant could not be closed in %.0f s", _CLOSE_TIMEOUT)

    # --- in the thread --------------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._closed:
            if not self._pending and not self._held and not self._hurry.is_set():
                self._awake = False
                if not self._pending and not self._hurry.is_set():
                    self._wake.wait(self._leisure())
                self._wake.clear()
                self._awake = True
            self._hurry.wait(self._retry if self._error else FLUSH_AGE)
            self._hurry.clear()
            self._turn()

    def _leisure(self) -> float | None:
        """Seconds until something is to be done although nothing is recorded."""
        if self._error:
            return self._retry
        if self._files is None:
            return None
        if self._files.unsigned or not self._clean:
            return SIGN_AGE
        return max(self._files.due(), 1.0)

    def _turn(self) -> None:
        asked, closing = self._asked, self._closing
        try:
            files = self._files
            if files is None:
                files = self._files = LogFiles(
                    self.tenant, self._directory, self._key, self.options, self._clock
                )
            files.options = self.options
            self._drain(files)
            files.maintain()
            if asked != self._served:
                files.sync()
            now = time.monotonic()
            if files.unsigned and now - self._signed_at >= SIGN_AGE:
                files.sign()
                self._signed_at = now
            if not files.dirty:
                self._clean = True
            self._works()
            if closing:
                files.close()
        except Exception as exc:
            self._fails(exc)
        with self._turns:
            self._served = asked
            self._closed = closing
            self._turns.notify_all()

    def _drain(self, files: LogFiles) -> None:
        """Write what was in the queue when this was called."""
        waiting = len(self._pending)
        while True:
            if not self._held:
                count = min(waiting, BATCH)
                if count:
                    self._clean = False
                    self._held = self._take(count)
                    waiting -= count
                elif self._lost > self._reported:
                    self._clean = False
                    self._held = [self._gap()]
                else:
                    return
            files.maintain()
            files.append(self._held, self._pause)
            self._held = []

    def _pause(self) -> None:
        # An event loop that waits for the interpreter after each of its system calls is slowed down by a thread
        # that computes: so this one computes for moments.
        if len(self._pending) < QUEUE // 4:
            time.sleep(PAUSE)

    def _own(self, operation: str, **details: Any) -> Entry:
        time = stamp(self._clock())
        return Entry(time=time, tenant=self.tenant, operation=operation, success=True, details=details)

    def _gap(self) -> Entry:
        lost = self._lost
        entry = self._own("gap", lost=lost - self._reported)
        entry.success = False
        entry.message = self._error or "more was to be recorded than could be written"
        self._reported = lost
        return entry

    def _take(self, count: int) -> list[Entry | Line]:
        """The next *count* records as lines; at most as many."""
        lines: list[Entry | Line] = []
        # By session: the reads and writes since it did something else, each with its place among the lines.
        merged: dict[str, dict[tuple[type[Request], int], _Several]] = {}
        for done in range(count):
            record = self._pending.popleft()
            if not done % PAUSE_EVERY:
                self._pause()
            if isinstance(record, Entry):
                lines.append(record)
                continue
            ns, session, address, token, kind, handle, paths, error, rule, size, total_ns, details = record
            if handle and error is None:
                group = merged.setdefault(session.id, {})
                several = group.get((kind, handle))
                if several is not None:
                    several.count += 1
                    several.size += size
                    several.total_ns += total_ns
                    continue
            elif session.id in merged:
                self._finish(lines, merged.pop(session.id))
            second, rest = divmod(ns, 1_000_000_000)
            if second != self._second:
                self._second, self._prefix = second, stamp(ns)[:-10].encode()
            start = b'{"time":"%b%09dZ","seq":' % (self._prefix, rest)
            if (session.id, address, token) != self._whose:
                self._whose, self._who = (session.id, address, token), self._describe(session, address, token)
            text = b'%b"operation":"%b"' % (self._who, _NAMES[kind])
            path, new_path = paths
            if path:
                text += b',"path":' + _text(path)
            if new_path:
                text += b',"new_path":' + _text(new_path)
            if error is not None:
                text += b',"success":false,"errno":%b,"message":%b' % (
                    as_json(error.errno),
                    as_json(error.message[:1000]),
                )
            elif handle:
                group[kind, handle] = _Several(len(lines), start, text, size, total_ns)
                lines.append((start, b""))
                continue
            else:
                text += b',"success":true'
            if size:
                text += b',"bytes":%d' % size
            text += b',"duration_us":%d' % (total_ns // 1000)
            if rule:
                text += b',"rule":' + as_json(rule)
            if details:
                text += b',"details":{%b}' % details
            lines.append((start, text))
        for group in merged.values():
            self._finish(lines, group)
        return lines

    @staticmethod
    def _finish(lines: list[Entry | Line], group: dict[tuple[type[Request], int], _Several]) -> None:
        for several in group.values():
            count = b',"count":%d' % several.count if several.count > 1 else b""
            numbers = several.size, count, several.total_ns // 1000
            text = several.text + b',"success":true,"bytes":%d%b,"duration_us":%d' % numbers
            lines[several.place] = (several.start, text)

    def _describe(self, session: Subject, address: str, token: str) -> bytes:
        said = {
            "session": session.id[:16],
            "tenant": self.tenant,
            "principal": session.principal,
            "token": token,
            "address": address,
            "client": session.client,
        }
        return b"," + as_json({name: text for name, text in said.items() if text})[1:-1] + b","

    def _fails(self, exc: Exception) -> None:
        if not isinstance(exc, OSError):
            _LOG.error("the audit log failed unexpectedly", exc_info=exc)
        first = not self._error
        if first:
            self._failed_at = time.monotonic()
        self._error = f"{type(exc).__name__}: {exc}"
        self.refusing = self.options.on_failure == "refuse" and not self._off
        if first:
            _LOG.warning(
                "the audit log of a tenant cannot be written (%s): %s",
                self._error,
                "mutations are refused until it can"
                if self.refusing
                else "what happens meanwhile may be lost",
            )
            self._say()

    def _works(self) -> None:
        if self._error:
            self._error, self.refusing = "", False
            _LOG.info("the audit log of a tenant can be written again")
            self._say()

    def _say(self) -> None:
        if self._on_state is not None:
            self._on_state(self.state())
