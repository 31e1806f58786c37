"""The name of the loopback interface."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys

import pytest

from jupyter_wsfuse.host import host_id


def test_processes_of_one_host_agree() -> None:
    code = "from jupyter_wsfuse.host import host_id; print(host_id())"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == host_id()
    assert len(host_id()) == 32


def test_without_proc_there_is_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    found = host_id.__wrapped__()
    monkeypatch.undo()
    assert len(found) == 32
    assert found != host_id()
