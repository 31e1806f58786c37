"""Scoped tokens over HTTP, for ``wsfuse token`` and the panel.

==========================  =============================================================================
``POST api/tokens``         a new token: see :func:`.tokens.read_wish`, and ``tenant``. The answer alone has its text
``GET api/tokens``          the user's tokens, or those made with the token that is shown
``DELETE api/tokens/ID``    revokes one, and what was made with it; without ID: all of them
==========================  =============================================================================
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web

from jupyter_wsfuse.extension.base import WsFuseHandler
from jupyter_wsfuse.extension.supervisor import CommandError, EngineUnavailable
from jupyter_wsfuse.extension.tokens import StoreError, read_wish


class _Handler(WsFuseHandler, APIHandler):
    admits_tokens = True

    def _broken(self, exc: Exception) -> None:
        self.log.error("tokens: %s", exc)
        self.refuse(500, f"the server's token store: {exc}", "token store")

    def _answer(self, body: dict[str, Any]) -> None:
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(body))


class TokensHandler(_Handler):
    @web.authenticated
    async def get(self) -> None:
        creator = await self.creator()
        try:
            self._answer({"tokens": await asyncio.to_thread(self.tokens.tokens, creator)})
        except (StoreError, OSError) as exc:
            self._broken(exc)

    @web.authenticated
    async def post(self) -> None:
        creator = await self.creator()
        asked = self.get_json_body() or {}
        try:
            if not isinstance(asked, dict) or not isinstance(asked.get("tenant", ""), str):
                raise ValueError("the body must be an object, and its tenant a text")
            wish = read_wish(asked, self.wsfuse.token_max_lifetime)
            wanted = asked.get("tenant", "")
            if self.scoped is None:
                tenant = await self.supervisor.assign(creator.principal, creator.groups, wanted)
            elif wanted in ("", self.scoped.tenant):
                tenant = self.scoped.tenant
            else:
                raise ValueError("the token that you came with is for another tenant")
            text, made = await asyncio.to_thread(self.tokens.create, creator, wish, tenant)
        except (ValueError, CommandError) as exc:
            self.refuse(400, str(exc))
        except EngineUnavailable as exc:
            self.unavailable(exc)
        except (StoreError, OSError) as exc:
            self._broken(exc)
        else:
            self.events.token("created", made["id"], creator.principal, tenant, self.request.remote_ip)
            self.set_status(201)
            self._answer({"token": text, **made})

    @web.authenticated
    async def delete(self, id: str | None = None) -> None:
        """Answers when their sessions have ended; ``pending`` says why that is still to come, if it is."""
        creator = await self.creator()
        try:
            ended = await asyncio.to_thread(self.tokens.revoke, creator, id)
        except KeyError:
            self.refuse(404, "there is no such token of yours; `wsfuse token list` shows those there are")
            return
        except (StoreError, OSError) as exc:
            self._broken(exc)
            return
        pending = None
        try:
            await self.supervisor.revoke()
        except (CommandError, EngineUnavailable, StoreError, OSError) as exc:
            pending = str(exc)
        for name in ended:
            self.events.token("revoked", name, creator.principal, "", self.request.remote_ip)
        self._answer({"revoked": ended, "pending": pending})


HANDLERS: Final[list[tuple[str, type[JupyterHandler]]]] = [
    (r"/wsfuse/api/tokens/?", TokensHandler),
    (r"/wsfuse/api/tokens/([0-9a-f]{16})/?", TokensHandler),
]
