"""Asking a server for its audit log. Synchronous: what is read is as much as the caller takes."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode, urljoin

from ..errors import TransportError, WsFuseError
from .discovery import Server
from .tickets_http import authorization, describe, refusal, tls_context

#: Seconds without a byte. Verifying reads the whole log before it answers.
TIMEOUT: Final = 60.0
VERIFY_TIMEOUT: Final = 600.0
_LONGEST: Final = 1 << 20


class _Stay(urllib.request.HTTPRedirectHandler):
    """The token is for this server alone."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _open(
    server: Server, path: str, arguments: Mapping[str, str | Sequence[str]], timeout: float
) -> http.client.HTTPResponse:
    url = urljoin(server.url, f"wsfuse/api/{path}?{urlencode(arguments, doseq=True)}")
    scheme = url.partition(":")[0]
    handlers: list[Any] = [
        _Stay(),
        urllib.request.ProxyHandler({scheme: server.proxy} if server.proxy else {}),
    ]
    if scheme == "https":
        handlers.append(urllib.request.HTTPSHandler(context=tls_context(server.ca_file or "")))
    request = urllib.request.Request(url, headers={"Accept": "*/*", **authorization(server)})
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(
            request, timeout=timeout
        )
        return response
    except urllib.error.HTTPError as exc:
        with exc:
            try:
                message = str(json.loads(exc.read(_LONGEST)).get("message") or "")[:300]
            except (ValueError, AttributeError, OSError):
                message = ""
        raise refusal(
            server,
            exc.code,
            location=exc.headers.get("Location", ""),
            retry_after=exc.headers.get("Retry-After", ""),
            message=message,
            ours=exc.headers.get("X-Wsfuse", "") == "1",
        ) from None
    except urllib.error.URLError as exc:
        cause = exc.reason if isinstance(exc.reason, BaseException) else exc
        raise TransportError(describe(server, cause)) from None
    except (OSError, http.client.HTTPException) as exc:
        raise TransportError(describe(server, exc)) from None


def entries(server: Server, arguments: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Entries of the server's log, the newest first. *arguments*: of :meth:`.auditlog.Filter.parse`.

    Raises as :meth:`.TicketClient.ticket` does, :class:`TransportError` also for an answer that is cut off, and
    :class:`WsFuseError` if the server cannot read its log.
    """
    with _open(server, "audit", arguments, TIMEOUT) as response:
        while True:
            try:
                line = response.readline(_LONGEST)
                entry = json.loads(line) if line else None
            except (OSError, http.client.HTTPException, ValueError) as exc:
                raise TransportError(f"{server.url}: the answer cannot be read ({exc})") from None
            if not isinstance(entry, dict):
                raise TransportError(
                    f"{server.url}: the answer was cut off; what came before is not everything"
                )
            if "end" in entry:
                return
            if "error" in entry:
                raise WsFuseError(f"{server.url}: {entry['error']}")
            yield entry


def proofs(server: Server, tenant: str, expected: Sequence[str]) -> list[dict[str, Any]]:
    """What the server finds when it verifies its log, as :meth:`.auditlog.Proof.as_dict` has it."""
    with _open(server, "audit/verify", {"tenant": tenant, "expect": expected}, VERIFY_TIMEOUT) as response:
        try:
            found: list[dict[str, Any]] = json.loads(response.read())["proofs"]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as exc:
            raise TransportError(f"{server.url}: the answer cannot be read ({exc})") from None
        return found
