"""``wsfuse prefetch``: what lies below some paths comes to this machine before it is needed.

That is done by using the mount, as anybody would: the kernel, the mount's daemon and, if it has one, its cache on disk
remember what they have seen, and forget it when it changes on the server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from jupyter_wsfuse.errors import MountError, NotMountedError
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.registry import KernelMount
from jupyter_wsfuse.ui import progress
from jupyter_wsfuse.ui.arguments import Inside, Size, json_option
from jupyter_wsfuse.ui.fetching import Crew, Fetch, Root
from jupyter_wsfuse.ui.progress import Display, Moment
from jupyter_wsfuse.ui.render import Report, printable, seconds, size

if TYPE_CHECKING:
    from jupyter_wsfuse.ui.cli import Front

#: Seconds between two looks at how far it is, and those that threads may take to end after an interrupt.
_TICK: Final = 0.1
_PATIENCE: Final = 1.0
#: Failures that the report lists.
_SHOWN: Final = 5
#: Symbolic links on the way to a path, as many as the kernel follows.
_LINKS: Final = 40

#: States of a mount in which nobody would answer.
_SILENT: Final = ("dead", "not answering")


class Interrupted(click.Abort):
    """Ctrl-C, or the kernel's interrupt: what was done so far is in the message."""


@click.command()
@click.argument("paths", metavar="[PATH...]", nargs=-1, type=Inside())
@click.option("--metadata", is_flag=True, help="Names and attributes only, no file's data.")
@click.option(
    "--limit",
    metavar="SIZE",
    type=Size(),
    help="Read no more than that, like 500M or 10GiB. Default: half of the memory that is available.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="How many files are read at a time.",
)
@json_option
@click.pass_obj
def prefetch(
    front: Front, paths: tuple[str, ...], metadata: bool, limit: int | None, threads: int, as_json: bool
) -> Report:
    """Bring what lies below PATH here, before it is needed.

    Lists all directories and reads all files, so that they are used at the speed of this machine afterwards, for as
    long as memory lasts. What changes on the server later is asked for again. PATH, a directory or a file in a mount,
    may be left out if there is only one mount. Links are not followed. Ctrl-C ends it at once.
    """
    found = [locate(path) for path in paths] or [_only()]
    mounts = {mount.path: mount for mount, _ in found}
    untold = [why for mount in mounts.values() if (why := _examine(mount))]
    places = _outermost([path for _, path in found])
    devices = {path: os.makedev(0, mount.minor) for mount, path in found}
    fetch = Fetch([Root(path, devices[path]) for path in places])
    display = progress.Quiet() if as_json else progress.display(front.warn)
    bound = available() // 2 if limit is None else limit
    try:
        bring(fetch, display, threads=threads, limit=None if metadata else bound)
    except KeyboardInterrupt:
        left = fetch.stop(_PATIENCE)
        if as_json:
            data = summary(fetch, places, interrupted=True)
            click.echo(json.dumps(data))
        raise Interrupted(_so_far(fetch, metadata, left)) from None
    report = described(fetch, places, metadata=metadata)
    if fetch.counts.over:
        _left_out(report, fetch, bound, given=limit is not None)
    for why in untold:
        report.line(why, "hint")
    return report


def bring(fetch: Fetch, display: Display, *, threads: int, limit: int | None) -> None:
    """Look at everything, then read of it what *limit* allows; None: nothing."""
    try:
        _follow(fetch, fetch.look(threads), display, "Listing")
        if limit is not None and not fetch.lost:
            fetch.choose(limit)
            _follow(fetch, fetch.read(threads), display, "Reading")
    finally:
        display.close()


def _follow(fetch: Fetch, crew: Crew, display: Display, what: str) -> None:
    began = fetch.seconds
    try:
        crew.start()
        while not crew.wait(_TICK):
            counts, passed = fetch.counts, fetch.seconds - began
            if what == "Listing":
                display.show(Moment(what, counts.files, counts.bytes, passed))
            else:
                display.show(Moment(what, counts.read, counts.read_bytes, passed, counts.files, counts.bytes))
    except BaseException:
        crew.stop()
        raise


# --- where -----------------------------------------------------------------------------------------------------


def locate(path: str) -> tuple[KernelMount, str]:
    """The mount that *path* is in, and *path* without symbolic links on the way to it.

    Nothing in a mount is looked at: it may be slow, or gone. Raises :class:`NotMountedError` for anything else.
    """
    mounted = {mount.path: mount for mount in registry.kernel_mounts()}
    rest = Path(os.path.abspath(os.path.expanduser(path))).parts[1:]
    here, links = "/", 0
    while rest:
        here, rest = os.path.join(here, rest[0]), rest[1:]
        if here in mounted:
            whole = os.path.join(here, *rest)
            around = [point for point in mounted if f"{whole}/".startswith(f"{point}/")]
            return mounted[max(around, key=len)], whole
        if os.path.islink(here):
            links += 1
            if links > _LINKS:
                raise MountError(f"{path} is a loop of symbolic links")
            target = os.path.join(os.path.dirname(here), os.readlink(here))
            here, rest = "/", (*Path(os.path.normpath(target)).parts[1:], *rest)
    points = ", ".join(sorted(mounted))
    raise NotMountedError(
        f"{path} is not in a mount of wsfuse; "
        + (f"these are: {points}" if points else "`wsfuse mount URL DIR` mounts a workspace")
    )


def _only() -> tuple[KernelMount, str]:
    """The only mount there is, all of it."""
    entry = launcher.choose(None)
    mount = registry.kernel_mount(entry.mountpoint)
    if mount is None:
        raise NotMountedError(f"{entry.mountpoint} is not mounted any more, or not yet")
    return mount, mount.path


def _examine(mount: KernelMount) -> str:
    """What is to be known of *mount*, "" if nothing is. Raises :class:`MountError` if there is no use in reading it."""
    try:
        status = launcher.status(registry.find(mount.path))
    except NotMountedError:
        return (
            ""  # another user's, or made with another runtime directory: its files are all that we know of it
        )
    if status.get("state") in _SILENT:
        raise MountError(
            f"the mount on {mount.path} is {status['state']}; `wsfuse umount {mount.path}` takes it down"
        )
    if status.get("cache") is False:
        raise MountError(
            f"{mount.path} was mounted with --cache off and remembers nothing; "
            f"`wsfuse umount {mount.path}` and mount it without that"
        )
    connection = (status.get("daemon") or {}).get("connection") or {}
    if connection.get("told", True):
        return ""
    why = str(connection.get("untold_because") or "")
    return (
        f"The server does not tell {mount.path} of changes"
        + (f" ({why})" if why else "")
        + ": names and attributes are asked for again after a second, data only if they have changed."
    )


def _outermost(paths: Sequence[str]) -> list[str]:
    """*paths* without those that lie below others."""
    found = dict.fromkeys(paths)
    return [
        path for path in found if not any(path != other and path.startswith(f"{other}/") for other in found)
    ]


# --- how much --------------------------------------------------------------------------------------------------


def available(root: str = "/") -> int:
    """Bytes of memory that could be used for files: the machine's, or what the container's limit is if that is less."""
    amounts = [*_limits(root)]
    with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) << 10)
    return min(amounts, default=1 << 30)


def _limits(root: str) -> Iterator[int]:
    """The limits of the control groups that this process is in, of both versions."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers == "":
            top, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            try:
                with open(os.path.join(root, top, *parts[:depth], name), encoding="ascii") as file:
                    yield int(file.read())
            except (OSError, ValueError):
                continue  # the root has none, a container does not see its parents, and "max" is no number


# --- what came of it -------------------------------------------------------------------------------------------


def summary(fetch: Fetch, places: Sequence[str], *, interrupted: bool = False) -> dict[str, Any]:
    """The numbers, for programs: ``files`` and ``bytes`` were read, ``found`` is what there was to read."""
    counts = fetch.counts
    return {
        "paths": list(places),
        "directories": counts.directories,
        "files": counts.read,
        "bytes": counts.read_bytes,
        "seconds": round(fetch.seconds, 3),
        "found": {"files": counts.files + counts.over, "bytes": counts.bytes + counts.over_bytes},
        "links": counts.links,
        "skipped": {
            "limit": counts.over,
            "limit_bytes": counts.over_bytes,
            "special": counts.special,
            "elsewhere": counts.elsewhere,
            "gone": counts.gone,
        },
        "errors": counts.errors,
        "failed": [{"path": path, "error": error} for path, error in counts.failed],
        "lost": fetch.lost,
        "interrupted": interrupted,
    }


def described(fetch: Fetch, places: Sequence[str], *, metadata: bool = False) -> Report:
    """What was done, in words."""
    counts = fetch.counts
    report = Report(summary(fetch, places), ok=not counts.errors)
    where = ", ".join(map(printable, places))
    took = seconds(fetch.seconds)
    if metadata:
        report.line(
            f"{where}: listed {_number(counts.directories, 'directory', 'directories')} with "
            f"{_number(counts.files, 'file')}, {size(counts.bytes)}, in {took}",
            "ok" if report.ok else "",
        )
    else:
        rate = f" ({size(counts.read_bytes / fetch.seconds)}/s)" if fetch.seconds > 0 else ""
        report.line(
            f"{where}: read {_number(counts.read, 'file')}, {size(counts.read_bytes)}, in "
            f"{_number(counts.directories, 'directory', 'directories')} in {took}{rate}",
            "ok" if report.ok else "",
        )
    if fetch.lost:
        report.line(f"The mount does not answer any more ({fetch.lost}): it ended early", "fail")
    elif counts.errors:
        report.line(f"{_number(counts.errors, 'error')}:", "warn")
    for path, error in counts.failed[:_SHOWN]:
        report.line(f"  {printable(path)}: {error}", "warn")
    if counts.errors > _SHOWN:
        report.line(f"  and {counts.errors - _SHOWN} more", "warn")
    if counts.elsewhere:
        report.line(f"Left out: {counts.elsewhere} on other file systems", "hint")
    return report


def _left_out(report: Report, fetch: Fetch, bound: int, *, given: bool) -> None:
    counts = fetch.counts
    why = (
        f"--limit is {size(bound)}"
        if given
        else f"half of the memory that is available is {size(bound)} (--limit SIZE allows more)"
    )
    report.line(f"Left out: {_number(counts.over, 'file')}, {size(counts.over_bytes)}, because {why}", "warn")


def _so_far(fetch: Fetch, metadata: bool, left: int) -> str:
    counts = fetch.counts
    if metadata or not (counts.read or counts.read_bytes):
        said = f"{_number(counts.directories, 'directory', 'directories')} with {_number(counts.files, 'file')} listed"
    else:
        said = (
            f"{counts.read} of {_number(counts.files, 'file')} read, "
            f"{size(counts.read_bytes)} of {size(counts.bytes)}"
        )
    said = f"interrupted after {seconds(fetch.seconds)}: {said} so far"
    if left:
        said += f"; {_number(left, 'operation')} still on the way, after which nothing more is asked for"
    return said


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
