"""The doctor: each thing that can be wrong is named, with what to do about it."""

from __future__ import annotations

import http.server
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jupyter_wsfuse import __version__
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.mount import machine, provider, registry
from jupyter_wsfuse.ui import doctor
from jupyter_wsfuse.ui.cli import main


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("WSFUSE", "KERNEL_WSFUSE", "JUPYTERHUB", "JPY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every ticket request with :attr:`answer`."""

    answer: ClassVar[tuple[int, Any]] = (200, {})
    seen: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"]))
        code, body = self.answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, Callable[[int, Any], None]]]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    Server.seen = []

    def say(code: int, body: Any) -> None:
        Server.answer = (code, body)

    yield f"http://127.0.0.1:{httpd.server_port}/", say
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def checks(url: str | None = None, token: str | None = "t") -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in doctor.examine(url, token).data["checks"]}


def ticket(**changes: Any) -> dict[str, Any]:
    return {"version": __version__, "protocol": 1, "engine": None, "host_id": "elsewhere", **changes}


def test_a_good_server(server: Any) -> None:
    url, say = server
    say(200, ticket())
    found = checks(url)
    assert Server.seen == [("/wsfuse/api/ticket", "token t")]
    assert {found[name]["result"] for name in ("server", "token", "extension", "data path")} == {"ok"}
    assert "relay" in found["data path"]["found"]


def test_the_direct_path(server: Any) -> None:
    url, say = server
    port = int(url.split(":")[2].strip("/"))
    say(200, ticket(host_id=host_id(), engine={"host": "127.0.0.1", "port": port}))
    assert "directly" in checks(url)["data path"]["found"]
    say(200, ticket(host_id=host_id(), engine={"host": "127.0.0.1", "port": 1}))
    assert checks(url)["data path"]["result"] == "warn"


@pytest.mark.parametrize(
    ("code", "name", "word"),
    [
        (403, "token", "valid"),
        (404, "extension", "pip install"),
        (503, "engine", "log"),
        (302, "extension", "URL"),
    ],
)
def test_a_server_that_says_no(server: Any, code: int, name: str, word: str) -> None:
    url, say = server
    say(code, {})
    check = checks(url)[name]
    assert check["result"] == "fail"
    assert word in check["remedy"]
    assert len(Server.seen) == 1, "a redirect must not be followed with the token"


def test_versions_that_differ(server: Any) -> None:
    url, say = server
    say(200, ticket(version="99.0"))
    assert checks(url)["same version"]["result"] == "warn"
    say(200, ticket(protocol=2))
    assert "--upgrade" in checks(url)["protocol"]["remedy"]


@pytest.mark.parametrize("body", [b"<html>", b"[1]"])
def test_something_that_is_no_jupyter_server(server: Any, body: bytes) -> None:
    url, say = server
    say(200, body)
    assert checks(url)["server answers"]["result"] == "fail"


def test_nobody_there() -> None:
    check = checks("http://127.0.0.1:1/")["server answers"]
    assert (check["result"], "start the server" in check["remedy"]) == ("fail", True)
    assert "host name" in checks("http://no-such-host.invalid/")["server answers"]["remedy"]


def test_no_server_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "No Jupyter server found" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_no_token(server: Any) -> None:
    url, say = server
    say(200, ticket())
    assert checks(url, None)["token"]["result"] == "warn"


# --- this machine ----------------------------------------------------------------------------------------------


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert "modprobe fuse" in provider.why_not()
    monkeypatch.setattr(provider.sys, "platform", "darwin")
    assert "darwin" in provider.why_not()
    assert checks()["mounting"]["result"] == "fail"


def test_no_access_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert "chmod 666 /dev/fuse" in checks()["mounting"]["remedy"]


def ordinary(monkeypatch: pytest.MonkeyPatch, helper: str | None, status: dict[str, str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: helper)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    monkeypatch.setattr(machine, "_process_status", lambda: status)


def test_an_ordinary_user_s_helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ordinary(monkeypatch, None, {})
    assert "apt-get install fuse3" in checks()["mounting"]["remedy"]
    helper = tmp_path / "fusermount3"
    helper.touch()
    ordinary(monkeypatch, str(helper), {})
    assert "chmod u+s" in checks()["fusermount3"]["remedy"]
    helper.chmod(0o755 | stat.S_ISUID)
    assert checks()["fusermount3"]["result"] == "ok"
    ordinary(monkeypatch, str(helper), {"NoNewPrivs": "1"})
    assert "allowPrivilegeEscalation" in checks()["fusermount3"]["remedy"]


def test_a_root_that_may_not_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "_process_status", lambda: {"CapEff": "0"})
    assert "--cap-add SYS_ADMIN" in checks()["privileges"]["remedy"]
    monkeypatch.setattr(machine, "_process_status", lambda: {"CapEff": "1ffffffffff"})
    assert checks()["privileges"]["result"] == "ok"


def test_a_bad_runtime_directory(user: Path) -> None:
    (user / "run").touch()
    assert checks()["runtime directory"]["result"] == "fail"


def test_mounts_that_nobody_serves() -> None:
    claim = registry.Claim("/mnt/a")
    claim.write({})
    assert checks()["mount /mnt/a"]["remedy"] == "wsfuse umount /mnt/a"
    claim.release()
