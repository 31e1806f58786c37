"""What a mount is told, and what must never be told to anybody else."""

from __future__ import annotations

import os

import pytest

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.mount.config import MountConfig, child_environment

CONFIG = MountConfig(
    url="http://h/", token="secret", mountpoint="/mnt/\udcff", proxy="http://me:password@proxy", subdir="a/b"
)


def test_json_and_back() -> None:
    text = CONFIG.to_json()
    assert "\n" not in text
    assert MountConfig.from_json(text) == CONFIG


def test_secrets_are_not_shown() -> None:
    for text in (repr(CONFIG), str(CONFIG.public())):
        assert "secret" not in text
        assert "password" not in text


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": 1, "unknown": 2}', "\x00"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MountError, match="wsfuse mount"):
        MountConfig.from_json(text)


def test_the_environment_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSFUSE_TOKEN", "secret")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "relative:")
    monkeypatch.setenv("SOMETHING", "kept")
    environ = child_environment()
    assert "secret" not in environ.values()
    assert environ["SOMETHING"] == "kept"
    assert all(os.path.isabs(entry) for entry in environ["PYTHONPATH"].split(os.pathsep))
