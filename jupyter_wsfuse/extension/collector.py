"""Looks at engine, mounts and audit log for all pages that show the panel, and only while one of them does.

However many pages there are, the engine is asked twice a second, by its control line, and the steward as often. Neither
is waited for longer than that: what it said last is shown until it answers. The audit log is read in a thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.extension.audittail import AuditTail, Entry
from jupyter_wsfuse.extension.feedmounts import Mounts, Place, Snapshot, Viewer, session_of
from jupyter_wsfuse.extension.feedstate import Rates, counters
from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.steward import Steward, StewardError
from jupyter_wsfuse.extension.supervisor import CommandError, EngineSupervisor, EngineUnavailable

COLLECTOR: Final = "wsfuse_collector"
#: Seconds between two looks, and that engine and steward are waited for.
INTERVAL: Final = 0.5
_PATIENCE: Final = 0.3
#: Seconds after which what the engine said last is shown as old, and after which it is not shown any more.
_OLD: Final = 2.0
_TOO_OLD: Final = 60.0
#: Seconds that the steward may take before it is asked anew.
_STEWARD_TIMEOUT: Final = 10.0
#: Seconds after which one that failed is asked again.
_STEWARD_PAUSE: Final = 10.0
#: Seconds for which what the machine can do is remembered.
_FUSE_KEPT: Final = 60.0
#: Mounts whose owners are remembered.
_OWNERS: Final = 1000


Matcher = Callable[[Entry], bool]


class Page(Protocol):
    """One page that shows the panel."""

    views: frozenset[str]
    viewer: Viewer

    @property
    def audit(self) -> Matcher | None:
        """Which entries of the audit log it wants to be told of; None: it does not look at that."""

    def looked(self, snapshot: Snapshot) -> None:
        """There is something new, perhaps."""

    def recorded(self, matcher: Matcher, entries: list[Entry], missed: int) -> None:
        """What came to the audit log that is for *matcher*, in the order of time; *missed*: how much was not looked
        at because there was too much."""


class Collector:
    """One for a server. All methods belong to its event loop."""

    def __init__(
        self,
        settings: Settings,
        supervisor: EngineSupervisor,
        steward: Steward,
        place: Callable[[], Place],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._where = place
        self.steward = steward
        self._settings = settings
        self._supervisor = supervisor
        self._log = log
        self._pages: set[Page] = set()
        self._task: asyncio.Task[None] | None = None
        self._poked = asyncio.Event()
        self._asking: asyncio.Task[Any] | None = None  # the engine
        self._panel: dict[str, Any] = {}
        self._panel_at = 0.0  # monotonic
        self._looking: asyncio.Task[Any] | None = None  # at the mounts
        self._mounts: list[dict[str, Any]] = []
        self._mounts_from = 0.0  # monotonic: before, the steward is left alone
        self._rates = Rates()
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._tail: AuditTail | None = None
        self._fuse: dict[str, Any] = {}
        self._fuse_until = 0.0
        self.looks = 0

    @functools.cached_property
    def place(self) -> Place:
        """The server; known when it listens."""
        return self._where()

    # --- pages ----------------------------------------------------------------------------------------------

    def attend(self, page: Page) -> None:
        """*page* looks at something else now, or at nothing any more; it is told of what there is soon."""
        if page.views:
            self._pages.add(page)
        else:
            self._pages.discard(page)
        self.poke()

    def leave(self, page: Page) -> None:
        """*page* is closed."""
        self._pages.discard(page)

    def poke(self) -> None:
        """Look soon: something happened."""
        self._poked.set()
        if self._pages and self._task is None:
            self._task = asyncio.create_task(self._run(), name="wsfuse-collector")
            self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Look at nothing any more."""
        self._pages.clear()
        tasks = [task for task in (self._task, self._asking, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.steward.close()

    async def fuse(self) -> dict[str, Any]:
        """Whether this machine mounts: ``{available, reason, advice}``."""
        if time.monotonic() >= self._fuse_until:
            try:
                self._fuse = await self.steward.request("fuse", _STEWARD_TIMEOUT)
                self._fuse_until = time.monotonic() + _FUSE_KEPT
            except StewardError as exc:
                return {"available": False, "reason": str(exc), "advice": "look at the Jupyter server's log"}
        return self._fuse

    async def find(self, viewer: Viewer) -> Mounts:
        """The mounts of *viewer* as they are now. Raises :class:`StewardError`."""
        principals = None if viewer.principal is None else [viewer.principal]
        try:
            panel = await self._supervisor.command("panel", principals=principals, peek=True)
        except (EngineUnavailable, CommandError):
            panel = {}
        mounts = await self.steward.request("look", _STEWARD_TIMEOUT)
        self._note_owners(panel, mounts)
        snapshot = Snapshot(time.time(), self._supervisor.info(), panel, mounts, owners=self._owners)
        return Mounts(snapshot, viewer, self.place)

    def owner(self, mount: str, principal: str) -> None:
        """Who mounted *mount*, the id of one on this machine."""
        self._owners[mount] = principal
        self._owners.move_to_end(mount)
        while len(self._owners) > _OWNERS:
            self._owners.popitem(last=False)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self._log.error("the panel's collector failed", exc_info=task.exception())
        if self._pages and not task.cancelled():
            asyncio.get_running_loop().call_later(INTERVAL, self.poke)

    # --- looking --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        change = asyncio.ensure_future(self._supervisor.change())
        try:
            while self._pages:
                self._poked.clear()
                started = time.monotonic()
                await self._look()
                left = INTERVAL - (time.monotonic() - started)
                if change.done():
                    change = asyncio.ensure_future(self._supervisor.change())
                poked = asyncio.ensure_future(self._poked.wait())
                try:
                    await asyncio.wait(
                        (poked, change), timeout=max(left, 0.01), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    poked.cancel()
                # However often it is poked: never more than a few times a second.
                pause = INTERVAL / 4 - (time.monotonic() - started)
                if pause > 0:
                    await asyncio.sleep(pause)
        finally:
            change.cancel()
            for task in (self._asking, self._looking):
                if task is not None:
                    task.cancel()
            self._asking = self._looking = None
            self._tail, self._panel, self._mounts = None, {}, []
            self._rates = Rates()

    async def _look(self) -> None:
        views = frozenset().union(*(page.views for page in self._pages))
        panel, mounts, read = await asyncio.gather(
            self._ask_engine(views), self._ask_steward(views), self._read_audit()
        )
        self._note_owners(panel, mounts)
        self._rates.update(counters(panel, mounts), time.monotonic())
        self.looks += 1
        engine = {**self._supervisor.info(), "uptime_s": panel.get("uptime_s")}
        snapshot = Snapshot(time.time(), engine, panel, mounts, self._rates.now, self._owners)
        for page in list(self._pages):
            matcher = page.audit
            if matcher is not None and matcher in read:
                page.recorded(matcher, *read[matcher])
            page.looked(snapshot)

    def _note_owners(self, panel: dict[str, Any], mounts: list[dict[str, Any]]) -> None:
        for mount in mounts:
            session = panel.get("sessions", {}).get(session_of(mount))
            if session is not None:
                self.owner(mount["id"], session["principal"])

    async def _ask_engine(self, views: frozenset[str]) -> dict[str, Any]:
        principals = None
        if self._settings.tenants_file:
            principals = sorted({page.viewer.principal or "" for page in self._pages})
        if self._asking is None:
            self._asking = asyncio.create_task(
                self._supervisor.command("panel", views=sorted(views), principals=principals)
            )
        await asyncio.wait((self._asking,), timeout=_PATIENCE)
        now = time.monotonic()
        if self._asking.done():
            done, self._asking = self._asking, None
            try:
                self._panel, self._panel_at = done.result(), now
                return self._panel
            except (EngineUnavailable, CommandError):
                pass  # the supervisor's own state tells
        age = now - self._panel_at
        if self._supervisor.state == "stopped" or age > _TOO_OLD:
            self._panel = {}
        if not self._panel:
            return {}
        old = age > _OLD or self._supervisor.state != "running"
        return {**self._panel, "changed": {}, "old": old, "uptime_s": None}

    async def _ask_steward(self, views: frozenset[str]) -> list[dict[str, Any]]:
        if not views & {"mounts", "profile"}:
            return self._mounts
        if self._looking is None:
            if time.monotonic() < self._mounts_from:
                return self._mounts
            self._looking = asyncio.create_task(
                self.steward.request("look", _STEWARD_TIMEOUT, profile="profile" in views)
            )
        await asyncio.wait((self._looking,), timeout=_PATIENCE)
        if self._looking.done():
            done, self._looking = self._looking, None
            try:
                self._mounts = done.result()
            except StewardError as exc:
                self._mounts = []
                self._mounts_from = time.monotonic() + _STEWARD_PAUSE
                self._log.warning("mounts on this machine cannot be looked at: %s", exc)
        return self._mounts

    async def _read_audit(self) -> dict[Matcher, tuple[list[Entry], int]]:
        """What has come, for each who wants to know; nothing if it cannot be read now."""
        matchers = [page.audit for page in self._pages if page.audit is not None]
        if not matchers:
            self._tail = None
            return {}
        try:
            if self._tail is None:
                self._tail = await asyncio.to_thread(AuditTail, Path(self._settings.audit_dir))
            return await asyncio.to_thread(_read, self._tail, matchers)
        except (OSError, WsFuseError) as exc:
            self._log.debug("the audit log cannot be followed: %s", exc)
            self._tail = None
            return {}


def _read(tail: AuditTail, matchers: list[Matcher]) -> dict[Matcher, tuple[list[Entry], int]]:
    entries, missed = tail.read()
    return {matcher: (list(filter(matcher, entries)), missed) for matcher in matchers}
