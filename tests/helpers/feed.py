"""A page of the panel, as far as its server can tell: speaks the feed, keeps the state that it was told of.

``Page(server)`` belongs to a server of :mod:`.live`; it runs a thread of its own, so that tests of any kind can wait
for what it is told. For a browser's pages there is :mod:`.feedserver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.helpers import live

PATIENCE = 30.0


def merge(state: Any, patch: Any) -> Any:
    """*state* after a merge patch, RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    found = dict(state) if isinstance(state, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merge(found.get(name), value)
    return found


class Page:
    """An open page. ``state`` is what it shows, ``messages`` all that it was told, ``hello`` the server's greeting."""

    def __init__(self, server: live.Live, *, versions: tuple[int, ...] = (1,)) -> None:
        self.state: dict[str, Any] = {}
        self.messages: list[dict[str, Any]] = []
        self.hello: dict[str, Any] = {}
        self.code: int | None = None
        self.seq = 0
        self._url = f"ws{server.url.removeprefix('http')}wsfuse/feed"
        self._token = server.token_file.read_text().strip()
        self._versions = versions
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: WebSocketClientConnection | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._failure: BaseException | None = None
        self._deaf = False
        self._thread.start()
        self.until(lambda page: page.hello or page.code is not None, "the server greets")

    async def _run(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            request = HTTPRequest(self._url, headers={"Authorization": f"token {self._token}"})
            self._socket = await websocket_connect(request, max_message_size=64 << 20)
            await self._socket.write_message(
                json.dumps({"type": "hello", "feed": list(self._versions), "version": "0.1.0"})
            )
            while (text := await self._socket.read_message()) is not None:
                self._told(json.loads(text))
            code = self._socket.close_code or 1006
            self._end()
            with self._changed:
                self.code = code
                self._changed.notify_all()
        except (HTTPClientError, OSError) as exc:
            with self._changed:
                self._failure, self.code = exc, getattr(exc, "code", 0)
                self._changed.notify_all()

    def _end(self) -> None:
        assert self._socket is not None
        stream = None if self._socket.protocol is None else self._socket.protocol.stream
        self._socket.close()
        if stream is not None:
            stream.close()

    def deafen(self) -> None:
        """From now on it reads nothing, as if its machine had stopped."""
        assert self._loop is not None
        assert self._socket is not None
        assert self._socket.protocol is not None
        stream = self._socket.protocol.stream
        self._loop.call_soon_threadsafe(stream.io_loop.remove_handler, stream.socket)
        self._deaf = True

    def _told(self, message: dict[str, Any]) -> None:
        with self._changed:
            self.messages.append(message)
            match message["type"]:
                case "hello":
                    self.hello = message
                case "state":
                    self.state, self.seq = message["state"], message["seq"]
                case "delta":
                    assert message["seq"] == self.seq + 1, "a delta is missing"
                    assert message["patch"], "a delta that says nothing"
                    self.state, self.seq = merge(self.state, message["patch"]), message["seq"]
            self._changed.notify_all()

    def say(self, message: dict[str, Any] | str) -> None:
        assert self._loop is not None
        assert self._socket is not None
        text = message if isinstance(message, str) else json.dumps(message)
        socket = self._socket

        async def send() -> None:
            await socket.write_message(text)

        asyncio.run_coroutine_threadsafe(send(), self._loop).result(PATIENCE)

    def watch(self, *views: str, **audit: str) -> None:
        self.say({"type": "watch", "views": list(views), "audit": audit})

    def until(self, condition: Callable[[Page], Any], what: str, timeout: float = PATIENCE) -> Any:
        """The first true value of *condition*, which is looked at whenever the page was told something."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                value = condition(self)
                if value:
                    return value
                left = end - time.monotonic()
                assert left > 0, (
                    f"waited {timeout} s in vain until {what}: {json.dumps(self.state, indent=1)}"
                )
                self._changed.wait(left)

    def mount_at(self, path: Path) -> dict[str, Any] | None:
        """The row of the mount at *path*, with its ``id``; None: it is not shown."""
        for id, row in self.state.get("mounts", {}).items():
            if row["path"] == str(path):
                return {"id": id, **row}
        return None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one type so far."""
        return [message for message in self.messages if message["type"] == kind]

    def close(self) -> None:
        socket, loop = self._socket, self._loop
        if socket is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._end if self._deaf else socket.close)
        self._thread.join(PATIENCE)


@contextlib.contextmanager
def page(server: live.Live, *views: str, **options: Any) -> Iterator[Page]:
    """A page that looks at *views*, for the time of the block."""
    opened = Page(server, **options)
    try:
        if views:
            opened.watch(*views)
        yield opened
    finally:
        opened.close()
