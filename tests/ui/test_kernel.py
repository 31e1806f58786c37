"""``%wsfuse`` in a real kernel of a real server, through its restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.helpers.live import Live, environment, run, start_server

pytestmark = [pytest.mark.mount, pytest.mark.jupyter]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Live]:
    with start_server(tmp_path / "root", tmp_path / "home") as live:
        yield live


class Kernel:
    """A kernel of the user whose server runs."""

    def __init__(self, home: Path) -> None:
        self.env = environment(home)
        self.manager = KernelManager()
        self.manager.start_kernel(env=self.env, cwd=str(home))
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def restart(self) -> None:
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str) -> tuple[str, str]:
        """Status and everything that a cell showed."""
        shown: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                shown.append(content["data"]["text/plain"])
                shown.append(content["data"].get("text/html", ""))
            elif message["msg_type"] == "error":
                shown.extend(content["traceback"])

        reply = self.client.execute_interactive(code, timeout=60, output_hook=hook)
        return str(reply["content"]["status"]), "\n".join(shown)

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


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
