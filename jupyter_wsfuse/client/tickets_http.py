"""Asking the Jupyter server for tickets, over HTTP, and saying what is wrong in words that help.

The same words serve the WebSocket's handshake, which a server or a proxy can refuse with the same codes.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import http.client
import json
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.iostream import IOStream, StreamClosedError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError, SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient

from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.errors import RefusedError, TransportError, WsFuseError
from jupyter_wsfuse.protocol.messages import PROTOCOL_VERSION

CONNECT_TIMEOUT: Final = 10.0  # seconds
# The server may have to start the engine before it answers.
REQUEST_TIMEOUT: Final = 25.0
_MAX_BODY: Final = 1 << 20
_MAX_LIST: Final = 16 << 20  # what is listed for people: tokens by the thousand
_OTHER: Final = "Is something else at that URL, or a login page in front of it?"


class Unavailable(TransportError):
    """The server asks us to come back after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the server answered. ``port`` is 0 if the engine does not admit direct connections."""

    ticket: str = field(repr=False)
    host_id: str
    host: str
    port: int
    version: str


@functools.lru_cache(maxsize=8)
def tls_context(ca_file: str) -> ssl.SSLContext:
    """The system's trust store (which itself honours ``SSL_CERT_FILE``), or the authorities of *ca_file*."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as exc:
        raise TransportError(f"cannot read the certificates in SSL_CERT_FILE={ca_file}: {exc}") from None


class TicketClient:
    """Gets tickets from one server, and whatever else it answers in JSON, up to *max_body* bytes. :meth:`close` it."""

    def __init__(self, server: Server, *, max_body: int = _MAX_BODY) -> None:
        self._server = server
        self._max_body = max_body
        self._http = SimpleAsyncHTTPClient(force_instance=True, max_body_size=max_body)
        if server.proxy:
            self._http.tcp_client = _TunnelClient(server.proxy)

    def close(self) -> None:
        self._http.close()

    async def ticket(self, tenant: str = "") -> Ticket:
        """A fresh ticket, to the workspace *tenant* or to the one that is the user's.

        Raises :class:`TransportError` for what may pass (:class:`Unavailable` with the time the server names) and
        :class:`RefusedError` for what will not: a token that is not accepted, another protocol version.
        """
        return self._parse(await self._fetch("POST", "ticket", {"tenant": tenant} if tenant else None))

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers to a request to ``wsfuse/api/`` *path*, parsed.

        Raises what :meth:`ticket` does, and :class:`WsFuseError` with the server's words for what it says no to.
        """
        response = await self._fetch(method, path, body)
        try:
            return json.loads(response.body)
        except ValueError:
            raise TransportError(f"{self._server.url} answered, but not in JSON. {_OTHER}") from None

    async def _fetch(self, method: str, path: str, body: dict[str, Any] | None) -> HTTPResponse:
        server = self._server
        url = urljoin(server.url, f"wsfuse/api/{path}")
        headers: list[str] = []
        request = HTTPRequest(
            url,
            method=method,
            body=json.dumps(body or {}) if method == "POST" else None,
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json",
                **authorization(server),
            },
            follow_redirects=False,
            connect_timeout=CONNECT_TIMEOUT,
            request_timeout=REQUEST_TIMEOUT,
            ssl_options=tls_context(server.ca_file or "") if url.startswith("https:") else None,
            decompress_response=False,
            header_callback=headers.append,
        )
        try:
            response = await self._http.fetch(request, raise_error=False)
        except (OSError, StreamClosedError, HTTPClientError) as exc:
            raise TransportError(self._cut_off(headers) or describe(server, exc)) from None
        if response.code == 599 and response.error is not None:  # tornado's own: there was no answer
            raise TransportError(describe(server, response.error))
        if response.code not in (200, 201):
            raise refusal(
                server,
                response.code,
                location=response.headers.get("Location", ""),
                retry_after=response.headers.get("Retry-After", ""),
                message=_message(response),
                ours=response.headers.get("X-Wsfuse", "") == "1",
            )
        return response

    def _cut_off(self, headers: list[str]) -> str:
        """What became of an answer of which only *headers* were accepted; empty if there were none."""
        if not headers:
            return ""
        url, most = self._server.url, f"{self._max_body >> 20} MiB"
        for line in headers:
            name, _, value = line.partition(":")
            if name.lower() == "content-length" and value.strip().isdecimal() and int(value) > self._max_body:
                return f"{url}: the answer is too large: {int(value)} bytes, and more than {most} are not accepted"
        return f"{url}: the answer broke off, took too long, or is larger than the {most} that are accepted"

    def _parse(self, response: HTTPResponse) -> Ticket:
        try:
            body = json.loads(response.body)
            version, protocol = str(body["version"]), int(body["protocol"])
            engine = body.get("engine") or {}
            ticket = Ticket(
                ticket=str(body["ticket"]),
                host_id=str(body.get("host_id", "")),
                host=str(engine.get("host", "127.0.0.1")),
                port=int(engine.get("port", 0)),
                version=version,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TransportError(
                f"{self._server.url} answered, but not as a Jupyter server with jupyter-wsfuse does. {_OTHER}"
            ) from None
        if protocol != PROTOCOL_VERSION:
            raise RefusedError(
                "version",
                f"the server has jupyter-wsfuse {version} with protocol {protocol}, this side speaks "
                f"{PROTOCOL_VERSION}: update the older one",
            )
        return ticket


def call(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """:meth:`TicketClient.call` for code that is not asynchronous, a notebook's included, whose loop runs already."""
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

    async def ask() -> Any:
        client = TicketClient(server, max_body=_MAX_LIST)
        try:
            return await client.call(method, path, body)
        finally:
            client.close()

    def run() -> None:
        try:
            answer.set_result(asyncio.run(ask()))
        except BaseException as exc:
            answer.set_exception(exc)

    # A thread that nobody waits for at the end: an interrupt must not wait for the server.
    threading.Thread(target=run, name="wsfuse-ask", daemon=True).start()
    return answer.result()


def authorization(server: Server) -> dict[str, str]:
    """The header that proves who we are; no header without a token."""
    return {"Authorization": f"token {server.token}"} if server.token else {}


def refusal(
    server: Server,
    code: int,
    *,
    location: str = "",
    retry_after: str = "",
    message: str = "",
    ours: bool = False,
) -> WsFuseError:
    """The exception for an HTTP status other than success, saying what to do.

    *ours*: it is certain that jupyter-wsfuse itself says no, and *message* is its own.
    """
    url = server.url
    if "_xsrf" in message:
        message = (
            ""  # without a valid token, Jupyter takes us for a page that lacks a cookie: nothing that helps
        )
    text = f" ({message})" if message else ""
    if ours and code == 403:
        return RefusedError("token", f"{url}: {message}")
    if ours and code != 503:
        return WsFuseError(f"{url}: {message}")
    if code in (401, 403):
        what = f"the server refused the token{text}" if server.token else "the server wants a token"
        return RefusedError(
            "token",
            f"{url}: {what}; pass a valid one with --token-file or in WSFUSE_TOKEN. "
            "JupyterHub makes tokens on its page /hub/token.",
        )
    if 300 <= code < 400:
        target = urlsplit(urljoin(url, location))
        shown = f"{target.scheme}://{target.netloc}{target.path}"
        if "login" in target.path or "oauth" in target.path or "authorize" in target.path:
            return RefusedError(
                "token",
                f"{url} leads to the login page {shown}: pass a valid token with --token-file or in WSFUSE_TOKEN",
            )
        if "/hub/" in target.path:
            return TransportError(
                f"{url} leads to {shown}: the server does not run; start it from JupyterHub's page"
            )
        return TransportError(f"{url} redirects to {shown}: use the URL that it leads to")
    if code in (404, 405):
        return TransportError(
            f"{url} has no jupyter-wsfuse extension: `pip install jupyter-wsfuse` in the server's environment and "
            "restart the server. If it is installed there, it may have failed to load because of a mistake in its "
            "options: the server's log tells. (Or is the URL not that of a Jupyter server?)"
        )
    if code == 424:  # JupyterHub's answer in place of a server that does not run
        return TransportError(f"{url}: the server does not run{text}; start it from JupyterHub's page")
    if code in (429, 502, 503, 504):
        pause = float(retry_after) if retry_after.isdecimal() else 0.0
        return Unavailable(f"{url} is not available now: HTTP {code}{text}", pause)
    return TransportError(f"{url} answered HTTP {code} {http.client.responses.get(code, '')}{text}".rstrip())


def describe(server: Server, exc: BaseException) -> str:
    """What *exc*, a failure to reach the server, means for the user."""
    url = server.url
    cause: BaseException = exc
    if isinstance(exc, StreamClosedError) and exc.real_error is not None:
        cause = exc.real_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"{url}: its certificate is not trusted ({cause.verify_message}). If it is your own authority's, put "
            "that authority's certificate in a file and set SSL_CERT_FILE to its path."
        )
    if isinstance(cause, ssl.SSLError):
        return f"{url}: no secure connection ({cause.reason or cause}); is it http:// instead of https://?"
    if isinstance(cause, ConnectionRefusedError):
        return f"{url}: connection refused. Does the server run, and is the port right?"
    if isinstance(cause, socket.gaierror):
        return (
            f"{url}: the host's name cannot be found ({cause.strerror}). Is the URL right, is the network up?"
        )
    if isinstance(cause, (TimeoutError, HTTPTimeoutError)):
        return f"{url}: no answer in time. Does the server run, and can this host reach it?"
    if isinstance(cause, (HTTPStreamClosedError, StreamClosedError, ConnectionError)):
        return (
            f"{url}: the connection was closed without an answer. Is it the right port, http:// or https://?"
        )
    return f"{url}: {cause or type(cause).__name__}"


def _message(response: HTTPResponse) -> str:
    """What the server itself says, if it says it in JSON; an HTML page helps nobody."""
    try:
        body: Any = json.loads(response.body)
        return str(body.get("message") or "")[:500]
    except (ValueError, AttributeError):
        return ""


class _TunnelClient(TCPClient):
    """Connects through an HTTP proxy by ``CONNECT``; tornado's simple client knows no proxies."""

    def __init__(self, proxy: str) -> None:
        super().__init__()
        self._proxy = urlsplit(proxy)

    async def connect(self, host: str, port: int, *args: Any, **options: Any) -> IOStream:
        tls = options.pop("ssl_options", None)
        proxy = self._proxy
        stream = await super().connect(proxy.hostname or "", proxy.port or 80, *args, **options)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        if proxy.username is not None:
            login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            request += f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\n"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await stream.write(request.encode() + b"\r\n")
                status = (await stream.read_until(b"\r\n\r\n", max_bytes=1 << 16)).split(b"\r\n", 1)[0]
                if status.split(b" ")[1:2] != [b"200"]:
                    raise TransportError(
                        f"the proxy {proxy.hostname}:{proxy.port} answered {status.decode('latin-1')[:100]}"
                    )
                if tls is not None:
                    return await stream.start_tls(False, ssl_options=tls, server_hostname=host)
        except BaseException:
            stream.close()
            raise
        return stream
