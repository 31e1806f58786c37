"""``wsfuse stats``, ``wsfuse profile -- COMMAND`` and ``%%wsfuse profile``: where the time of a mount goes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.live import Live

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.mount import launcher
from jupyter_wsfuse.mount.registry import Entry
from jupyter_wsfuse.ui import render, views
from jupyter_wsfuse.ui.arguments import json_option, mount_point
from jupyter_wsfuse.ui.render import Report

if TYPE_CHECKING:
    from jupyter_wsfuse.ui.cli import Front

#: Exit codes of a shell for a command that was not found, could not be run, or died of a signal.
_NOT_FOUND, _NOT_RUN, _SIGNALLED = 127, 126, 128


# --- stats -----------------------------------------------------------------------------------------------------


@click.command()
@mount_point
@json_option
@click.option("--watch", is_flag=True, help="Again and again, with rates, until Ctrl-C.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.05),
    default=2.0,
    show_default=True,
    help="Of --watch.",
)
@click.option("--slow", is_flag=True, help="Also the last operations that took longer than a second.")
@click.option("--reset", is_flag=True, help="Show the figures, and count from zero afterwards.")
@click.pass_obj
def stats(
    front: Front, directory: str | None, as_json: bool, watch: bool, interval: float, slow: bool, reset: bool
) -> Report | int:
    """How many operations there were, how long they took, and what they waited for."""
    if watch and reset:
        raise click.UsageError("either --watch or --reset")
    entry = launcher.choose(directory)
    if watch and front.terminal:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(entry, interval, slow, as_json)
        return 0
    if watch:
        front.warn("--watch is for a terminal; these are the figures of now")
    return views.stats(entry.mountpoint, launcher.ask(entry, "stats", reset=reset), slow=slow)


def _watch(entry: Entry, interval: float, slow: bool, as_json: bool) -> None:
    console = render.console()
    before: dict[str, Any] | None = None
    with contextlib.ExitStack() as stack:
        live: Live | None = None
        while True:
            found = {**launcher.ask(entry, "stats"), "time": time.time()}
            report = views.stats(entry.mountpoint, found, slow=slow, before=before)
            if as_json:
                click.echo(json.dumps(report.data))
            elif not console.is_terminal:
                report.print(console)
            elif live is None:
                live = stack.enter_context(
                    Live(report.renderable(), console=console, auto_refresh=False, vertical_overflow="crop")
                )
                live.refresh()
            else:
                live.update(report.renderable(), refresh=True)
            before = found
            time.sleep(interval)


# --- profile ---------------------------------------------------------------------------------------------------


class WithCommand(click.Command):
    """What follows ``--`` is a command line, however it looks."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[__name__] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


@click.command(
    cls=WithCommand, options_metavar="[OPTIONS]", epilog="In a notebook: %%wsfuse profile [DIR], and a cell."
)
@mount_point
@json_option
@click.pass_context
def profile(ctx: click.Context, directory: str | None, as_json: bool) -> Report | int:
    """Run a command, and report what it did with the mount: wsfuse profile [DIR] -- COMMAND ...

    Operations, bytes, how long they waited and for what, and what would be faster. The report goes to standard error,
    the exit code is the command's. Other users of the mount are counted too.
    """
    front: Front = ctx.obj
    command: list[str] = ctx.meta.get(__name__, [])
    if front.cell is None and not (command and front.terminal):
        raise click.UsageError("what is to be profiled? `wsfuse profile [DIR] -- COMMAND ...`")
    entry = launcher.choose(directory)
    code = 0
    results: list[dict[str, Any]] = []
    with taken(entry, results):
        if front.cell is not None:
            succeeded = front.cell()
        else:
            code = _run(command)
            succeeded = code == 0
    remembers = entry.info.get("cache", True)
    report = views.profile(entry.mountpoint, results[0], front.prefix if remembers else None)
    report.ok = succeeded
    if front.cell is not None:
        return report
    if as_json:
        click.echo(json.dumps(report.data), err=True)
    else:
        report.print(render.console(stderr=True))
    return code


@contextlib.contextmanager
def taken(entry: Entry, results: list[dict[str, Any]]) -> Iterator[None]:
    """Profile the mount during the block; the result is appended to *results*.

    Raises :class:`~jupyter_wsfuse.errors.MountError` if it was lost. An exception of the block comes through; then
    there is no result.
    """
    name = launcher.ask(entry, "profile.begin")
    try:
        yield
    except BaseException:
        with contextlib.suppress(WsFuseError):
            launcher.ask(entry, "profile.end", name=name)
        raise
    results.append(launcher.ask(entry, "profile.end", name=name))


def _run(command: Sequence[str]) -> int:
    """The exit code of *command*, as a shell has it. Ctrl-C is the command's: it decides what to do."""
    try:
        process = subprocess.Popen(command)
    except OSError as exc:
        click.echo(f"wsfuse: {command[0]}: {exc.strerror}", err=True)
        return _NOT_FOUND if isinstance(exc, FileNotFoundError) else _NOT_RUN
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else _SIGNALLED - code
        except KeyboardInterrupt:
            continue
