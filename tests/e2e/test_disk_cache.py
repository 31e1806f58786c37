"""File data that outlive a mount."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.helpers.live import mount as mounting
from tests.helpers.live import run, start_server, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.jupyter]

CONTENT = os.urandom(1 << 20) + os.urandom(12345)


def test_the_next_mount_reads_them_from_the_disk(tmp_path: Path) -> None:
    cache = tmp_path / "home/.cache/wsfuse"
    with start_server(tmp_path / "workspace", tmp_path / "home") as server:
        file = server.root / "file"
        file.write_bytes(CONTENT)
        os.utime(file, (1_700_000_000, 1_700_000_000))
        wait_for(lambda: _old(file), "the file is older than its times can come again")
        for turn in range(2):
            with mounting(server, tmp_path / "mount", "--disk-cache", "64MiB") as mounted:
                assert (mounted.path / "file").read_bytes() == CONTENT
                assert (mounted.path / "file").read_bytes() == CONTENT
                said = json.loads(run("stats", mounted.path, "--json", env=mounted.env).stdout)
                assert bool(said["disk"]["hits"]) == bool(turn), said["disk"]
        assert cache.stat().st_mode & 0o777 == 0o700
        file.write_bytes(CONTENT[::-1])
        with mounting(server, tmp_path / "mount", "--disk-cache", "64MiB") as mounted:
            assert (mounted.path / "file").read_bytes() == CONTENT[::-1]


def _old(file: Path) -> bool:
    return time.time_ns() - file.stat().st_ctime_ns > 1.2e9


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with start_server(tmp_path / "workspace", tmp_path / "home") as server:
        (tmp_path / "home/.cache").mkdir(exist_ok=True)
        (tmp_path / "home/.cache/wsfuse").touch()
        done = run(
            "mount", server.url, tmp_path / "mount", "--token-file", server.token_file, "--disk-cache", "1MiB",
            env=server.env, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert ".cache/wsfuse" in done.stderr
        assert "Traceback" not in done.stderr
