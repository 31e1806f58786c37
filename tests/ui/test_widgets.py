"""The panel as a widget, and workspaces as objects: on a real server, with a real mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jupyter_wsfuse
from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.mount import registry
from jupyter_wsfuse.ui import widgets
from jupyter_wsfuse.ui.widgets import WorkspacePanel, limits
from jupyter_wsfuse.ui.workspace import Workspace
from tests.helpers import live
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.jupyter, pytest.mark.mount]

CONFIG = """
c.WsFuse.rules = ["deny write,delete /raw/**"]
c.WsFuse.limits = {"handles": 100}
"""
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Live]:
    home = tmp_path_factory.mktemp("widgets")
    env = live.environment(home / "home")
    (home / "home" / "config" / "jupyter_server_config.py").write_text(CONFIG)
    (home / "workspace" / "raw").mkdir(parents=True)
    (home / "workspace" / "raw" / f"{HOSTILE}.csv").write_text("1,2\n")
    with live.start_server(home / "workspace", home / "home", env=env) as running:
        yield running


@pytest.fixture
def here(server: live.Live, monkeypatch: pytest.MonkeyPatch) -> Server:
    """This process sees the mounts of the server's user, and finds the server."""
    for name in ("HOME", "WSFUSE_RUNTIME_DIR"):
        monkeypatch.setenv(name, server.env[name])
    return Server(server.url, server.token, "test", None, None)


@pytest.fixture
def panel(here: Server) -> Iterator[WorkspacePanel]:
    panel = WorkspacePanel(here)
    yield panel
    panel.close()
    panel._thread.join(live.PATIENCE)
    assert not panel._thread.is_alive()


def button(panel: WorkspacePanel, label: str) -> Any:
    def search(widget: Any) -> Iterator[Any]:
        if getattr(widget, "description", "") == label and hasattr(widget, "click"):
            yield widget
        for child in getattr(widget, "children", ()):
            yield from search(child)

    return next(search(panel))


def test_mounted_used_denied_and_unmounted_from_the_panel(
    panel: WorkspacePanel, server: live.Live, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    eventually(lambda: "Nothing is mounted" in panel.text)
    panel._folder.value = str(path)
    button(panel, "Mount").click()
    eventually(lambda: f"Mounted on {path}" in panel._message.value)
    eventually(lambda: str(path) in panel.text and "connected" in panel.text)
    assert panel._chosen.value == str(path)

    panel.view = "Profile"
    (path / "figures").write_text("1")
    eventually(lambda: "create" in panel.text)
    assert "data:application/json" in panel._export.value

    server.expect_log("denied 1 times")
    with pytest.raises(PermissionError):
        (path / "raw" / f"{HOSTILE}.csv").write_text("3,4\n")
    panel.view = "Audit"
    panel._denied.value = True
    eventually(lambda: "deny write,delete /raw/**" in panel.text)
    assert HOSTILE not in panel.text
    assert "&lt;img" in panel.text
    assert "figures" not in panel.text
    button(panel, "Verify").click()
    eventually(lambda: "default" in panel._message.value)

    panel.view = "Limits"
    eventually(lambda: "handles" in panel.text and "░" in panel.text)

    panel.view = "Mounts"
    button(panel, "Sync").click()
    eventually(lambda: "on the server&#x27;s disk" in panel._message.value)
    button(panel, "Unmount").click()
    eventually(lambda: "unmounted" in panel._message.value)
    eventually(lambda: "Nothing is mounted" in panel.text)
    assert not os.path.ismount(path)


def test_what_does_not_work_is_said_and_tried_again(
    here: Server, server: live.Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widgets, "FAR", 0.1)
    monkeypatch.setattr(widgets, "LONGEST", 0.1)
    server.expect_log("403 GET", "Forbidden")
    panel = WorkspacePanel(Server(server.url, "wrong", "test", None, None))
    try:
        panel.view = "Limits"
        eventually(lambda: "%wsfuse doctor" in panel.text)
        panel._server = here
        eventually(lambda: "%wsfuse doctor" not in panel.text)
        panel.view = "Mounts"
        button(panel, "Unmount").click()
        eventually(lambda: "nothing is mounted" in panel._message.value)
        panel._folder.value = "/proc/nowhere"
        button(panel, "Mount").click()
        eventually(lambda: "/proc/nowhere" in panel._message.value)
    finally:
        panel.close()


def test_an_engine_that_dies_is_shown_until_the_next_one_serves(
    panel: WorkspacePanel, here: Server, server: live.Live, tmp_path: Path
) -> None:
    with live.mount(server, tmp_path / "m") as mounted:
        mounted.expect_log(".")
        eventually(lambda: "connected" in panel.text)
        before = server.kill_engine()
        (mounted.path / "after").write_text("text")
        eventually(lambda: server.engine_pid() not in (0, before))
        eventually(lambda: "connected" in panel.text and "reconnecting" not in panel.text)


def test_a_mount_whose_server_is_gone_is_unmounted_when_that_is_insisted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live.start_server(tmp_path / "workspace", tmp_path / "home") as server:
        for name in ("HOME", "WSFUSE_RUNTIME_DIR"):
            monkeypatch.setenv(name, server.env[name])
        workspace = Workspace.mount(server.url, str(tmp_path / "m"), token=server.token, deadline=1.0)
    panel = WorkspacePanel()
    try:
        eventually(lambda: "reconnecting" in panel.text)
        button(panel, "Unmount").click()
        eventually(lambda: "Unmount once more" in panel._message.value)
        assert registry.kernel_mount(workspace.path)
        button(panel, "Unmount").click()
        eventually(lambda: not registry.kernel_mount(workspace.path))
    finally:
        panel.close()


def test_a_workspace_is_an_object(here: Server, server: live.Live, tmp_path: Path) -> None:
    with jupyter_wsfuse.Workspace.mount(server.url, str(tmp_path / "m"), token=server.token) as workspace:
        assert Path(workspace).is_mount()
        (Path(workspace) / "file").write_text("text")
        workspace.sync()
        assert (server.root / "file").read_text() == "text"
        assert workspace.status().data[0]["mountpoint"] == workspace.path
        assert workspace.stats().data["operations"]["create"]["count"] == 1
        workspace.reset()
        assert "create" not in workspace.stats().data["operations"]
        assert "connected" in workspace._repr_html_()
        assert [each.path for each in Workspace.mounted()] == [workspace.path]
    assert not os.path.ismount(workspace.path)
    assert "Nothing is mounted" in workspace._repr_html_()
    assert repr(workspace) == f"Workspace({str(tmp_path / 'm')!r})"


def test_the_panel_is_found_by_its_name() -> None:
    assert jupyter_wsfuse.WorkspacePanel is WorkspacePanel
    with pytest.raises(AttributeError):
        _ = jupyter_wsfuse.Nothing  # type: ignore[attr-defined]


def test_limits_against_their_settings() -> None:
    report = limits(
        {
            "tenants": {
                HOSTILE: {
                    "limits": {
                        "handles": {"limit": 10, "used": 5, "delayed": 0, "refused": 2, "waiting": 0},
                        "delete": {"limit": 3.0, "delayed": 7, "refused": 0, "waited": 1.5, "waiting": 4},
                        "read": {"limit": None, "allowed": 9, "waiting": 0},
                        "max_wait": 30.0,
                    }
                },
                "quiet": {},
            }
        }
    )
    text = str(report)
    assert "█████░░░░░ 5" in text
    assert "not limited" in text
    assert "4 requests are held back now" in text
    assert "No limits are set" in text
    assert HOSTILE not in report._repr_html_()
    assert "Nobody has used" in str(limits({}))
