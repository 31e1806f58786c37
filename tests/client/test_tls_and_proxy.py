"""Certificates and HTTP proxies between a client and its server."""

from __future__ import annotations

import asyncio
import base64
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jupyter_wsfuse.client.connection import Connection, ConnectionOptions
from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.errors import TransportError
from jupyter_wsfuse.protocol.messages import Access, Ref
from tests.helpers.standin import TOKEN, StandIn

RELAY = ConnectionOptions(transport="relay")


class Proxy:
    """An HTTP proxy that knows CONNECT and wants a password."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split("\r\n")[0].split(" ")
        assert method == "CONNECT"
        if f"Proxy-Authorization: Basic {base64.b64encode(b'ann:pass word').decode()}" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        self.targets.append(target)
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = [
            asyncio.create_task(self.pipe(reader, far_writer)),
            asyncio.create_task(self.pipe(far_reader, writer)),
        ]
        await asyncio.wait(ways)

    async def pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[Proxy, int]]:
    served = Proxy()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    yield served, server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and the file of the authority to trust for it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


async def _use(server: Server, options: ConnectionOptions = RELAY) -> str:
    connection = Connection(server, options)
    await connection.open()
    await connection.call(Access(0, Ref(b""), 4))
    transport = str(connection.status()["transport"])
    await connection.close()
    return transport


async def test_a_certificate_of_an_authority_that_is_trusted(
    certificate: tuple[ssl.SSLContext, Path],
) -> None:
    context, authority = certificate
    async with StandIn(tls=context) as stand_in:
        assert stand_in.url.startswith("https:")
        assert await _use(Server(stand_in.url, TOKEN, ca_file=str(authority))) == "relay"


async def test_a_certificate_that_is_not_trusted(
    certificate: tuple[ssl.SSLContext, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with StandIn(tls=certificate[0]) as stand_in:
        with pytest.raises(TransportError, match=r"certificate is not trusted .*set SSL_CERT_FILE"):
            await _use(Server(stand_in.url, TOKEN, ca_file=""))


async def test_a_file_of_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="cannot read the certificates in SSL_CERT_FILE"):
        await _use(Server("https://127.0.0.1:1/", TOKEN, ca_file=str(tmp_path / "nothing.pem")))


async def test_https_where_http_is_spoken() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(TransportError, match="http:// instead of https://"):
        await _use(Server(f"https://127.0.0.1:{port}/", TOKEN, ca_file=""))
    server.close()


async def test_through_a_proxy(proxy: tuple[Proxy, int]) -> None:
    served, port = proxy
    async with StandIn() as stand_in:
        server = Server(stand_in.url, TOKEN, proxy=f"http://ann:pass%20word@127.0.0.1:{port}")
        assert await _use(server) == "relay"
        assert served.targets == [f"127.0.0.1:{stand_in.http_port}"] * 2  # the ticket's and the channel's


async def test_through_a_proxy_by_tls(
    proxy: tuple[Proxy, int], certificate: tuple[ssl.SSLContext, Path]
) -> None:
    context, authority = certificate
    served, port = proxy
    async with StandIn(tls=context) as stand_in:
        server = Server(
            stand_in.url, TOKEN, ca_file=str(authority), proxy=f"http://ann:pass%20word@127.0.0.1:{port}"
        )
        assert await _use(server) == "relay"
        assert len(served.targets) == 2


async def test_a_proxy_that_does_not_let_us_through(proxy: tuple[Proxy, int]) -> None:
    async with StandIn() as stand_in:
        server = Server(stand_in.url, TOKEN, proxy=f"http://ann:wrong@127.0.0.1:{proxy[1]}")
        with pytest.raises(TransportError, match=r"the proxy 127\.0\.0\.1:\d+ answered .*407") as caught:
            await _use(server)
        assert "wrong" not in str(caught.value)


async def test_a_proxy_that_is_not_there() -> None:
    async with StandIn() as stand_in:
        with pytest.raises(TransportError, match="connection refused"):
            await _use(Server(stand_in.url, TOKEN, proxy="http://127.0.0.1:1"))
