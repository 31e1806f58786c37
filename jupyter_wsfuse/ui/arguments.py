"""Arguments and options that several commands have, and the types of those that click has no type for."""

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


class Inside(MountPoint):
    """A path in a mount; completes to the mounts there are, and to files where the shell does that."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [
            *super().shell_complete(ctx, param, incomplete),
            CompletionItem(incomplete, type="file"),
        ]


class Size(click.ParamType):
    """Bytes, as people write them; "off" is 0 if *off*."""

    name = "size"

    def __init__(self, off: bool = False) -> None:
        self._off = off

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if self._off and value == "off":
            return 0
        try:
            return parse_size(value)
        except ValueError as exc:
            self.fail(f"{value!r} {exc}" + (", or off" if self._off else ""), param, ctx)


class Policies(click.ParamType):
    """What is fetched ahead: "on", "off", or names of :data:`~jupyter_wsfuse.client.api.PREFETCH` with commas."""

    name = "policies"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        if value in ("on", "off"):
            return tuple(sorted(PREFETCH)) if value == "on" else ()
        names = {name.strip() for name in value.split(",")}
        for name in sorted(names - PREFETCH):
            known = ", ".join(sorted(PREFETCH))
            self.fail(f"{name!r} is not known. Either on, or off, or some of: {known}", param, ctx)
        return tuple(sorted(names))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",")
        words = sorted(PREFETCH - set(before.split(",")))
        if not comma:
            words += ["on", "off"]
        return [CompletionItem(before + comma + word) for word in words if word.startswith(last)]


mount_point = click.argument("directory", required=False, metavar="[DIR]", type=MountPoint())
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
