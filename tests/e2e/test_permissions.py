"""Rules of the server, as programs on a mount meet them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import live
from tests.helpers.workspace import fails

pytestmark = pytest.mark.mount

RULES = [
    "deny execute *",
    "allow search *",
    "allow execute /bin/**",
    "deny write,delete /raw/**",
    "deny read *.key",
    "deny all /private/",
    "allow all /private/mine/**",
]


@contextmanager
def mounted(tmp_path: Path, **settings: Any) -> Iterator[live.Mount]:
    root, home = tmp_path / "root", tmp_path / "home"
    for name in ("raw", "private/mine", "private/other", "bin", "work"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text(name)
    (root / "secret.key").write_text("secret")
    for name in ("bin/tool", "work/tool"):
        (root / name).write_text("#!/bin/sh\necho ran\n")
        (root / name).chmod(0o755)
    (home / "config").mkdir(parents=True)
    (home / "config/jupyter_server_config.json").write_text(
        json.dumps({"WsFuse": {"rules": RULES, **settings}})
    )
    with live.start_server(root, home) as server, live.mount(server, tmp_path / "mount") as mount:
        mount.expect_log("denied by ")
        server.expect_log("denied ")
        yield mount


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Mount]:
    with mounted(tmp_path_factory.mktemp("shown")) as mount:
        yield mount


def test_what_is_denied_and_what_is_not(shown: live.Mount) -> None:
    here, there = shown.path, shown.source
    assert (here / "raw/file").read_text() == "raw"
    for attempt in (
        lambda: (here / "raw/file").write_text("x"),
        lambda: (here / "raw/new").touch(),
        lambda: (here / "raw/new").mkdir(),
        lambda: (here / "raw/file").unlink(),
        lambda: (here / "raw/file").rename(here / "work/new"),
        lambda: (here / "raw").rename(here / "rare"),
        lambda: (here / "work/file").rename(here / "raw/file"),
        lambda: (here / "raw/file").chmod(0o777),
        lambda: os.truncate(here / "raw/file", 0),
        lambda: os.link(here / "raw/file", here / "work/link"),
        lambda: (here / "secret.key").read_text(),
        lambda: (here / "secret.key").rename(here / "plain"),
        lambda: os.setxattr(here / "raw/file", "user.x", b"1"),
        lambda: os.listdir(here / "private"),
        lambda: (here / "private/other/file").stat(),
    ):
        with fails(errno.EACCES):
            attempt()
    assert sorted(os.listdir(there)) == ["bin", "private", "raw", "secret.key", "work"]
    assert os.listdir(there / "raw") == ["file"]
    assert (there / "raw/file").read_text() == "raw"
    assert (here / "secret.key").stat().st_size == 6
    (here / "work/new").write_text("x")
    (here / "work/new").rename(here / "moved")
    (here / "moved").unlink()
    (here / "private/mine/new").write_text("mine")
    assert (there / "private/mine/new").read_text() == "mine"


def test_executing(shown: live.Mount) -> None:
    done = subprocess.run([shown.path / "bin/tool"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "ran\n"
    with fails(errno.EACCES):
        subprocess.run([shown.path / "work/tool"], capture_output=True, check=True, timeout=60)


def test_asking_why(shown: live.Mount) -> None:
    why = os.getxattr(shown.path / "raw/file", "user.wsfuse.why").decode()
    read, write, _, delete = why.split("; ")
    assert read == "read: allowed by the default"
    assert write.startswith("write: denied by ")
    assert write.endswith(": deny write,delete /raw/**")
    assert delete.endswith(": deny write,delete /raw/**")
    assert "read: denied by" in os.getxattr(shown.path / "secret.key", "user.wsfuse.why").decode()
    assert os.listxattr(shown.path / "raw/file") == []
    with fails(errno.EPERM):
        os.setxattr(shown.path / "work/file", "user.wsfuse.why", b"")


def test_the_log_names_the_rule(shown: live.Mount) -> None:
    for _ in range(5):
        with fails(errno.EACCES):
            (shown.path / "private/file").unlink()
    lines = live.wait_for(
        lambda: [line for line in shown.log.splitlines() if "deny all /private/" in line],
        "the denial is in the log",
    )
    assert len(lines) < 5
    assert " WARNING " in lines[0]
    assert ": denied by " in lines[0]


def test_hidden_names(tmp_path: Path) -> None:
    with mounted(tmp_path, hide_denied=True) as mount:
        assert sorted(os.listdir(mount.path)) == ["bin", "private", "raw", "work"]
        assert os.listdir(mount.path / "private") == ["mine"]
        for attempt in (
            lambda: (mount.path / "secret.key").stat(),
            lambda: (mount.path / "secret.key").read_text(),
            lambda: (mount.path / "secret.key").unlink(),
            lambda: os.getxattr(mount.path / "secret.key", "user.wsfuse.why"),
            lambda: (mount.path / "private/other").stat(),
        ):
            with fails(errno.ENOENT):
                attempt()
        assert (mount.source / "secret.key").read_text() == "secret"
