"""``%wsfuse`` in a real kernel of a real server, through its restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.kernel import Kernel
from tests.helpers.live import Live, run, start_server

pytestmark = [pytest.mark.mount, pytest.mark.jupyter]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Live]:
    with start_server(tmp_path / "root", tmp_path / "home") as live:
        yield live


@pytest.fixture
def kernel(server: Live, tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path / "home")
    yield kernel
    kernel.stop()
    run("umount", "--all", "--force", env=kernel.env, check=False)


def test_a_notebook_s_life(kernel: Kernel, server: Live) -> None:
    (server.root / "data.csv").write_text("a,b\n1,2\n")
    assert kernel.run("%load_ext jupyter_wsfuse")[0] == "ok"
    status, shown = kernel.run("%wsfuse mount")
    assert status == "ok", shown
    home = kernel.env["HOME"]
    assert f"Mounted {server.url} on {home}/wsfuse (direct)" in shown
    assert "<div" in shown
    assert kernel.run("print(open('wsfuse/data.csv').read())") == ("ok", "a,b\n1,2\n\n")
    assert kernel.run("file = open('wsfuse/out', 'w'); file.write('x'); file.flush()")[0] == "ok"
    assert "connected" in kernel.run("%wsfuse status")[1]
    status, shown = kernel.run("s = %wsfuse status --json\nprint(s[0]['source'])")
    assert "server" in shown, "how it was found"

    kernel.restart()
    assert kernel.run("print(open('wsfuse/data.csv').read())") == ("ok", "a,b\n1,2\n\n")
    assert kernel.run("%load_ext jupyter_wsfuse")[0] == "ok"
    assert "connected" in kernel.run("%wsfuse status")[1]
    assert "write" in kernel.run("%wsfuse stats")[1]
    status, shown = kernel.run("%%wsfuse profile\nprint(open('wsfuse/data.csv').read())")
    assert status == "ok", shown
    assert "a,b\n1,2\n" in shown
    assert "operations, 8 B read in" in shown or "operations in" in shown
    assert "<table" in shown
    status, shown = kernel.run("%%wsfuse profile\nimport asyncio\nawait asyncio.sleep(0)")
    assert status == "error"
    assert "run it from a function" in shown
    assert "SyntaxError" in kernel.run("%%wsfuse profile\n1 +")[1]
    assert "server's disk" in kernel.run("%wsfuse sync")[1]
    assert "Ready to mount" in kernel.run("%wsfuse doctor")[1]

    status, shown = kernel.run("%wsfuse mount")
    assert status == "error"
    assert "already mounted" in shown
    assert "Traceback" not in shown
    assert "unmounted" in kernel.run("%wsfuse umount")[1]
    assert not os.path.exists(f"{home}/wsfuse")
    assert json.loads(run("status", "--json", env=kernel.env).stdout) == []


def test_the_kernel_has_no_children_left(kernel: Kernel) -> None:
    """The processes of a mount are nobody's children: a kernel that forgets them leaves no zombie."""
    kernel.run("%load_ext jupyter_wsfuse")
    assert kernel.run("%wsfuse mount")[0] == "ok"
    code = "import psutil; print([child.cmdline() for child in psutil.Process().children()])"
    assert kernel.run(code)[1].strip() == "[]"
