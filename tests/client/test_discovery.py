"""Finding a server: every way, their order, and what is said when there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.client.discovery import Server, discover, is_loopback, parse_url, running_servers
from jupyter_wsfuse.errors import DiscoveryError


def _running(directory: Path, pid: int, **changes: Any) -> dict[str, Any]:
    info = {
        "url": f"http://localhost:{pid % 60000}/base/",
        "base_url": "/base/",
        "token": f"token-{pid}",
        "pid": pid,
        "password": False,
        "sock": "",
        **changes,
    }
    (directory / f"jpserver-{pid}.json").write_text(json.dumps(info))
    return info


# --- what users paste ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url", "token"),
    [
        ("http://localhost:8888/", "http://localhost:8888/", ""),
        ("http://localhost:8888", "http://localhost:8888/", ""),
        ("http://localhost:8888/?token=abc", "http://localhost:8888/", "abc"),
        ("http://localhost:8888/lab?token=abc&reset", "http://localhost:8888/", "abc"),
        ("http://localhost:8888/lab/tree/a/lab/b.ipynb#cell", "http://localhost:8888/", ""),
        ("http://localhost:8888/doc/tree/x", "http://localhost:8888/", ""),
        ("http://localhost:8888/base/notebooks/x.ipynb", "http://localhost:8888/base/", ""),
        ("https://hub.example.org/user/ann/lab/tree/x", "https://hub.example.org/user/ann/", ""),
        ("https://hub.example.org/user/ann", "https://hub.example.org/user/ann/", ""),
        ("https://hub.example.org/user/lab/lab", "https://hub.example.org/user/lab/", ""),
        ("https://hub.example.org/user/ann/gpu/lab", "https://hub.example.org/user/ann/gpu/", ""),
        ("https://hub.example.org/jupyter/user/ann/tree", "https://hub.example.org/jupyter/user/ann/", ""),
        ("https://hub.example.org/hub/user/ann/lab", "https://hub.example.org/user/ann/", ""),
        (
            "https://hub.example.org/user/ann%40example.org/",
            "https://hub.example.org/user/ann%40example.org/",
            "",
        ),
        ("https://hub.example.org/user/ännchen/", "https://hub.example.org/user/%C3%A4nnchen/", ""),
        ("ws://localhost:8888/wsfuse/channel", "http://localhost:8888/", ""),
        ("wss://h/user/ann/", "https://h/user/ann/", ""),
        ("localhost:8888/lab", "http://localhost:8888/", ""),
        ("127.0.0.1:8888", "http://127.0.0.1:8888/", ""),
        ("hub.example.org/user/ann", "https://hub.example.org/user/ann/", ""),
        ("http://[::1]:8888/lab", "http://[::1]:8888/", ""),
        ("  http://h/  ", "http://h/", ""),
    ],
)
def test_what_people_paste_is_understood(given: str, url: str, token: str) -> None:
    assert parse_url(given) == (url, token)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://host/", "not the URL of a Jupyter server"),
        ("http://", "not the URL of a Jupyter server"),
        ("", "not the URL of a Jupyter server"),
        ("http://host:port/", "not a URL"),
        ("http://ann:secret@host/", "must not hold a user name"),
        ("https://h/hub/home", "page of JupyterHub itself"),
        ("https://h/hub/user-redirect/lab", "page of JupyterHub itself"),
    ],
)
def test_what_cannot_be_a_server_is_refused_without_repeating_a_secret(given: str, said: str) -> None:
    with pytest.raises(DiscoveryError, match=said) as caught:
        parse_url(f"{given}?token=confidential")
    assert "confidential" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


def test_a_server_keeps_its_token_to_itself() -> None:
    server = Server("http://h/", "confidential", "test")
    assert "confidential" not in repr(server)
    assert "confidential" not in str(server)
    with pytest.raises(ValueError, match="slash"):
        Server("http://h", "t")


# --- the ways, in order -------------------------------------------------------------------------------

HUB = {"JUPYTERHUB_SERVICE_URL": "http://:8888/user/ann/", "JUPYTERHUB_API_TOKEN": "hub"}
VARIABLES = {"WSFUSE_URL": "http://two/", "WSFUSE_TOKEN": "two"}
KERNEL = {"KERNEL_WSFUSE_URL": "http://three/lab", "KERNEL_WSFUSE_TOKEN": "three"}


def test_the_order_of_the_ways(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid())
    _running(tmp_path, os.getppid())
    environ = {**HUB, **VARIABLES, **KERNEL, "JPY_PARENT_PID": str(os.getpid())}

    def found() -> tuple[str, str]:
        server = discover(environ=environ, runtime_dir=tmp_path)
        return server.url, server.token

    server = discover("http://one/lab?token=one", environ=environ, runtime_dir=tmp_path)
    assert (server.url, server.token, server.source) == ("http://one/", "one", "explicit")
    assert found() == ("http://three/", "three")
    del environ["KERNEL_WSFUSE_URL"]
    assert found() == ("http://two/", "two")
    del environ["WSFUSE_URL"], environ["WSFUSE_TOKEN"]
    assert found() == ("http://127.0.0.1:8888/user/ann/", "hub")
    del environ["JUPYTERHUB_SERVICE_URL"]
    assert found() == (f"http://localhost:{os.getpid() % 60000}/base/", f"token-{os.getpid()}")
    del environ["JPY_PARENT_PID"]
    (tmp_path / f"jpserver-{os.getppid()}.json").unlink()
    assert found() == (f"http://localhost:{os.getpid() % 60000}/base/", f"token-{os.getpid()}")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("JUPYTERHUB_", "JPY_", "WSFUSE_", "KERNEL_WSFUSE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    info = _running(tmp_path, os.getpid())
    assert discover().token == info["token"]


def test_without_a_runtime_directory_jupyters_own_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JUPYTER_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("jupyter_core.paths.jupyter_runtime_dir", lambda: str(tmp_path))
    info = _running(tmp_path, os.getpid())
    assert discover(environ={}).token == info["token"]


def test_an_explicit_token_goes_before_every_other(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid())
    for environ in (VARIABLES, HUB, {"JPY_PARENT_PID": str(os.getpid())}, {}):
        assert discover(token="mine", environ=environ, runtime_dir=tmp_path).token == "mine"
    assert discover("http://h/?token=theirs", "mine", environ={}, runtime_dir=tmp_path).token == "mine"


@pytest.mark.parametrize(
    ("bound", "url"),
    [
        ("http://:8888/user/ann/", "http://127.0.0.1:8888/user/ann/"),
        ("http://0.0.0.0:8888/user/ann/", "http://127.0.0.1:8888/user/ann/"),
        ("http://[::]:8888/user/ann", "http://[::1]:8888/user/ann/"),
        ("https://10.1.2.3:8888/user/ann/", "https://10.1.2.3:8888/user/ann/"),
        ("http://10.1.2.3/user/ann/", "http://10.1.2.3/user/ann/"),
    ],
)
def test_what_a_hub_server_is_bound_to_is_reached(bound: str, url: str, tmp_path: Path) -> None:
    environ = {"JUPYTERHUB_SERVICE_URL": bound, "JUPYTERHUB_API_TOKEN": "hub"}
    assert discover(environ=environ, runtime_dir=tmp_path).url == url


def test_a_token_that_we_hold_is_used_for_its_own_server_only(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid(), url="http://127.0.0.1:8888/")
    environ = {**HUB, "JUPYTERHUB_PUBLIC_URL": "https://hub.example.org/user/ann/"}

    def token(url: str, environ: dict[str, str] = environ) -> str:
        return discover(url, environ=environ, runtime_dir=tmp_path).token

    assert token("http://localhost:8888/lab") == "token-" + str(os.getpid())
    assert token("http://127.0.0.1:8888/user/ann/lab") == "hub"
    assert token("https://hub.example.org/user/ann/lab") == "hub"
    assert token("https://evil.example.org/user/ann/") == ""
    assert token("https://other/", {"WSFUSE_TOKEN": "t"}) == "t"
    assert token("http://two/", VARIABLES) == "two"
    assert token("http://elsewhere/", VARIABLES) == ""


def test_running_servers_are_those_whose_process_lives(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid())
    _running(tmp_path, 2**22 + 1)  # beyond the kernel's largest pid
    _running(tmp_path, 1)
    (tmp_path / "jpserver-3.json").write_text("{half")
    (tmp_path / "jpserver-4.json").write_text("[]")
    (tmp_path / "jpserver-5.json").write_text('{"url": "http://x/", "pid": "five"}')
    assert sorted(info["pid"] for info in running_servers(tmp_path)) == [1, os.getpid()]
    assert len(list(tmp_path.iterdir())) == 6  # nothing was removed
    assert running_servers(tmp_path / "nowhere") == []


# --- what is said when there is none ------------------------------------------------------------------


def _complaint(environ: dict[str, str], runtime_dir: Path) -> str:
    with pytest.raises(DiscoveryError) as caught:
        discover(environ=environ, runtime_dir=runtime_dir)
    return str(caught.value)


def test_nothing_found_says_what_was_tried(tmp_path: Path) -> None:
    said = _complaint({}, tmp_path)
    for expected in (
        "KERNEL_WSFUSE_URL is not set",
        "WSFUSE_URL is not set",
        "not started by JupyterHub",
        "no JPY_PARENT_PID",
        f"no running server has a file in {tmp_path}",
        "Pass the server's URL",
    ):
        assert expected in said
    said = _complaint({"JUPYTERHUB_SERVICE_URL": "http://x/", "JPY_PARENT_PID": "77"}, tmp_path)
    assert "JUPYTERHUB_API_TOKEN is not" in said
    assert "jpserver-77.json is not there" in said


def test_vs_code_gets_advice_of_its_own(tmp_path: Path) -> None:
    assert "VS Code does not tell" in _complaint({"VSCODE_PID": "1"}, tmp_path)


def test_several_servers_are_listed_without_tokens(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid(), url="http://localhost:1/")
    _running(tmp_path, 1, url="http://localhost:2/?token=confidential")
    said = _complaint({}, tmp_path)
    assert "2 servers run here, which one is meant? http://localhost:1/, http://localhost:2/" in said
    assert "confidential" not in said


def test_a_server_on_a_unix_socket(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid(), url="http+unix://%2Ftmp%2Fs", sock="/tmp/s")
    assert "Unix socket" in _complaint({}, tmp_path)


def test_a_server_with_a_password_and_no_token(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid(), token="", password=True)
    assert "has a password and no token" in _complaint({}, tmp_path)
    assert discover(environ={"WSFUSE_TOKEN": "t"}, runtime_dir=tmp_path).token == "t"


def test_a_server_without_any_token(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid(), token="")
    assert discover(environ={}, runtime_dir=tmp_path).token == ""


# --- certificates and proxies -------------------------------------------------------------------------


def test_certificates_of_the_environment(tmp_path: Path) -> None:
    environ = {**VARIABLES, "SSL_CERT_FILE": "/etc/my-ca.pem"}
    assert discover(environ=environ, runtime_dir=tmp_path).ca_file == "/etc/my-ca.pem"
    assert discover(environ=VARIABLES, runtime_dir=tmp_path).ca_file == ""


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("http://h/", {"http_proxy": "http://p:3128"}, "http://p:3128"),
        ("http://h/", {"HTTP_PROXY": "p:3128"}, "http://p:3128"),
        ("https://h/", {"https_proxy": "http://p:3128", "http_proxy": "http://q"}, "http://p:3128"),
        ("https://h/", {"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://h/", {"ALL_PROXY": "socks5://p:3128"}, ""),
        ("https://h.example.org/", {"https_proxy": "http://p", "no_proxy": ".example.org"}, ""),
        ("http://localhost:8888/", {"http_proxy": "http://p:3128"}, ""),
        ("http://127.0.0.1:8888/", {"http_proxy": "http://p:3128"}, ""),
        ("http://h/", {}, ""),
    ],
)
def test_proxies_of_the_environment(url: str, environ: dict[str, str], proxy: str, tmp_path: Path) -> None:
    assert discover(url, environ=environ, runtime_dir=tmp_path).proxy == proxy


def test_a_server_made_by_hand_looks_at_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/ca.pem")
    monkeypatch.setenv("https_proxy", "http://p:1")
    monkeypatch.delenv("no_proxy", raising=False)
    server = Server("https://h/", "t")
    assert (server.ca_file, server.proxy) == ("/ca.pem", "http://p:1")
