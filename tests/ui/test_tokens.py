"""``wsfuse token`` and ``%wsfuse token`` against a real server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.tickets_http import call
from jupyter_wsfuse.errors import RefusedError, TransportError, WsFuseError
from jupyter_wsfuse.extension.tokens import LIMITS
from jupyter_wsfuse.ui import magic, tokens
from jupyter_wsfuse.ui.cli import Code, main
from tests.helpers import live

pytestmark = pytest.mark.jupyter


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Live]:
    home = tmp_path_factory.mktemp("served")
    with live.start_server(home / "workspace", home / "home") as server:
        server.expect_log(r"40[034] \w+ /wsfuse/api/", "wrote error")
        yield server


@pytest.fixture
def server(served: live.Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> live.Live:
    """The environment of somebody on another machine, who has the server's token; and no tokens."""
    for name in list(os.environ):
        if name.startswith(("WSFUSE", "KERNEL_WSFUSE", "JUPYTER", "JPY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("WSFUSE_TOKEN", served.token)
    call(Server(served.url, served.token), "DELETE", "tokens")
    return served


Capture = pytest.CaptureFixture[str]


def wsfuse(*arguments: str) -> int:
    return main(["token", *arguments])


def made(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert wsfuse("create", "--json", *arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def valid(server: live.Live) -> list[dict[str, Any]]:
    listed = call(Server(server.url, server.token), "GET", "tokens")["tokens"]
    return [one for one in listed if one["state"] == "valid"]


def test_the_names_of_limits_are_the_servers() -> None:
    assert set(tokens._RATES) == LIMITS


def test_a_token_is_shown_once(server: live.Live, capsys: Capture) -> None:
    assert wsfuse(
        "create", server.url, "--path", "data/", "--path", "b", "--read-only", "--expires", "3 days",
        "--rate", "read=100, bytes_out=10MiB", "--label", "for ben",
    ) == 0  # fmt: skip
    out = capsys.readouterr().out
    text = out.splitlines()[0]
    assert text.startswith("wsfuse1_")
    assert "It opens b, data read-only for 3 d, with read=100, bytes_out=10.0 MiB" in out
    (told,) = valid(server)
    assert told["limits"] == {"read": 100.0, "bytes_out": 10.0 * (1 << 20)}
    assert f"wsfuse token revoke {told['id']}" in out
    assert wsfuse("list", server.url) == 0
    out = capsys.readouterr().out
    assert text not in out
    for word in (told["id"], "for ben", "left", "read-only", "b, data", "bytes_out=10.0 MiB", "never"):
        assert word in out


def test_defaults(server: live.Live, capsys: Capture) -> None:
    wsfuse("create", server.url)
    assert "It opens everything read and write for 8 h\n" in capsys.readouterr().out


def test_a_token_that_is_as_good_as_a_shell(server: live.Live, capsys: Capture) -> None:
    for limits in ((), ("--path", "./")):
        assert wsfuse("create", server.url, "--json", *limits) == 0
        told = capsys.readouterr()
        assert "wsfuse: whoever has this token may write everywhere" in told.err
        assert "as good as a shell" in told.err
        json.loads(told.out)
    for limit in (("--path", "data"), ("--read-only",)):
        assert wsfuse("create", server.url, *limit) == 0
        assert capsys.readouterr().err == ""


def test_less_than_was_asked_for_is_said(
    server: live.Live, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = made(capsys, server.url, "--read-only", "--expires", "60s")
    monkeypatch.setenv("WSFUSE_TOKEN", parent["token"])
    wsfuse("create", server.url)
    out = capsys.readouterr().out
    assert "It is read-only, because that is what you may do yourself." in out
    assert "It ends with the token that it was made with." in out


def test_revoking(server: live.Live, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (made(capsys, server.url) for _ in range(3))
    assert wsfuse("revoke", one["id"], two["id"], server.url) == 0
    assert capsys.readouterr().out.splitlines() == [f"Revoked {one['id']}", f"Revoked {two['id']}"]
    assert [told["id"] for told in valid(server)] == [three["id"]]
    assert wsfuse("revoke", one["id"], server.url) == 0
    assert capsys.readouterr().out == "Nothing was valid any longer.\n"
    assert wsfuse("revoke", "--all", server.url, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": [three["id"]], "pending": None}
    assert wsfuse("revoke", "0" * 16, server.url) == Code.FAILED
    assert "there is no such token of yours; `wsfuse token list` shows" in capsys.readouterr().err
    monkeypatch.setenv("WSFUSE_TOKEN", three["token"])
    assert wsfuse("list", server.url) == Code.SERVER
    assert "this token was revoked on " in capsys.readouterr().err


def test_a_server_that_could_not_tell_its_engine(
    server: live.Live, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "call", lambda *_: {"revoked": ["a"], "pending": "it is away"})
    wsfuse("revoke", "--all", server.url)
    assert (
        "Mounts that use them end when the server can tell its file engine: it is away"
        in capsys.readouterr().out
    )


def test_nothing_to_list(server: live.Live, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "call", lambda *_: {"tokens": []})
    assert wsfuse("list", server.url) == 0
    assert capsys.readouterr().out == "There are no tokens.\n"


def test_the_server_is_found(server: live.Live, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", server.env["JUPYTER_RUNTIME_DIR"])
    monkeypatch.delenv("WSFUSE_TOKEN")
    told = made(capsys)
    assert wsfuse("revoke", told["id"]) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["create", "--path", "/etc"], "must be relative to the workspace"),
        (["create", "--path", "a/../b"], "without '..'"),
        (["create", "--path", ""], "must be relative"),
        (["create", "--expires", "soon"], "must be a number of seconds, or a text like"),
        (["create", "--expires", "0"], "valid for a while"),
        (["create", "--rate", "read"], "must be NAME=NUMBER"),
        (["create", "--rate", "speed=1"], "must be NAME=NUMBER"),
        (["create", "--rate", "read=fast"], "'fast' is no number for read"),
        (["create", "--rate", "bytes_in=1X"], "'1X' is no number for bytes_in"),
        (["create", "--rate", "read=0"], "read must be more than nothing"),
        (["create", "--rate", "read=nan"], "read must be more than nothing"),
        (["revoke"], "either ids"),
        (["revoke", "--all", "0" * 16], "either ids"),
        (["revoke", "0" * 16, "http://a/", "http://b/"], "one URL at most"),
        (
            ["revoke", "zzz"],
            "'zzz' is no token id: ids look like 5f0c1b7a9d2e4f60, and `wsfuse token list` shows",
        ),
        (["revoke", "0" * 16, "0" * 15, "http://a/"], f"'{'0' * 15}' is no token id"),
        (["revoke", "http://a/"], "either ids"),
        (["revoke", "wsfuse1_abc.def"], "pass the token's id"),
    ],
)
def test_wrong_usage(arguments: list[str], complaint: str, capsys: Capture) -> None:
    assert wsfuse(*arguments) == Code.USAGE
    err = capsys.readouterr().err
    assert complaint in " ".join(err.split())
    assert "abc.def" not in err


def test_what_the_server_says_no_to(server: live.Live, capsys: Capture) -> None:
    assert wsfuse("create", server.url, "--expires", "60 days") == Code.FAILED
    assert "30 days at most" in capsys.readouterr().err


def test_in_a_notebook(server: live.Live, monkeypatch: pytest.MonkeyPatch) -> None:
    report = magic.wsfuse(f"token create {server.url} --path data --label 'for ben'")
    assert report.data["paths"] == ["data"]
    assert "clear this output when you have copied it" in str(report)
    listed = magic.wsfuse(f"token list {server.url} --json")
    assert listed[0]["id"] == report.data["id"]
    magic.wsfuse(f"token revoke {report.data['id']} {server.url}")
    with pytest.raises(magic.CommandError, match="`%wsfuse token list` shows"):
        magic.wsfuse(f"token revoke {'0' * 16} {server.url}")


def test_limits_pass_through_click_twice() -> None:
    assert tokens.Rates().convert({"read": 1.0}, None, None) == {"read": 1.0}
    with pytest.raises(click.BadParameter):
        tokens.Rates().convert("", None, None)


def test_errors_of_a_call(server: live.Live) -> None:
    with pytest.raises(TransportError, match="connection refused"):
        call(Server("http://127.0.0.1:1/", "x"), "GET", "tokens")
    with pytest.raises(RefusedError, match="the server refused the token"):
        call(Server(server.url, "wrong"), "GET", "tokens")
    with pytest.raises(RefusedError, match=r"/: this is no token of this server"):
        call(Server(server.url, "wsfuse1_wrong"), "GET", "tokens")
    with pytest.raises(TransportError, match="has no jupyter-wsfuse extension"):
        call(Server(server.url, server.token), "GET", "nothing")
    with pytest.raises(WsFuseError, match="rights must be") as caught:
        call(Server(server.url, server.token), "POST", "tokens", {"rights": []})
    assert type(caught.value) is WsFuseError
