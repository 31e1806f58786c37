"""The server extension's application: configuration in, handlers and engine supervisor out."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_config_path
from jupyter_server._tz import utcnow
from jupyter_server.extension.application import ExtensionApp
from prometheus_client import REGISTRY
from traitlets.config import Config

from jupyter_wsfuse.extension import audit_api, base, feed, handlers, mounts_api, tokens_api
from jupyter_wsfuse.extension.collector import COLLECTOR, Collector
from jupyter_wsfuse.extension.events import Events
from jupyter_wsfuse.extension.feedmounts import Place, address
from jupyter_wsfuse.extension.metrics import EngineCollector
from jupyter_wsfuse.extension.settings import Settings, WsFuse
from jupyter_wsfuse.extension.steward import Steward
from jupyter_wsfuse.extension.supervisor import EngineSupervisor
from jupyter_wsfuse.extension.tokens import workspace_name
from jupyter_wsfuse.extension.tokenstore import TokenStore


def _ipython_dirs() -> list[str]:
    """Where IPython may find profiles and startup files. To ask itself would make the folder, and is a slow import."""
    home = os.path.expanduser("~")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    named = os.environ.get("IPYTHONDIR", "")
    found = [os.path.join(home, ".ipython"), os.path.join(config, "ipython")]
    return [os.path.abspath(os.path.expanduser(path)) for path in (named, *found) if path]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class WsFuseApp(ExtensionApp):
    """Serves the workspace at ``<base_url>wsfuse/``. Its options are those of :class:`WsFuse`."""

    name = "jupyter_wsfuse"
    description = "Serves the workspace of a Jupyter server to mounts on other hosts and in kernels."
    classes = [WsFuse]

    def initialize_settings(self) -> None:
        """Options are read here, once; a later change of a trait changes nothing."""
        assert self.serverapp is not None
        config = Config()
        config.merge(self.serverapp.config)
        config.merge(self.config)
        self.wsfuse_settings: Settings = WsFuse(parent=self, config=config).settings(self.serverapp.root_dir)
        settings = self.wsfuse_settings
        # What this server's user has in common for all his servers, and nobody else may read.
        data = Path(os.path.abspath(self.serverapp.data_dir)) / "wsfuse"
        tokens = TokenStore(data, workspace_name(settings.root_dir, settings.tenants_file))
        assert self.serverapp.event_logger is not None
        events = Events(self.serverapp.event_logger, self.serverapp.log, paths=not settings.tenants_file)
        self.supervisor = EngineSupervisor(
            settings,
            self.serverapp.runtime_dir,
            self.serverapp.log,
            on_activity=self._note_activity,
            on_event=events.of_engine,
            revoked=tokens.revoked,
            # A workspace is often a home directory, where all of these are.
            private=[
                str(data),
                settings.audit_dir,
                settings.audit_key_file,
                os.path.abspath(self.serverapp.runtime_dir),
                # Whoever writes here has commands run: kernels, extensions, configuration and startup files.
                os.path.abspath(self.serverapp.data_dir),
                os.path.abspath(self.serverapp.config_dir),
                *map(os.path.abspath, jupyter_config_path()),
                *_ipython_dirs(),
            ],
        )
        self.metrics = EngineCollector(self.supervisor)
        REGISTRY.register(self.metrics)
        log = self.serverapp.log
        self.collector = Collector(settings, self.supervisor, Steward(log), self._place, log)
        self.settings[base.SETTINGS] = settings
        self.settings[base.SUPERVISOR] = self.supervisor
        self.settings[base.TOKENS] = tokens
        self.settings[base.EVENTS] = events
        self.settings[COLLECTOR] = self.collector
        # In milliseconds, as for all of Jupyter's WebSockets, which ignore ServerApp.websocket_ping_interval. Proxies
        # commonly cut a connection that was silent for 60 seconds.
        self.settings.setdefault("ws_ping_interval", 30_000)

    def initialize_handlers(self) -> None:
        for part in (handlers, tokens_api, audit_api, feed, mounts_api):
            self.handlers.extend(part.HANDLERS)

    async def stop_extension(self) -> None:
        """Called by the server when it stops."""
        supervisor: EngineSupervisor | None = getattr(self, "supervisor", None)
        if supervisor is not None:  # None: the extension failed to load
            with contextlib.suppress(KeyError):  # a second call
                REGISTRY.unregister(self.metrics)
            await self.collector.close()
            await supervisor.stop()

    def _place(self) -> Place:
        app = self.serverapp
        assert app is not None
        scheme = "https" if app.certfile else "http"
        hosts = {"127.0.0.1", app.ip, socket.gethostname()}
        urls = {f"{scheme}://{_in_url(host)}:{app.port}{app.base_url}" for host in hosts if host}
        own = "127.0.0.1" if app.ip in ("", "*", "0.0.0.0", "::", "localhost") else app.ip
        return Place(
            os.path.realpath(app.root_dir),
            frozenset(map(address, urls)),
            "" if app.sock else f"{scheme}://{_in_url(own)}:{app.port}{app.base_url}",
        )

    def _note_activity(self) -> None:
        # Keys of this form are what the server, and through it a Hub's culler, takes the last activity from.
        settings: dict[str, Any] = self.serverapp.web_app.settings  # type: ignore[union-attr]
        settings["wsfuse_last_activity"] = utcnow()
