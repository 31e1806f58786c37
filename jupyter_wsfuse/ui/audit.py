"""``wsfuse audit``: who did what to which file, when and from where - and the proof that nothing was removed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import click

from jupyter_wsfuse import auditlog
from jupyter_wsfuse.auditlog import Filter
from jupyter_wsfuse.client import audit_http
from jupyter_wsfuse.client.discovery import discover
from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.ui.arguments import json_option
from jupyter_wsfuse.ui.options import given_token, token_file
from jupyter_wsfuse.ui.render import Report

#: Seconds between two looks of ``tail -f``, and how far each looks back: an entry may be in the log that much later
#: than one with a later time.
FOLLOW: Final = 1.0
_OVERLAP: Final = 10.0


class Front(Protocol):
    """Where the command was typed."""

    @property
    def terminal(self) -> bool: ...

    def warn(self, message: str) -> None: ...


Source = Callable[[dict[str, str]], Iterator[dict[str, Any]]]


@click.group()
def audit() -> None:
    """Who did what, when, from where: the record of a workspace.

    It is the server's: found like the server for `wsfuse mount`, or read from a folder with --dir.
    """


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        token_file,
        click.option(
            "--dir",
            "directory",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Read the log in this folder instead of asking a server.",
        ),
        click.option("--tenant", metavar="NAME", default="", help="Of this tenant alone."),
        click.argument("url", required=False),
    ):
        command = option(command)
    return command


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--denied", is_flag=True, help="Only what was not allowed."),
        click.option("--failed", is_flag=True, help="Only what failed, for whatever reason."),
        click.option("--principal", metavar="USER", default="", help="By this user."),
        click.option("--session", metavar="ID", default="", help="In this session; its beginning will do."),
        click.option(
            "--path",
            metavar="GLOB",
            default="",
            help="On these files: '*.csv', 'data/*.csv', 'data/**/x', 'data/' with all that is in it.",
        ),
        click.option(
            "--operation", metavar="NAME", default="", help="Unlink, Rename, Write, session-begin, ..."
        ),
    ):
        command = option(command)
    return command


def _source(front: Front, url: str | None, file: str | None, directory: Path | None) -> Source:
    """Where entries come from."""
    if directory is not None:
        if url or file:
            raise click.UsageError("either a server or --dir")
        folder = directory

        def read(given: dict[str, str]) -> Iterator[dict[str, Any]]:
            return auditlog.query(folder, Filter.parse(given, time.time()))

        return read
    server = discover(url, given_token(front, url, file))
    return lambda given: audit_http.entries(server, given)


def _given(**values: Any) -> dict[str, str]:
    """Filters as texts, with times made absolute by this machine's clock and zone."""
    given = {name: str(value) for name, value in values.items() if value not in ("", None, False)}
    if given.pop("failed", None):
        given["success"] = "false"
    if "denied" in given:
        given["denied"] = "true"
    try:
        wanted = asdict(Filter.parse(given, time.time()))
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    return {name: str(wanted[name]) if name in ("since", "until") else text for name, text in given.items()}


@audit.command()
@_options
@_filters
@click.option("--since", metavar="TIME", default="", help="From then on: 2h, 2025-01-31, 2025-01-31T13:00.")
@click.option("--until", metavar="TIME", default="", help="Before then.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="At most so many; 0: all.",
)
@click.pass_obj
def query(
    front: Front,
    /,
    url: str | None,
    directory: Path | None,
    token_file: str | None,
    as_json: bool,
    limit: int,
    **filters: Any,
) -> Report | int:
    """Search the log, the newest entries first.

    Who deleted that file?  wsfuse audit query --operation Unlink --path results/run7.csv
    """
    source = _source(front, url, token_file, directory)
    found = source({**_given(**filters), "limit": str(limit)})
    if front.terminal:
        count = _print(found, as_json)
        if limit and count == limit and not as_json:
            click.echo(f"wsfuse: there may be more: --limit {10 * limit}, or 0 for everything", err=True)
        return 0
    return listed(list(found))


@audit.command()
@_options
@_filters
@click.option(
    "-n", "limit", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="The last N."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.pass_obj
def tail(
    front: Front,
    /,
    url: str | None,
    directory: Path | None,
    token_file: str | None,
    as_json: bool,
    limit: int,
    follow: bool,
    **filters: Any,
) -> Report | int:
    """The last entries, the newest at the end."""
    source = _source(front, url, token_file, directory)
    given = _given(**filters)
    if follow and not front.terminal:
        raise click.UsageError("-f is for a terminal: run the cell again to see what has come")
    last = list(source({**given, "limit": str(limit)}))[::-1]
    if not front.terminal:
        return listed(last)
    _print(last, as_json)
    if follow:
        pause = threading.Event()
        for entries in following(source, given, last):
            _print(entries, as_json)
            pause.wait(FOLLOW)
    return 0


def following(
    source: Source, given: dict[str, str], last: list[dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """What has come after *last*, the oldest first, each time that it is asked for."""
    seen = {_key(entry): str(entry["time"]) for entry in last}
    oldest = min(seen.values(), default="")
    while True:
        newest = max(seen.values(), default="")
        since = _earlier(newest) if newest else ""
        found = [
            entry
            for entry in source({**given, "since": since, "limit": "0"})
            if _key(entry) not in seen and entry["time"] >= oldest
        ]
        seen = {key: when for key, when in seen.items() if when >= since}
        seen |= {_key(entry): str(entry["time"]) for entry in found}
        yield found[::-1]


def _earlier(stamp: str) -> str:
    return auditlog.stamp(int((datetime.fromisoformat(stamp).timestamp() - _OVERLAP) * 1e9))


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry.get("tenant"), entry.get("stream"), entry.get("seq")


@audit.command()
@_options
@click.option(
    "--expect",
    "expected",
    metavar="HASH",
    multiple=True,
    help="A head that was noted earlier: it must still be in the chain.",
)
@click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --dir: trust the public keys in FILE alone, not those beside the log.",
)
@click.pass_obj
def verify(
    front: Front,
    /,
    url: str | None,
    directory: Path | None,
    token_file: str | None,
    tenant: str,
    as_json: bool,
    expected: tuple[str, ...],
    key_file: Path | None,
) -> Report:
    """Prove that nothing in the log was changed, added or removed. Exit code 1 if something was.

    Every entry's hash covers the one before it, segments and the end are signed. Whoever holds the server's private
    key could still make up another log as a whole: note the head that this prints somewhere else, and name it
    with --expect the next time.
    """
    if directory is None:
        if key_file is not None:
            raise click.UsageError("--key is for --dir: it is the server that verifies its log")
        server = discover(url, given_token(front, url, token_file))
        return proven(audit_http.proofs(server, tenant, expected), expected)
    if url or token_file:
        raise click.UsageError("either a server or --dir")
    try:
        keys = None if key_file is None else key_file.read_bytes()
        found = auditlog.verify(directory, tenant=tenant or None, expected=expected, keys=keys)
        return proven([proof.as_dict() for proof in found], expected)
    except FileNotFoundError as exc:
        raise WsFuseError(
            f"{directory} is not the folder of an audit log: there is no {exc.filename}"
        ) from None
    except ValueError as exc:
        raise WsFuseError(f"the public key cannot be read: {exc}") from None


def proven(proofs: list[dict[str, Any]], expected: Iterable[str] = ()) -> Report:
    """What *proofs* say; *expected*: hashes that must be among what was found."""
    missing = [hash for hash in expected if not any(hash in proof["found"] for proof in proofs)]
    report = Report({"proofs": proofs, "missing": missing})
    report.ok = not missing and not any(proof["fault"] for proof in proofs)
    for proof in proofs:
        name = shown(proof["tenant"]) + (f" ({proof['stream']})" if proof["stream"] else "")
        span = f"from {_time(proof['since'])} to {_time(proof['until'])}" if proof["entries"] else "none"
        if proof["fault"]:
            report.line(f"{name}: {shown(proof['fault']['text'])}", "fail")
            if proof["entries"]:
                report.line(
                    f"  before that, {proof['entries']} entries are as they were written, {span}", "warn"
                )
            continue
        report.line(
            f"{name}: {proof['entries']} entries {span}, in {proof['segments']} segments: "
            "every one is as it was written, and none is missing",
            "ok",
        )
        if proof["expired"]:
            report.line(
                f"  entries before number {proof['first']} were removed by the retention or size that is configured, "
                "which signed entries say"
            )
        for note in proof["notes"]:
            report.line(f"  {note}", "warn")
        report.line(f"  head {proof['hash']}, signed by key {', '.join(proof['keys'])}", "hint")
    for hash in missing:
        report.line(f"{shown(hash)}: expected, but in none of the logs", "fail")
    if not proofs:
        report.line("There is no audit log: nothing was recorded yet, or recording is off.", "warn")
    return report


# --- entries for people ----------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """*text* without what would do something to a terminal: names are chosen by whoever makes the file."""
    if text.isprintable():
        return text
    return "".join(_escape(char) for char in text)


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"  # a byte that is not UTF-8
    return char.encode("unicode_escape", "surrogatepass").decode()


def _time(stamp: str) -> str:
    return f"{stamp[:10]} {stamp[11:23]}Z"


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """An entry's cells."""
    count = f" x{entry['count']}" if entry.get("count", 1) > 1 else ""
    path = entry.get("path", "")
    if entry.get("new_path"):
        path += f" -> {entry['new_path']}"
    if entry.get("success"):
        result = entry.get("message") or "ok"
    else:
        result = f"{entry.get('errno') or 'failed'}: {entry.get('message', '')}".removesuffix(": ")
    if entry.get("details"):
        result += " " + " ".join(f"{name}={value}" for name, value in entry["details"].items())
    who = entry.get("principal") or "-"
    if entry.get("token"):
        who += f" (token {entry['token']})"
    return tuple(
        map(
            shown,
            (
                _time(entry.get("time", "")),
                entry.get("tenant", ""),
                who,
                entry.get("address") or "-",
                entry.get("session", "")[:8] or "-",
                entry.get("operation", "") + count,
                path,
                result,
            ),
        )
    )


def _print(entries: Iterable[dict[str, Any]], as_json: bool) -> int:
    """One line an entry, as they come; how many."""
    count = 0
    for entry in entries:
        count += 1
        click.echo(json.dumps(entry) if as_json else "  ".join(cell for cell in row(entry) if cell))
    return count


def listed(entries: list[dict[str, Any]]) -> Report:
    """Entries as a table."""
    report = Report(entries)
    if not entries:
        return report.line("No such entry.")
    headers = ("time", "tenant", "user", "address", "session", "operation", "path", "result")
    return report.grid(headers, [row(entry) for entry in entries])
