"""The panel's feed: ``<base_url>wsfuse/feed``, one WebSocket for each page. docs/api/feed.md is the contract.

A page is sent the difference to what it has; while it does not take that, nothing else is made for it, so that a slow
one costs the memory of one message and is told the newest state when it reads again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from tornado.websocket import WebSocketClosedError

import jupyter_wsfuse
from jupyter_wsfuse.auditlog import Filter, query
from jupyter_wsfuse.extension import audit_api
from jupyter_wsfuse.extension.audittail import Entry
from jupyter_wsfuse.extension.base import WsFuseSocket
from jupyter_wsfuse.extension.collector import COLLECTOR, Collector, Matcher
from jupyter_wsfuse.extension.feedmounts import Snapshot, Viewer
from jupyter_wsfuse.extension.feedstate import VIEWS, build, changed_folders
from jupyter_wsfuse.extension.mergepatch import State, diff

#: Versions of the feed that this side speaks.
SPOKEN: Final = (1,)
#: Seconds between two messages of state to a page; until it must have said hello; that it may take for one message.
PACE: Final = 0.5
_HELLO_TIMEOUT: Final = 20.0
_STALLED: Final = 60.0
#: Entries of the audit log in one message, and folders in one.
ENTRIES: Final = 500
_FOLDERS: Final = 256
#: Bytes of a page's message.
_LONGEST: Final = 1 << 16

MISMATCH: Final = 4406
POLICY: Final = 1008
TRY_AGAIN_LATER: Final = 1013


class FeedHandler(WsFuseSocket):
    """One page. Implements :class:`.collector.Page`."""

    views: frozenset[str] = frozenset()
    viewer = Viewer("")
    _writer: asyncio.Task[None] | None = None

    @property
    def max_message_size(self) -> int:
        return _LONGEST

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        rights = await self.rights()
        named = bool(self.principal)
        self._may = {"act": "write" in rights, "audit": "write" in rights or not named}
        self.viewer = Viewer(self.principal if self.wsfuse.tenants_file else None, audit=self._may["audit"])
        result = super().get(*args, **kwargs)
        if result is not None:
            await result

    def open(self, *args: Any, **kwargs: Any) -> None:
        self._collector: Collector = self.settings[COLLECTOR]
        self._greeted = False
        self._wake = asyncio.Event()
        self._snapshot: Snapshot | None = None
        self._sent: State = {}
        self._fresh = True  # the whole state is due
        self._seq = 0
        self._told_at = 0.0
        self._filter: Filter | None = None
        self._matches: Matcher | None = None
        self._asked: Filter | None = None  # what the log is to be searched for
        self._entries: deque[Entry] = deque(maxlen=ENTRIES)
        self._missed = 0
        self._reset = False
        self._newest: dict[tuple[str, int], int] = {}  # what the search has found already
        self._searching = False
        self._folders: set[str] | None = set()
        self._said: deque[dict[str, Any]] = deque()
        loop = asyncio.get_running_loop()
        self._silent = loop.call_later(_HELLO_TIMEOUT, self.close, POLICY, "no hello in time")
        self._writer = asyncio.create_task(self._write(), name="wsfuse-feed")

    def on_close(self) -> None:
        if self._writer is not None:  # None: it was gone before the handshake was over
            self._silent.cancel()
            self._collector.leave(self)
            self._writer.cancel()

    # --- what the page says ---------------------------------------------------------------------------------

    def on_message(self, message: str | bytes) -> None:
        try:
            said = json.loads(message)
            kind = said["type"]
        except (ValueError, LookupError, TypeError, RecursionError):
            self.close(POLICY, "not a message of the feed")
            return
        try:
            if not self._greeted:
                if kind != "hello":
                    raise ValueError("hello comes first")
                self._hello(said)
            elif kind == "watch":
                self._watch(said)
            elif kind == "resync":
                self._fresh = True
                self._wake.set()
        except (ValueError, TypeError) as exc:
            self.close(POLICY, str(exc)[:100].encode("ascii", "replace").decode())

    def _hello(self, said: dict[str, Any]) -> None:
        spoken = said.get("feed")
        if not isinstance(spoken, list):
            raise ValueError("hello names the versions of the feed in a list")
        self._silent.cancel()
        self._greeted = True
        common = [version for version in SPOKEN if version in spoken]
        self._said.append({"hello": max(common)} if common else {"mismatch": True})
        self._wake.set()

    def _watch(self, said: dict[str, Any]) -> None:
        views = said.get("views", [])
        if not isinstance(views, list):
            raise ValueError("views is a list of texts")
        chosen = frozenset(view for view in VIEWS if view in views)
        if not self._may["audit"]:
            chosen -= {"audit"}
        if "audit" in chosen:
            given = said.get("audit") or {}
            if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
                raise ValueError("the audit filter is an object of texts")
            wanted = Filter.parse({**given, "limit": str(ENTRIES)}, time.time())
            if wanted != self._filter:
                self._filter = self._asked = wanted
                self._matches = _matcher(wanted)
                self._entries.clear()
                self._missed = 0
        else:
            self._filter = self._asked = self._matches = None
            self._entries.clear()
            self._missed, self._reset = 0, False
        if chosen != self.views:
            self.views = chosen
            self._snapshot, self._folders = None, set()
            self._collector.attend(self)
        elif self._asked is not None:
            self._collector.poke()

    # --- what the collector says ----------------------------------------------------------------------------

    @property
    def audit(self) -> Matcher | None:
        return self._matches

    def looked(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        if snapshot.panel.get("changed") and self._folders is not None:
            found = changed_folders(snapshot.panel, self.viewer, self._collector.place)
            if found is None or len(self._folders.union(found)) > _FOLDERS:
                self._folders = None
            else:
                self._folders.update(found)
        if self._asked is not None and not self._searching:
            asked, self._asked = self._asked, None
            self._searching = True
            self._search_task = asyncio.create_task(self._search(asked))
        self._wake.set()

    def recorded(self, matcher: Matcher, entries: list[Entry], missed: int) -> None:
        if self._asked is not None or matcher is not self._matches:
            return  # a search will find them
        self._missed += missed
        for entry in entries:
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        if len(self._entries) == ENTRIES:
            self._missed += 1
        self._entries.append(entry)

    async def _search(self, wanted: Filter) -> None:
        """The latest entries that match, for a filter that is new."""
        slots = self.settings.setdefault("wsfuse_audit_slots", asyncio.Semaphore(audit_api.SLOTS))
        try:
            async with slots:
                found = await asyncio.to_thread(_latest, Path(self.wsfuse.audit_dir), wanted)
        except OSError as exc:
            self.log.error("the audit log cannot be read: %s", exc)
            found = []
        finally:
            self._searching = False
        if self._filter == wanted:
            self._newest = {}
            for entry in found:
                key = (entry["tenant"], entry["stream"])
                self._newest[key] = max(self._newest.get(key, 0), entry.get("seq", 0))
            since = [entry for entry in self._entries if self._is_new(entry)]
            self._entries.clear()
            for entry in (*found, *since):
                self._add(entry)
            self._missed = 0
            self._reset = True
        self._wake.set()

    def _is_new(self, entry: Entry) -> bool:
        return bool(entry.get("seq", 0) > self._newest.get((entry["tenant"], entry["stream"]), -1))

    # --- what the page is told ------------------------------------------------------------------------------

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._said:
                    await self._say(self._said.popleft())
                if not self.views:
                    continue
                pause = self._told_at + PACE - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                await self._tell()
        except WebSocketClosedError:
            pass
        except TimeoutError:
            self.close(TRY_AGAIN_LATER, "the page does not take what it is sent")
        except Exception:
            self.log.exception("a page of the panel could not be served")
            self.close(1011, "an error of the server")

    async def _say(self, what: dict[str, Any]) -> None:
        version = jupyter_wsfuse.__version__
        if "mismatch" in what:
            await self._send({"type": "mismatch", "feed": list(SPOKEN), "version": version})
            self.close(MISMATCH, "no common version of the feed")
            return
        await self._send(
            {
                "type": "hello",
                "feed": what["hello"],
                "version": version,
                "may": self._may,
                "fuse": await self._collector.fuse(),
                "root": self._collector.place.root,
            }
        )

    async def _tell(self) -> None:
        snapshot = self._snapshot
        if snapshot is not None:
            state = build(snapshot, self.views, self.viewer, self._collector.place, self._sent)
            if self._fresh:
                self._seq += 1
                self._fresh, self._sent = False, state
                await self._send({"type": "state", "seq": self._seq, "time": snapshot.time, "state": state})
                self._told_at = time.monotonic()
            elif patch := diff(self._sent, state):
                self._seq += 1
                self._sent = state
                await self._send({"type": "delta", "seq": self._seq, "time": snapshot.time, "patch": patch})
                self._told_at = time.monotonic()
        if self._reset or ((self._entries or self._missed) and not self._searching):
            entries = [entry for entry in self._entries if self._reset or self._is_new(entry)]
            message: dict[str, Any] = {"type": "audit", "entries": entries, "missed": self._missed}
            if self._reset:
                message["reset"] = True
            self._entries.clear()
            self._missed, self._reset = 0, False
            if entries or "reset" in message or message["missed"]:
                await self._send(message)
        if self._folders is None or self._folders:
            folders, self._folders = self._folders, set()
            if folders is None:
                await self._send({"type": "changed", "paths": [], "more": True})
            else:
                await self._send({"type": "changed", "paths": sorted(folders)})

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(_STALLED):
            await self.write_message(json.dumps(message, separators=(",", ":")))


def _matcher(wanted: Filter) -> Matcher:
    matches, tenant = wanted.matcher(), wanted.tenant
    return lambda entry: (not tenant or entry["tenant"] == tenant) and matches(entry)


def _latest(directory: Path, wanted: Filter) -> list[Entry]:
    """Entries that match, the oldest first."""
    try:
        return list(query(directory, wanted))[::-1]
    except FileNotFoundError:
        return []  # nothing was ever recorded


HANDLERS: Final[list[tuple[str, type[JupyterHandler]]]] = [(r"/wsfuse/feed/?", FeedHandler)]
