"""How the processes of a mount talk: the channel between supervisor and daemon, and the control socket for others.

Both carry JSON objects. A request ``{"id": 1, "op": "status", ...}`` is answered by ``{"id": 1, "ok": true,
"result": ...}`` or ``{"id": 1, "ok": false, "error": {"kind", "message"}}``; on the channel, an object with ``event``
instead of ``id`` is an announcement.

The control socket belongs to the supervisor, so that it answers with the daemon dead or stuck. It is a Unix socket of
mode 0600 in a 0700 directory, and a peer of another user (root excepted) is turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jupyter_wsfuse import errors
from jupyter_wsfuse.errors import MountError, NotMountedError, RefusedError, WsFuseError

log = logging.getLogger("wsfuse.control")

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]

MAX_MESSAGE = (
    1 << 17
)  # below the default send buffer of a Unix socket: a message of a channel goes in one piece
_MAX_LINE = 1 << 22


# --- errors over a pipe ----------------------------------------------------------------------------------------


def error_to_json(exc: BaseException) -> dict[str, Any]:
    """*exc* for the other side; the counterpart of :func:`error_from_json`."""
    kinds = [kind.__name__ for kind in type(exc).__mro__ if kind.__module__ == errors.__name__]
    kind = kinds[0] if kinds else "MountError"
    if isinstance(exc, OSError) and exc.strerror:
        message = exc.strerror if exc.filename is None else f"{os.fsdecode(exc.filename)}: {exc.strerror}"
    else:
        message = str(exc) if isinstance(exc, (WsFuseError, OSError)) else f"{type(exc).__name__}: {exc}"
    return {"kind": kind, "message": message or type(exc).__name__, "code": getattr(exc, "code", "")}


def error_from_json(error: dict[str, Any]) -> WsFuseError:
    """The exception that *error* describes; an unknown kind becomes :class:`MountError`."""
    kind = getattr(errors, str(error.get("kind")), MountError)
    message = str(error.get("message"))
    if kind is RefusedError:
        return RefusedError(str(error.get("code")), message)
    if isinstance(kind, type) and issubclass(kind, WsFuseError):
        return kind(message)
    return MountError(message)


def _answer(id: object, outcome: Any, exc: BaseException | None = None) -> dict[str, Any]:
    if exc is None:
        return {"id": id, "ok": True, "result": outcome}
    return {"id": id, "ok": False, "error": error_to_json(exc)}


async def _execute(handler: Handler, message: dict[str, Any]) -> dict[str, Any]:
    arguments = {name: value for name, value in message.items() if name not in ("id", "op")}
    try:
        return _answer(message.get("id"), await handler(str(message.get("op")), arguments))
    except (WsFuseError, OSError) as exc:
        return _answer(message.get("id"), None, exc)
    except Exception as exc:
        log.exception("request %s failed", message.get("op"))
        return _answer(message.get("id"), None, exc)


# --- the channel between supervisor and daemon -----------------------------------------------------------------


class ChannelClosed(WsFuseError):
    """The other process is gone."""


class Channel:
    """Requests both ways, announcements and descriptors over a ``SOCK_SEQPACKET`` socket.

    ``handler`` answers the peer's requests; ``on_event`` gets announcements with the descriptors that came along
    (the callee owns them); ``on_close`` is called once when the peer is gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        handler: Handler | None = None,
        on_event: Callable[[dict[str, Any], Sequence[int]], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._sock = sock
        sock.setblocking(False)
        self._handler, self._on_event, self._on_close = handler, on_event, on_close
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._outgoing: deque[tuple[bytes, Sequence[int]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self._loop.add_reader(sock, self._readable)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets, of which one is to be inherited by a child."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def request(self, op: str, *, timeout: float, **arguments: Any) -> Any:
        """Ask the peer. Raises what it raised, :class:`TimeoutError` after *timeout* seconds, or
        :class:`ChannelClosed`."""
        if self.closed:
            raise ChannelClosed("the daemon is not running")
        id = next(self._ids)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[id] = future
        try:
            self._send({"id": id, "op": op, **arguments})
            return await asyncio.wait_for(future, timeout)
        finally:
            del self._waiting[id]

    def announce(self, event: str, *, fds: Sequence[int] = (), **fields: Any) -> None:
        """Tell the peer; descriptors stay open here. No error if it is gone."""
        self._send({"event": event, **fields}, fds)

    def close(self) -> None:
        """Stop. Who waits for an answer gets :class:`ChannelClosed`."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed("the daemon ended"))
        if self._on_close is not None:
            self._on_close()

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self.closed:
            return
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            message = _answer(message.get("id"), None, MountError("the answer is too long"))
            data = json.dumps(message).encode()
        self._outgoing.append((data, [os.dup(fd) for fd in fds]))
        self._writable()

    def _writable(self) -> None:
        try:
            while self._outgoing:
                data, fds = self._outgoing[0]
                socket.send_fds(self._sock, [data], list(fds))
                self._outgoing.popleft()
                for fd in fds:
                    os.close(fd)
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._writable)
        except OSError:
            self.close()
        else:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE + 1, 4)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        message = json.loads(data)
        if "event" in message:
            if self._on_event is not None:
                self._on_event(message, fds)
        elif "op" in message:
            task = self._loop.create_task(self._serve(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answered(message)

    def _answered(self, message: dict[str, Any]) -> None:
        future = self._waiting.get(message["id"])
        if future is None or future.done():
            return  # asked by somebody who has given up
        if message["ok"]:
            future.set_result(message["result"])
        else:
            future.set_exception(error_from_json(message["error"]))

    async def _serve(self, message: dict[str, Any]) -> None:
        assert self._handler is not None
        self._send(await _execute(self._handler, message))


# --- the control socket ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """*path* as an address of at most 108 bytes, however deep it is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


class ControlServer:
    """Answers requests on a control socket, one JSON object a line."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path, self._handler = path, handler
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self._busy: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen. The caller holds the claim on the mount point, so nobody else does."""
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)  # before bind: the socket file never has another mode
            with short_address(self._path) as address:
                sock.bind(address)
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=1 << 16)
        except BaseException:
            sock.close()
            raise

    async def close(self, timeout: float = 2.0) -> None:
        """Stop listening, and return when requests under way are answered, or after *timeout* seconds."""
        if self._server is not None:
            self._server.close()
        for task in self._connections - self._busy:
            task.cancel()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=timeout)
            for task in late:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
            if uid not in (0, os.getuid()):
                log.warning("a process of user %d was turned away", uid)
                return
            while line := await reader.readline():
                self._busy.add(task)
                try:
                    answer = await _execute(self._handler, json.loads(line))
                except (ValueError, AttributeError):
                    answer = _answer(None, None, MountError("not a request"))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
                self._busy.discard(task)
                if self._server is None or not self._server.is_serving():
                    return
        except asyncio.CancelledError:
            pass  # only close() cancels
        except (ConnectionError, ValueError) as exc:  # gone, or a line without end
            log.debug("control connection: %s", exc)
        finally:
            self._busy.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)
            self._connections.discard(task)


class Client:
    """A blocking connection to a control socket, each call with a deadline. Use as a context manager."""

    def __init__(self, path: Path, *, timeout: float = 5.0) -> None:
        """Raises :class:`NotMountedError` if no supervisor listens at *path*."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sock.settimeout(timeout)
        try:
            with short_address(path) as address:
                self._sock.connect(address)
            if peer_uid(self._sock) not in (0, os.getuid()):
                raise NotMountedError(f"{path} belongs to another user")
        except OSError as exc:
            self._sock.close()
            raise NotMountedError(f"the mount's supervisor does not answer ({exc.strerror or exc})") from exc
        except NotMountedError:
            self._sock.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def call(self, op: str, *, timeout: float = 10.0, **arguments: Any) -> Any:
        """The result of *op*. Raises what the other side raised, or :class:`MountError` after *timeout* seconds."""
        end = time.monotonic() + timeout
        answer = bytearray()
        try:
            self._sock.settimeout(timeout)
            self._sock.sendall(json.dumps({"id": 1, "op": op, **arguments}).encode() + b"\n")
            while not answer.endswith(b"\n"):
                self._sock.settimeout(max(end - time.monotonic(), 0.001))
                data = self._sock.recv(1 << 16)
                if not data or len(answer) > _MAX_LINE:
                    raise MountError(f"the mount ended while it was asked for {op}")
                answer += data
        except TimeoutError as exc:
            raise MountError(f"the mount did not answer {op!r} within {timeout:g} s; see its log") from exc
        except OSError as exc:
            raise MountError(f"the mount ended while it was asked for {op} ({exc.strerror})") from exc
        message = json.loads(answer)
        if not message["ok"]:
            raise error_from_json(message["error"])
        return message["result"]

    def wait_closed(self, timeout: float) -> None:
        """Return when the supervisor has closed the connection, or after *timeout* seconds."""
        self._sock.settimeout(timeout)
        try:
            while self._sock.recv(1 << 16):
                pass
        except OSError:
            pass
