"""Programs that are never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import answers, end_all, free_port, running, start, wait_until

STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
)


def test_a_program_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_DEADLINE", 0.1)
    with running(start([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert os.getsid(process.pid) == process.pid  # Ctrl-C does not reach it
    assert process.returncode is not None
    assert process.stdout.closed


def test_a_program_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os, signal, sys\n"
        "from benchmarks.processes import start\n"
        "start([sys.executable, '-c', 'import signal; print(flush=True); signal.pause()'])\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=processes.ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"\n"  # of the child, which has the same output
        parent.kill()
        assert parent.stdout.read() == b""  # nobody is left who could write


def test_a_program_is_found_by_its_argument(tmp_path: Path) -> None:
    code = "import signal; print('ready', flush=True); signal.pause()"
    for argument, expected in (("another", signal.SIGTERM), (str(tmp_path), signal.SIGKILL)):
        with subprocess.Popen([sys.executable, "-c", code, argument], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            end_all(sys.executable, tmp_path)
            end_all("python", argument)
            process.terminate()  # for who was not meant
            assert process.wait() == -expected


def test_waiting_names_what_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True) as process:
        process.wait()
        with pytest.raises(RuntimeError, match="a server: the process ended with 3"):
            wait_until(lambda: False, "a server", process)
    monkeypatch.setattr(processes, "START_DEADLINE", 0.0)
    with pytest.raises(RuntimeError, match="a server: not ready"):
        wait_until(lambda: False, "a server")
    wait_until(lambda: True, "a server")


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert answers(server.getsockname()[1])
    assert not answers(free_port())
