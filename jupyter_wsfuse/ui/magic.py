"""``%wsfuse`` in a notebook: the commands of :mod:`.cli`, with help, completion and results that a notebook shows.

Nothing here serves a mount: that is done by processes that outlive the kernel. A command waits for them over a pipe
or a socket, each wait with a deadline and open to an interrupt.
"""

from __future__ import annotations

import asyncio
import glob
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import ShellComplete

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.ui import cli
from jupyter_wsfuse.ui.render import Report

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

MAGIC = "wsfuse"
_PREFIXES = ("%", "%%")


class NotebookFront(cli.Front):
    """A cell of a notebook."""

    prefix = "%wsfuse"
    terminal = False

    def __init__(self, cell: Callable[[], bool] | None = None) -> None:
        super().__init__()
        self.cell = cell

    def words(self, message: str) -> str:
        message = message.replace("`wsfuse profile [DIR] -- COMMAND ...`", "`%%wsfuse profile [DIR]`")
        return message.replace("`wsfuse ", "`%wsfuse ").replace("[%wsfuse", "[wsfuse")

    def warn(self, message: str) -> None:
        print(f"wsfuse: {self.words(message)}", file=sys.stderr)


class CommandError(WsFuseError):
    """What a failed ``%wsfuse`` raises, so that the cells after it do not run: shown as one message, without a
    traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"wsfuse: {self}"]


class CellError(CommandError):
    """The cell of a ``%%wsfuse`` failed: what was wrong with it has been shown already."""

    def _render_traceback_(self) -> list[str]:
        return ["wsfuse: the cell failed, see above"]


def wsfuse(line: str, cell: str | None = None) -> Any:
    """The folder of a Jupyter server as a real directory of this kernel.

    %wsfuse mount                   this notebook's own server, on ~/wsfuse
    %wsfuse mount DIR               ... on DIR
    %wsfuse mount URL DIR           another server; its token is taken from the environment variable
                                    WSFUSE_TOKEN, or from a file: --token-file FILE
    %wsfuse prefetch PATH           bring what lies below a path here, before it is needed
    %wsfuse status                  what is mounted, and how the connection is
    %wsfuse stats                   operations, how long they took, and what they waited for
    %wsfuse panel                   all of that as it changes, limits and the audit log, with buttons
    %%wsfuse profile                runs a cell, and says what it did with the mount and what would be faster
    %wsfuse sync                    wait until everything is on the server's disk
    %wsfuse umount [DIR]            take the mount down
    %wsfuse doctor                  if something does not work: what, and what to do

    Files in DIR are the server's: open(), pandas, git, a shell, everything works on them. A mount stays when the
    kernel is restarted, until `%wsfuse umount`. `%wsfuse mount --help` lists the options; the Tab key completes.

    The result can be used: s = %wsfuse status; s.data is a list of dictionaries.
    """
    front = NotebookFront(None if cell is None else lambda: _run_cell(cell))
    try:
        arguments = cli.split(line)
        if cell is not None and "profile" not in arguments:
            raise click.UsageError("only `%%wsfuse profile` takes a cell")
        result = cli.run(arguments or ["--help"], front)
    except click.exceptions.Exit:
        return None
    except (WsFuseError, OSError, click.ClickException, click.Abort) as exc:
        if front.verbose:
            traceback.print_exc()
        raise CommandError(cli.explain(exc, front)) from None
    if not isinstance(result, Report):
        return None if result is None or isinstance(result, int) else result
    if cell is not None and not result.ok:
        from IPython.display import display

        display(result)
        raise CellError("the cell failed")
    if "--json" in arguments:
        return result.data
    return result


def _run_cell(cell: str) -> bool:
    """Run *cell* as if it stood alone; its error, if it has one, is shown. Whether it succeeded."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    assert shell is not None
    if _awaits(shell, cell) and _inside_a_loop():
        raise click.UsageError(
            "a cell with `await` at its top cannot be profiled: run it from a function, in a thread"
        )
    outer = shell.displayhook.exec_result  # forgotten by the cell inside; what we return belongs there
    try:
        return bool(shell.run_cell(cell).success)
    finally:
        shell.displayhook.exec_result = outer


def _awaits(shell: InteractiveShell, cell: str) -> bool:
    """Whether *cell* needs an event loop of its own."""
    try:
        return shell.should_run_async(cell, transformed_cell=shell.transform_cell(cell))
    except Exception:
        return False  # running it will show what is wrong with it


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- completion ------------------------------------------------------------------------------------------------


def completions(line: str) -> list[str]:
    """What may stand at the end of *line*, which begins with ``%wsfuse`` or ``%%wsfuse``."""
    words = line.split(" ")[1:]
    *arguments, incomplete = words or [""]
    found: list[str] = []
    complete = ShellComplete(cli.cli, {"obj": NotebookFront()}, MAGIC, "_WSFUSE_COMPLETE")
    for item in complete.get_completions([argument for argument in arguments if argument], incomplete):
        if item.type in ("dir", "file"):
            found += _paths(incomplete, directories=item.type == "dir")
        else:
            found.append(item.value)
    return found


def _paths(incomplete: str, *, directories: bool) -> list[str]:
    """Completed by looking: never inside a mount, which may be slow or gone."""
    from jupyter_wsfuse.mount import registry

    where = os.path.abspath(os.path.expanduser(os.path.dirname(incomplete) or "."))
    if any(f"{where}/".startswith(f"{mount.path}/") for mount in registry.kernel_mounts()):
        return []
    pattern = glob.escape(os.path.expanduser(incomplete)) + "*"
    found = [path + "/" if os.path.isdir(path) else path for path in sorted(glob.glob(pattern))]
    found = [path for path in found if path.endswith("/") or not directories]
    if incomplete.startswith("~"):
        home = os.path.expanduser("~")
        found = ["~" + path.removeprefix(home) for path in found]
    return found


def _complete(shell: Any, event: Any) -> list[str]:
    line = event.text_until_cursor.lstrip()
    return [] if "\n" in line else completions(line)


# --- IPython ---------------------------------------------------------------------------------------------------


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """``%load_ext jupyter_wsfuse``."""
    register: Any = ipython.register_magic_function
    register(wsfuse, magic_kind="line_cell", magic_name=MAGIC)
    for prefix in _PREFIXES:
        ipython.set_hook("complete_command", _complete, str_key=prefix + MAGIC)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """``%unload_ext jupyter_wsfuse``; mounts stay."""
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop(MAGIC, None)
    for prefix in _PREFIXES:
        ipython.strdispatchers["complete_command"].strs.pop(prefix + MAGIC, None)
