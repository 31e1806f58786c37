"""The extension's application: loaded by a real server, configured by traitlets, stopped with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jupyter_server.serverapp import ServerApp
from traitlets import TraitError
from traitlets.config import Config

from jupyter_wsfuse.extension.settings import Settings, WsFuse

from .conftest import Start

pytestmark = pytest.mark.jupyter


async def test_defaults_are_the_servers(start: Start, jp_root_dir: Path) -> None:
    server = await start()
    assert server.extension.wsfuse_settings == Settings(root_dir=str(jp_root_dir))
    settings = server.app.web_app.settings
    assert settings["ws_ping_interval"] == 30_000


async def test_options_are_configured_as_c_wsfuse(start: Start, tmp_path: Path) -> None:
    options = {"root_dir": str(tmp_path), "read_only": True, "follow_roots": ["/data"], "window": 99}
    server = await start(WsFuse=options, ServerApp={"tornado_settings": {"ws_ping_interval": 5_000}})
    settings = server.extension.wsfuse_settings
    assert (settings.root_dir, settings.read_only, settings.follow_roots, settings.window) == (
        str(tmp_path),
        True,
        ("/data",),
        99,
    )
    assert server.app.web_app.settings["ws_ping_interval"] == 5_000  # the user's own


async def test_scoped_tokens_are_kept_from_what_opens_more(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "my ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path / "more config"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    server = await start()
    home = Path.home()
    wanted = {
        server.app.runtime_dir, server.app.data_dir, server.app.config_dir, str(tmp_path / "my ipython"),
        str(tmp_path / "more config"), str(home / ".ipython"), str(home / ".config/ipython"),
    }  # fmt: skip
    private = server.extension.supervisor._private
    assert wanted <= set(private)
    assert all(map(os.path.isabs, private))


async def test_the_engine_ends_with_the_server(start: Start, jp_runtime_dir: Path) -> None:
    server = await start()
    await server.ticket()
    pid = server.extension.supervisor.info()["pid"]
    assert list(jp_runtime_dir.glob("wsfuse-*"))
    await server.app.cleanup_extensions()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not list(jp_runtime_dir.glob("wsfuse-*"))
    assert (await server.ticket()).code == 503


def test_relative_directories() -> None:
    assert WsFuse(root_dir="~").settings("/srv").root_dir == os.path.expanduser("~")
    assert WsFuse(root_dir="here").settings("/srv").root_dir == os.path.abspath("here")
    assert WsFuse(root_dir="").settings("~/x").root_dir == os.path.expanduser("~/x")
    with pytest.raises(TraitError, match="not an absolute path"):
        WsFuse(follow_roots=["relative"])


@pytest.mark.parametrize(
    ("name", "value"), [("window", 1), ("engine_grace", -1.0), ("max_sessions", 0), ("relay_buffer", 1)]
)
def test_nonsense_is_refused_at_the_start(name: str, value: float) -> None:
    with pytest.raises(TraitError):
        WsFuse(config=Config(WsFuse={name: value}))


def test_every_option_is_explained_and_has_a_default_of_its_own() -> None:
    traits = WsFuse.class_own_traits(config=True)
    defaults = WsFuse().settings("/srv")
    for name, trait in traits.items():
        assert len(trait.help) > 40, name
        assert hasattr(defaults, name)
    assert defaults == Settings(root_dir="/srv")


def test_the_server_finds_the_application() -> None:
    app = ServerApp(config=Config(ServerApp={"jpserver_extensions": {"jupyter_wsfuse": True}}))
    app.init_server_extensions = lambda: None  # type: ignore[method-assign]
    app.find_server_extensions = lambda: None  # type: ignore[method-assign]
    from jupyter_server.extension.manager import ExtensionPackage

    package = ExtensionPackage(name="jupyter_wsfuse", enabled=True)
    assert package.validate()
    assert list(package.extension_points) == ["jupyter_wsfuse"]
