"""``wsfuse stats`` and ``wsfuse profile`` on a real mount."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from jupyter_wsfuse.mount import launcher
from jupyter_wsfuse.ui.render import Report
from tests.helpers.live import PATIENCE, WSFUSE, Mount, mount, run
from tests.helpers.tcpproxy import TcpProxy

pytestmark = pytest.mark.mount


def made(mount: Mount, count: int = 30, size: int = 100) -> Path:
    """A directory of small files, as the mount shows it."""
    directory = mount.source / "data"
    directory.mkdir()
    for number in range(count):
        (directory / f"{number}.txt").write_bytes(b"x" * size)
    return mount.path / "data"


def root_of(mount: Mount) -> str:
    """The mount point itself: tests work in a directory of their own below it."""
    return str(mount.path.parent)


def stats(mount: Mount, *options: str) -> dict[str, Any]:
    return dict(json.loads(run("stats", root_of(mount), "--json", *options, env=mount.env).stdout))


# --- stats -----------------------------------------------------------------------------------------------------


@pytest.fixture
def asking_mount(place: Callable[..., Mount]) -> Mount:
    """A mount that asks for nothing before it is needed."""
    return place("--prefetch", "off")


def test_figures_of_both_ends(asking_mount: Mount) -> None:
    stats(asking_mount, "--reset")
    for path in made(asking_mount).iterdir():
        assert len(path.read_bytes()) == 100
    found = stats(asking_mount)
    opens, reads = found["operations"]["open"], found["operations"]["read"]
    assert opens["count"] >= 30
    assert reads["bytes"] == 3000
    for row in (opens, reads):
        assert 0 < row["min"] <= row["p50"] <= row["p95"] <= row["p99"] <= row["max"]
        assert 0 < row["waited"] <= row["seconds"]
    waiting = found["waiting"]
    assert 0 < waiting["wall"] <= waiting["sum"] * 1.0001
    assert sum(waiting["parts"].values()) == pytest.approx(waiting["sum"])
    assert waiting["parts"]["network"] > 0
    assert waiting["operations"]["open"]["disk"] > 0, "the server says what it worked"
    assert waiting["operations"]["open"]["network"] < opens["waited"]
    shown = run("stats", root_of(asking_mount), "--slow", env=asking_mount.env).stdout
    for words in ("p95", "open", "Operations waited", "network", "longer than a second"):
        assert words in shown


def test_counting_from_zero(live_mount: Mount) -> None:
    assert (live_mount.path / "nothing").exists() is False
    assert stats(live_mount, "--reset")["operations"]["lookup"]["count"]
    after = stats(live_mount)
    assert after["operations"].get("write") is None
    assert after["since"] > time.time() - PATIENCE


def test_what_the_cache_answers(live_mount: Mount) -> None:
    directory = made(live_mount, 10)
    stats(live_mount, "--reset")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(3):
            assert len(os.listdir(descriptor)) == 10
    finally:
        os.close(descriptor)
    row = stats(live_mount)["operations"]["readdir"]
    assert row["asked"] <= 1, "once for all three, unless it was asked for ahead"
    assert row["cache_hits"] + row["asked"] <= row["count"]


@contextlib.contextmanager
def terminal(*arguments: str, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A ``wsfuse`` command on a terminal of 200 columns."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*WSFUSE, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**env, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(fd: int, pattern: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + PATIENCE
    while not re.search(pattern, seen, re.DOTALL):
        assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], seen[-2000:]
        seen += os.read(fd, 65536)
    return seen


def test_a_table_that_lives(live_mount: Mount) -> None:
    os.stat(live_mount.path)
    with terminal("stats", root_of(live_mount), "--watch", "--interval", "0.1", env=live_mount.env) as (
        process,
        fd,
    ):
        seen = read_until(fd, rb"operation.*per s.*per s")
        assert b"mean ms" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert b"Traceback" not in seen


@pytest.mark.parametrize("options", [["--json"], []])
def test_figures_that_a_program_reads(live_mount: Mount, options: list[str]) -> None:
    os.stat(live_mount.path)
    arguments = [*WSFUSE, "stats", root_of(live_mount), "--watch", "--interval", "0.05", *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=live_mount.env, text=True) as process:
        assert process.stdout is not None
        try:
            if options:
                lines = [json.loads(process.stdout.readline()) for _ in range(3)]
                assert lines[0]["time"] < lines[1]["time"] < lines[2]["time"]
                assert lines[0]["operations"]
            else:
                while "per s" not in process.stdout.readline():
                    pass
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
        finally:
            process.kill()


# --- profile of a command --------------------------------------------------------------------------------------

READ_ALL = """import pathlib, sys
[path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()]
print("mine")
sys.exit(3)
"""


def profile(
    mount: Mount, *command: str | Path, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return run("profile", *options, root_of(mount), "--", *command, env=mount.env, check=False)


def test_a_command(live_mount: Mount) -> None:
    directory = made(live_mount)
    done = profile(live_mount, sys.executable, "-c", READ_ALL, directory)
    assert done.returncode == 3, "the command's own"
    assert done.stdout == "mine\n"
    for words in ("operations, 2.9 KiB read in", f"{live_mount.path.name}/data/", "open", "waited"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_for_programs(live_mount: Mount) -> None:
    directory = made(live_mount)
    done = profile(live_mount, sys.executable, "-c", READ_ALL, directory, options=("--json",))
    found = json.loads(done.stderr)
    assert found["mountpoint"] == root_of(live_mount)
    assert found["operations"]["open"]["count"] == 30
    assert found["operations"]["read"]["bytes"] == 3000
    where = {(row["directory"], row["operation"]): row["count"] for row in found["places"]}
    assert where[f"{live_mount.path.name}/data", "open"] == 30
    assert sum(found["waiting"]["parts"].values()) == pytest.approx(found["waiting"]["sum"])


def test_commands_that_end_otherwise(live_mount: Mount) -> None:
    assert profile(live_mount, "true").returncode == 0
    assert profile(live_mount, "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    done = profile(live_mount, "/nonexistent/command")
    assert done.returncode == 127
    assert "No such file" in done.stderr
    assert profile(live_mount, "/").returncode == 126
    assert profile(live_mount, "true", "--json", "-v").returncode == 0, "these are the command's"


def test_ctrl_c_is_the_command_s(live_mount: Mount) -> None:
    code = (
        "import sys, time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    sys.exit(5)"
    )
    with terminal("profile", root_of(live_mount), "--", sys.executable, "-c", code, env=live_mount.env) as (
        process,
        fd,
    ):
        read_until(fd, b"ready")
        os.killpg(process.pid, signal.SIGINT)
        read_until(fd, b"asked of|operations")
        assert process.wait(PATIENCE) == 5


def test_a_profile_that_is_lost(live_mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", live_mount.env["WSFUSE_RUNTIME_DIR"])
    entry = launcher.choose(root_of(live_mount))
    name = launcher.ask(entry, "profile.begin")
    assert launcher.ask(entry, "profile.end", name=name)["seconds"] > 0
    from jupyter_wsfuse.errors import MountError
    from jupyter_wsfuse.ui.profile import taken

    with pytest.raises(MountError, match="lost"):
        launcher.ask(entry, "profile.end", name=name)
    results: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt), taken(entry, results):
        raise KeyboardInterrupt
    assert results == []


# --- profile of a cell -----------------------------------------------------------------------------------------


@pytest.fixture
def shell(live_mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    for name in ("HOME", "WSFUSE_RUNTIME_DIR"):
        monkeypatch.setenv(name, live_mount.env[name])
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.run_line_magic("load_ext", "jupyter_wsfuse")
    yield shell
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def test_a_cell(live_mount: Mount, shell: InteractiveShell) -> None:
    directory = made(live_mount)
    code = (
        f"import os, pathlib\nfiles = pathlib.Path({str(directory)!r}).iterdir()\n"
        "value = sum(len(file.read_bytes()) for file in files)\nprint(value)"
    )
    with capture_output() as captured:
        outcome = shell.run_cell(f"%%wsfuse profile {root_of(live_mount)}\n{code}")
    assert outcome.success
    assert captured.stdout.startswith("3000\n")
    assert isinstance(outcome.result, Report)
    assert outcome.result.data["operations"]["open"]["count"] == 30
    assert "30" in str(outcome.result)
    assert shell.user_ns["value"] == 3000, "the cell ran in the user's own namespace"
    found = shell.run_cell(
        f"%%wsfuse profile --json {root_of(live_mount)}\nos.close(os.open({str(directory / '1.txt')!r}, 0))"
    )
    assert found.result["operations"]["open"]["count"] == 1


def test_a_cell_that_fails(live_mount: Mount, shell: InteractiveShell) -> None:
    with capture_output() as captured:
        outcome = shell.run_cell(
            f"%%wsfuse profile {root_of(live_mount)}\nopen({str(live_mount.path / 'new')!r}, 'w').close()\n1 / 0"
        )
    assert not outcome.success, "so that the cells after it do not run"
    said = captured.stdout + captured.stderr
    assert said.count("ZeroDivisionError") >= 1
    assert "the cell failed, see above" in said
    shown = "".join(str(output.data) for output in captured.outputs)
    assert "operations" in said + shown, "the report is there all the same"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%wsfuse profile", "%%wsfuse profile [DIR]"),
        ("%%wsfuse stats\n1", "only `%%wsfuse profile` takes a cell"),
        ("%%wsfuse profile /nonexistent\n1", "nothing of wsfuse is mounted"),
        ("%%wsfuse profile --nonsense\n1", "No such option"),
        ("%wsfuse profile -- true", "%%wsfuse profile [DIR]"),
    ],
)
def test_cells_that_cannot_be(shell: InteractiveShell, cell: str, words: str) -> None:
    with capture_output() as captured:
        outcome = shell.run_cell(cell)
    assert not outcome.success
    assert words in captured.stdout + captured.stderr
    assert "Traceback" not in captured.stdout + captured.stderr


def test_figures_in_a_notebook(live_mount: Mount, shell: InteractiveShell) -> None:
    with capture_output() as captured:
        outcome = shell.run_cell(f"%wsfuse stats {root_of(live_mount)} --watch")
    assert outcome.success
    assert isinstance(outcome.result, Report)
    assert "is for a terminal" in captured.stderr


# --- over a distance -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def far_away(port: int, delay: float) -> Iterator[int]:
    """A port that is *port*, but *delay* seconds away each way."""
    started: queue.Queue[tuple[int, Callable[[], None]]] = queue.Queue()

    async def serve() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with TcpProxy(port) as proxy:
            proxy.up.delay = proxy.down.delay = delay
            started.put((proxy.port, lambda: loop.call_soon_threadsafe(done.set)))
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ours, stop = started.get(timeout=PATIENCE)
    try:
        yield ours
    finally:
        stop()
        thread.join(PATIENCE)


def test_advice_over_a_distance(live_mount: Mount, tmp_path: Path) -> None:
    made(live_mount, 60, 5000)
    server = live_mount.server
    with far_away(server.port, 0.005) as port:
        url = server.url.replace(f":{server.port}/", f":{port}/")
        with mount(
            replace(server, url=url), tmp_path / "far", "--transport", "relay", "--prefetch", "off"
        ) as far:
            directory = tmp_path / "far" / live_mount.source.name / "data"
            done = run(
                "profile", far.path, "--", sys.executable, "-c", READ_ALL, directory, env=far.env, check=False
            )
            assert done.returncode == 3
            assert "one after another" in done.stderr
            assert f"wsfuse prefetch {directory}" in done.stderr
            found = json.loads(run("stats", far.path, "--json", env=far.env).stdout)
    parts = found["waiting"]["parts"]
    assert parts["network"] > 0.5 * found["waiting"]["sum"]
    opens = found["operations"]["open"]
    assert opens["p50"] >= 0.01, "both ways"
