"""The quick start, run for real: ``make demo``.

Starts a Jupyter server on a sample workspace, executes ``notebooks/quickstart.ipynb`` cell by cell in a
kernel of that server - through the server's REST and WebSocket interfaces, as a browser does - prints what a
reader of the notebook would see, stops everything, and checks that the workspace has what the notebook wrote
and that neither a mount nor a process is left. The exit status is 0 only if all of it went well.

With ``--lab`` it opens JupyterLab with the same notebook on the same workspace instead: ``make lab``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "quickstart.ipynb"

START_SECONDS = 60.0
CELL_SECONDS = 120.0
STOP_SECONDS = 30.0

# One client: what the kernel calls a session.
SESSION = uuid.uuid4().hex

ANSI_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class DemoError(Exception):
    """The demo did not do what it promises; the message says what is wrong."""


def make_workspace(root: Path) -> None:
    """Fill ``root`` with what a user might have on a server: data, and a repository around it."""
    project = root / "quickstart"
    project.mkdir(parents=True)
    rows = ["region,product,units,price"]
    for number in range(2000):
        region = ("north", "east", "south", "west")[number % 4]
        product = ("apples", "pears", "plums")[number % 3]
        rows.append(f"{region},{product},{1 + number * 7 % 40},{1 + number * 13 % 300 / 100:.2f}")
    (project / "sales.csv").write_text("\n".join(rows) + "\n")
    (project / "README.md").write_text("# Sales\n\nWhat was sold where.\n")
    git = ["git", "-C", str(project), "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "Sales of the year"], check=True)


@dataclass(frozen=True)
class Server:
    """A running Jupyter server: where it is and what it wants to hear."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    async def request(self, method: str, path: str, body: object = None) -> Any:
        """Call the server's REST interface, and return the decoded answer (None if it is empty)."""
        response = await AsyncHTTPClient().fetch(
            HTTPRequest(
                self.url + path,
                method=method,
                headers=self.headers,
                body=None if method in ("GET", "DELETE") else json.dumps(body or {}),
                request_timeout=START_SECONDS,
            )
        )
        return json.loads(response.body) if response.body else None

    async def channels(self, kernel: str) -> WebSocketClientConnection:
        """Open the WebSocket that carries all channels of ``kernel``."""
        url = "ws" + self.url.removeprefix("http") + f"api/kernels/{kernel}/channels?session_id={SESSION}"
        return await websocket_connect(HTTPRequest(url, headers=self.headers))


def server_environment(base: Path) -> dict[str, str]:
    """An environment in which a user's own Jupyter configuration plays no part."""
    environment = dict(os.environ)
    for name in ("config", "data", "runtime"):
        (base / name).mkdir(mode=0o700, exist_ok=True)
        environment[f"JUPYTER_{name.upper()}_DIR"] = str(base / name)
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    environment["WSFUSE_DEMO_DIR"] = str(base / "mount")
    # A notebook's `!git` and `%%bash` find the tools of this environment first.
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    )
    return environment


def start_server(base: Path, root: Path, token: str) -> subprocess.Popen[bytes]:
    """Start a Jupyter server on ``root``; its log goes to ``base/server.log``."""
    settings = {
        "IdentityProvider": {"token": token},
        "ServerApp": {
            "allow_root": True,
            "ip": "127.0.0.1",
            "open_browser": False,
            "port": 8900 + secrets.randbelow(1000),
            "port_retries": 200,
            "root_dir": str(root),
        },
    }
    # In a file that only we can read: the command line of a process is there for everybody to see.
    config = base / "jupyter_server_config.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps(settings))
    with (base / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jupyter_server", f"--config={config}"],
            cwd=base,
            env=server_environment(base),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@asynccontextmanager
async def serve(base: Path, root: Path) -> AsyncIterator[Server]:
    """Run a Jupyter server on ``root`` for the time of the block."""
    token = secrets.token_hex(24)
    process = start_server(base, root, token)
    try:
        yield Server(await running_url(base, process), token)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise DemoError(f"the server did not stop in {STOP_SECONDS:.0f} s") from None


async def running_url(base: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the server answers, and return its URL: it chose the port itself."""
    info = base / "runtime" / f"jpserver-{process.pid}.json"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the server ended with status {process.returncode} while it started")
        try:
            url: str = json.loads(info.read_text())["url"]
            await AsyncHTTPClient().fetch(url + "api")
        except (OSError, ValueError, HTTPClientError):
            await asyncio.sleep(0.1)
        else:
            return url
    raise DemoError(f"the server did not answer in {START_SECONDS:.0f} s")


async def run_notebook(server: Server, cells: list[dict[str, Any]]) -> None:
    """Execute the code ``cells`` of a notebook in a new kernel of ``server``; the first error ends it."""
    kernel = (await server.request("POST", "api/kernels", {"name": "python3", "path": ""}))["id"]
    try:
        channels = await server.channels(kernel)
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                print(f"\n{source}\n")
            elif cell["cell_type"] == "code":
                print(textwrap.indent(source, ">>> ", lambda _: True))
                await asyncio.wait_for(run_cell(channels, source), CELL_SECONDS)
        channels.close()
    finally:
        await server.request("DELETE", f"api/kernels/{kernel}")


async def run_cell(channels: WebSocketClientConnection, source: str) -> None:
    """Execute ``source`` and print its output; raises DemoError where the cell raised."""
    request = uuid.uuid4().hex
    header = {
        "msg_id": request,
        "msg_type": "execute_request",
        "session": SESSION,
        "username": "demo",
        "version": "5.3",
        "date": "",
    }
    content = {"code": source, "silent": False, "allow_stdin": False, "stop_on_error": True}
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
    await channels.write_message(json.dumps(message))
    # The reply and "idle" come on different channels, in any order; all output is before "idle".
    status = ""
    idle = False
    while not (status and idle):
        raw = await channels.read_message()
        if raw is None:
            raise DemoError("the kernel's connection was closed in the middle of a cell")
        answer = json.loads(raw)
        if answer["parent_header"].get("msg_id") != request:
            continue
        kind, content = answer["header"]["msg_type"], answer["content"]
        if kind == "execute_reply":
            status = content["status"]
        elif kind == "status":
            idle = content["execution_state"] == "idle"
        else:
            show(kind, content)
    if status != "ok":
        raise DemoError(f"a cell ended with status {status!r}")


def show(kind: str, content: dict[str, Any]) -> None:
    """Print one message of a cell's output as text."""
    if kind == "stream":
        text = content["text"]
    elif kind in ("execute_result", "display_data"):
        text = content["data"].get("text/plain", "")
    elif kind == "error":
        text = "\n".join(content["traceback"])
    else:
        return
    print(textwrap.indent(ANSI_COLOURS.sub("", text).rstrip("\n"), "    "), flush=True)


async def engine_pid(server: Server) -> int | None:
    """The process that serves the workspace, as the extension reports it."""
    status = await server.request("GET", "wsfuse/api/status?no_track_activity=1")
    pid: int | None = status["engine"]["pid"]
    return pid


def mounts_below(base: Path) -> list[str]:
    """Mount points in or at ``base``."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split()[4] for line in table]
    return [point for point in points if point.startswith(str(base))]


def processes_of(base: Path, engine: int | None) -> list[str]:
    """Command lines of live processes that the demo brought into the world."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it ended while we looked
            continue
        # A process that ended and was not yet waited for has an empty command line.
        if command and (str(base) in command or int(entry.name) == engine):
            found.append(f"{entry.name}: {command}")
    return found


async def expect_none(what: str, find: Callable[[], list[str]]) -> None:
    """Wait until ``find`` finds nothing: a daemon may need a moment to notice that it is done."""
    deadline = time.monotonic() + STOP_SECONDS
    while left := find():
        if time.monotonic() > deadline:
            raise DemoError(f"{what} left behind: " + "; ".join(left))
        await asyncio.sleep(0.1)


def check_results(root: Path) -> None:
    """What the notebook wrote through the mount is on the server's disk."""
    project = root / "quickstart"
    if not (project / "revenue.csv").is_file():
        raise DemoError("the workspace does not have the file that the notebook wrote through the mount")
    log = subprocess.run(
        ["git", "-C", str(project), "log", "--oneline"], check=True, capture_output=True, text=True
    ).stdout
    if len(log.splitlines()) != 2:
        raise DemoError(f"the repository does not have the commit that the notebook made:\n{log}")
    subprocess.run(["git", "-C", str(project), "fsck", "--strict"], check=True, capture_output=True)


async def demo(base: Path, root: Path, cells: list[dict[str, Any]]) -> None:
    print(f"A Jupyter server on {root}, and a kernel that mounts it on {base / 'mount'}.")
    async with serve(base, root) as server:
        await run_notebook(server, cells)
        engine = await engine_pid(server)
    check_results(root)
    await expect_none("mounts", lambda: mounts_below(base))
    await expect_none("processes", lambda: processes_of(base, engine))


def run_demo(base: Path) -> int:
    """Run the demo below ``base``; returns the exit status."""
    root = base / "workspace"
    try:
        make_workspace(root)
        asyncio.run(demo(base, root, json.loads(NOTEBOOK.read_text())["cells"]))
    except (DemoError, HTTPClientError, OSError, subprocess.CalledProcessError, TimeoutError) as error:
        print(f"\nThe demo failed: {error or type(error).__name__}\n", file=sys.stderr)
        log = base / "server.log"
        if log.exists():
            print("The end of the server's log:\n", file=sys.stderr)
            print("\n".join(log.read_text(errors="replace").splitlines()[-60:]), file=sys.stderr)
        return 1
    print("\nAll done: the files are on the server, nothing is left mounted, nothing is left running.")
    return 0


def clean_up(base: Path) -> None:
    """Remove ``base``, but never through a mount: that would remove what is mounted."""
    for point in mounts_below(base):
        command = ["umount", "--lazy", point] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", point]
        subprocess.run(command, check=False)
    if not mounts_below(base):
        shutil.rmtree(base, ignore_errors=True)


def run_lab(base: Path) -> int:
    """Open JupyterLab on the sample workspace, and return when it is closed."""
    root = base / "workspace"
    make_workspace(root)
    shutil.copy(NOTEBOOK, root / NOTEBOOK.name)
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", str(root / NOTEBOOK.name)]
    if os.geteuid() == 0:
        command.append("--allow-root")
    try:
        return subprocess.call(command, cwd=root, env={**os.environ, "WSFUSE_DEMO_DIR": str(base / "mount")})
    except KeyboardInterrupt:  # Ctrl-C is how JupyterLab is closed
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the quick start on a sample workspace.")
    parser.add_argument("--lab", action="store_true", help="open it in JupyterLab instead")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with what goes to stderr, in a CI log too
    base = Path(tempfile.mkdtemp(prefix="wsfuse-demo-")).resolve()
    try:
        return run_lab(base) if options.lab else run_demo(base)
    finally:
        clean_up(base)


if __name__ == "__main__":
    sys.exit(main())
