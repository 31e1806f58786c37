"""Mounting with a scoped token: what it shows, what it forbids, and that revoking ends the mount at once."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.tickets_http import call
from tests.helpers import live

pytestmark = pytest.mark.mount


@pytest.fixture
def server(tmp_path: Path) -> Iterator[live.Live]:
    with live.start_server(tmp_path / "workspace", tmp_path / "home") as started:
        for name in ("data/raw/a.txt", "data/b.txt", "other/c.txt"):
            (started.root / name).parent.mkdir(parents=True, exist_ok=True)
            (started.root / name).write_text(name)
        yield started


def ask(server: live.Live, method: str, path: str, **body: Any) -> Any:
    return call(Server(server.url, server.token), method, path, body or None)


Mounting = Callable[..., live.Mount]


@pytest.fixture
def mounting(server: live.Live, tmp_path: Path) -> Iterator[Mounting]:
    """``mounting(token)``: a mount with that token alone."""
    with contextlib.ExitStack() as stack:

        def factory(made: dict[str, Any], *options: str) -> live.Mount:
            path = tmp_path / f"mount-{secrets.token_hex(4)}"
            file = tmp_path / f"{path.name}.token"
            file.touch(0o600)
            file.write_text(made["token"])
            scoped = live.Live(server.root, server.url, file, server.process, server.env, server.log_file)
            return stack.enter_context(live.mount(scoped, path, *options))

        yield factory


@pytest.mark.parametrize("transport", ["direct", "relay"])
def test_a_mount_with_a_token_shows_its_paths(server: live.Live, mounting: Mounting, transport: str) -> None:
    server.expect_log("denied")
    made = ask(server, "POST", "tokens", paths=["data"], rights=["read"])
    mounted = mounting(made, "--transport", transport)
    mounted.expect_log("denied")
    assert os.listdir(mounted.path) == ["data"]
    assert (mounted.path / "data/raw/a.txt").read_text() == "data/raw/a.txt"
    with pytest.raises(FileNotFoundError):
        (mounted.path / "other/c.txt").read_text()
    for change in (
        lambda: (mounted.path / "data/new").touch(),
        lambda: (mounted.path / "data/b.txt").write_text("x"),
        lambda: (mounted.path / "data/b.txt").unlink(),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    assert (server.root / "data/b.txt").read_text() == "data/b.txt"
    assert mounted.status()["daemon"]["connection"]["read_only"]
    assert "read-only" in live.run("status", env=mounted.env).stdout


def test_revoking_ends_the_mount_at_once(server: live.Live, mounting: Mounting) -> None:
    server.expect_log("is ended: its token was revoked", "403 POST /wsfuse/api/ticket", r"40\d \w+ /wsfuse/")
    made = ask(server, "POST", "tokens")
    kept = mounting(ask(server, "POST", "tokens"))
    mounted = mounting(made)
    mounted.expect_log("revoked", "refused", "WARNING", "ERROR")
    file = open(mounted.path / "data/b.txt", "rb", buffering=0)
    assert file.read() == b"data/b.txt"
    answer = ask(server, "DELETE", f"tokens/{made['id']}")
    assert answer == {"revoked": [made["id"]], "pending": None}
    sessions = server.request("wsfuse/api/status")["sessions"]
    assert made["id"] not in [session.get("token") for session in sessions]  # before the answer came
    live.wait_for(lambda: _fails(file, mounted.path), "the mount has failed")
    connection = mounted.status()["daemon"]["connection"]
    assert connection["state"] == "failed"
    assert "revoked" in connection["last_error"]
    (kept.path / "data/new.txt").write_text("x")  # another token's mount goes on
    file.close()


def test_a_token_that_expires_ends_its_mount(server: live.Live, mounting: Mounting) -> None:
    server.expect_log("is ended: its token has expired", r"40\d \w+ /wsfuse/")
    mounted = mounting(ask(server, "POST", "tokens", expires=8))
    mounted.expect_log("expired", "refused", "WARNING", "ERROR")
    file = open(mounted.path / "data/b.txt", "rb", buffering=0)
    assert file.read() == b"data/b.txt"
    live.wait_for(lambda: _fails(file, mounted.path), "the mount has failed")
    file.close()


def _fails(file: Any, path: Path) -> bool:
    """Whether neither the open file nor the directory can be used; nothing may wait for ever."""
    try:
        os.fstat(file.fileno())
        os.stat(path / f"nothing-{secrets.token_hex(4)}")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def test_a_token_cannot_read_its_way_to_more(tmp_path: Path, server: live.Live, mounting: Mounting) -> None:
    """The workspace is often a home directory, in which the server keeps its own secrets."""
    home = tmp_path / "whole"
    with live.start_server(home, home / "h") as whole:
        whole.expect_log("denied", "own files")
        file = tmp_path / "scoped"
        file.touch(0o600)
        file.write_text(ask(whole, "POST", "tokens")["token"])
        scoped = live.Live(whole.root, whole.url, file, whole.process, whole.env, whole.log_file)
        with live.mount(scoped, tmp_path / "m") as mounted:
            mounted.expect_log("denied")
            for secret in ("h/data/wsfuse/token.key", "h/data/wsfuse/tokens.json"):
                assert (home / secret).exists()
                with pytest.raises(OSError):
                    (mounted.path / secret).read_bytes()
            for secret in (home / "h/runtime").glob("jpserver-*.json"):
                with pytest.raises(OSError):
                    (mounted.path / secret.relative_to(home)).read_bytes()
            (mounted.path / "mine").write_text("x")
