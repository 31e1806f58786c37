"""The token on a command line: shared by all commands that talk to a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import click

from jupyter_wsfuse.client.discovery import parse_url


class Warner(Protocol):
    """Where a command was typed, as far as these need it."""

    def warn(self, message: str) -> None: ...


token_file = click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Read the server's token from FILE (- for standard input). Default: WSFUSE_TOKEN, or found with the server.",
)


def given_token(front: Warner, url: str | None, token_file: str | None) -> str | None:
    """The token given on this command line, or None for discovery to find one."""
    from jupyter_wsfuse.ui.serve import read_token

    if url and parse_url(url)[1]:
        front.warn(
            "the URL holds a token, which others can see with `ps` or in the notebook; "
            "better put it into WSFUSE_TOKEN or a file for --token-file"
        )
    if token_file == "-":
        return sys.stdin.readline().strip()
    return read_token(Path(token_file).expanduser()) if token_file else None
