"""``wsfuse serve DIR``: a Jupyter server with the extension on a directory, for a laptop, a worker or a test."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import stat
import sys
from pathlib import Path
from typing import Any

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.mount import registry


def read_token(path: Path) -> str:
    """The token in *path*. Raises :class:`MountError` if there is none, or others could read it."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(8192).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise MountError(f"cannot read the token in {path}: {exc}") from exc
    if stat.S_ISREG(mode) and mode & 0o077:
        raise MountError(f"others may read the token in {path}: chmod 600 {path}")
    if not token:
        raise MountError(f"{path} is empty; it should hold a token of the Jupyter server")
    return token


def make_token(path: Path) -> str:
    """Write a new token to *path*, readable by its owner only. Raises :class:`FileExistsError`."""
    token = secrets.token_hex(24)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(token + "\n")
    return token


def serve(directory: str, *, port: int | None, ip: str, token_file: str | None, verbose: bool) -> None:
    """Serve *directory* until SIGTERM or SIGINT. ``port`` None: 8888 or the next free one; 0: any."""
    from jupyter_server.serverapp import ServerApp
    from traitlets.config import Config

    root = Path(directory).resolve()
    path = Path(token_file).absolute() if token_file else None
    with contextlib.ExitStack() as stack:
        if path is None:
            path = registry.runtime_dir() / f"serve-{os.getpid()}.token"
            stack.callback(path.unlink, missing_ok=True)
        try:
            token = make_token(path)
        except FileExistsError:
            token = read_token(path)
        except OSError as exc:
            raise MountError(f"cannot write the token to {path}: {exc.strerror}") from exc

        settings = Config()
        settings.ServerApp.update(
            root_dir=str(root),
            ip=ip,
            port=8888 if port is None else port,
            port_retries=50 if port is None else 0,
            open_browser=False,
            allow_root=True,
            answer_yes=True,
            jpserver_extensions={"jupyter_wsfuse": True},
        )
        settings.IdentityProvider.token = token
        level = "INFO" if verbose else "WARN"
        app: Any = ServerApp.instance(config=settings, log_level=level)
        app.no_browser_open_file = True  # it would hold the token
        app.initialize(argv=[])  # what is set above wins over the user's configuration files

        def stop(*_: object) -> None:
            app.stop(from_signal=True)

        app.io_loop.add_callback(_announce, app, root, path)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)  # without a question, and without a line in the log
        app.start()


def _announce(app: Any, root: Path, token_file: Path) -> None:
    host = "127.0.0.1" if app.ip in ("", "0.0.0.0", "::") else app.ip
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if app.certfile else "http"
    url = f"{scheme}://{host}:{app.port}{app.base_url}"
    print(f"Serving {root}")
    print(f"  URL         {url}")
    print(f"  token in    {token_file}")
    print(f"  mount with  wsfuse mount {url} MOUNTPOINT --token-file {shlex.quote(str(token_file))}")
    print(f"Ready: {url}")
    sys.stdout.flush()
