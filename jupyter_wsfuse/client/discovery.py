"""Finding the Jupyter server and its token, from wherever the user's code runs.

The ways, in this order; the first that gives a URL wins:

1. what the caller passes;
2. ``KERNEL_WSFUSE_URL`` and ``KERNEL_WSFUSE_TOKEN``, which Enterprise Gateway forwards to remote kernels;
3. ``WSFUSE_URL`` and ``WSFUSE_TOKEN``;
4. the single-user server that JupyterHub started us under;
5. the local server that started this kernel (``JPY_PARENT_PID`` and its file in the runtime directory);
6. the one running server of this user, if there is exactly one.

Tokens are taken out of URLs at once: a URL is printed and logged, a token never.
"""

from __future__ import annotations

import ipaddress
import json
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from jupyter_wsfuse.errors import DiscoveryError

__all__ = ["Server", "discover", "is_loopback", "parse_url", "running_servers"]

# Path components at which the user interface begins: what stands before the first one is the server's base URL.
_PAGES: Final = frozenset(
    "lab tree notebooks edit doc files view terminals consoles nbclassic voila retro"  # noqa: SIM905 - it reads better
    " api wsfuse login logout static".split()
)

_VSCODE: Final = (
    "VS Code does not tell its kernels which server they belong to: set WSFUSE_URL and WSFUSE_TOKEN, "
    "for example with os.environ[...] in a first cell, or pass the URL: %wsfuse mount https://host/user/name/"
)


@dataclass(frozen=True, slots=True)
class Server:
    """A Jupyter server and what is needed to talk to it.

    ``url`` ends with ``/`` and holds no credentials. ``source`` says in words how it was found. ``ca_file``
    is a file of certificate authorities to trust instead of the system's, ``""`` for the system's. ``proxy``
    is the URL of an HTTP proxy to go through, ``""`` for none. Both default to what this process's environment
    says.
    """

    url: str
    token: str = field(repr=False)
    source: str = "explicit"
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)  # may carry a password

    def __post_init__(self) -> None:
        if not self.url.endswith("/"):
            raise ValueError("a server's URL ends with a slash")
        if self.ca_file is None:
            object.__setattr__(self, "ca_file", os.environ.get("SSL_CERT_FILE", ""))
        if self.proxy is None:
            object.__setattr__(self, "proxy", _proxy(self.url, os.environ))


def is_loopback(host: str) -> bool:
    """Whether *host*, as it stands in a URL, is this machine's loopback interface."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_url(text: str) -> tuple[str, str]:
    """The server's base URL, ending with ``/``, and the token (or ``""``) of what a user pasted.

    Understands the address bar of Lab and Notebook (``http://host/user/ann/lab/tree/x?token=...``), ``ws://``
    URLs and a missing scheme. Raises :class:`DiscoveryError` for what cannot be a Jupyter server.
    """
    text = text.strip()
    if "://" not in text:
        text = f"{'http' if is_loopback(urlsplit(f'//{text}').hostname or '') else 'https'}://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise DiscoveryError(f"not a URL: {_shown(text)} ({exc})") from None
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not host:
        raise DiscoveryError(
            f"not the URL of a Jupyter server: {_shown(text)}; it looks like https://hub.example.org/user/name/"
        )
    if parts.username is not None or parts.password is not None:
        raise DiscoveryError("a URL must not hold a user name or password: pass the token in WSFUSE_TOKEN")
    token = parse_qs(parts.query).get("token", [""])[0]
    components = [part for part in parts.path.split("/") if part]
    if "hub" in components and components[components.index("hub") + 1 :][:1] == ["user"]:
        components.remove("hub")  # /hub/user/ann/ is where the Hub sends people while ann's server starts
    if "hub" in components and "user" not in components:
        raise DiscoveryError(
            f"{_shown(text)} is a page of JupyterHub itself; use the URL of your server, "
            "which looks like https://hub.example.org/user/name/"
        )
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    path = "".join(f"/{part}" for part in _base(components)) + "/"
    return urlunsplit((scheme, netloc, quote(path, safe="/%:@!$&'()*+,;=~"), "", "")), token


def _base(components: list[str]) -> list[str]:
    """The components of the base URL. A user of a Hub may be called "lab"."""
    start = 0
    for index, part in enumerate(components):
        if part == "user" and index + 1 < len(components):
            start = index + 2
            break
        if part in _PAGES:
            break
    for index in range(start, len(components)):
        if components[index] in _PAGES:
            return components[:index]
    return components


def _shown(text: str) -> str:
    """*text* without what may be a secret, for a message."""
    return text.split("?", 1)[0].split("#", 1)[0].rsplit("@", 1)[-1][:200]


def discover(
    url: str | None = None,
    token: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    runtime_dir: str | os.PathLike[str] | None = None,
) -> Server:
    """The server to use, found in the ways the module's docstring lists.

    *environ* and *runtime_dir* default to the process's own. Only a few small local files are read; nothing
    is asked over the network. Raises :class:`DiscoveryError`, whose message says what was tried and what to do.
    """
    env = os.environ if environ is None else environ
    runtime = Path(runtime_dir) if runtime_dir is not None else _runtime_dir(env)
    if url:
        return _explicit(url, token, env, runtime)
    tried: list[str] = []
    for prefix in ("KERNEL_WSFUSE", "WSFUSE"):
        if env.get(f"{prefix}_URL"):
            return _explicit(
                env[f"{prefix}_URL"], token or env.get(f"{prefix}_TOKEN"), env, runtime, f"{prefix}_URL"
            )
        tried.append(f"{prefix}_URL is not set")

    if env.get("JUPYTERHUB_SERVICE_URL"):
        hub_token = token or env.get("JUPYTERHUB_API_TOKEN")
        if hub_token:
            return _server(_hub_url(env["JUPYTERHUB_SERVICE_URL"]), hub_token, "JupyterHub", env)
        tried.append("JUPYTERHUB_SERVICE_URL is set, but JUPYTERHUB_API_TOKEN is not")
    else:
        tried.append("not started by JupyterHub (no JUPYTERHUB_SERVICE_URL)")

    pid = env.get("JPY_PARENT_PID", "")
    if pid.isdecimal():
        info = _read_info(runtime / f"jpserver-{pid}.json")
        if info is not None:
            return _local(info, token, f"the server that started this kernel (process {pid})", env)
        tried.append(f"JPY_PARENT_PID is {pid}, but {runtime}/jpserver-{pid}.json is not there")
    else:
        tried.append("not started by a local server (no JPY_PARENT_PID)")

    servers = running_servers(runtime)
    if len(servers) == 1:
        return _local(servers[0], token, "the only running server of this user", env)
    if servers:
        urls = ", ".join(_shown(str(info["url"])) for info in servers)
        tried.append(f"{len(servers)} servers run here, which one is meant? {urls}")
    else:
        tried.append(f"no running server has a file in {runtime}")
    advice = "Pass the server's URL, and its token in WSFUSE_TOKEN or by --token-file."
    if any(name.startswith("VSCODE_") for name in env):
        advice = f"{_VSCODE}."
    raise DiscoveryError("No Jupyter server found:\n" + "".join(f"  - {line}\n" for line in tried) + advice)


def running_servers(runtime_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The info files, as dictionaries, of this user's servers whose process lives, by URL.

    Unlike ``jupyter_server.serverapp.list_running_servers`` it needs no server installed and deletes nothing.
    """
    found = []
    for path in sorted(Path(runtime_dir).glob("jpserver-*.json")):
        info = _read_info(path)
        if info is not None and _alive(info.get("pid")):
            found.append(info)
    return sorted(found, key=lambda info: str(info["url"]))


def _explicit(
    text: str, token: str | None, env: Mapping[str, str], runtime: Path, source: str = "explicit"
) -> Server:
    url, in_url = parse_url(text)
    return _server(url, token or in_url or _token_for(url, env, runtime), source, env)


def _token_for(url: str, env: Mapping[str, str], runtime: Path) -> str:
    """A token that we already hold for exactly this server. One is never tried on another server."""
    if env.get("WSFUSE_TOKEN") and (not env.get("WSFUSE_URL") or parse_url(env["WSFUSE_URL"])[0] == url):
        return env["WSFUSE_TOKEN"]
    for name in ("JUPYTERHUB_SERVICE_URL", "JUPYTERHUB_PUBLIC_URL"):
        if env.get(name) and env.get("JUPYTERHUB_API_TOKEN") and _hub_url(env[name]) == url:
            return env["JUPYTERHUB_API_TOKEN"]
    for info in running_servers(runtime):
        if _same(str(info["url"]), url):
            return str(info.get("token") or "")
    return ""


def _same(one: str, other: str) -> bool:
    def key(text: str) -> tuple[str, str, int | None, str]:
        parts = urlsplit(text)
        host = parts.hostname or ""
        return parts.scheme, "loopback" if is_loopback(host) else host, parts.port, parts.path.rstrip("/")

    return key(one) == key(other)


def _hub_url(text: str) -> str:
    """``JUPYTERHUB_SERVICE_URL`` is what the server binds to: a host of nothing or "any" is this machine."""
    parts = urlsplit(text)
    host = parts.hostname or ""
    if host in ("", "0.0.0.0"):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    netloc = f"[{host}]" if ":" in host else host
    if parts.port is not None:
        netloc += f":{parts.port}"
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/") + "/", "", ""))


def _local(info: dict[str, Any], token: str | None, source: str, env: Mapping[str, str]) -> Server:
    url = str(info["url"])
    if info.get("sock") or not url.startswith(("http://", "https://")):
        raise DiscoveryError(
            "the local server listens on a Unix socket, which a mount cannot use: start it with --ServerApp.port"
        )
    token = token or env.get("WSFUSE_TOKEN") or str(info.get("token") or "")
    if not token and info.get("password"):
        raise DiscoveryError(
            f"{_shown(url)} has a password and no token: start it with --IdentityProvider.token=... as well, "
            "and pass that in WSFUSE_TOKEN"
        )
    return _server(url.rstrip("/") + "/", token, source, env)


def _server(url: str, token: str, source: str, env: Mapping[str, str]) -> Server:
    return Server(url, token, source, env.get("SSL_CERT_FILE", ""), _proxy(url, env))


def _proxy(url: str, env: Mapping[str, str]) -> str:
    """The HTTP proxy that the environment asks for, by the usual variables. Loopback never goes through one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    lower = {name.lower(): value for name, value in env.items()}  # upper and lower case are both in use
    proxies = {"no": lower.get("no_proxy", "")}
    if is_loopback(host) or urllib.request.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
        return ""
    proxy = lower.get(f"{parts.scheme}_proxy") or lower.get("all_proxy") or ""
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    return proxy if proxy.startswith("http://") else ""


def _runtime_dir(env: Mapping[str, str]) -> Path:
    if env.get("JUPYTER_RUNTIME_DIR"):
        return Path(env["JUPYTER_RUNTIME_DIR"])
    from jupyter_core.paths import jupyter_runtime_dir  # a slow import that remote kernels never need

    return Path(jupyter_runtime_dir())


def _read_info(path: Path) -> dict[str, Any] | None:
    """A server's info file, or None if it is not there, not ours to read, or half written."""
    try:
        info = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) and info.get("url") else None


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and belongs to somebody else
        return True
    return True
