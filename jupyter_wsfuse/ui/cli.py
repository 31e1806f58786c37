"""The commands, declared once: ``wsfuse ...`` on a terminal and ``%wsfuse ...`` in a notebook are the same.

A command returns a :class:`~.render.Report`; the :class:`Front` it was called from shows it. Expected errors are
:class:`WsFuseError` and become one clear line and an exit code, never a traceback (unless with ``-v``).
"""

from __future__ import annotations

import enum
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from jupyter_wsfuse import __version__
from jupyter_wsfuse.client.discovery import discover
from jupyter_wsfuse.errors import (
    DiscoveryError,
    MountError,
    NotMountedError,
    RefusedError,
    TransportError,
    WsFuseError,
)
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.config import DEFAULT_DEADLINE, DEFAULT_MEMORY, LEAST_MEMORY, MountConfig
from jupyter_wsfuse.ui import audit, prefetch, profile, render, tokens, views
from jupyter_wsfuse.ui.arguments import Directory, Policies, Size, json_option, mount_point
from jupyter_wsfuse.ui.options import given_token, token_file
from jupyter_wsfuse.ui.render import Report
from jupyter_wsfuse.ui.workspace import DEFAULT_DIR


class Code(enum.IntEnum):
    """Exit codes, in the help text too."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_MOUNTED = 3
    SERVER = 4


_EPILOG = """Exit codes: 0 done; 1 failed; 2 wrong usage; 3 nothing is mounted there; 4 the server was not found, did
not answer or refused. Environment: WSFUSE_TOKEN and WSFUSE_URL, SSL_CERT_FILE, HTTPS_PROXY, WSFUSE_RUNTIME_DIR."""


class Front:
    """Where a command was typed. ``prefix`` is what the user types there."""

    prefix = "wsfuse"
    terminal = True

    #: The cell of a notebook that a command is about: runs it, and tells whether it succeeded.
    cell: Callable[[], bool] | None = None

    def __init__(self) -> None:
        self.verbose = False

    def warn(self, message: str) -> None:
        """Something the user should know, beside the result."""
        click.echo(f"wsfuse: {self.words(message)}", err=True)

    def words(self, message: str) -> str:
        """*message* with commands as they are typed here."""
        return message

    def show(self, report: Report, as_json: bool = False) -> None:
        """Print a result."""
        if as_json:
            click.echo(json.dumps(report.data, default=str))
        else:
            report.print(render.console())


@click.group(
    epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="wsfuse")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks for errors, and a detailed log of the mount.")
@click.pass_obj
def cli(front: Front, verbose: bool) -> None:
    """A Jupyter workspace as a real directory, through the server's own URL and token.

    \b
    Try:  wsfuse serve ~/data                       serve a directory, in one shell
          wsfuse mount http://127.0.0.1:8888/ ~/ws  mount it, in another
          wsfuse umount ~/ws
    """
    front.verbose = verbose


def _is_directory(argument: str) -> bool:
    """Whether the only argument of `mount` is a directory: URLs have a scheme, or look like host:port."""
    return "://" not in argument and (argument[:1] in "/.~" or ":" not in argument)


@cli.command()
@click.argument("url", required=False)
@click.argument("directory", required=False, metavar="[DIR]", type=Directory())
@token_file
@click.option(
    "--transport",
    type=click.Choice(["auto", "direct", "relay"]),
    default="auto",
    show_default=True,
    help="direct: to the file engine, on the server's own host only. relay: through the Jupyter server.",
)
@click.option("--foreground", is_flag=True, help="Stay until SIGTERM or Ctrl-C, then unmount.")
@click.option("--read-only", is_flag=True, help="Nothing can be changed through the mount.")
@click.option(
    "--tenant", metavar="NAME", default="", help="Which workspace, if the server has several for you."
)
@click.option("--subdir", metavar="PATH", default="", help="Mount only this directory of the workspace.")
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_DEADLINE,
    show_default=True,
    help="How long an operation waits through a disconnect before it fails.",
)
@click.option(
    "--owner",
    type=click.Choice(["squash", "raw"]),
    default="squash",
    show_default=True,
    help="squash: everything is yours. raw: numeric owners of the server (which must run as root).",
)
@click.option("--allow-other", is_flag=True, help="Other users of this machine may use the mount.")
@click.option(
    "--links",
    type=click.Choice(["keep", "contain", "follow"]),
    default="keep",
    show_default=True,
    help="keep: as stored. contain: refuse links out of the mount. follow: the server follows those it was told to.",
)
@click.option(
    "--cache",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="off: for measuring, debugging.",
)
@click.option(
    "--prefetch",
    metavar="on|off|LIST",
    type=Policies(),
    default="on",
    show_default=True,
    help="What is fetched before it is asked for. LIST: some of subtree, siblings, readahead, inline, with commas.",
)
@click.option(
    "--memory",
    metavar="MIB",
    type=click.IntRange(LEAST_MEMORY),
    default=DEFAULT_MEMORY,
    show_default=True,
    help="How much memory the mount's process may take.",
)
@click.option(
    "--disk-cache",
    metavar="SIZE",
    type=Size(off=True),
    default="off",
    show_default=True,
    help="Keeps file data on this machine's disk between mounts, up to SIZE (like 10GiB).",
)
@click.pass_obj
def mount(
    front: Front,
    url: str | None,
    directory: str | None,
    token_file: str | None,
    foreground: bool,
    transport: Any,
    read_only: bool,
    tenant: str,
    subdir: str,
    deadline: float,
    owner: Any,
    allow_other: bool,
    links: Any,
    cache: str,
    prefetch: tuple[str, ...],
    memory: int,
    disk_cache: int,
) -> Report | int:
    """Mount the workspace of the server at URL on DIR.

    Without URL the server is found by itself: the one this notebook belongs to, or the only one running here.
    DIR (default ~/wsfuse) is made if it does not exist, and removed again afterwards.
    """
    if url and directory is None and _is_directory(url):
        url, directory = None, url
    if disk_cache and cache == "off":
        raise click.UsageError("either --disk-cache or --cache off")
    server = discover(url, given_token(front, url, token_file))
    config = MountConfig(
        url=server.url,
        token=server.token,
        source=server.source,
        ca_file=server.ca_file or "",
        proxy=server.proxy or "",
        mountpoint=registry.resolve_mountpoint(directory or DEFAULT_DIR),
        transport=transport,
        read_only=read_only,
        tenant=tenant,
        subdir=subdir,
        deadline=deadline,
        owner=owner,
        allow_other=allow_other,
        links=links,
        cache=cache == "on",
        prefetch=prefetch,
        memory=memory,
        disk_cache=disk_cache,
        verbose=front.verbose,
    )
    if foreground:
        return _mount_foreground(front, config)
    launcher.start(config)
    status = launcher.status(registry.find(config.mountpoint))
    return views.mounted(status, front.prefix)


def _mount_foreground(front: Front, config: MountConfig) -> int:
    if not front.terminal:
        raise click.UsageError(
            "--foreground is for a terminal: a mount made in a notebook outlives its kernel anyway"
        )
    from jupyter_wsfuse.mount.supervisor import run_foreground

    failures: list[WsFuseError] = []

    def report(message: dict[str, Any]) -> None:
        from jupyter_wsfuse.mount.control import error_from_json

        if message["event"] == "failed":
            failures.append(error_from_json(message["error"]))
        else:
            click.echo(f"Mounted {config.url} on {config.mountpoint}; Ctrl-C or SIGTERM unmounts")
            sys.stdout.flush()

    code = run_foreground(config, report)
    if failures:
        raise failures[0]
    return code


@cli.command()
@mount_point
@click.option("--all", "everything", is_flag=True, help="Every mount of yours.")
@click.option("--force", is_flag=True, help="Without syncing, and without waiting for open files.")
@json_option
@click.pass_obj
def umount(front: Front, directory: str | None, everything: bool, force: bool, as_json: bool) -> Report:
    """Take a mount down, whatever state it is in. DIR may be left out if there is only one."""
    if everything and directory:
        raise click.UsageError("either DIR or --all")
    try:
        chosen = launcher.mounts() if everything else [launcher.choose(directory)]
    except NotMountedError:
        raise
    except MountError as exc:
        raise click.UsageError(str(exc)) from None
    return views.unmounted([(entry.mountpoint, launcher.unmount(entry, force=force)) for entry in chosen])


@cli.command()
@mount_point
@json_option
@click.pass_obj
def status(front: Front, directory: str | None, as_json: bool) -> Report:
    """What is mounted, from where, and how the connection is."""
    chosen = [launcher.choose(directory)] if directory else launcher.mounts()
    return views.status([launcher.status(entry) for entry in chosen], front.prefix)


cli.add_command(prefetch.prefetch)
cli.add_command(profile.stats)
cli.add_command(profile.profile)
cli.add_command(tokens.token)
cli.add_command(audit.audit)


@cli.command()
@mount_point
@json_option
@click.pass_obj
def sync(front: Front, directory: str | None, as_json: bool) -> Report:
    """Wait until everything written is on the server's disk."""
    entry = launcher.choose(directory)
    deadline = float(entry.info.get("deadline", DEFAULT_DEADLINE))
    launcher.ask(entry, "sync", timeout=2 * deadline + 5)
    return Report({"mountpoint": entry.mountpoint, "synced": True}).line(
        f"Everything written to {entry.mountpoint} is on the server's disk.", "ok"
    )


@cli.command()
@click.argument("url", required=False)
@token_file
@json_option
@click.pass_obj
def doctor(front: Front, url: str | None, token_file: str | None, as_json: bool) -> Report:
    """Check everything that a mount needs, and say how to put right what is missing."""
    from jupyter_wsfuse.ui.doctor import examine

    return examine(url, given_token(front, url, token_file))


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--port", type=click.IntRange(0, 65535), help="Default: 8888, or the next free one. 0: any.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="The token, 0600. Written there if the file does not exist yet.",
)
@click.option("--ip", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.pass_obj
def serve(front: Front, directory: str, port: int | None, token_file: str | None, ip: str) -> int:
    """Serve DIR with a Jupyter server of its own, until SIGTERM or Ctrl-C."""
    if not front.terminal:
        raise click.UsageError("a notebook has its server already; `wsfuse serve` is for a terminal")
    from jupyter_wsfuse.ui import serve as server

    server.serve(directory, port=port, ip=ip, token_file=token_file, verbose=front.verbose)
    return Code.OK


#: The panel that was shown last.
_panel: Any = None


@cli.command()
@click.pass_obj
def panel(front: Front) -> Any:
    """Mounts, profile, limits and audit log as they change, with buttons; in a notebook."""
    if front.terminal:
        raise click.UsageError(
            "the panel is for a notebook, `%wsfuse panel`; here, `wsfuse status` and `wsfuse stats --watch`"
        )
    try:
        from jupyter_wsfuse.ui.widgets import WorkspacePanel
    except ImportError as exc:
        raise MountError(f"the panel needs ipywidgets ({exc}): pip install ipywidgets") from exc
    global _panel
    if _panel is not None:
        _panel.close()  # a cell that is run again shows another one in its place
    _panel = WorkspacePanel()
    return _panel


# --- running a command -----------------------------------------------------------------------------------------


def exit_code(exc: BaseException) -> int:
    """The exit code for what a command raised."""
    if isinstance(exc, click.exceptions.Exit | click.ClickException):
        return exc.exit_code
    if isinstance(exc, NotMountedError):
        return Code.NOT_MOUNTED
    if isinstance(exc, DiscoveryError | TransportError | RefusedError):
        return Code.SERVER
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        return 130
    return Code.FAILED


def explain(exc: BaseException, front: Front) -> str:
    """*exc* in words, with the next thing to do."""
    if isinstance(exc, click.ClickException):
        hint = f"\nTry {front.prefix} --help" if isinstance(exc, click.UsageError) else ""
        return front.words(exc.format_message() + hint)
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        return str(exc) or "interrupted"
    message = str(exc) or type(exc).__name__
    if isinstance(exc, TransportError | RefusedError) and "doctor" not in message:
        message += f"\n`{Front.prefix} doctor` checks the connection step by step"
    return front.words(message)


def run(arguments: list[str], front: Front) -> Any:
    """Run one command line; returns its :class:`Report`, exit code, or widget. Raises what the command raises."""
    result = cli.main(args=arguments, prog_name=front.prefix, standalone_mode=False, obj=front)
    return Code.OK if result is None else result


def main(arguments: list[str] | None = None) -> int:
    """The ``wsfuse`` command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "_WSFUSE_COMPLETE" in os.environ:
        cli.main(
            args=arguments, prog_name="wsfuse", obj=Front()
        )  # the shell asks for completions; does not return
    front = Front()
    try:
        result = run(arguments, front)
        if isinstance(result, int):
            return int(result)
        front.show(result, "--json" in arguments)
        return Code.OK if result.ok else Code.FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has seen enough
        return Code.FAILED
    except (
        WsFuseError,
        OSError,
        click.ClickException,
        click.exceptions.Exit,
        click.Abort,
        KeyboardInterrupt,
    ) as exc:
        if front.verbose or "-v" in arguments:
            traceback.print_exc()
        if not isinstance(exc, click.exceptions.Exit):
            click.echo(f"wsfuse: {explain(exc, front)}", err=True)
        return exit_code(exc)


def split(line: str) -> list[str]:
    """A line of a notebook into arguments. Raises :class:`click.UsageError`."""
    try:
        return shlex.split(line)
    except ValueError as exc:
        raise click.UsageError(f"{exc}: {line}") from None


if __name__ == "__main__":
    sys.exit(main())
