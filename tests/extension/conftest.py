"""A Jupyter server with the extension in the test's own process and event loop.

pytest-jupyter's fixtures set the server up; its own event loop and its hooks would take every test over, and are not
imported.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp
from pytest_jupyter.jupyter_core import (  # noqa: F401
    echo_kernel_spec,
    jp_config_dir,
    jp_data_dir,
    jp_env_config_path,
    jp_env_jupyter_path,
    jp_environ,
    jp_home_dir,
    jp_kernel_dir,
    jp_runtime_dir,
    jp_system_config_path,
    jp_system_jupyter_path,
)
from pytest_jupyter.jupyter_server import (  # noqa: F401
    jp_argv,
    jp_base_url,
    jp_configurable_serverapp,
    jp_http_port,
    jp_logging_stream,
    jp_nbconvert_templates,
    jp_root_dir,
    jp_server_config,
)
from pytest_jupyter.pytest_tornasync import http_server_port  # noqa: F401
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyter_wsfuse.extension import supervisor
from jupyter_wsfuse.extension.app import WsFuseApp

FAKE = Path(__file__).parent.parent / "helpers" / "fake_engine.py"


@dataclass
class Running:
    """A running server. ``url`` ends with a slash."""

    app: ServerApp
    url: str
    token: str
    channels: list[WebSocketClientConnection] = field(default_factory=list)

    @property
    def extension(self) -> WsFuseApp:
        (found,) = self.app.extension_manager.extension_apps["jupyter_wsfuse"]
        assert isinstance(found, WsFuseApp)
        return found

    async def fetch(self, path: str, *, token: str | None = None, **options: Any) -> HTTPResponse:
        token = self.token if token is None else token
        headers = {"Authorization": f"token {token}"} if token else {}
        request = HTTPRequest(
            self.url + path,
            headers={**headers, **options.pop("headers", {})},
            follow_redirects=False,
            **options,
        )
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    async def ticket(self, **options: Any) -> HTTPResponse:
        return await self.fetch("wsfuse/api/ticket", method="POST", body=b"{}", **options)

    async def channel(
        self, *, token: str | None = None, subprotocols: tuple[str, ...] = ("wsfuse.v1",), **headers: str
    ) -> WebSocketClientConnection:
        token = self.token if token is None else token
        given = {"Authorization": f"token {token}"} if token else {}
        request = HTTPRequest(
            f"ws{self.url.removeprefix('http')}wsfuse/channel", headers={**given, **headers}
        )
        channel = await websocket_connect(
            request, subprotocols=list(subprotocols) or None, max_message_size=16 << 20
        )
        self.channels.append(channel)
        return channel

    async def close(self) -> None:
        """Close every channel, and wait until the relays behind them have ended."""
        streams = [channel.protocol.stream for channel in self.channels if channel.protocol is not None]
        for channel in self.channels:
            channel.close()
        relays = [task for task in asyncio.all_tasks() if task.get_name() == "wsfuse-relay"]
        if relays:
            await asyncio.wait(relays)
        for channel in self.channels:
            while channel.close_code is None and await channel.read_message() is not None:
                pass
        for stream in streams:  # tornado waits five seconds for a peer that did not say goodbye
            if stream is not None:
                stream.close()


@pytest.fixture
def jp_asyncio_loop() -> asyncio.AbstractEventLoop:
    """What pytest-jupyter asks whether a loop runs already: yes, the test's."""

    class Loop:
        def is_running(self) -> bool:
            return True

    return Loop()  # type: ignore[return-value]


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(
    jp_configurable_serverapp: Callable[..., ServerApp],  # noqa: F811
    http_server_port: tuple[Any, int],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Start]:
    """``start(mode, WsFuse={...}, ServerApp={...})`` starts the server, with the fake engine in that mode."""
    servers: list[tuple[Running, HTTPServer]] = []

    async def starter(mode: str = "", **config: dict[str, Any]) -> Running:
        if mode != "real":
            monkeypatch.setattr(supervisor, "ENGINE", (sys.executable, str(FAKE), mode))
        config.setdefault("ServerApp", {})
        config["ServerApp"].setdefault("jpserver_extensions", {"jupyter_wsfuse": True})
        config["ServerApp"].setdefault("allow_unauthenticated_access", False)
        app = jp_configurable_serverapp(config=config)
        server = HTTPServer(app.web_app)
        server.add_socket(http_server_port[0])
        url = f"http://127.0.0.1:{http_server_port[1]}{app.base_url}"
        servers.append((Running(app, url, app.identity_provider.token), server))
        return servers[-1][0]

    yield starter
    for running, server in servers:
        await running.close()
        server.stop()
        await server.close_all_connections()
        await running.app._cleanup()
        running.app.kernel_manager.context.destroy()
    ServerApp.clear_instance()
