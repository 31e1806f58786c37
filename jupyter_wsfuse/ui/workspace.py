"""A mounted workspace as an object: for code in a notebook, and for whoever prefers methods to ``%wsfuse``."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from jupyter_wsfuse.client.discovery import discover
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.config import DEFAULT_DEADLINE, MountConfig
from jupyter_wsfuse.ui import views
from jupyter_wsfuse.ui.render import Report

#: Where a workspace is mounted when no directory is given.
DEFAULT_DIR = "~/wsfuse"

_PREFIX = "%wsfuse"


class Workspace:
    """A mount of this user on this machine, there or not. ``path`` is where, an absolute path.

    As a context manager it is unmounted at the end of the block::

        with Workspace.mount("https://hub.example.org/user/ann/", "~/hub") as hub:
            print(open(f"{hub.path}/data.csv").read())
    """

    def __init__(self, path: str = DEFAULT_DIR) -> None:
        self.path = registry.resolve_mountpoint(path)

    @classmethod
    def mount(cls, url: str | None = None, path: str = DEFAULT_DIR, **options: Any) -> Workspace:
        """Mount the workspace of the server at *url*, or of the one that is found by itself, on *path*.

        *options*: fields of :class:`~jupyter_wsfuse.mount.config.MountConfig`, as ``read_only=True``. Raises
        :class:`~jupyter_wsfuse.errors.WsFuseError`, whose message says what to do.
        """
        server = discover(url, options.pop("token", None))
        workspace = cls(path)
        launcher.start(
            MountConfig(
                url=server.url,
                token=server.token,
                source=server.source,
                ca_file=server.ca_file or "",
                proxy=server.proxy or "",
                mountpoint=workspace.path,
                **options,
            )
        )
        return workspace

    @classmethod
    def mounted(cls) -> list[Workspace]:
        """Those that are mounted."""
        return [cls(entry.mountpoint) for entry in launcher.mounts()]

    def status(self) -> Report:
        """How the mount is; ``data`` is what ``wsfuse status --json`` says."""
        return views.status([launcher.status(self._entry())], _PREFIX)

    def stats(self) -> Report:
        """What was done with it, and how long that took."""
        return views.stats(self.path, launcher.ask(self._entry(), "stats"))

    def reset(self) -> None:
        """Count from zero."""
        launcher.ask(self._entry(), "stats", reset=True)

    def sync(self) -> None:
        """Return when everything written is on the server's disk."""
        entry = self._entry()
        deadline = float(entry.info.get("deadline", DEFAULT_DEADLINE))
        launcher.ask(entry, "sync", timeout=2 * deadline + 5)

    def unmount(self, *, force: bool = False) -> Report:
        """Take it down. *force*: also if that loses what could not be written."""
        return views.unmounted([(self.path, launcher.unmount(self._entry(), force=force))])

    def _entry(self) -> registry.Entry:
        return launcher.choose(self.path)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"Workspace({self.path!r})"

    def _report(self) -> Report:
        entries = [entry for entry in launcher.mounts() if entry.mountpoint == self.path]
        if not entries:
            return Report([]).line(f"Nothing is mounted on {self.path}.")
        return views.status([launcher.status(entry) for entry in entries], _PREFIX)

    def _repr_html_(self) -> str:
        return self._report()._repr_html_()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self._report()))
