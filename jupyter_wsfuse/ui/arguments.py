"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Any

import click

from jupyter_wsfuse.mount import launcher


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


mount_point = click.argument("directory", required=False, metavar="[DIR]", type=MountPoint())
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
