"""Mistakes in the options of the server: whoever mounts is told what is wrong, and so is the server's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import live
from tests.helpers.live import run

pytestmark = pytest.mark.mount


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rules": ["deny read !x"]}, "begin with '!'"),
        ({"tenants_file": "/nonexistent/tenants.yaml"}, "/nonexistent/tenants.yaml"),
    ],
)
def test_the_engine_says_why_it_does_not_start(tmp_path: Path, options: dict[str, object], told: str) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    (home / "config").mkdir(parents=True)
    (home / "config/jupyter_server_config.json").write_text(json.dumps({"WsFuse": options}))
    with live.start_server(root, home) as server:
        server.expect_log("engine", r"ServerApp\] \{$", "503 POST /wsfuse/api/ticket")
        env = {**server.env, "WSFUSE_TOKEN": server.token}
        done = run("mount", server.url, tmp_path / "mount", env=env, check=False)
        assert done.returncode != 0
        assert told in done.stderr
        assert told in server.log
