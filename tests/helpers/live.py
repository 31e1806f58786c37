"""Real servers and real mounts for tests, always cleaned up.

``start_server(directory)`` runs ``wsfuse serve``; ``mount(server, path)`` runs ``wsfuse mount`` and, whatever the test
did to the processes, leaves nothing behind. Both fail the test if a log of theirs has a warning or an error in it,
unless it was announced by ``expect_log``. All files that Jupyter and we keep for a user are in a directory of the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupyter_wsfuse
from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.mount import registry

WSFUSE = (sys.executable, "-P", "-m", "jupyter_wsfuse.ui.cli")
PACKAGE = Path(jupyter_wsfuse.__file__).resolve().parent.parent

#: Seconds for anything that takes a fraction of it on an idle machine.
PATIENCE = 60.0

#: What fails a test in a log, beside tracebacks.
_PROBLEM = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) |^\[[WEC] |^Traceback |Warning: ", re.MULTILINE)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has nothing but *home*."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JPY_", "JUPYTER", "WSFUSE", "KERNEL_WSFUSE", "XDG_"))
    }
    for name in ("runtime", "config", "data", "run"):
        (home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = [str(PACKAGE), *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "WSFUSE_RUNTIME_DIR": str(home / "run"),
        **more,
    }


def run(
    *arguments: str | Path,
    env: dict[str, str],
    check: bool = True,
    timeout: float = PATIENCE,
    input: str | None = None,
    command: Sequence[str] = WSFUSE,
) -> subprocess.CompletedProcess[str]:
    """One ``wsfuse`` command to its end; with *check*, AssertionError with its output if it fails."""
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=timeout, input=input, check=False, cwd="/",
    )  # fmt: skip
    said = f"{done.stderr}{done.stdout}"
    assert not check or done.returncode == 0, f"wsfuse {arguments} ended with {done.returncode}: {said}"
    return done


def wait_for(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The first true value of *condition*, for states that nothing announces."""
    end = time.monotonic() + timeout
    pause = select.poll()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {timeout} s in vain until {what}"
        pause.poll(10)


def read_until(process: subprocess.Popen[str], start: str, timeout: float = PATIENCE) -> str:
    """The first line of *process*'s output that begins with *start*."""
    assert process.stdout is not None
    end = time.monotonic() + timeout
    pending = ""
    fd = process.stdout.fileno()
    while time.monotonic() < end:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            break
        data = os.read(fd, 65536).decode(errors="replace")
        pending += data
        for line in pending.splitlines():
            if line.startswith(start) and pending.endswith("\n"):
                return line
        if not data:
            break
    raise AssertionError(f"no line {start!r} from process {process.pid}, but: {pending}")


def _alive(pid: int) -> bool:
    """Whether *pid* runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def wait_gone(pid: int) -> None:
    """Until the process has ended."""
    wait_for(lambda: not _alive(pid), f"process {pid} has ended")


def _problems(log: str, expected: Sequence[str]) -> list[str]:
    lines = log.splitlines()
    found = []
    for index, line in enumerate(lines):
        if _PROBLEM.search(line) and not any(re.search(pattern, line) for pattern in expected):
            found.append("\n".join(lines[index : index + 25]))
    return found


# --- servers ---------------------------------------------------------------------------------------------------


@dataclass
class Live:
    """A server of ``wsfuse serve`` on :attr:`root`."""

    root: Path
    url: str
    token_file: Path
    process: subprocess.Popen[str]
    env: dict[str, str]
    log_file: Path
    expected: list[str] = field(default_factory=list)

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def expect_log(self, *patterns: str) -> None:
        """Lines that match are no failure."""
        self.expected += patterns

    def request(self, path: str, method: str = "GET", timeout: float = PATIENCE) -> Any:
        """The JSON answer to a request below the server's base URL."""
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"},
            data=b"{}" if method == "POST" else None,
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def engine_pid(self) -> int:
        """0: there is none."""
        return int(self.request("wsfuse/api/status")["engine"]["pid"] or 0)

    def kill_engine(self) -> int:
        """SIGKILL to the engine; returns the process id it had."""
        pid = self.engine_pid()
        assert pid
        self.expect_log(
            "engine", r"ServerApp\] \{$", "503 POST /wsfuse/api/ticket"
        )  # Jupyter shows headers with a 503
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()


def launch_server(
    root: Path, home: Path, *options: str, env: dict[str, str] | None = None, command: Sequence[str] = WSFUSE
) -> Live:
    """Start a server and return when it listens. The caller stops it."""
    root.mkdir(parents=True, exist_ok=True)
    env = env or environment(home)
    token_file = home / "token"
    log_file = home / "server.log"
    if "--port" not in options:
        options = (*options, "--port", "0")
    with open(log_file, "ab") as log:
        process = subprocess.Popen(
            [*command, "serve", str(root), "--token-file", str(token_file), *options],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, cwd="/",
        )  # fmt: skip
    try:
        url = read_until(process, "Ready: ").removeprefix("Ready: ")
    except AssertionError as exc:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        raise AssertionError(f"{exc}\n{log_file.read_text(errors='replace')}") from None
    return Live(root, url, token_file, process, env, log_file)


@contextlib.contextmanager
def start_server(root: Path, home: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Live]:
    """A server on *root* for the time of the block; *home* is a directory for what belongs to its user."""
    live = launch_server(root, home, *options, env=env)
    try:
        yield live
    finally:
        live.stop()
    assert not _problems(live.log, live.expected), "\n".join(_problems(live.log, live.expected))


# --- mounts ----------------------------------------------------------------------------------------------------


@dataclass
class Mount:
    """A mount at :attr:`path` of what is at :attr:`source` on the server (the same machine)."""

    path: Path
    source: Path
    env: dict[str, str]
    server: Live
    expected: list[str] = field(default_factory=list)

    def expect_log(self, *patterns: str) -> None:
        """Lines that match are no failure."""
        self.expected += patterns

    def status(self) -> dict[str, Any]:
        """What ``wsfuse status --json`` says of this mount."""
        found = json.loads(run("status", self.path, "--json", env=self.env).stdout)
        return dict(found[0])

    def status_of_all(self) -> list[dict[str, Any]]:
        """What ``wsfuse status --json`` says."""
        return list(json.loads(run("status", "--json", env=self.env).stdout))

    @property
    def daemon_pid(self) -> int:
        return int(self.status()["daemon"]["pid"])

    @property
    def supervisor_pid(self) -> int:
        return int(self.status()["pid"])

    @property
    def log_file(self) -> Path:
        return Path(self.env["WSFUSE_RUNTIME_DIR"]) / f"{registry.mount_id(str(self.path))}.log"

    @property
    def log(self) -> str:
        files = [self.log_file.with_suffix(".log.1"), self.log_file]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    @property
    def mounted(self) -> bool:
        return registry.kernel_mount(str(self.path)) is not None

    def umount(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``wsfuse umount``."""
        return run("umount", self.path, *options, env=self.env, check=check)

    def pids(self) -> list[int]:
        """Its processes, as far as they can be found without asking them."""
        found = []
        for directory in Path("/proc").iterdir():
            if directory.name.isdecimal():
                with contextlib.suppress(OSError):
                    command = (directory / "cmdline").read_bytes()
                    environ = (directory / "environ").read_bytes()
                    ours = os.fsencode(f"WSFUSE_RUNTIME_DIR={self.env['WSFUSE_RUNTIME_DIR']}\0")
                    if (
                        re.search(rb"jupyter_wsfuse\.mount\.(supervisor|daemon)\b", command)
                        and ours in environ
                    ):
                        found.append(int(directory.name))
        return found

    def destroy(self) -> None:
        """Everything gone, by force."""
        mounted = registry.kernel_mount(str(self.path))
        if mounted is not None:
            with contextlib.suppress(Exception):
                device.abort(mounted.minor)
            with contextlib.suppress(Exception):
                device.unmount(str(self.path), lazy=True)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self.log_file.parent.glob(f"{self.log_file.stem}.*"):
            if path.suffix in (".json", ".sock"):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def mount(
    server: Live, path: Path, *options: str, env: dict[str, str] | None = None, source: Path | None = None
) -> Iterator[Mount]:
    """``wsfuse mount`` for the time of the block."""
    path = path.resolve()
    mounted = Mount(path, source or server.root, env or server.env, server)
    try:
        run("mount", server.url, path, "--token-file", server.token_file, *options, env=mounted.env)
        yield mounted
        if mounted.mounted:
            mounted.umount()
    except BaseException as exc:
        exc.add_note(f"log of the mount:\n{mounted.log[-8000:]}")
        raise
    finally:
        mounted.destroy()
    problems = _problems(mounted.log, mounted.expected)
    assert not problems, "\n".join(problems)
