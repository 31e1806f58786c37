"""A Jupyter workspace as a real directory, over a WebSocket of the Jupyter server.

This module holds the entry points by which Jupyter, JupyterLab and IPython find us, and nothing else. Every
import of ours is inside a function: a kernel must not load the server's part, nor the server the kernel's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from jupyter_wsfuse.ui.widgets import WorkspacePanel
    from jupyter_wsfuse.ui.workspace import Workspace

    __version__: str

__all__ = ["Workspace", "WorkspacePanel", "__version__", "load_ipython_extension", "unload_ipython_extension"]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Where the Jupyter server finds the extension's application."""
    from jupyter_wsfuse.extension.app import WsFuseApp

    return [{"module": "jupyter_wsfuse", "app": WsFuseApp}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """Where JupyterLab's development mode finds the built front end, relative to this package."""
    return [{"src": "labextension", "dest": "jupyter-wsfuse"}]


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Make ``%wsfuse`` known to a kernel; called by ``%load_ext jupyter_wsfuse``."""
    from jupyter_wsfuse.ui import magic

    magic.load_ipython_extension(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take ``%wsfuse`` away again; mounts stay, as they do not belong to the kernel."""
    from jupyter_wsfuse.ui import magic

    magic.unload_ipython_extension(ipython)


if not TYPE_CHECKING:  # a module __getattr__ would make every misspelt name pass the type checker

    def __getattr__(name: str) -> Any:
        """What is looked up when asked for: importing it, or reading metadata, would slow down every start."""
        if name == "Workspace":
            from jupyter_wsfuse.ui.workspace import Workspace

            return Workspace
        if name == "WorkspacePanel":
            from jupyter_wsfuse.ui.widgets import WorkspacePanel

            return WorkspacePanel
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("jupyter-wsfuse")
        except PackageNotFoundError:  # run from a checkout that is not installed
            return "0+unknown"
