"""The server extension's application: configuration in, handlers and engine supervisor out."""

from __future__ import annotations

from typing import Any

from jupyter_server._tz import utcnow
from jupyter_server.extension.application import ExtensionApp
from traitlets.config import Config

from jupyter_wsfuse.extension import handlers
from jupyter_wsfuse.extension.settings import Settings, WsFuse
from jupyter_wsfuse.extension.supervisor import EngineSupervisor


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
        self.supervisor = EngineSupervisor(
            self.wsfuse_settings,
            self.serverapp.runtime_dir,
            self.serverapp.log,
            on_activity=self._note_activity,
        )
        self.settings[handlers.SETTINGS] = self.wsfuse_settings
        self.settings[handlers.SUPERVISOR] = self.supervisor
        # In milliseconds, as for all of Jupyter's WebSockets, which ignore ServerApp.websocket_ping_interval. Proxies
        # commonly cut a connection that was silent for 60 seconds.
        self.settings.setdefault("ws_ping_interval", 30_000)

    def initialize_handlers(self) -> None:
        self.handlers.extend(handlers.HANDLERS)

    async def stop_extension(self) -> None:
        """Called by the server when it stops."""
        supervisor: EngineSupervisor | None = getattr(self, "supervisor", None)
        if supervisor is not None:  # None: the extension failed to load
            await supervisor.stop()

    def _note_activity(self) -> None:
        # Keys of this form are what the server, and through it a Hub's culler, takes the last activity from.
        settings: dict[str, Any] = self.serverapp.web_app.settings  # type: ignore[union-attr]
        settings["wsfuse_last_activity"] = utcnow()
