"""``wsfuse prefetch``: bring files here before they are needed, and show how far that is."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jupyter_wsfuse.errors import MountError, NotMountedError
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.warming import Warming, memory_available
from jupyter_wsfuse.ui import render
from jupyter_wsfuse.ui.arguments import Directory, Size, json_option
from jupyter_wsfuse.ui.render import Report, printable

#: Seconds between two looks at how far it is, and between two lines where no bar can be drawn.
_LOOK: Final = 0.1
_LINE: Final = 5.0


def _inside(path: str) -> str:
    """*path*, made absolute, if it is in a mount. Raises :class:`NotMountedError`. Looks at no mount."""
    absolute = os.path.abspath(os.path.expanduser(path))
    for mounted in registry.kernel_mounts():
        if absolute == mounted.path or absolute.startswith(mounted.path.rstrip("/") + "/"):
            return absolute
    raise NotMountedError(
        f"{absolute} is not in a mount of wsfuse; `wsfuse status` lists what is mounted where"
    )


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=Directory())
@click.option("--metadata", is_flag=True, help="Only names and attributes, no data.")
@click.option(
    "--limit", metavar="SIZE", type=Size(), help="At most so many bytes.  [default: half of the free memory]"
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Files at a time.",
)
@json_option
@click.pass_obj
def prefetch(
    front: Any, paths: tuple[str, ...], metadata: bool, limit: int | None, threads: int, as_json: bool
) -> Report:
    """Bring what lies below PATH to this machine before it is needed.

    PATH is a file or directory in a mount; without one, the only mount there is. Ctrl-C ends it, and what has come
    by then stays.
    """
    if paths:
        chosen = [_inside(path) for path in paths]
    else:
        try:
            chosen = [launcher.choose(None).mountpoint]
        except NotMountedError:
            raise
        except MountError as exc:
            raise click.UsageError(str(exc)) from None
    if limit is None:
        limit = memory_available() // 2
    warming = Warming(chosen, threads=threads, limit=limit, metadata=metadata)
    begun = time.monotonic()
    warming.start()
    interrupted = False
    try:
        _watch(warming, None if as_json else render.console(stderr=front.terminal), front.terminal)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        warming.stop()
    return _report(warming, time.monotonic() - begun, limit, metadata, interrupted)


def _watch(warming: Warming, console: Console | None, terminal: bool) -> None:
    """Show how far it is until it ends."""
    progress = warming.progress
    if console is None or not (terminal and console.is_terminal):
        said = time.monotonic()
        while not warming.wait(_LOOK):
            if console is not None and time.monotonic() - said >= _LINE:
                said = time.monotonic()
                console.print(
                    f"{progress.files} of {progress.found} files, {render.size(progress.bytes)} of "
                    f"{render.size(progress.found_bytes)}"
                )
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("looking", total=None)
        while not warming.wait(_LOOK):
            bar.update(
                task,
                description=f"{progress.files} of {progress.found} files",
                completed=progress.bytes,
                total=progress.found_bytes or None,
            )


def _report(warming: Warming, elapsed: float, limit: int, metadata: bool, interrupted: bool) -> Report:
    progress = warming.progress
    data = {
        "directories": progress.directories,
        "found": progress.found,
        "files": progress.files,
        "bytes": progress.bytes,
        "seconds": elapsed,
        "skipped": progress.skipped,
        "skipped_bytes": progress.skipped_bytes,
        "failures": progress.failures,
        "failed": [{"path": path, "error": why} for path, why in progress.failed],
        "interrupted": interrupted,
    }
    report = Report(data, ok=not interrupted and not progress.failures)
    what = f"{progress.found} files in {progress.directories} directories"
    if metadata:
        done = f"Looked at {what}"
    else:
        done = f"Fetched {progress.files} of {what}, {render.size(progress.bytes)}"
    report.line(f"{done}, in {render.seconds(elapsed)}.", "" if interrupted else "ok")
    if interrupted:
        report.line("Interrupted: what has come stays.", "warn")
    if progress.skipped:
        report.line(
            f"{progress.skipped} files of {render.size(progress.skipped_bytes)} were left out: they do not fit into "
            f"{render.size(limit)} (--limit).",
            "warn",
        )
    for path, why in progress.failed:
        report.line(f"{printable(path)}: {why}", "fail")
    if progress.failures > len(progress.failed):
        report.line(f"... and {progress.failures - len(progress.failed)} more failed.", "fail")
    return report
