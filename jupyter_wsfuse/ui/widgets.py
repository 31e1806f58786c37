"""``%wsfuse panel``: mounts, profile, limits and audit in a notebook, wherever ipywidgets are shown.

A thread looks at what is seen, at most twice a second, and never at a path in a mount. It ends when the panel is
closed, or the kernel.
"""

from __future__ import annotations

import html
import json
import threading
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

import ipywidgets

from jupyter_wsfuse.client import audit_http
from jupyter_wsfuse.client.discovery import Server, discover
from jupyter_wsfuse.client.tickets_http import call
from jupyter_wsfuse.errors import MountError, NotMountedError, WsFuseError
from jupyter_wsfuse.mount import launcher
from jupyter_wsfuse.mount.provider import why_not
from jupyter_wsfuse.ui import audit, views
from jupyter_wsfuse.ui.render import Report, printable, seconds
from jupyter_wsfuse.ui.workspace import DEFAULT_DIR, Workspace

#: Seconds between two looks: of what this machine knows, of what the server is asked, and after something failed.
NEAR: Final = 0.5
FAR: Final = 2.0
LONGEST: Final = 30.0
#: Entries of the audit log that are shown.
ENTRIES: Final = 100

VIEWS: Final = ("Mounts", "Profile", "Limits", "Audit")


# --- what is seen ----------------------------------------------------------------------------------------------


def limits(status: dict[str, Any]) -> Report:
    """The counters of the server's *status* against their settings."""
    report = Report(status.get("tenants", {}))
    for name, tenant in status.get("tenants", {}).items():
        report.line(printable(str(name)), "title")
        # Beside the counters there are settings that are plain numbers.
        found = {kind: row for kind, row in (tenant.get("limits") or {}).items() if isinstance(row, dict)}
        rows = [
            (
                kind,
                _bar(row),
                str(row.get("limit") if row.get("limit") is not None else "not limited"),
                str(row.get("delayed", 0) or ""),
                str(row.get("refused", 0) or ""),
                seconds(row["waited"]) if row.get("waited") else "",
            )
            for kind, row in found.items()
        ]
        if rows:
            report.grid(("limit", "used", "setting", "delayed", "refused", "held back for"), rows)
        else:
            report.line("No limits are set.", "hint")
        waiting = sum(row.get("waiting", 0) for row in found.values())
        if waiting:
            report.line(f"{waiting} requests are held back now", "warn")
    if not status.get("tenants"):
        report.line("Nobody has used the workspace yet.")
    return report


def _bar(row: dict[str, Any]) -> str:
    """Of a limit that counts what is there."""
    limit, used = row.get("limit"), row.get("used")
    if used is None or not limit:
        return "" if used is None else str(used)
    part = min(1.0, used / limit)
    return f"{'█' * round(10 * part):░<10} {used}"


def mounts() -> Report:
    """All mounts of this user on this machine, as ``%wsfuse status`` shows them, and how long those wait that wait."""
    found = [launcher.status(entry) for entry in launcher.mounts()]
    report = views.status(found, "%wsfuse")
    for mount in found:
        connection = (mount.get("daemon") or {}).get("connection") or {}
        if connection.get("state") == "reconnecting":
            report.line(
                f"{mount['mountpoint']}: reconnecting, {connection.get('held', 0)} operations held, "
                f"for up to {connection.get('deadline', 0):g} s",
                "warn",
            )
    if not found and (missing := why_not()):
        report.line(f"This machine cannot mount: {missing}", "fail")
    return report


def profile(path: str | None) -> Report:
    """The figures of the mount on *path*."""
    if path is None:
        return Report({}).line("Nothing is mounted.")
    return Workspace(path).stats()


def _words(exc: BaseException) -> str:
    """What *exc* says, with commands as they are typed in a notebook."""
    said = str(exc) if isinstance(exc, WsFuseError | OSError) else f"{type(exc).__name__}: {exc}"
    return said.replace("`wsfuse ", "`%wsfuse ")


# --- the panel -------------------------------------------------------------------------------------------------


class WorkspacePanel(ipywidgets.VBox):
    """The panel as a widget. *server*: whose limits and audit log are shown; found by itself if it is not given.
    :meth:`close` ends it."""

    def __init__(self, server: Server | None = None, **options: Any) -> None:
        self._server = server
        self._given = server is not None
        self._insisting = ""  # the mount that could not be synced: unmounting it once more is by force
        self._closing = threading.Event()
        self._hurry = threading.Event()
        self._busy = threading.Lock()
        self._said = ""
        self._areas = {view: ipywidgets.HTML("Looking …") for view in VIEWS}
        self._message = ipywidgets.HTML()
        self._chosen = ipywidgets.Dropdown(options=[], description="Mount:")
        self._folder = ipywidgets.Text(value=DEFAULT_DIR, description="Folder:")
        self._path = ipywidgets.Text(description="Path:", continuous_update=False)
        self._denied = ipywidgets.Checkbox(value=False, description="denied only")
        self._export = ipywidgets.HTML()
        self._tabs = ipywidgets.Tab(
            children=[
                ipywidgets.VBox(
                    [
                        ipywidgets.HBox([self._folder, self._button("Mount", self._mount)]),
                        ipywidgets.HBox(
                            [
                                self._chosen,
                                self._button("Sync", self._sync),
                                self._button("Unmount", self._unmount),
                            ]
                        ),
                        self._areas["Mounts"],
                    ]
                ),
                ipywidgets.VBox(
                    [
                        ipywidgets.HBox([self._button("Reset", self._reset), self._export]),
                        self._areas["Profile"],
                    ]
                ),
                self._areas["Limits"],
                ipywidgets.VBox(
                    [
                        ipywidgets.HBox([self._path, self._denied, self._button("Verify", self._verify)]),
                        self._areas["Audit"],
                    ]
                ),
            ],
            titles=VIEWS,
        )
        for widget, trait in (
            (self._tabs, "selected_index"),
            (self._chosen, "value"),
            (self._path, "value"),
            (self._denied, "value"),
        ):
            widget.observe(lambda _change: self._hurry.set(), trait)
        super().__init__([self._message, self._tabs], **options)
        self._thread = threading.Thread(target=self._follow, name="wsfuse-panel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; what is shown goes."""
        self._closing.set()
        self._hurry.set()
        super().close()

    @property
    def text(self) -> str:
        """What the view that is chosen shows, as HTML."""
        return str(self._areas[self.view].value)

    @property
    def view(self) -> str:
        """One of :data:`VIEWS`."""
        return VIEWS[self._tabs.selected_index or 0]

    @view.setter
    def view(self, name: str) -> None:
        self._tabs.selected_index = VIEWS.index(name)

    # --- looking -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        pause = NEAR
        while not self._closing.is_set():
            self._hurry.clear()
            view = self.view
            try:
                report = self._look(view)
                pause = FAR if view in ("Limits", "Audit") else NEAR
            except NotMountedError:
                report, pause = Report({}).line("Nothing is mounted."), NEAR
            except (WsFuseError, OSError) as exc:
                report = Report({}).line(_words(exc), "fail")
                report.line("`%wsfuse doctor` says what is missing. Trying again.", "hint")
                pause = min(2 * max(pause, FAR), LONGEST)
                if not self._given:
                    self._server = None  # it may be another one by now
            except Exception as exc:  # of this side; the panel goes on
                report, pause = Report({}).line(f"{type(exc).__name__}: {exc}", "fail"), LONGEST
            if not self._closing.is_set():
                self._show(view, report)
            self._hurry.wait(pause)

    def _look(self, view: str) -> Report:
        if view in ("Mounts", "Profile"):
            paths = [entry.mountpoint for entry in launcher.mounts()]
            if list(self._chosen.options) != paths:
                kept = self._chosen.value
                self._chosen.options = paths
                self._chosen.value = kept if kept in paths else paths[0] if paths else None
        if view == "Mounts":
            return mounts()
        if view == "Profile":
            return profile(self._chosen.value)
        server = self._found()
        if view == "Limits":
            return limits(call(server, "GET", "status?no_track_activity=1"))
        wanted = {"limit": str(ENTRIES), "no_track_activity": "1"}
        if self._path.value.strip():
            wanted["path"] = self._path.value.strip()
        if self._denied.value:
            wanted["denied"] = "true"
        return audit.listed(list(audit_http.entries(server, wanted)))

    def _found(self) -> Server:
        if self._server is None:
            self._server = discover()
        return self._server

    def _show(self, view: str, report: Report) -> None:
        shown = report._repr_html_()
        if self._areas[view].value != shown:
            self._areas[view].value = shown
        if view == "Profile":
            data = b64encode(json.dumps(report.data, default=str).encode()).decode()
            link = f'<a download="wsfuse-profile.json" href="data:application/json;base64,{data}">Export</a>'
            if self._export.value != link:
                self._export.value = link

    # --- doing -------------------------------------------------------------------------------------------------

    def _button(self, label: str, work: Callable[[], str]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label)
        button.on_click(lambda _button: self._do(label, work))
        return button

    def _do(self, label: str, work: Callable[[], str]) -> None:
        """In a thread: the kernel runs other cells meanwhile. One thing at a time."""

        def run() -> None:
            with self._busy:
                self._tell(f"{label} …")
                try:
                    self._tell(work())
                except Exception as exc:  # whatever it is: nobody else hears of it
                    self._tell(f"{label}: {_words(exc)}", failed=True)
            self._hurry.set()

        threading.Thread(target=run, name=f"wsfuse-{label.lower()}", daemon=True).start()

    def _tell(self, text: str, *, failed: bool = False) -> None:
        colour = "var(--jp-error-color1, #d32f2f)" if failed else "inherit"
        self._message.value = (
            f'<div style="white-space:pre-wrap;color:{colour}">{html.escape(text)}</div>' if text else ""
        )

    def _mount(self) -> str:
        found = self._server
        if found is None:
            made = Workspace.mount(None, self._folder.value)
        else:
            made = Workspace.mount(found.url, self._folder.value, token=found.token)
        return f"Mounted on {made.path}."

    def _picked(self) -> Workspace:
        if self._chosen.value is None:
            raise NotMountedError("nothing is mounted")
        return Workspace(self._chosen.value)

    def _sync(self) -> str:
        workspace = self._picked()
        workspace.sync()
        return f"Everything written to {workspace.path} is on the server's disk."

    def _unmount(self) -> str:
        workspace = self._picked()
        force = self._insisting == workspace.path
        if not force:
            try:
                workspace.sync()
            except (WsFuseError, OSError) as exc:
                self._insisting = workspace.path
                raise MountError(
                    f"{_words(exc)}\nIt may be that not everything is on the server. Unmount once more to take "
                    f"{workspace.path} down all the same."
                ) from exc
        self._insisting = ""
        return str(workspace.unmount(force=force))

    def _reset(self) -> str:
        self._picked().reset()
        return ""

    def _verify(self) -> str:
        return str(audit.proven(audit_http.proofs(self._found(), "", ())))
