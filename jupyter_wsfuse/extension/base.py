"""What the handlers of the extension have in common: who asks, and what he may do."""

from __future__ import annotations

import asyncio
import functools
import json
import math
from typing import Any, ClassVar, Final

from jupyter_core.utils import ensure_async
from jupyter_server.auth.identity import (
    IdentityProvider,
    LegacyIdentityProvider,
    PasswordIdentityProvider,
    User,
)
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketHandler

from jupyter_wsfuse.extension.events import Events
from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.supervisor import Endpoint, EngineSupervisor, EngineUnavailable
from jupyter_wsfuse.extension.tokens import Creator, Presented, StoreError, TokenError, presented
from jupyter_wsfuse.extension.tokenstore import TokenStore

RESOURCE: Final = "wsfuse"
SETTINGS: Final = "wsfuse_settings"
SUPERVISOR: Final = "wsfuse_supervisor"
TOKENS: Final = "wsfuse_tokens"
EVENTS: Final = "wsfuse_events"
_ANONYMOUS: Final = (IdentityProvider, PasswordIdentityProvider, LegacyIdentityProvider)


class _TokenIdentity(IdentityProvider):
    """In place of the server's own identity provider for a request that came with a scoped token: that one does
    not know it, and might ask a Hub, or let in everybody."""

    def get_user(self, handler: web.RequestHandler) -> User | None:
        assert isinstance(handler, WsFuseHandler)
        scoped = handler.scoped
        assert scoped is not None
        return User(scoped.principal or f"token {scoped.claims.id}")

    def is_token_authenticated(self, handler: web.RequestHandler) -> bool:
        return True

    def should_check_origin(self, handler: web.RequestHandler) -> bool:
        return False


@functools.cache
def _token_identity() -> _TokenIdentity:
    return _TokenIdentity()


class WsFuseHandler(JupyterHandler):
    """Knows Jupyter's users, and where ``admits_tokens``, scoped tokens in the ``Authorization`` header.

    A scoped token counts alone, whatever else a request brings.
    """

    auth_resource = RESOURCE
    admits_tokens: ClassVar[bool] = False
    #: Whether a request is a token's use, and not only a look at it.
    uses_tokens: ClassVar[bool] = False
    scoped: Presented | None = None

    @property
    def wsfuse(self) -> Settings:
        return self.settings[SETTINGS]

    @property
    def supervisor(self) -> EngineSupervisor:
        return self.settings[SUPERVISOR]

    @property
    def tokens(self) -> TokenStore:
        return self.settings[TOKENS]

    @property
    def events(self) -> Events:
        return self.settings[EVENTS]

    @property
    def identity_provider(self) -> IdentityProvider:
        return super().identity_provider if self.scoped is None else _token_identity()

    async def prepare(self, *args: Any, **kwargs: Any) -> None:
        text = presented(self.request.headers.get("Authorization", ""))
        if text is not None:
            if not self.admits_tokens:
                self.refuse(403, "a scoped token opens the workspace, and nothing else", "token not admitted")
                return
            try:
                self.scoped = await asyncio.to_thread(self.tokens.verify, text, use=self.uses_tokens)
            except TokenError as exc:
                self.refuse(403, str(exc), f"token {exc.code}")
                return
            except (StoreError, OSError) as exc:
                self.log.error("tokens cannot be checked: %s", exc)
                self.refuse(500, "the server cannot check tokens; its log says why", "token store")
                return
            # As Jupyter's own provider and the one of JupyterHub mark it: no browser sends this header by
            # itself, so that no XSRF cookie has to prove anything.
            self._token_authenticated = True
        result = super().prepare(*args, **kwargs)
        if result is not None:
            await result

    def refuse(self, status: int, message: str, reason: str = "") -> None:
        """Answer with an error in JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.set_header("X-Wsfuse", "1")  # so that a client knows that the words are ours
        self.finish(json.dumps({"message": message, "reason": reason}))

    @property
    def principal(self) -> str:
        """Who asks; empty where everybody with the token or password is the same person.

        Jupyter's own identity providers make up another user name for each login.
        """
        if self.scoped is not None:
            return self.scoped.principal
        if type(self.identity_provider) in _ANONYMOUS:
            return ""
        return self.current_user.username

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the identity provider says the user is in: those of JupyterHub's user model."""
        if self.scoped is not None:
            return self.scoped.groups
        user = self.current_user
        model = getattr(user, "hub_user", None)
        if not isinstance(model, dict):
            model = {"groups": getattr(user, "groups", None)}
        for source in (model, model.get("auth_state")):
            groups = source.get("groups") if isinstance(source, dict) else None
            if isinstance(groups, list | tuple | set | frozenset):
                return tuple(sorted(group for group in groups if isinstance(group, str)))
        return ()

    async def rights(self) -> set[str]:
        """What the authorizer allows the authenticated user. Raises HTTP 403 if that is nothing.

        Of a scoped token: what its creator was allowed, narrowed by the token.
        """

        async def allowed(action: str) -> bool:
            user = self.current_user
            return bool(await ensure_async(self.authorizer.is_authorized(self, user, action, RESOURCE)))

        if self.scoped is not None:
            if self.scoped.rights:
                return set(self.scoped.rights)
        elif await allowed("execute") and await allowed("write"):
            return {"read", "write"}
        elif await allowed("read"):
            return {"read"}
        raise web.HTTPError(403, f"User is not authorized on resource: {RESOURCE}.")

    async def creator(self) -> Creator:
        """Who asks, as the store of tokens knows people. Raises HTTP 403 for one without any right."""
        rights = frozenset(await self.rights())
        return Creator(
            self.principal, self.groups, rights, None if self.scoped is None else self.scoped.claims
        )

    async def engine(self) -> Endpoint | None:
        """Where the engine listens; None if there is none, and then the request has been answered with 503."""
        try:
            return await self.supervisor.endpoint()
        except EngineUnavailable as exc:
            self.unavailable(exc)
            return None

    def unavailable(self, exc: EngineUnavailable) -> None:
        """Answer that the engine does not run now."""
        self.set_header("Retry-After", str(max(1, math.ceil(exc.retry_after))))
        self.refuse(503, str(exc), "engine unavailable")


class WsFuseSocket(WebSocketMixin, WebSocketHandler, WsFuseHandler):
    """A WebSocket that is kept up by pings.

    The mixin pings by itself and has the settings in milliseconds; tornado takes the same names for seconds, and pings,
    too. Here tornado alone does it: Jupyter's open() is not called.
    """

    @property
    def ping_interval(self) -> float:
        """Seconds; 0: never."""
        return self.settings["ws_ping_interval"] / 1000

    @property
    def ping_timeout(self) -> float:
        """Seconds. tornado allows no more than the interval."""
        return min(self.ping_interval, self.settings.get("ws_ping_timeout", 30_000) / 1000)
