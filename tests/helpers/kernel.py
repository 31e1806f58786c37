"""A real kernel, as a notebook has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.helpers.live import environment


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

    def interrupt(self) -> None:
        """As the button of a notebook does."""
        self.manager.interrupt_kernel()

    def run(self, code: str, on_message: Callable[[dict[str, Any]], None] | None = None) -> tuple[str, str]:
        """Status and everything that a cell showed. *on_message* gets each message instead."""
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

        reply = self.client.execute_interactive(code, timeout=60, output_hook=on_message or hook)
        return str(reply["content"]["status"]), "\n".join(shown)

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
