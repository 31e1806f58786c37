"""``python -m tests.helpers.feedserver DIR``: a server with the feed, and mounts to see in it, for a browser's tests.

Says ``{"url", "token", "root"}`` as one line of JSON on standard output when it serves, and then takes commands, one
JSON object a line, each answered by one line ``{"ok": true, ...}`` or ``{"ok": false, "error"}``:

=================================  ==================================================================================
``{"do": "mount", "name": N}``     mounts at DIR/N; with ``"elsewhere": true`` so that the server does not find it, as
                                   if it was another machine's; with ``"options": [...]`` of ``wsfuse mount``
``{"do": "umount", "name": N}``    takes it down
``{"do": "write", "name": N,       writes a file through the mount; without N behind all mounts
"path": P, "text": T}``
``{"do": "read", ...}``            the same way
``{"do": "kill-engine"}``          SIGKILL to the file engine
=================================  ==================================================================================

At the end of its input it takes everything down. With ``--lab-tests`` a page has what JupyterLab's own test tools want.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tests.helpers import live

#: What JupyterLab's own test tools want of a page.
_LAB_TESTS = "c.LabApp.expose_app_in_browser = True\n"


class Stage:
    """The server and what was mounted of it."""

    def __init__(self, server: live.Live, home: Path) -> None:
        self.server = server
        self.home = home
        self.mounts: dict[str, tuple[live.Mount, contextlib.ExitStack]] = {}

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        name = str(command.get("name", ""))
        match command["do"]:
            case "mount":
                path = self.home / name
                env = self.server.env
                if command.get("elsewhere"):
                    elsewhere = self.home / "elsewhere"
                    elsewhere.mkdir(mode=0o700, exist_ok=True)
                    env = {**env, "WSFUSE_RUNTIME_DIR": str(elsewhere)}
                stack = contextlib.ExitStack()
                mounted = stack.enter_context(
                    live.mount(self.server, path, *command.get("options", []), env=env)
                )
                self.mounts[name] = mounted, stack
                return {"path": str(mounted.path)}
            case "umount":
                self.mounts.pop(name)[1].close()
            case "write":
                where = self._where(name, command)
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_text(str(command["text"]))
            case "read":
                return {"text": self._where(name, command).read_text()}
            case "kill-engine":
                return {"pid": self.server.kill_engine()}
            case other:
                raise ValueError(f"there is no command {other!r}")
        return {}

    def _where(self, name: str, command: dict[str, Any]) -> Path:
        folder = self.mounts[name][0].path if name else self.server.root
        return folder / str(command["path"])

    def close(self) -> None:
        for mounted, stack in self.mounts.values():
            mounted.expect_log(".")
            with contextlib.suppress(Exception):
                stack.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lab-tests", action="store_true")
    parser.add_argument("--config", default="", help="lines of jupyter_server_config.py")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    home = directory / "home"
    env = live.environment(home)
    config = arguments.config + (_LAB_TESTS if arguments.lab_tests else "")
    (home / "config" / "jupyter_server_config.py").write_text(config)
    server = live.launch_server(directory / "workspace", home, env=env)
    stage = Stage(server, directory)
    try:
        _say({"url": server.url, "token": server.token, "root": str(server.root)})
        for line in sys.stdin:
            try:
                _say({"ok": True, **stage.do(json.loads(line))})
            except Exception as exc:
                _say({"ok": False, "error": f"{type(exc).__name__}: {exc}"})
    finally:
        stage.close()
        server.stop()
    return 0


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
