"""A profile in words: what took the time, and what can be done about it with what there is today."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from jupyter_wsfuse.ui.render import printable, seconds, size

#: How operations are called, several of them, and how one is: what it is done to.
_NOUNS: Final = {
    "lookup": "look-ups of names",
    "getattr": "questions for attributes",
    "setattr": "changes of attributes",
    "access": "questions for permissions",
    "readlink": "readings of links",
    "open": "opens",
    "create": "new files",
    "read": "reads",
    "write": "writes",
    "flush": "closes",
    "opendir": "opens of directories",
    "readdir": "listings",
    "mkdir": "new directories",
    "symlink": "new links",
    "link": "new links",
    "mknod": "new files",
    "unlink": "deletions",
    "rmdir": "deletions of directories",
    "rename": "renamings",
    "fsync": "fsync calls",
    "fsyncdir": "fsync calls",
    "syncfs": "sync calls",
    "setlk": "locks",
    "getlk": "questions for locks",
    "copy_file_range": "copies on the server",
    "statfs": "questions for free space",
}

_FINDING: Final = frozenset(
    {"lookup", "open", "getattr", "access", "readlink", "opendir", "readdir", "flush"}
)
_CHANGING: Final = frozenset(
    {"create", "mkdir", "symlink", "link", "mknod", "unlink", "rmdir", "rename", "setattr"}
)

#: Shares of the elapsed time or of the waiting from which on something is worth a word.
_WORTH: Final = 0.2
#: Operations below which nobody is told to do them otherwise.
_MANY: Final = 20
#: Bytes of a read or write below which it costs a round trip rather than bandwidth.
_SMALL: Final = 16 << 10
_LARGE: Final = 64 << 10
#: How much the waits have to overlap to be called side by side.
_PARALLEL: Final = 1.5
#: Threads that are advised.
_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen, and what to do, "" if there is nothing to be done."""

    what: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """What was done in one directory, of one kind."""

    directory: str | None
    operation: str
    count: int
    asked: int
    waited: float
    bytes: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> Group:
        return cls(
            row["directory"], row["operation"], row["count"], row["asked"], row["waited"], row["bytes"]
        )


def place_name(directory: str | None) -> str:
    """A directory of the mount, for people."""
    if directory is None:
        return "other directories"
    if directory.startswith("("):
        return directory
    return f"{printable(directory)}/" if directory else "the top directory"


def advise(mountpoint: str, result: dict[str, Any], prefix: str | None = "wsfuse") -> list[Advice]:
    """What the result of a profile says, the most important first. *prefix*: what is typed before commands; None: the
    mount remembers nothing, so there is no use in fetching anything ahead."""
    return list(_advise(mountpoint, result, prefix))


def _advise(mountpoint: str, result: dict[str, Any], prefix: str | None) -> Iterator[Advice]:
    elapsed, waiting = result["seconds"], result["waiting"]
    wall, total = waiting["wall"], waiting["sum"]
    if elapsed <= 0 or wall < _WORTH * elapsed:
        share = f"{wall / elapsed:.0%}".replace("%", " %") if elapsed > 0 else "0 %"
        yield Advice(
            f"Only {share} of {seconds(elapsed)} waited for the server: the time went elsewhere, "
            "in computing or on other disks."
        )
        return
    parts = waiting["parts"] or {}
    yield from _of_the_server(parts, total)
    parallel = total / wall if wall else 1.0
    groups = [Group.of(row) for row in result["places"]]
    for kind, same in _by_remedy(groups):
        spent = sum(group.waited for group in same)
        # Of the time that somebody waited, these have the part that they have of all waits.
        elapsed_part = spent / total * wall if total else 0.0
        if elapsed_part < _WORTH * elapsed:
            return
        asked = sum(group.asked for group in same)
        how = "one after another" if parallel < _PARALLEL else f"about {parallel:.0f} at a time"
        yield Advice(
            f"{elapsed_part / elapsed:.0%}".replace("%", " %")
            + f" of {seconds(elapsed)} waited for {_listed(same)} in {place_name(same[0].directory)}, {how}"
            + (f", {seconds(spent / asked)} each." if asked else "."),
            _todo(mountpoint, _together(same), kind, parallel, elapsed, elapsed_part, prefix),
        )


def _by_remedy(groups: list[Group]) -> list[tuple[str, list[Group]]]:
    """The groups of a directory that the same helps against, those that waited longest first."""
    found: dict[tuple[str | None, str], list[Group]] = {}
    for group in groups:
        if group.asked:
            found.setdefault((group.directory, _kind(group, groups)), []).append(group)
    piles = sorted(found.items(), key=lambda item: -sum(group.waited for group in item[1]))
    return [(kind, same) for (_, kind), same in piles]


def _together(groups: list[Group]) -> Group:
    first = groups[0]
    return Group(
        first.directory,
        first.operation,
        max(group.count for group in groups),
        sum(group.asked for group in groups),
        sum(group.waited for group in groups),
        sum(group.bytes for group in groups),
    )


def _listed(groups: list[Group]) -> str:
    """``212 opens and 30 reads``; what hardly counts is left out."""
    most = max(group.waited for group in groups)
    named = [
        f"{group.asked} {_NOUNS.get(group.operation, f'operations ({group.operation})')}"
        for group in groups
        if group.waited >= most / 10
    ]
    return " and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)


def _of_the_server(parts: dict[str, float], total: float) -> Iterator[Advice]:
    """Where it is not the distance."""
    if not total:
        return
    if parts.get("limit", 0.0) >= _WORTH * total:
        yield Advice(
            f"{parts['limit'] / total:.0%}".replace("%", " %")
            + " of the waiting was the server holding operations back: this workspace has reached its rate limit.",
            "Make fewer operations, or ask who runs the server for a higher limit.",
        )
    if parts.get("server", 0.0) >= 0.5 * total:
        yield Advice(
            "Most of the waiting was in queues on the server: it is busy, or others hold a lock that was wanted."
        )
    if parts.get("disk", 0.0) >= 0.5 * total:
        yield Advice("Most of the waiting was for the server's own disk: being closer to it would not help.")


def _kind(group: Group, groups: list[Group]) -> str:
    """What the same remedy helps against."""
    operation = group.operation
    if operation in _FINDING:
        return "find"
    if operation in _CHANGING:
        return "change"
    if operation not in ("read", "write"):
        return operation
    mean = group.bytes / group.count if group.count else 0
    if operation == "read":
        opens = sum(
            other.count
            for other in groups
            if other.operation == "open" and other.directory == group.directory
        )
        if mean < _LARGE and opens * 4 >= group.count:
            return "find"  # small files, read whole
    return f"small {operation}" if mean < _SMALL else operation


def _todo(
    mountpoint: str,
    group: Group,
    kind: str,
    parallel: float,
    elapsed: float,
    spent: float,
    prefix: str | None,
) -> str:
    """What helps against *group*, for which *spent* of *elapsed* seconds went by."""
    directory = group.directory
    named = directory is not None and not directory.startswith("(")
    place = shlex.quote(printable(os.path.join(mountpoint, directory or ""))) if named else "the directory"
    bring = f"`{prefix} prefetch {place if named else 'DIR'}`" if prefix else f"`cp -r {place} /tmp`"
    if kind == "find" and group.count >= _MANY:
        if parallel >= _PARALLEL:
            aside = "More at a time will not help much; fewer and larger files will."
        else:
            aside = (
                f"Or use {_THREADS} threads (concurrent.futures.ThreadPoolExecutor): "
                f"side by side it would take about {seconds(elapsed - spent + spent / _THREADS)}."
            )
        return (
            f"Each costs a way to the server and back. {bring} beforehand brings all of it here together. "
            f"Or keep small files in one archive (zip, tar, Parquet, HDF5). {aside}"
        )
    if kind == "change" and group.count >= _MANY:
        return (
            "Each costs a way to the server and back. Make the files in /tmp and bring them to "
            f"{place} as one archive, or do it in a terminal of the server."
        )
    if kind == "small read" and group.count >= _MANY:
        return (
            f"Read in larger pieces than {size(group.bytes / group.count)}: the whole file at once, or "
            f"open(..., buffering=1 << 20). For jumps within a file, bring all of it here first: {bring}."
        )
    if kind == "small write" and group.count >= _MANY:
        return (
            f"Write in larger pieces than {size(group.bytes / group.count)}: open(..., buffering=1 << 20), or write "
            f"in /tmp and copy the file to {place} when it is complete."
        )
    if kind in ("read", "write") and group.waited:
        speed = f"{size(group.bytes / spent)} a second"
        if kind == "read":
            return (
                f"{size(group.bytes)} at {speed}: that is the connection. Read less (columns, slices), or have it here "
                f"before you need it: {bring}."
            )
        return f"{size(group.bytes)} at {speed}: that is the connection. Write less, or compressed."
    if kind in ("fsync", "fsyncdir", "syncfs"):
        return (
            "Each waits for the server's disk. A database does that for every transaction: keep it in /tmp while "
            "it is worked on, and copy it afterwards."
        )
    if kind in ("setlk", "getlk"):
        return "Somebody else holds the locks: `wsfuse status` shows the mounts of this machine."
    return ""
