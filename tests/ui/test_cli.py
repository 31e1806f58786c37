"""The command line: arguments, exit codes, and words for what went wrong. Nothing is mounted here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from jupyter_wsfuse.errors import DiscoveryError, MountError, NotMountedError, RefusedError, TransportError
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.config import MountConfig
from jupyter_wsfuse.ui import cli, serve
from jupyter_wsfuse.ui.cli import Code, main


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("WSFUSE", "KERNEL_WSFUSE", "JUPYTERHUB", "JPY_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[MountConfig]:
    """What would have been mounted."""
    configs: list[MountConfig] = []

    def start(config: MountConfig) -> dict[str, Any]:
        configs.append(config)
        claim = registry.Claim(config.mountpoint)
        claim.write(config.public())
        os.close(claim.fd)
        return {}

    monkeypatch.setattr(launcher, "start", start)
    return configs


# --- mount -----------------------------------------------------------------------------------------------------


def test_defaults(started: list[MountConfig], user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "http://h:1/lab"]) == 0
    (config,) = started
    assert config == MountConfig(
        url="http://h:1/", token="", mountpoint=str(user / "wsfuse"), source="explicit"
    )
    assert f"Mounted http://h:1/ on {user}/wsfuse" in capsys.readouterr().out


def test_every_option(started: list[MountConfig], user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "mount http://h/ d --transport relay --read-only --tenant team-a --subdir a/b --deadline 2.5 --owner raw "
        "--allow-other --links contain --prefetch siblings,subtree --memory 512 --disk-cache 10GiB"
    )
    monkeypatch.chdir(user)
    assert main(["-v", *line.split()]) == 0
    (config,) = started
    assert (config.mountpoint, config.transport, config.read_only) == (str(user / "d"), "relay", True)
    assert (config.tenant, config.subdir, config.deadline, config.owner) == ("team-a", "a/b", 2.5, "raw")
    assert (config.allow_other, config.links, config.cache, config.verbose) == (True, "contain", True, True)
    assert (config.prefetch, config.memory, config.disk_cache) == (("siblings", "subtree"), 512, 10 << 30)


def test_what_is_remembered_and_fetched_ahead(started: list[MountConfig]) -> None:
    assert main(["mount", "http://h/", "--cache", "off", "--prefetch", "off"]) == 0
    assert main(["mount", "http://h/", "--prefetch", "on", "--disk-cache", "off"]) == 0
    assert main(["mount", "http://h/", "--prefetch", "inline, inline", "--disk-cache", "1000"]) == 0
    assert [(config.cache, config.prefetch, config.disk_cache) for config in started] == [
        (False, (), 0),
        (True, ("inline", "readahead", "siblings", "subtree"), 0),
        (True, ("inline",), 1000),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--prefetch", "sibling"],
            "'sibling' is not known. Either on, or off, or some of: inline, readahead",
        ),
        (["--prefetch", "inline,"], "'' is not known"),
        (["--memory", "32"], "x>=96"),
        (["--memory", "lots"], "not a valid integer"),
        (
            ["--disk-cache", "lots"],
            "'lots' must be a number of bytes, or a text like 500 MB or 10 GiB, or off",
        ),
        (["--disk-cache", "1G", "--cache", "off"], "either --disk-cache or --cache off"),
    ],
)
def test_what_cannot_be_remembered(
    options: list[str], words: str, started: list[MountConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", "http://h/", *options]) == Code.USAGE
    assert words in " ".join(capsys.readouterr().err.split())
    assert started == []


def test_the_only_argument_may_be_the_directory(started: list[MountConfig], user: Path) -> None:
    (user / "runtime").mkdir()
    info = {"url": "http://127.0.0.1:1/", "token": "t", "pid": os.getpid()}
    (user / "runtime" / f"jpserver-{os.getpid()}.json").write_text(json.dumps(info))
    assert main(["mount", str(user / "here")]) == 0
    assert main(["mount"]) == 0
    assert [(config.url, config.token, config.mountpoint) for config in started] == [
        ("http://127.0.0.1:1/", "t", str(user / "here")),
        ("http://127.0.0.1:1/", "t", str(user / "wsfuse")),
    ]


def test_tokens(
    started: list[MountConfig],
    user: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WSFUSE_TOKEN", "of the environment")
    assert main(["mount", "http://h/"]) == 0
    file = user / "token"
    file.write_text("of the file\n")
    file.chmod(0o600)
    assert main(["mount", "http://h/", "--token-file", str(file)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["mount", "http://h/?token=of-the-url"]) == 0
    assert "`ps`" in capsys.readouterr().err
    assert [config.token for config in started] == ["of the environment", "of the file", "of-the-url"]


def test_no_option_takes_a_token() -> None:
    assert main(["mount", "http://h/", "--token", "x"]) == Code.USAGE


def test_token_files_that_will_not_do(
    started: list[MountConfig], user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = user / "token"
    assert main(["mount", "http://h/", "--token-file", str(file)]) == Code.FAILED
    file.touch(0o600)
    assert main(["mount", "http://h/", "--token-file", str(file)]) == Code.FAILED
    file.write_text("secret")
    file.chmod(0o644)
    assert main(["mount", "http://h/", "--token-file", str(file)]) == Code.FAILED
    said = capsys.readouterr().err
    assert "cannot read" in said
    assert "is empty" in said
    assert f"chmod 600 {file}" in said
    assert "secret" not in said
    assert started == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["mount", "http://h/", "d", "e"],
        ["mount", "http://h/", "--transport", "pigeon"],
        ["mount", "http://h/", "--deadline", "0"],
        ["mount", "http://h/", "--deadline", "soon"],
        ["umount", "/x", "--all"],
        ["serve"],
        ["serve", "/nonexistent"],
        ["nonsense"],
        ["mount", "http://h/", "--nonsense"],
        ["profile"],
        ["profile", "/x"],
        ["profile", "/x", "y", "--", "true"],
        ["profile", "--"],
        ["stats", "--watch", "--reset"],
        ["stats", "--watch", "--interval", "0"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == Code.USAGE
    said = capsys.readouterr().err
    assert "Try wsfuse --help" in said
    assert "Traceback" not in said


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MountError("it went wrong"), Code.FAILED),
        (NotMountedError("it went wrong"), Code.NOT_MOUNTED),
        (TransportError("it went wrong"), Code.SERVER),
        (DiscoveryError("it went wrong"), Code.SERVER),
        (RefusedError("token", "it went wrong"), Code.SERVER),
        (OSError(28, "it went wrong"), Code.FAILED),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("verbose", [False, True])
def test_errors_are_one_message_and_a_code(
    error: BaseException,
    code: int,
    verbose: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(config: MountConfig) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(launcher, "start", fail)
    assert main([*(["-v"] if verbose else []), "mount", "http://h/"]) == code
    said = capsys.readouterr().err
    assert "went wrong" in said or "interrupted" in said
    assert ("Traceback" in said) is verbose


def test_nothing_is_mounted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == Code.OK
    assert "wsfuse mount" in capsys.readouterr().out
    assert main(["status", "--json"]) == Code.OK
    assert json.loads(capsys.readouterr().out) == []
    for arguments in (
        ["umount"],
        ["umount", "/x"],
        ["stats"],
        ["sync"],
        ["status", "/x"],
        ["prefetch"],
        ["prefetch", "/x"],
        ["profile", "--", "true"],
    ):
        assert main(arguments) == Code.NOT_MOUNTED
        assert "mount" in capsys.readouterr().err
    assert main(["umount", "--all"]) == Code.OK


def test_several_are_mounted(capsys: pytest.CaptureFixture[str]) -> None:
    claims = [registry.Claim(path) for path in ("/mnt/a", "/mnt/b")]
    try:
        for claim in claims:
            claim.write({"url": "http://h/"})
        assert main(["umount"]) == Code.USAGE
        assert "/mnt/a, /mnt/b" in capsys.readouterr().err
        assert main(["status"]) == Code.OK  # nobody answers there
        assert "unsupervised" in capsys.readouterr().out
    finally:
        for claim in claims:
            claim.release()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ["", *cli.cli.commands]:
        assert main([*([name] if name else []), "--help"]) == 0
        assert "Usage: wsfuse" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["-h"]) == 0
    assert "Exit codes" in capsys.readouterr().out


def test_every_command_of_the_issue_is_there() -> None:
    expected = {"mount", "umount", "prefetch", "status", "stats", "profile", "sync", "doctor", "serve"}
    assert expected <= set(cli.cli.commands)


# --- tokens of serve -------------------------------------------------------------------------------------------


def test_a_new_token_is_private_and_random(user: Path) -> None:
    one, two = serve.make_token(user / "one"), serve.make_token(user / "two")
    assert one != two
    assert len(one) >= 32
    assert (user / "one").stat().st_mode & 0o777 == 0o600
    assert serve.read_token(user / "one") == one
    with pytest.raises(FileExistsError):
        serve.make_token(user / "one")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe\x80")])
def test_what_is_no_token(user: Path, make: Callable[[Path], None]) -> None:
    make(user / "token")
    with pytest.raises(MountError):
        serve.read_token(user / "token")


def test_a_line_of_a_notebook() -> None:
    assert cli.split("mount 'a b' --read-only") == ["mount", "a b", "--read-only"]
    with pytest.raises(click.UsageError):
        cli.split("mount 'a")
