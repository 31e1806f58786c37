"""What the extension answers at ``<base_url>wsfuse/``.

========================  =================================================================================
``POST api/ticket``       admits one connection to the engine: ticket, where the engine listens, limits
``GET api/status``        the engine's state and the mounts; does not count as activity
``channel``               WebSocket: carries opaque messages between a mount on another host and the engine
``api/tokens``            scoped tokens: see :mod:`.tokens_api`
``api/audit``             the audit log: see :mod:`.audit_api`
``feed``, ``api/mounts``  what the panel shows and does: see :mod:`.feed` and :mod:`.mounts_api`
========================  =================================================================================

All of it needs authentication, and the authorizer's word on the resource ``wsfuse``: ``execute`` and ``write``
together for reading and writing, ``read`` alone for a read-only mount. A scoped token opens ``api/ticket``,
``channel`` and ``api/tokens``, within what it is for.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web

import jupyter_wsfuse
from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.extension.base import WsFuseHandler, WsFuseSocket
from jupyter_wsfuse.extension.relay import SUBPROTOCOL, Relay
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.protocol.codec import MAX_MESSAGE

PROTOCOL: Final = 1  # of SUBPROTOCOL; the front end and clients compare it with their own


class TicketHandler(WsFuseHandler, APIHandler):
    """Tickets for single connections. Every reconnect asks for one, so it is not the user's activity."""

    _track_activity = False
    admits_tokens = uses_tokens = True

    @web.authenticated
    async def post(self) -> None:
        """``{"tenant": name}`` asks for a ticket to that tenant; without it, to the one that the user belongs to."""
        creator = await self.creator()
        asked = self.get_json_body() or {}
        tenant = asked.get("tenant", "") if isinstance(asked, dict) else None
        if not isinstance(tenant, str):
            self.refuse(400, 'the body must be {} or {"tenant": name}')
            return
        if self.scoped is None:
            await self._remember(creator)
        elif tenant not in ("", self.scoped.tenant):
            self.refuse(403, "this token is for another tenant", "token foreign")
            return
        else:
            tenant = self.scoped.tenant
            if self.scoped.noted:
                self.events.token(
                    "used", self.scoped.claims.id, self.principal, tenant, self.request.remote_ip
                )
        engine = await self.engine()
        if engine is None:
            return
        rights = set(creator.rights)
        if self.wsfuse.read_only:
            rights = {"read"}
        try:
            ticket = self.supervisor.ticket(
                creator.principal,
                rights,
                groups=creator.groups,
                tenant=tenant,
                address=self.request.remote_ip or "",
                token=creator.token,
            )
        except ValueError as exc:
            self.refuse(400, str(exc))
            return
        self.set_header("Cache-Control", "no-store")
        self.finish(
            json.dumps(
                {
                    "ticket": ticket,
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

    async def _remember(self, creator: Any) -> None:
        try:
            await asyncio.to_thread(self.tokens.seen, creator)
        except (WsFuseError, OSError) as exc:  # no reason to keep the user out
            self.log.error("the list of tokens cannot be kept: %s", exc)


class StatusHandler(WsFuseHandler, APIHandler):
    """For the panel, which polls it."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """On a server with several tenants everybody is shown what is his."""
        status = await self.supervisor.look()
        sessions = status.get("sessions", [])
        tenants = status.get("tenants", {})
        operations = status.get("operations", {})
        if self.wsfuse.tenants_file:
            sessions = [session for session in sessions if session.get("principal") == self.principal]
            names = {session.get("tenant") for session in sessions}
            tenants = {
                name: {key: value for key, value in tenant.items() if key != "slow"}  # other people's paths
                for name, tenant in tenants.items()
                if name in names
            }
            operations = {}  # of all of them together
        self.set_header("Cache-Control", "no-store")
        self.finish(
            json.dumps(
                {
                    "version": jupyter_wsfuse.__version__,
                    "protocol": PROTOCOL,
                    "sessions": sessions,
                    "engine": {**self.supervisor.info(), **_engine(status)},
                    "tenants": tenants,
                    "operations": operations,
                }
            )
        )


def _engine(status: dict[str, Any]) -> dict[str, Any]:
    """What the engine tells of itself as a whole, beyond what the supervisor knows."""
    told: dict[str, Any] = {key: status[key] for key in ("uptime", "hardening") if key in status}
    if (status.get("tenants_file") or {}).get("error"):
        told["tenants_file"] = (
            "it has an error, which the server's log names; what it said before is in force"
        )
    return told


class ChannelHandler(WsFuseSocket):
    """A mount's connection. The header authenticates the WebSocket; what flows is between mount and engine,
    who authenticate each other by a ticket as on a direct connection."""

    admits_tokens = True
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
