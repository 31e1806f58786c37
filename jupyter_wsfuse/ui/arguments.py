"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Any

import click

from jupyter_wsfuse.client.api import PREFETCH
from jupyter_wsfuse.mount import launcher
from jupyter_wsfuse.units import parse_size


class Directory(click.ParamType):
    """A directory that need not exist. Not click's own: that one looks at it, and a mount may be stuck."""

    name = "directory"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="dir")]


class MountPoint(click.ParamType):
    """A directory; completes to the mounts there are."""

    name = "directory"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        paths = [entry.mountpoint for entry in launcher.mounts()]
        return [CompletionItem(path) for path in paths if path.startswith(incomplete)]


class Size(click.ParamType):
    """A number of bytes, as people write them."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(int(value) if isinstance(value, str) and value.isdecimal() else value)
        except ValueError as exc:
            self.fail(f"{value!r} {exc}", param, ctx)


class Policies(click.ParamType):
    """Policies of prefetching: ``on`` for all, ``off`` for none, or some of them, separated by commas."""

    name = "policies"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        if value in ("on", "off"):
            return tuple(sorted(PREFETCH)) if value == "on" else ()
        wanted = tuple(sorted({part.strip() for part in value.split(",") if part.strip()}))
        unknown = [name for name in wanted if name not in PREFETCH]
        if unknown or not wanted:
            self.fail(f"{value!r}: say on, off, or some of {', '.join(sorted(PREFETCH))}", param, ctx)
        return wanted


mount_point = click.argument("directory", required=False, metavar="[DIR]", type=MountPoint())
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
