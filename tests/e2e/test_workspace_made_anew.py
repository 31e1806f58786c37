"""The folder that is served is removed and made again while the server runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jupyter_wsfuse.engine.hardening import MIN_ABI, landlock_abi
from tests.helpers import live
from tests.helpers.live import run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]


@pytest.mark.skipif(landlock_abi() < MIN_ABI, reason="the kernel does not confine the engine to a folder")
def test_it_is_served_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with live.start_server(root, tmp_path / "home") as server:
        # An engine that is very young does not start anew for it: that could go on for ever.
        server.expect_log("the workspace cannot be served", "refused ", "was made anew")
        env = {**server.env, "WSFUSE_TOKEN": server.token}
        path = tmp_path / "mount"
        run("mount", server.url, path, env=env)
        run("umount", path, env=env)
        before = server.engine_pid()
        shutil.rmtree(root)
        root.mkdir()
        (root / "f").write_text("new")
        wait_for(
            lambda: run("mount", server.url, path, env=env, check=False).returncode == 0,
            "a mount of the new folder",
        )
        assert (path / "f").read_text() == "new"
        (path / "g").write_text("newer")
        run("umount", path, env=env)
        assert (root / "g").read_text() == "newer"
        assert server.engine_pid() != before
