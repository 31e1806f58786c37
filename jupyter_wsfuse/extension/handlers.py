"""What the extension answers at ``<base_url>wsfuse/``.

====================  =====================================================================================
``POST api/ticket``   admits one connection to the engine: ticket, where the engine listens, limits
``GET api/status``    the engine's state and the mounts; does not count as activity
``channel``           WebSocket: carries opaque messages between a mount on another host and the engine
====================  =====================================================================================

All of it needs authentication, and the authorizer's word on the resource ``wsfuse``: ``execute`` and ``write``
together for reading and writing, ``read`` alone for a read-only mount.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.auth.identity import IdentityProvider, LegacyIdentityProvider, PasswordIdentityProvider
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketHandler

import jupyter_wsfuse
from jupyter_wsfuse.extension.relay import SUBPROTOCOL, Relay
from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.supervisor import Endpoint, EngineSupervisor, EngineUnavailable
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.protocol.codec import MAX_MESSAGE

RESOURCE: Final = "wsfuse"
_ANONYMOUS: Final = (IdentityProvider, PasswordIdentityProvider, LegacyIdentityProvider)
PROTOCOL: Final = 1  # of SUBPROTOCOL; the front end and clients compare it with their own
SETTINGS: Final = "wsfuse_settings"
SUPERVISOR: Final = "wsfuse_supervisor"


class _WsFuseHandler(JupyterHandler):
    auth_resource = RESOURCE

    @property
    def wsfuse(self) -> Settings:
        return self.settings[SETTINGS]

    @property
    def supervisor(self) -> EngineSupervisor:
        return self.settings[SUPERVISOR]

    @property
    def principal(self) -> str:
        """Who asks; empty where everybody with the token or password is the same person.

        Jupyter's own identity providers make up another user name for each login.
        """
        if type(self.identity_provider) in _ANONYMOUS:
            return ""
        return self.current_user.username

    async def rights(self) -> set[str]:
        """What the authorizer allows the authenticated user. Raises HTTP 403 if that is nothing."""

        async def allowed(action: str) -> bool:
            user = self.current_user
            return bool(await ensure_async(self.authorizer.is_authorized(self, user, action, RESOURCE)))

        if await allowed("execute") and await allowed("write"):
            return {"read", "write"}
        if await allowed("read"):
            return {"read"}
        raise web.HTTPError(403, f"User is not authorized on resource: {RESOURCE}.")

    async def engine(self) -> Endpoint | None:
        """Where the engine listens; None if there is none, and then the request has been answered with 503."""
        try:
            return await self.supervisor.endpoint()
        except EngineUnavailable as exc:
            self.set_status(503)
            self.set_header("Retry-After", str(max(1, math.ceil(exc.retry_after))))
            self.set_header("Content-Type", "application/json")
            self.finish(json.dumps({"message": str(exc), "reason": "engine unavailable"}))
            return None


class TicketHandler(_WsFuseHandler, APIHandler):
    """Tickets for single connections. Every reconnect asks for one, so it is not the user's activity."""

    _track_activity = False

    @web.authenticated
    async def post(self) -> None:
        rights = await self.rights()
        engine = await self.engine()
        if engine is None:
            return
        if self.wsfuse.read_only:
            rights = {"read"}
        self.set_header("Cache-Control", "no-store")
        self.finish(
            json.dumps(
                {
                    "ticket": self.supervisor.ticket(self.principal, rights),
                    "protocol": PROTOCOL,
                    "version": jupyter_wsfuse.__version__,
                    "expires": self.wsfuse.ticket_lifetime,
                    "engine": {"host": engine.host, "port": engine.port}
                    if self.wsfuse.allow_direct
                    else None,
                    "host_id": host_id(),
                    "max_message": MAX_MESSAGE,
                }
            )
        )


class StatusHandler(_WsFuseHandler, APIHandler):
    """For the panel, which polls it."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.finish(
            json.dumps(
                {
                    "version": jupyter_wsfuse.__version__,
                    "protocol": PROTOCOL,
                    "sessions": await self.supervisor.sessions(),
                    "engine": self.supervisor.info(),
                }
            )
        )


class ChannelHandler(WebSocketMixin, WebSocketHandler, _WsFuseHandler):
    """A mount's connection. The header authenticates the WebSocket; what flows is between mount and engine,
    who authenticate each other by a ticket as on a direct connection."""

    _relay: Relay | None = None

    @property
    def max_message_size(self) -> int:
        """Bytes; tornado's own limit is below ours."""
        return MAX_MESSAGE

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        await self.rights()
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        if SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
            raise web.HTTPError(
                400, f"the WebSocket subprotocol here is {SUBPROTOCOL}; update the older side"
            )
        engine = await self.engine()
        if engine is None:
            return
        self._relay = Relay(self, engine, self.wsfuse)
        result = super().get(*args, **kwargs)
        if result is not None:
            await result

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    # The mixin pings by itself and has these in milliseconds; tornado takes the same names for seconds, and pings, too.
    # Here tornado alone does it: Jupyter's open() is not called.

    @property
    def ping_interval(self) -> float:
        """Seconds; 0: never."""
        return self.settings["ws_ping_interval"] / 1000

    @property
    def ping_timeout(self) -> float:
        """Seconds. tornado allows no more than the interval."""
        return min(self.ping_interval, self.settings.get("ws_ping_timeout", 30_000) / 1000)

    def open(self, *args: Any, **kwargs: Any) -> None:
        assert self._relay is not None
        self._relay.start()

    def on_message(self, message: str | bytes) -> Any:
        # What is returned holds the next frames back, pongs as well: only when the buffer is full.
        assert self._relay is not None
        return self._relay.from_mount(message)

    def on_close(self) -> None:
        if self._relay is not None:
            self._relay.mount_closed(self.close_code, self.close_reason)


HANDLERS: Final[list[tuple[str, type[JupyterHandler]]]] = [
    (r"/wsfuse/api/ticket/?", TicketHandler),
    (r"/wsfuse/api/status/?", StatusHandler),
    (r"/wsfuse/channel/?", ChannelHandler),
]
