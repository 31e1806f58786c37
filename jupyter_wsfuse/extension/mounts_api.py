"""What the panel does to mounts on the server's own machine, by the steward.

================================  ===================================================================================
``POST api/mounts``               ``{"path", "read_only", "tenant"}`` mounts; 201 ``{"id", "path", "expires"}``
``GET api/mounts/ID/unsynced``    ``{"files": [{"path", "bytes"}], "bytes"}``: what is not on the server yet
``POST api/mounts/ID/sync``       waits until everything is
``DELETE api/mounts/ID?force=0``  syncs and unmounts; 409 if somebody uses it or it cannot be synced. With ``force=1``
                                  it does neither, and the mount is always gone afterwards
``POST api/profile/reset``        ``{"scope": "server" or ID}`` counts operations from zero
================================  ===================================================================================

All of it needs ``execute`` and ``write`` on ``wsfuse``. What fails is answered with ``{"message", "reason",
"advice"}``. IDs are those of the feed; of mounts on other machines only the profile can be reset.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Final

from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.extension.base import WsFuseHandler
from jupyter_wsfuse.extension.collector import COLLECTOR, Collector
from jupyter_wsfuse.extension.feedmounts import Mounts, Viewer
from jupyter_wsfuse.extension.steward import StewardError
from jupyter_wsfuse.extension.supervisor import CommandError, EngineUnavailable
from jupyter_wsfuse.extension.tokens import MAX_LABEL, Creator, StoreError, Wish

#: Seconds that each may take: the steward's own limits are tighter.
_MOUNT: Final = 130.0
_UNMOUNT: Final = 150.0
_SYNC: Final = 135.0
_ASK: Final = 20.0
_STATUS: Final = {
    "invalid": 400,
    "missing": 404,
    "busy": 409,
    "relay": 409,
    "failed": 409,
    "fuse": 501,
    "gone": 503,
}
_LABEL: Final = "mounted by the panel on "


class _Handler(WsFuseHandler, APIHandler):
    _track_activity = False

    async def prepare(self, *args: Any, **kwargs: Any) -> None:
        await super().prepare(*args, **kwargs)
        self.set_header("Cache-Control", "no-store")

    @property
    def collector(self) -> Collector:
        return self.settings[COLLECTOR]

    @property
    def viewer(self) -> Viewer:
        return Viewer(self.principal if self.wsfuse.tenants_file else None)

    async def actor(self) -> Creator:
        """Who acts. Raises HTTP 403 if he may not."""
        creator = await self.creator()
        if "write" not in creator.rights:
            raise web.HTTPError(403, "this takes execute and write on wsfuse")
        return creator

    async def mount(self, id: str) -> Mounts | None:
        """What is known of the mount *id* on this machine; None: the request is answered with an error."""
        try:
            mounts = await self.collector.find(self.viewer)
        except StewardError as exc:
            self.failed(exc)
            return None
        if id in mounts.local:
            return mounts
        row = mounts.rows.get(id)
        if row is None:
            self.fail(404, "that is not mounted any more", "missing")
        else:
            self.fail(
                409,
                f"it is mounted on {row['host']}, another machine: this server cannot reach it there",
                "elsewhere",
                f"on {row['host']}: wsfuse umount {row['path']}",
            )
        return None

    async def revoke(self, creator: Creator, id: str) -> None:
        """The token *id*, which was made for a mount, is of no use any more."""
        try:
            await asyncio.to_thread(self.tokens.revoke, creator, id)
            await self.supervisor.revoke()
        except (KeyError, WsFuseError, OSError) as exc:
            self.log.warning("the token of a mount could not be revoked: %s", exc)
        else:
            self.events.token("revoked", id, creator.principal, "", self.request.remote_ip)

    def body(self) -> dict[str, Any] | None:
        """The request's; None: it is answered with an error."""
        asked: Any = self.get_json_body() or {}
        if isinstance(asked, dict):
            return asked
        self.fail(400, "the body must be an object", "invalid")
        return None

    def fail(self, status: int, message: str, reason: str = "", advice: str = "", **more: Any) -> None:
        """Answer with an error in JSON."""
        self.set_status(status)
        self.finish(json.dumps({"message": message, "reason": reason, "advice": advice, **more}))

    def failed(self, exc: StewardError) -> None:
        """Answer with what the steward said."""
        said = {"reason": exc.kind, "advice": "", **exc.more}
        if exc.kind == "busy" and "users" in said and not said["advice"]:
            said["advice"] = "close what uses it, or unmount by force: then open files fail"
        elif exc.kind == "busy" and "unsynced" in said:
            said["advice"] = (
                "wait until the server can be reached, or unmount by force: what is not there is lost"
            )
        self.fail(_STATUS.get(exc.kind, 500), str(exc), **said)


class MountsHandler(_Handler):
    @web.authenticated
    async def post(self) -> None:
        creator = await self.actor()
        asked = self.body()
        if asked is None:
            return
        path, read_only, tenant = asked.get("path"), asked.get("read_only", False), asked.get("tenant", "")
        if (
            not isinstance(path, str)
            or not path
            or type(read_only) is not bool
            or not isinstance(tenant, str)
        ):
            self.fail(
                400, 'the body must be {"path": text, "read_only": true or false, "tenant": name}', "invalid"
            )
            return
        place = self.collector.place
        if not path.startswith(("/", "~")):
            path = os.path.join(place.root, path)
        if not place.url:
            self.fail(
                501, "this server listens on a Unix socket only, by which nothing can be mounted", "socket"
            )
            return
        try:
            tenant = await self.supervisor.assign(creator.principal, creator.groups, tenant)
            token, made = await self._credential(creator, path, tenant)
        except CommandError as exc:
            self.fail(400, str(exc), "tenant")
            return
        except EngineUnavailable as exc:
            self.unavailable(exc)
            return
        except (ValueError, StoreError, OSError) as exc:
            self.log.error("a token for a mount could not be made: %s", exc)
            self.fail(500, f"the server's token store: {exc}", "token store")
            return
        try:
            answer = await self.collector.steward.request(
                "mount", _MOUNT, url=place.url, token=token, path=path, read_only=read_only, tenant=tenant,
                # Through the relay the file browser would wait for the server, which waits for the file browser.
                outside="" if self.wsfuse.allow_direct else place.root,
            )  # fmt: skip
        except StewardError as exc:
            if made is not None:
                await self.revoke(creator, made["id"])
            self.failed(exc)
            return
        finally:
            self.collector.poke()
        self.collector.owner(answer["id"], creator.principal)
        self.set_status(201)
        expires = None if made is None else made["expires"]
        self.finish(json.dumps({"id": answer["id"], "path": answer["mountpoint"], "expires": expires}))

    async def _credential(
        self, creator: Creator, path: str, tenant: str
    ) -> tuple[str, dict[str, Any] | None]:
        """With what to mount as the very user who asks: the server's own token if that is his, otherwise a scoped one
        and what is known of it."""
        provider = self.identity_provider
        if not creator.principal and (provider.token or not provider.auth_enabled):
            return provider.token, None
        hub = os.environ.get("JUPYTERHUB_API_TOKEN", "")
        if hub and creator.principal and creator.principal == os.environ.get("JUPYTERHUB_USER"):
            return hub, None
        wish = Wish((), creator.rights, self.wsfuse.token_max_lifetime, {}, label(path))
        text, made = await asyncio.to_thread(self.tokens.create, creator, wish, tenant)
        self.events.token("created", made["id"], creator.principal, tenant, self.request.remote_ip)
        return text, made


def label(path: str) -> str:
    """What a token is called that was made for a mount on *path*."""
    return "".join(c if c.isprintable() else "?" for c in _LABEL + path)[:MAX_LABEL]


class MountHandler(_Handler):
    @web.authenticated
    async def delete(self, id: str) -> None:
        creator = await self.actor()
        force = self.get_query_argument("force", "0")
        if force not in ("0", "1"):
            self.fail(400, "force is 0 or 1", "invalid")
            return
        mounts = await self.mount(id)
        if mounts is None:
            return
        session = mounts.session(id)
        try:
            answer = await self.collector.steward.request("unmount", _UNMOUNT, mount=id, force=force == "1")
        except StewardError as exc:
            self.failed(exc)
            return
        finally:
            self.collector.poke()
        token = session.get("token")
        if token:
            ours = await asyncio.to_thread(self.tokens.tokens, creator)
            if any(one["id"] == token and one["label"].startswith(_LABEL) for one in ours):
                await self.revoke(creator, token)
        self.finish(json.dumps(answer))


class UnsyncedHandler(_Handler):
    @web.authenticated
    async def get(self, id: str) -> None:
        await self.actor()
        if await self.mount(id) is None:
            return
        try:
            self.finish(json.dumps(await self.collector.steward.request("unsynced", _ASK, mount=id)))
        except StewardError as exc:
            self.failed(exc)


class SyncHandler(_Handler):
    @web.authenticated
    async def post(self, id: str) -> None:
        await self.actor()
        if await self.mount(id) is None:
            return
        try:
            self.finish(json.dumps(await self.collector.steward.request("sync", _SYNC, mount=id)))
        except StewardError as exc:
            self.failed(exc)


class ResetHandler(_Handler):
    @web.authenticated
    async def post(self) -> None:
        await self.actor()
        asked = self.body()
        if asked is None:
            return
        scope = asked.get("scope")
        if not isinstance(scope, str) or not scope:
            self.fail(400, 'the body must be {"scope": "server" or the id of a mount}', "invalid")
            return
        if scope == "server" and self.wsfuse.tenants_file:
            self.fail(403, "the server's profile is of all tenants here", "tenants")
            return
        try:
            if scope != "server":
                mounts = await self.collector.find(self.viewer)
                if scope not in mounts.rows:
                    self.fail(404, "that is not mounted any more", "missing")
                    return
                if scope in mounts.local:
                    await self.collector.steward.request("reset", _ASK, mount=scope)
                else:
                    await self.supervisor.command("reset", session=scope)
            else:
                await self.supervisor.command("reset")
        except StewardError as exc:
            self.failed(exc)
        except CommandError as exc:
            self.fail(404, str(exc), "missing")
        except EngineUnavailable as exc:
            self.unavailable(exc)
        else:
            self.collector.poke()
            self.finish("{}")


_ID: Final = "([0-9a-f]{12,16})"
HANDLERS: Final[list[tuple[str, type[JupyterHandler]]]] = [
    (r"/wsfuse/api/mounts/?", MountsHandler),
    (rf"/wsfuse/api/mounts/{_ID}/?", MountHandler),
    (rf"/wsfuse/api/mounts/{_ID}/unsynced/?", UnsyncedHandler),
    (rf"/wsfuse/api/mounts/{_ID}/sync/?", SyncHandler),
    (r"/wsfuse/api/profile/reset/?", ResetHandler),
]
