"""The ways to reach a directory that are compared: itself, sshfs, and wsfuse over both transports.

Every peer serves the same source directory on the same host; distance is put in between by :mod:`.distance`.
``cached=False`` turns off every cache that the peer lets one turn off, so that each system call is a round trip.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

START_DEADLINE = 30.0  # seconds for a server or a mount to be there


class PeerUnavailableError(RuntimeError):
    """A peer cannot be measured on this machine; the message names what is missing."""


def wait_until(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None
) -> None:
    """Block until *condition* holds, at most START_DEADLINE seconds; RuntimeError names *what* failed."""
    deadline = time.monotonic() + START_DEADLINE
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not ready after {START_DEADLINE:.0f} s")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
    process = subprocess.Popen([server, "-D", "-f", config], text=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), "sshd", process)
        yield port, identity
    finally:
        stop(process)


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
    mountpoint.mkdir(exist_ok=True)
    target = f"{getpass.getuser()}@127.0.0.1:{source}"
    subprocess.run(["sshfs", target, mountpoint, "-o", ",".join(options)], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=True)


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
        process = subprocess.Popen(
            _wsfuse("serve", source, "--port", port, "--token-file", token),
            text=True,
            stdout=log,
            stderr=log,
            env=environ,
        )
    try:
        wait_until(lambda: token.exists() and answers(port), "wsfuse serve", process)
        yield f"http://127.0.0.1:{port}/", token
    finally:
        stop(process)


@contextlib.contextmanager
def wsfuse(url: str, token: Path, mountpoint: Path, *, transport: str, cached: bool) -> Iterator[Path]:
    """The workspace at *url* mounted by ``wsfuse mount``."""
    options = ["--token-file", token, "--transport", transport, "--cache", "on" if cached else "off"]
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(_wsfuse("mount", url, mountpoint, *options), check=True, stdout=subprocess.DEVNULL)
    try:
        yield mountpoint
    finally:
        subprocess.run(_wsfuse("umount", mountpoint), check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def distance(target: int, round_trip: float, *, tickets: bool = False) -> Iterator[int]:
    """A relay of :mod:`.distance` before the port *target*: the port that it listens on."""
    port = free_port()
    more = [free_port()] if tickets else []
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.distance", *map(str, (port, target, round_trip, *more))],
        text=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        wait_until(lambda: answers(port), "the relay", process)
        yield port
    finally:
        stop(process)
        if process.stdout is not None:
            process.stdout.close()


Mount = Callable[[], contextlib.AbstractContextManager[Path]]


@contextlib.contextmanager
def everything(
    source: Path, workdir: Path, *, cached: bool, round_trip: float = 0.0
) -> Iterator[dict[str, Mount]]:
    """All peers on *source*, *round_trip* seconds away: name -> what mounts it anew for the time of a block.

    Raises PeerUnavailableError if one is missing.
    """
    with contextlib.ExitStack() as stack:
        url, token = stack.enter_context(wsfuse_server(source, workdir / "server"))
        port, identity = stack.enter_context(sshd(workdir / "sshd"))
        if round_trip:
            port = stack.enter_context(distance(port, round_trip))
            server = int(url.rstrip("/").rpartition(":")[2])
            url = f"http://127.0.0.1:{stack.enter_context(distance(server, round_trip, tickets=True))}/"

        def ours(transport: str) -> Mount:
            return lambda: wsfuse(url, token, workdir / transport, transport=transport, cached=cached)

        yield {
            "local": lambda: contextlib.nullcontext(source),
            "sshfs": lambda: sshfs(source, workdir / "sshfs", port, identity, cached=cached),
            "wsfuse direct": ours("direct"),
            "wsfuse relay": ours("relay"),
        }
