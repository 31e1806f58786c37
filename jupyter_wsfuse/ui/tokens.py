"""``wsfuse token``: tokens for a colleague, a worker or a job that open a part of the workspace, for a while."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from jupyter_wsfuse.client.discovery import Server, discover
from jupyter_wsfuse.client.tickets_http import call
from jupyter_wsfuse.ui.arguments import json_option
from jupyter_wsfuse.ui.options import Warner, given_token, token_file
from jupyter_wsfuse.ui.render import Report, ago, duration, size
from jupyter_wsfuse.units import parse_duration, parse_size

_ID = re.compile(r"[0-9a-f]{16}")
_URL = re.compile(r"localhost|.*[./:].*", re.DOTALL)  # also without a scheme
_BYTES = frozenset({"bytes_in", "bytes_out"})
_RATES = ("metadata", "read", "write", "delete", "bytes_in", "bytes_out", "sessions", "handles", "in_flight")


class Path(click.ParamType):
    """A path relative to the workspace."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = str(value)
        if path.startswith("/") or ".." in path.split("/") or "\0" in path or not path:
            self.fail(
                f"{path!r} must be relative to the workspace, without '..': data/ or results/run1", param, ctx
            )
        return path


class Duration(click.ParamType):
    """``8h``, ``30 days``; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as exc:
            self.fail(f"{value!r} {exc}", param, ctx)
        if seconds <= 0:
            self.fail("a token must be valid for a while", param, ctx)
        return seconds


class Rates(click.ParamType):
    """``read=100,bytes_out=10MiB``: limits by name."""

    name = "limits"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        limits: dict[str, float] = {}
        for part in str(value).split(","):
            name, equals, text = (piece.strip() for piece in part.partition("="))
            if not equals or name not in _RATES:
                self.fail(f"{part!r} must be NAME=NUMBER, with a name of {', '.join(_RATES)}", param, ctx)
            try:
                limits[name] = float(parse_size(text) if name in _BYTES else float(text))
            except ValueError:
                self.fail(f"{text!r} is no number for {name}", param, ctx)
            if not limits[name] > 0:
                self.fail(f"{name} must be more than nothing", param, ctx)
        return limits


@click.group()
def token() -> None:
    """Tokens that open a part of the workspace, for a while.

    Such a token is used wherever the server's own is: in WSFUSE_TOKEN, or in a file for --token-file. It mounts,
    and opens nothing else of the server. Whoever has it can make further ones, with less.
    """


def _server(front: Warner, url: str | None, file: str | None) -> Server:
    return discover(url, given_token(front, url, file))


@token.command()
@click.argument("url", required=False)
@click.option(
    "--path",
    "paths",
    metavar="PATH",
    type=Path(),
    multiple=True,
    help="What it opens, relative to the workspace; may be repeated. Default: everything.",
)
@click.option("--read-only", is_flag=True, help="Nothing can be changed with it.")
@click.option(
    "--expires",
    metavar="DURATION",
    type=Duration(),
    default="8h",
    show_default=True,
    help="How long it is valid: 90s, 8h, 30 days.",
)
@click.option(
    "--rate",
    "limits",
    metavar="LIMITS",
    type=Rates(),
    help=f"What all mounts with it may use together, a second or at a time: NAME=NUMBER,... of {', '.join(_RATES)}.",
)
@click.option("--label", metavar="TEXT", default="", help="For whom or what it is; shown in lists.")
@click.option(
    "--tenant", metavar="NAME", default="", help="Which workspace, if the server has several for you."
)
@token_file
@json_option
@click.pass_obj
def create(
    front: Any,
    url: str | None,
    paths: tuple[str, ...],
    read_only: bool,
    expires: float,
    limits: dict[str, float] | None,
    label: str,
    tenant: str,
    token_file: str | None,
    as_json: bool,
) -> Report:
    """Make a token. It is shown this once."""
    server = _server(front, url, token_file)
    wish: dict[str, Any] = {
        "paths": list(paths),
        "rights": ["read"] if read_only else ["read", "write"],
        "expires": expires,
        "limits": limits or {},
        "label": label,
        "tenant": tenant,
    }
    made = call(server, "POST", "tokens", wish)
    report = Report(made)
    report.line(str(made["token"]))
    report.line(
        f"It opens {_paths(made)} {_rights(made)} for {duration(made['expires'] - time.time())}"
        + (f", with {_limits(made)}" if made["limits"] else ""),
        "ok",
    )
    if not read_only and "write" not in made["rights"]:
        report.line("It is read-only, because that is what you may do yourself.", "warn")
    if made["expires"] < made["created"] + expires - 1:
        report.line("It ends with the token that it was made with.", "warn")
    if "write" in made["rights"] and "" in made["paths"]:
        front.warn(
            "whoever has this token may write everywhere in the workspace. If that is a home directory, he can let "
            "commands run there, by files that shells and kernels start with: it is as good as a shell. Limit it with "
            "--path or --read-only"
        )
    if not getattr(front, "terminal", True):
        report.line(
            "The notebook keeps what is shown here: clear this output when you have copied it.", "warn"
        )
    return report.line(
        f"Mount with it: WSFUSE_TOKEN=... wsfuse mount {server.url} DIR; end it: wsfuse token revoke {made['id']}",
        "hint",
    )


@token.command("list")
@click.argument("url", required=False)
@token_file
@json_option
@click.pass_obj
def list_(front: Any, url: str | None, token_file: str | None, as_json: bool) -> Report:
    """The tokens that you made, and what became of them. Ended ones are listed for a week."""
    found = call(_server(front, url, token_file), "GET", "tokens")["tokens"]
    report = Report(found)
    if not found:
        return report.line("There are no tokens.")
    now = time.time()
    rows = [
        (
            one["id"],
            one["label"],
            f"{duration(one['expires'] - now)} left" if one["state"] == "valid" else one["state"],
            _rights(one),
            _paths(one),
            _limits(one),
            f"{ago(one['used'])} ago" if one["used"] else "never",
        )
        for one in found
    ]
    return report.grid(("id", "label", "state", "rights", "opens", "limits", "used"), rows)


@token.command()
@click.argument("words", nargs=-1, metavar="[ID]... [URL]")
@click.option("--all", "everything", is_flag=True, help="Every token of yours.")
@token_file
@json_option
@click.pass_obj
def revoke(
    front: Any, words: tuple[str, ...], everything: bool, token_file: str | None, as_json: bool
) -> Report:
    """End tokens, what was made with them, and the mounts that use them: at once."""
    ids = [word for word in words if _ID.fullmatch(word)]
    urls = [word for word in words if not _ID.fullmatch(word)]
    if any(word.startswith("wsfuse1_") for word in urls):
        raise click.UsageError("pass the token's id, which `wsfuse token list` shows, not the token itself")
    for word in urls:
        if not _URL.fullmatch(word):
            raise click.UsageError(
                f"{word!r} is no token id: ids look like 5f0c1b7a9d2e4f60, and `wsfuse token list` shows them "
                "(if it is a server's name, write http:// or https:// before it)"
            )
    if len(urls) > 1 or bool(ids) == everything:
        raise click.UsageError("either ids, which `wsfuse token list` shows, or --all; and one URL at most")
    server = _server(front, urls[0] if urls else None, token_file)
    answers = [call(server, "DELETE", f"tokens/{id}" if id else "tokens") for id in (ids or [""])]
    ended = [id for answer in answers for id in answer["revoked"]]
    pending = next((answer["pending"] for answer in answers if answer["pending"]), None)
    report = Report({"revoked": ended, "pending": pending})
    for id in ended:
        report.line(f"Revoked {id}", "ok")
    if not ended:
        report.line("Nothing was valid any longer.")
    if pending:
        report.line(f"Mounts that use them end when the server can tell its file engine: {pending}", "warn")
    return report


def _paths(made: dict[str, Any]) -> str:
    return ", ".join(path or "everything" for path in made["paths"])


def _rights(made: dict[str, Any]) -> str:
    return "read and write" if "write" in made["rights"] else "read-only"


def _limits(made: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={size(limit) if name in _BYTES else f'{limit:g}'}" for name, limit in made["limits"].items()
    )
