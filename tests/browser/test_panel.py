"""The panel in a real JupyterLab, over a real server with real mounts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.lab import Lab
from tests.helpers import live
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.jupyter, pytest.mark.mount]

IMAGES = Path(__file__).parents[2] / "docs/images"


@pytest.fixture
def mounted(server: live.Live, tmp_path: Path) -> Iterator[live.Mount]:
    with live.mount(server, tmp_path / "m") as found:
        yield found


def operations(text: str) -> int:
    found = re.search(r"operations\s*([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else 0


def test_mounted_used_denied_and_unmounted_from_the_panel_alone(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "from-the-panel"
    lab.says("Nobody has this workspace mounted")
    lab.click("Mount…")
    lab.answer(str(path))
    lab.until(lambda: "connected" in lab.mount_at(path), "the mount is shown")
    assert os.path.ismount(path)

    before = operations(lab.mount_at(path))
    for number in range(20):
        (path / f"file{number}").write_text("text")
        (path / f"file{number}").read_text()
    lab.until(lambda: operations(lab.mount_at(path)) >= before + 20, "the figures move")
    lab.view("profile")
    lab.says("Create", "operations a second")

    lab.server.expect_log("denied 1 times")
    with pytest.raises(PermissionError):
        (path / "raw/measured.csv").write_text("3,4\n")
    lab.view("audit")
    lab.says("raw/measured.csv", "EACCES", "rule: deny write,delete /raw/**")
    lab.all('#jp-wsfuse-panel input[type="checkbox"]')[0].click()
    lab.until(lambda: "file19" not in lab.text and "raw/measured.csv" in lab.text, "only what was denied")
    lab.click("Verify")
    lab.says("nothing is missing")

    lab.view("mounts")
    lab.until(lambda: "connected" in lab.mount_at(path), "the mount is shown")
    lab.click("Unmount", "#jp-wsfuse-panel li[data-mount]")
    lab.until(lambda: not lab.mount_at(path), "the mount is gone")
    eventually(lambda: not os.path.ismount(path))


def test_a_busy_mount_is_not_unmounted_until_that_is_forced(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "busy"
    lab.click("Mount…")
    lab.answer(str(path))
    lab.until(lambda: "connected" in lab.mount_at(path), "the mount is shown")
    lab.server.expect_log("409 DELETE")
    used = os.open(path / "open", os.O_CREAT | os.O_RDWR)
    try:
        lab.click("Unmount", "#jp-wsfuse-panel li[data-mount]")
        dialog = lab.until(lambda: lab.all(".jp-Dialog"), "a dialog says why not")[0]
        lab.until(lambda: str(os.getpid()) in dialog.text, "it names who uses the mount")
        lab.click("Unmount by force", ".jp-Dialog")
        lab.until(lambda: not lab.mount_at(path), "the mount is gone")
        eventually(lambda: not os.path.ismount(path))
    finally:
        with contextlib.suppress(OSError):  # the file is gone with the mount
            os.close(used)


def test_what_cannot_be_mounted_is_said(lab: Lab) -> None:
    lab.server.expect_log("POST /wsfuse/api/mounts")
    lab.click("Mount…")
    lab.answer("/proc/wsfuse")
    lab.until(
        lambda: any("Mount:" in found.text for found in lab.all(".Toastify__toast")),
        "a notification says why",
    )


def test_an_engine_that_is_killed_is_shown_and_comes_back(
    lab: Lab, server: live.Live, mounted: live.Mount
) -> None:
    mounted.expect_log(".")
    lab.until(lambda: "connected" in lab.mount_at(mounted.path), "the mount is shown")
    before = server.kill_engine()
    (mounted.path / "after").write_text("text")
    eventually(lambda: server.engine_pid() not in (0, before))
    lab.until(lambda: "connected" in lab.mount_at(mounted.path), "the mount is connected again")
    assert (server.root / "after").read_text() == "text"


def test_who_is_held_back_by_which_limit_is_shown(lab: Lab, mounted: live.Mount) -> None:
    for number in range(25):
        (mounted.path / f"short-lived{number}").touch()
    lab.view("limits")
    lab.says("delete", "of 10", "bytes_out", "of 200 MiB")
    for number in range(25):
        (mounted.path / f"short-lived{number}").unlink()
    lab.until(lambda: re.search(r"[1-9]\d* delayed, 0 refused", lab.text), "what was delayed is counted")


def test_the_status_bar_counts_the_mounts_and_opens_the_panel(lab: Lab, mounted: live.Mount) -> None:
    item = lab.until(
        lambda: [found for found in lab.all(".jp-wsfuse-status button") if found.text == "1 mount"],
        "the status bar says so",
    )[0]
    lab.view("audit")
    item.click()
    lab.until(lambda: lab.all("#jp-wsfuse-panel [data-view=mounts][aria-selected=true]"), "the mounts")


def test_the_file_browser_follows_changes_made_by_a_mount(lab: Lab, mounted: live.Mount) -> None:
    list(mounted.path.iterdir())
    lab.all('[data-id="filebrowser"]')[0].click()
    lab.until(lambda: lab.all(".jp-DirListing-content"), "the file browser")
    (mounted.path / "just-made.txt").write_text("text")
    lab.until(
        lambda: any("just-made.txt" in found.text for found in lab.all(".jp-DirListing-itemText")),
        "the new file is listed",
    )


def test_the_tabs_are_reached_by_keys(lab: Lab) -> None:
    tab = lab.all("#jp-wsfuse-panel [data-view=mounts]")[0]
    tab.click()
    for expected in ("profile", "limits", "audit", "mounts"):
        lab.browser.switch_to.active_element.send_keys("\ue014")  # to the right
        lab.until(
            lambda expected=expected: (
                lab.browser.switch_to.active_element.get_attribute("data-view")  # type: ignore[misc]
                == expected
            ),
            f"{expected} has the focus",
        )
        assert lab.all(f"#jp-wsfuse-panel [data-view={expected}][aria-selected=true]")


#: A page that speaks a version of the feed which no server knows.
_SKEWED = """
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  send.call(this, this.url.includes('wsfuse/feed') ? String(data).replace('"feed":[1]', '"feed":[99]') : data);
};
"""


def test_a_page_of_another_version_says_what_to_update(lab: Lab) -> None:
    lab.before_pages(_SKEWED)
    lab.open()
    lab.says("do not understand each other", "update the older one")
    assert lab.all(".jp-Launcher, .jp-FileBrowser")  # JupyterLab itself works


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_views_fit_and_can_be_used_by_everybody(lab: Lab, mounted: live.Mount, theme: str) -> None:
    """At the least width that the sidebar has, in both themes. With WSFUSE_SCREENSHOTS set, pictures for the docs."""
    for number in range(30):
        (mounted.path / f"figure{number}.dat").write_bytes(b"x" * 5000)
        (mounted.path / f"figure{number}.dat").read_bytes()
    mounted.expect_log("denied by")
    lab.server.expect_log("denied 1 times")
    with pytest.raises(PermissionError):
        (mounted.path / "raw/measured.csv").write_text("3,4\n")
    lab.theme(theme)
    lab.browser.execute_script("document.querySelector('#jp-wsfuse-panel').style.maxWidth = '250px'")
    for view in ("mounts", "profile", "limits", "audit"):
        lab.view(view)
        lab.until(lambda: "Asking the server" not in lab.text, f"{view} has figures")
        if view == "audit":
            lab.says("rule: deny write,delete /raw/**")
        wide, room = lab.browser.execute_script(
            "const body = document.querySelector('#jp-wsfuse-view'); return [body.scrollWidth, body.clientWidth]"
        )
        assert wide <= room, view
        assert lab.faults() == [], view
        if os.environ.get("WSFUSE_SCREENSHOTS"):
            name = f"panel-{view}-{theme.split()[1].lower()}.png"
            lab.all("#jp-wsfuse-panel")[0].screenshot(str(IMAGES / name))
