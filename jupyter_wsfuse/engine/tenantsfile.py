"""The file that defines the tenants, read again when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from .definitions import from_yaml, read_text
from .tenants import ConfigurationError, Tenants

INTERVAL: Final = 1.0  # seconds between two looks
#: Seconds for which a file may change again without a new time stamp, with room for servers whose clock is not
#: exactly ours.
_COARSE: Final = 3.0


class TenantsFile:
    """Looks at *path* from a thread of its own: a file server that hangs stops nothing else.

    First :meth:`load`, once; then :meth:`watch`.
    """

    def __init__(
        self, path: str, *, interval: float = INTERVAL, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        #: What is wrong with the file as it is now, "" if nothing is. What was read before is in force.
        self.error = ""
        #: When the definition in force was read.
        self.since = 0.0
        self._interval = interval
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._text: bytes | None = None
        #: An error, and the text, which may only be there because somebody is just writing the file.
        self._suspected: tuple[str, bytes] | None = None
        self._tenants: Tenants | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> Tenants:
        """What the file says now. Raises :class:`ConfigurationError`."""
        found = self._look(patient=False)
        if isinstance(found, ConfigurationError):
            raise found
        assert found is not None
        return found

    def watch(self, changed: Callable[[Tenants | ConfigurationError], None]) -> None:
        """From now on, call *changed* on the running loop after each change: with the new definitions, or with the
        error because of which the former ones stay in force."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            while not self._stop.wait(self._interval):
                found = self._look()
                if found is not None:
                    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
                        loop.call_soon_threadsafe(changed, found)

        self._thread = threading.Thread(target=run, name="tenants-file", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. Does not wait for a look that is under way."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """For the status page."""
        return {"path": self.path, "since": self.since, "error": self.error}

    def _look(self, *, patient: bool = True) -> Tenants | ConfigurationError | None:
        """What is new: None if nothing is. *patient*: an error is one when it is still there at the next look."""
        try:
            info = os.stat(self.path)
            seen: tuple[int, ...] = (
                info.st_dev,
                info.st_ino,
                info.st_size,
                info.st_mtime_ns,
                info.st_ctime_ns,
                info.st_mode,
            )
            settled = self._clock() - max(info.st_mtime, info.st_ctime) > _COARSE
        except OSError:
            seen, settled = (), False  # what is wrong is said by whoever reads it
        if seen == self._seen and settled:
            return None
        self._seen = seen
        text = b""
        try:
            text = read_text(self.path)
            if text == self._text and not self.error:
                self._suspected = None
                return None
            tenants = Tenants(from_yaml(text, self.path))
        except ConfigurationError as exc:
            error = str(exc)
            if error == self.error:
                return None
            if patient and self._suspected != (error, text):
                self._suspected, self._seen = (error, text), None
                return None
            self.error, self._suspected, self._text = error, None, None
            return exc
        self.error, self._suspected, self._text = "", None, text
        if tenants == self._tenants:  # a comment was changed, or a mistake taken back
            tenants = self._tenants
        self._tenants = tenants
        self.since = self._clock()
        return tenants
