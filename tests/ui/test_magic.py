"""``%wsfuse`` in an IPython shell: the same commands, results as objects, help and completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from jupyter_wsfuse.errors import TransportError
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.ui import magic
from jupyter_wsfuse.ui.render import Report
from jupyter_wsfuse.ui.widgets import WorkspacePanel


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    for name in list(os.environ):
        if name.startswith(("WSFUSE", "KERNEL_WSFUSE", "JUPYTERHUB", "JPY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(tmp_path / "run"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.run_line_magic("load_ext", "jupyter_wsfuse")
    yield shell
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def run(shell: InteractiveShell, cell: str) -> tuple[Any, str, str, bool]:
    """Result, standard output, standard error, success of a cell."""
    with capture_output() as captured:
        outcome = shell.run_cell(cell)
    return outcome.result, captured.stdout, captured.stderr, bool(outcome.success)


def test_status_is_an_object(shell: InteractiveShell) -> None:
    result, out, _, success = run(shell, "%wsfuse status")
    assert success
    assert isinstance(result, Report)
    assert result.data == []
    assert "%wsfuse mount" in out
    assert run(shell, "s = %wsfuse status --json\ns")[0] == []


def test_the_panel_is_a_widget(shell: InteractiveShell) -> None:
    result, _, _, success = run(shell, "panel = %wsfuse panel\npanel")
    assert success
    assert isinstance(result, WorkspacePanel)
    again = run(shell, "panel = %wsfuse panel\npanel")[0]
    assert result._closing.is_set()
    again.close()
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_wsfuse.ui.cli", "panel"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is for a notebook" in done.stderr


def test_help(shell: InteractiveShell) -> None:
    _, out, _, success = run(shell, "%wsfuse")
    assert success
    assert "Usage: %wsfuse" in out
    assert "--read-only" in run(shell, "%wsfuse mount --help")[1]
    shown: list[Any] = []
    shell.set_hook("show_in_pager", lambda _shell, data, *_, **__: shown.append(data))
    run(shell, "%wsfuse?")
    assert "the environment variable" in str(shown)


def test_expected_errors_are_words_without_traceback(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the cell fails, so that "run all" stops here."""
    monkeypatch.setattr(launcher, "start", lambda config: (_ for _ in ()).throw(TransportError("no answer")))
    for cell, words in (
        ("%wsfuse umount", "`%wsfuse mount URL DIR`"),
        ("%wsfuse mount http://h/ /x", "`%wsfuse doctor`"),
        ("%wsfuse nonsense", "No such command"),
        ("%wsfuse mount 'x", "quotation"),
        ("%wsfuse mount", "No Jupyter server found"),
        ("%wsfuse mount http://h/ /x --foreground", "outlives its kernel"),
        ("%wsfuse serve /", "for a terminal"),
    ):
        _, out, err, success = run(shell, cell)
        assert not success
        assert words in out + err
        assert "Traceback" not in out + err


def test_a_token_in_a_cell_is_warned_about(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        launcher, "start", lambda config: registry.Claim(config.mountpoint).write(config.public())
    )
    _, out, err, success = run(shell, "%wsfuse mount http://h/?token=abc /x")
    assert success
    assert "in the notebook" in err
    assert "Mounted http://h/ on /x" in out
    assert "abc" not in out + err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%wsfuse ", {"mount", "umount", "status", "stats", "sync", "doctor"}),
        ("%wsfuse um", {"umount"}),
        ("%wsfuse mount --tr", {"--transport"}),
        ("%wsfuse mount --transport ", {"auto", "direct", "relay"}),
        ("%wsfuse mount --links f", {"follow"}),
        ("%wsfuse mount http://h/ /et", {"/etc/"}),
        ("%wsfuse mount http://h/ ~/no", {"~/notes/"}),
        ("%wsfuse umount ", {"/mnt/a"}),
        ("%wsfuse prefetch ", {"/mnt/a"}),
        ("%wsfuse prefetch ~/no", {"~/notes/", "~/not a directory"}),
        ("%wsfuse mount --prefetch ", {"on", "off", "siblings"}),
    ],
)
def test_completion(shell: InteractiveShell, tmp_path: Path, line: str, expected: set[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "not a directory").touch()
    claim = registry.Claim("/mnt/a")
    claim.write({})
    assert expected <= set(magic.completions(line))
    with provisionalcompleter():
        found = list(shell.Completer.completions(line, len(line)))
    completed = {line[: completion.start] + completion.text for completion in found}
    assert {line[: line.rindex(" ") + 1] + text for text in expected} <= completed
    claim.release()


def test_completion_of_a_list() -> None:
    """For shells: IPython takes a comma for the end of a word."""
    assert magic.completions("%wsfuse mount --prefetch subtree,s") == ["subtree,siblings"]
    assert magic.completions("%wsfuse mount --prefetch inline,o") == []


def test_unloading(shell: InteractiveShell) -> None:
    shell.run_line_magic("unload_ext", "jupyter_wsfuse")
    assert not run(shell, "%wsfuse status")[3]
    shell.run_line_magic("load_ext", "jupyter_wsfuse")
    assert run(shell, "%wsfuse status")[3]
