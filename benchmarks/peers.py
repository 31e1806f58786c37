"""The ways to reach a directory that are compared: itself, sshfs, rclone where it is, and wsfuse over both transports.

Every peer serves the same source directory on the same host; distance is put in between by :mod:`.distance`.
``cached=False`` turns off every cache that the peer lets one turn off, so that each system call is a round trip.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from .mounts import mounted, take_down
from .processes import START_DEADLINE, answers, end_all, free_port, running, start, wait_until

#: What a table has as columns, in that order.
PEERS: Final = ("local", "sshfs", "rclone", "wsfuse direct", "wsfuse relay")

_FUSERMOUNT: Final = ("fusermount3", "-u", "-z")

#: Mounts a peer anew for the time of a block.
Mount = Callable[[], AbstractContextManager[Path]]


class PeerUnavailableError(RuntimeError):
    """A peer cannot be measured on this machine; the message names what is missing."""


@contextlib.contextmanager
def sshd(workdir: Path) -> Iterator[tuple[int, Path]]:
    """An ssh server of our own on a loopback port with a throw-away key: (port, identity file)."""
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    if not os.path.exists(server) or not shutil.which("sshfs"):
        raise PeerUnavailableError("sshfs: install the packages sshfs and openssh-server")
    workdir.mkdir(mode=0o700, exist_ok=True)
    identity, host_key = workdir / "identity", workdir / "host_key"
    for key in (identity, host_key):
        if key.exists():
            continue
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    shutil.copy(identity.with_suffix(".pub"), workdir / "authorized_keys")
    port = free_port()
    sftp = next(p for p in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server") if os.path.exists(p))
    config = workdir / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {workdir}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"MaxStartups 100\nSubsystem sftp {sftp}\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    with running(start([server, "-D", "-f", config], stderr=subprocess.DEVNULL)) as process:
        wait_until(lambda: answers(port), "sshd", process)
        yield port, identity


@contextlib.contextmanager
def sshfs(source: Path, mountpoint: Path, port: int, identity: Path, *, cached: bool) -> Iterator[Path]:
    """*source* mounted by sshfs from the server at *port*."""
    options = [
        f"port={port}",
        f"IdentityFile={identity}",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ]
    if not cached:
        options += ["dir_cache=no", "direct_io", "attr_timeout=0", "entry_timeout=0", "negative_timeout=0"]
    target = f"{getpass.getuser()}@127.0.0.1:{source}"
    mountpoint.mkdir(exist_ok=True)
    try:
        # It goes into the background when it is connected: in the foreground, the first row would wait for that.
        command = ["sshfs", target, str(mountpoint), "-o", ",".join(options)]
        subprocess.run(command, check=True, timeout=START_DEADLINE)
        yield mountpoint
    finally:
        take_down(mountpoint, _FUSERMOUNT)
        end_all("sshfs", mountpoint)  # one that is stuck does not see that its mount is gone


@contextlib.contextmanager
def rclone(source: Path, mountpoint: Path, port: int, identity: Path, *, cached: bool) -> Iterator[Path]:
    """*source* mounted by rclone over SFTP from the server at *port*, with what its manual advises for writing."""
    remote = f":sftp,host=127.0.0.1,port={port},user={getpass.getuser()},key_file={identity}:{source}"
    cache = ["--vfs-cache-mode", "writes"] if cached else ["--attr-timeout", "0s", "--dir-cache-time", "0s"]
    with tempfile.TemporaryDirectory(prefix="rclone-", dir=mountpoint.parent) as kept:
        command = ["rclone", "mount", remote, str(mountpoint), "--config", "/dev/null", "--cache-dir", kept]
        mountpoint.mkdir(exist_ok=True)
        with running(start([*command, *cache], stdout=subprocess.DEVNULL)) as process:
            try:
                wait_until(lambda: str(mountpoint) in mounted(), "rclone", process)
                yield mountpoint
            finally:
                take_down(mountpoint, _FUSERMOUNT)


def _wsfuse(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "jupyter_wsfuse.ui.cli", *map(str, arguments)]


@contextlib.contextmanager
def wsfuse_server(source: Path, workdir: Path, config: str = "") -> Iterator[tuple[str, Path]]:
    """``wsfuse serve`` on *source*: (URL, token file). *config*: the text of its ``jupyter_server_config.py``."""
    workdir.mkdir(mode=0o700, exist_ok=True)
    port, token = free_port(), workdir / "token"
    (workdir / "jupyter_server_config.py").write_text(config)
    environ = {**os.environ, "JUPYTER_CONFIG_DIR": str(workdir), "JUPYTER_DATA_DIR": str(workdir / "data")}
    with (workdir / "server.log").open("w") as log:
        command = _wsfuse("serve", source, "--port", port, "--token-file", token)
        process = start(command, stdout=log, stderr=log, env=environ)
    with running(process):
        wait_until(lambda: token.exists() and answers(port), "wsfuse serve", process)
        yield f"http://127.0.0.1:{port}/", token


@contextlib.contextmanager
def wsfuse(url: str, token: Path, mountpoint: Path, *, transport: str, cached: bool) -> Iterator[Path]:
    """The workspace at *url* mounted by ``wsfuse mount``."""
    options = ["--token-file", token, "--transport", transport, "--cache", "on" if cached else "off"]
    mountpoint.mkdir(exist_ok=True)
    try:
        subprocess.run(_wsfuse("mount", url, mountpoint, *options), check=True, stdout=subprocess.DEVNULL)
        yield mountpoint
    except BaseException:
        # Without waiting for what cannot be written any more.
        take_down(mountpoint, _wsfuse("umount", "--force"))
        raise
    take_down(mountpoint, _wsfuse("umount"))


@contextlib.contextmanager
def distance(target: int, round_trip: float, *, tickets: bool = False) -> Iterator[int]:
    """A relay of :mod:`.distance` before the port *target*: the port that it listens on."""
    port = free_port()
    more = [free_port()] if tickets else []
    command = [sys.executable, "-m", "benchmarks.distance", port, target, round_trip, *more]
    with running(start(command, stdout=subprocess.PIPE)) as process:
        wait_until(lambda: answers(port), "the relay", process)
        yield port


def available(wanted: Collection[str]) -> tuple[list[str], str]:
    """Those of *wanted* that are there, and a word on what is not. sshfs must be: :func:`everything` raises."""
    if "rclone" in wanted and not shutil.which("rclone"):
        return [peer for peer in PEERS if peer in wanted and peer != "rclone"], (
            "rclone is not installed, and left out"
        )
    return [peer for peer in PEERS if peer in wanted], ""


@contextlib.contextmanager
def everything(
    source: Path, workdir: Path, *, cached: bool, round_trip: float = 0.0, only: Collection[str] = PEERS
) -> Iterator[dict[str, Mount]]:
    """The peers *only* on *source*, *round_trip* seconds away: name -> what mounts it anew for the time of a block.

    Raises PeerUnavailableError if one is missing.
    """
    peers: dict[str, Mount] = {"local": lambda: contextlib.nullcontext(source)}
    with contextlib.ExitStack() as stack:
        if {"sshfs", "rclone"} & set(only):
            port, identity = stack.enter_context(sshd(workdir / "sshd"))
            if round_trip:
                port = stack.enter_context(distance(port, round_trip))
            peers["sshfs"] = lambda: sshfs(source, workdir / "sshfs", port, identity, cached=cached)
            peers["rclone"] = lambda: rclone(source, workdir / "rclone", port, identity, cached=cached)
        if {"wsfuse direct", "wsfuse relay"} & set(only):
            url, token = stack.enter_context(wsfuse_server(source, workdir / "server"))
            if round_trip:
                server = int(url.rstrip("/").rpartition(":")[2])
                near = stack.enter_context(distance(server, round_trip, tickets=True))
                url = f"http://127.0.0.1:{near}/"

            def ours(transport: str) -> Mount:
                return lambda: wsfuse(url, token, workdir / transport, transport=transport, cached=cached)

            peers |= {"wsfuse direct": ours("direct"), "wsfuse relay": ours("relay")}
        yield {peer: mount for peer, mount in peers.items() if peer in only}
