"""``wsfuse doctor``: looks at everything a mount needs, and says how to put right what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from jupyter_wsfuse import __version__
from jupyter_wsfuse.client.discovery import Server, discover
from jupyter_wsfuse.errors import DiscoveryError, MountError
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.mount import launcher, machine, registry
from jupyter_wsfuse.mount.machine import Check
from jupyter_wsfuse.protocol.messages import PROTOCOL_VERSION
from jupyter_wsfuse.ui.render import Report

_TIMEOUT = 10.0


def examine(url: str | None, token: str | None) -> Report:
    """Look at this machine, and at the server of *url* (None: the one that a mount would find)."""
    checks = [*_machine(), *_server(url, token)]
    failed = any(check.result == "fail" for check in checks)
    report = Report(
        {
            "ok": not failed,
            "checks": [
                {"name": check.name, "result": check.result, "found": check.found, "remedy": check.remedy}
                for check in checks
            ],
        },
        ok=not failed,
    )
    signs = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
    for check in checks:
        report.line(
            f"{signs[check.result]}  {check.name}: {check.found}",
            "" if check.result == "ok" else check.result,
        )
        if check.remedy:
            report.line(f"      -> {check.remedy}")
    return report.line(
        "Something needs to be done first, see above." if failed else "Ready to mount.", "title"
    )


# --- this machine ----------------------------------------------------------------------------------------------


def _machine() -> Iterator[Check]:
    libraries = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("picows", "msgspec", "uvloop")
    )
    yield Check(
        "versions",
        "ok",
        f"jupyter-wsfuse {__version__}, protocol {PROTOCOL_VERSION}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}, {libraries}",
    )
    yield from machine.mounting()
    try:
        yield Check("runtime directory", "ok", str(registry.runtime_dir()))
    except MountError as exc:
        yield Check("runtime directory", "fail", "not usable", str(exc))
    for entry in launcher.mounts():
        state = launcher.status(entry)["state"]
        if state in ("dead", "not answering", "unsupervised"):
            yield Check(f"mount {entry.mountpoint}", "warn", str(state), f"wsfuse umount {entry.mountpoint}")
        else:
            yield Check(f"mount {entry.mountpoint}", "ok", str(state))


# --- the server ------------------------------------------------------------------------------------------------


def _server(url: str | None, token: str | None) -> Iterator[Check]:
    try:
        server = discover(url, token)
    except DiscoveryError as exc:
        yield Check("server", "fail", "none found", str(exc))
        return
    yield Check("server", "ok", f"{server.url} ({server.source})")
    if server.token:
        yield Check("token", "ok", "there is one")
    else:
        yield Check("token", "warn", "there is none", "pass it in WSFUSE_TOKEN or by --token-file")
    try:
        ticket = _post(server, "wsfuse/api/ticket")
    except urllib.error.HTTPError as exc:
        exc.close()
        yield Check("server answers", "ok", f"HTTP {exc.code}")
        yield _refusal(exc.code)
        return
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        yield Check("server answers", "fail", str(reason), _reach_remedy(server, reason))
        return
    yield Check("extension", "ok", f"jupyter-wsfuse {ticket.get('version')} on the server")
    if ticket.get("protocol") != PROTOCOL_VERSION:
        yield Check(
            "protocol",
            "fail",
            f"the server speaks version {ticket.get('protocol')}, this side {PROTOCOL_VERSION}",
            "pip install --upgrade jupyter-wsfuse on the older side",
        )
    elif ticket.get("version") != __version__:
        yield Check(
            "same version", "warn", f"{__version__} here", "the same version on both sides is tested best"
        )
    yield _path(ticket)


def _refusal(code: int) -> Check:
    if code in (401, 403):
        return Check(
            "token", "fail", f"refused (HTTP {code})", "is it a token of this server, and still valid?"
        )
    if code in (404, 405):
        return Check(
            "extension",
            "fail",
            "the server does not have it",
            "pip install jupyter-wsfuse in the server's environment, and restart the server",
        )
    if code in (502, 503, 504):
        return Check("engine", "fail", f"not available (HTTP {code})", "look at the Jupyter server's log")
    return Check("extension", "fail", f"unexpected answer HTTP {code}", "check the URL")


def _reach_remedy(server: Server, reason: Any) -> str:
    if isinstance(reason, ssl.SSLError):
        return "set SSL_CERT_FILE to the authority that signed the server's certificate"
    if isinstance(reason, ConnectionRefusedError):
        return "start the server (`wsfuse serve DIR`), or check the port in the URL"
    if isinstance(reason, socket.gaierror):
        return "check the host name in the URL"
    return f"check that {server.url} opens in a browser on this machine"


def _path(ticket: dict[str, Any]) -> Check:
    engine = ticket.get("engine")
    if not engine or ticket.get("host_id") != host_id():
        return Check("data path", "ok", "through the Jupyter server (relay)")
    try:
        socket.create_connection((engine["host"], engine["port"]), _TIMEOUT).close()
    except OSError as exc:
        return Check(
            "data path", "warn", f"the engine's port cannot be reached ({exc}); relay it is", "a firewall?"
        )
    return Check("data path", "ok", "directly to the engine, on this host")


def _post(server: Server, path: str) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=server.ca_file or None)
    proxies = {"http": server.proxy, "https": server.proxy} if server.proxy else {}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context), _NoRedirect
    )
    headers = {"User-Agent": f"wsfuse/{__version__}", "Content-Type": "application/json"}
    if server.token:
        headers["Authorization"] = f"token {server.token}"
    request = urllib.request.Request(server.url + path, data=b"{}", headers=headers, method="POST")
    with opener.open(request, timeout=_TIMEOUT) as answer:
        found = json.loads(answer.read(1 << 20))
    if not isinstance(found, dict):
        raise ValueError("not the answer of a Jupyter server")
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is to a login page, and would take the token elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None
