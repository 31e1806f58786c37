"""The line between the engine and whoever started it: commands in, answers and events out, one JSON object a line.

::

    in     {"id": 7, "op": "revoke", "token": "..."}      after the line of configuration, any number of them
    out    {"id": 7, "result": {...}}                     or {"id": 7, "error": "what is wrong"}
           {"event": "session", ...}                      whenever something happened

The end of the input means that the other side has gone. It may also be slow, or never read at all: the engine does
not wait for it. What does not fit into a bounded queue is dropped and counted, and ``{"event": "dropped",
"count": n}`` says so once there is room again.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

_LOG = logging.getLogger(__name__)

#: Bytes of the longest command.
MAX_LINE: Final = 1 << 20
#: What waits for a reader at most, and in how many bytes.
MAX_QUEUED: Final = 1000
MAX_QUEUED_BYTES: Final = 1 << 20
_CHUNK: Final = 1 << 16

Handler = Callable[..., Any]


def _plain(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


class Control:
    """See the module's text. Belongs to *loop*.

    *handlers*: what to call for each ``op``, with the other keys of the command as keyword arguments; what it
    returns, or what the coroutine that it returns does, is the answer and must be fit for JSON. An exception is
    the answer as well, by its text.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handlers: Mapping[str, Handler],
        *,
        source: int = 0,
        sink: int = 1,
    ) -> None:
        self.dropped = 0  # lines, since the engine started
        self._loop = loop
        self._handlers = dict(handlers)
        self._source = source
        self._sink = sink
        self._ended: Callable[[], None] = lambda: None
        self._input = bytearray()
        self._skipping = False  # the rest of a line that was too long
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes
        self._untold = 0  # lines dropped of which nothing was said yet
        self._writing = False  # the loop calls when the sink takes more
        self._open = True
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, ended: Callable[[], None], rest: bytes = b"") -> None:
        """Begin to read; *ended* is called once, when the input ends. *rest*: what was read of it already."""
        self._ended = ended
        os.set_blocking(self._sink, False)
        self._loop.add_reader(self._source, self._readable)
        if rest:
            self._feed(rest)

    def emit(self, event: Mapping[str, Any]) -> None:
        """Say that something happened; *event* has the key ``event``, and is fit for JSON except that names may be
        bytes. Returns at once, whether anybody reads or not."""
        self._say(event)

    def close(self) -> None:
        """Read and say nothing more. What waits to be read by the other side is tried once more."""
        if not self._open:
            return
        self._flush()
        self._stop_reading()
        self._stop_writing()
        for task in self._tasks:
            task.cancel()

    # --- in -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = os.read(self._source, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            _LOG.error("the control line broke: %s", exc)
            data = b""
        if data:
            self._feed(data)
        else:
            self._stop_reading()
            self._ended()

    def _feed(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._input += line
            whole = bytes(self._input)
            self._input.clear()
            if self._skipping:
                self._skipping = False
            elif whole.strip():
                self._command(whole)
        if not self._skipping:
            self._input += rest
            if len(self._input) > MAX_LINE:
                _LOG.error("a command of more than %d bytes was dropped", MAX_LINE)
                self._input.clear()
                self._skipping = True

    def _command(self, line: bytes) -> None:
        try:
            command = json.loads(line)
            number, op = command.pop("id"), command.pop("op")
            handler = self._handlers[op]
        except (ValueError, TypeError, AttributeError):
            _LOG.error("a control line that is no command was dropped")
            return
        except KeyError as exc:
            if exc.args[0] in ("id", "op"):
                _LOG.error("a command without %r was dropped", exc.args[0])
            else:
                self._say({"id": number, "error": f"no such command: {op}"})
            return
        try:
            result = handler(**command)
        except Exception as exc:
            self._failed(number, op, exc)
            return
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(self._later(number, op, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._say({"id": number, "result": result})

    async def _later(self, number: object, op: str, result: Any) -> None:
        try:
            self._say({"id": number, "result": await result})
        except Exception as exc:
            self._failed(number, op, exc)

    def _failed(self, number: object, op: str, exc: Exception) -> None:
        _LOG.debug("the command %s failed", op, exc_info=exc)
        self._say({"id": number, "error": str(exc) or type(exc).__name__})

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._source)

    # --- out ------------------------------------------------------------------------------------------------

    def _say(self, message: Mapping[str, Any]) -> None:
        if not self._open:
            return
        self._append(message)
        if not self._writing:
            self._flush()

    def _append(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message, default=_plain, separators=(",", ":")).encode("ascii") + b"\n"
        if len(self._queue) < MAX_QUEUED and self._queued + len(line) <= MAX_QUEUED_BYTES:
            self._queue.append(line)
            self._queued += len(line)
        else:
            self.dropped += 1
            self._untold += 1

    def _flush(self) -> None:
        while self._queue:
            line = self._queue.popleft()
            try:
                written = os.write(self._sink, line)
            except (BlockingIOError, InterruptedError):
                written = 0
            except OSError:  # nobody is left to read it; the input ends as well
                self._stop_writing()
                return
            self._queued -= written
            if written < len(line):
                self._queue.appendleft(line[written:])
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._sink, self._flush)
                return
            if self._untold and not self._queue:
                count, self._untold = self._untold, 0
                self._append({"event": "dropped", "count": count})
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sink)

    def _stop_writing(self) -> None:
        self._open = False
        self._queue.clear()
        self._queued = 0
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sink)
