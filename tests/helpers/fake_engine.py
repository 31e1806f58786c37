"""A process in the engine's place for tests of the supervisor and the relay: run as ``python fake_engine.py MODE``.

It introduces itself, answers ``/status`` and takes commands on standard input as the engine does. On its WebSocket it
sends every message back; messages that are commands of a test (see ``_Echo``) excepted. Modes, joined by ``+``:

``dies``      ends with status 3 before it introduces itself       ``mumbles``  introduces itself with nonsense
``mute``      never introduces itself                             ``hangs``    does not answer /status
``stubborn``  ignores the end of its input and SIGTERM             ``busy``     its sessions make requests all the time
``deaf``      does not answer commands                            ``unwilling`` refuses them
``broken``    has a file of tenants with an error
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import picows
from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)

from jupyter_wsfuse.engine.control import Control
from jupyter_wsfuse.protocol.tickets import TicketVerifier, bearer

SUBPROTOCOL = {"Sec-WebSocket-Protocol": "wsfuse.v1"}


class _Echo(WSListener):
    """``close CODE REASON``: closes so. ``die``: the process ends at once. ``pid``: answered with it. ``ticket T``:
    answered with what the ticket says. ``say T``: logs T. ``drop``: nothing. ``stall``: reads nothing any more.
    ``flood N``: sends N messages of a megabyte. ``event JSON``: tells its parent; ``line TEXT`` as well, as it is."""

    def __init__(self, verifier: TicketVerifier, control: Control) -> None:
        self.verifier = verifier
        self.control = control

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            said = f"{frame.get_close_code()} {frame.get_close_reason()}".strip()
            print(f"INFO closed by the peer: {said}", file=sys.stderr, flush=True)
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            return
        data = frame.get_payload_as_bytes()
        command, _, rest = data[:200].partition(b" ")
        if command == b"close":
            code, _, reason = rest.decode().partition(" ")
            transport.send_close(int(code), reason)  # type: ignore[arg-type]
        elif command == b"die":
            os._exit(9)
        elif command == b"pid":
            transport.send(WSMsgType.BINARY, str(os.getpid()))
        elif command == b"ticket":
            ticket = self.verifier.redeem(data.partition(b" ")[2].decode())
            answer = {
                "rights": sorted(ticket.rights), "tenant": ticket.tenant, "audience": ticket.audience,
                "principal": ticket.principal, "groups": ticket.groups, "address": ticket.address,
                "token": None if ticket.token is None else ticket.token.id,
            }  # fmt: skip
            transport.send(WSMsgType.BINARY, json.dumps(answer))
        elif command == b"event":
            self.control.emit(json.loads(rest))
            transport.send(WSMsgType.BINARY, b"told")
        elif command == b"line":
            os.set_blocking(1, True)
            with open(1, "wb", closefd=False) as line:
                line.write(data.partition(b" ")[2] + b"\n")
            os.set_blocking(1, False)
            transport.send(WSMsgType.BINARY, b"told")
        elif command == b"drop":
            pass
        elif command == b"say":
            print(f"INFO said: {rest.decode()}", file=sys.stderr, flush=True)
        elif command == b"stall":
            transport.underlying_transport.pause_reading()
        elif command == b"flood":
            for _ in range(int(rest)):
                transport.send(WSMsgType.BINARY, bytes(1 << 20))
        else:
            transport.send(WSMsgType.BINARY, data)

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


async def main() -> None:
    modes = set(sys.argv[1].split("+")) if len(sys.argv) > 1 else set()
    loop = asyncio.get_running_loop()
    config = json.loads(open(0, "rb", buffering=0, closefd=False).readline())
    revoked: list[str] = []

    def revoke(token: str) -> Any:
        if "deaf" in modes:
            return asyncio.Event().wait()
        if "unwilling" in modes:
            raise ValueError("not today")
        revoked.append(token)
        return {"sessions": 1}

    def assign(principal: str, groups: list[str], tenant: str) -> str:
        if tenant == "secret":
            raise ValueError(f"{principal} is no member of {tenant}")
        return tenant or f"of-{principal}-{'+'.join(groups)}"

    control = Control(loop, {"revoke": revoke, "assign": assign})
    print(
        "2026-01-01T00:00:00.000 INFO the fake engine has read its configuration", file=sys.stderr, flush=True
    )
    if "dies" in modes:
        print("ERROR nothing works\nTraceback: of it", file=sys.stderr, flush=True)
        sys.exit(3)
    secret = bytes.fromhex(config["secret"])
    requests = 0

    def route(request: WSUpgradeRequest) -> Any:
        nonlocal requests
        if request.path == b"/status":
            if "hangs" in modes:
                return WSUpgradeResponseWithListener(
                    WSUpgradeResponse.create_error_response(500, b"no"), None
                )
            if request.headers.get("Authorization") != f"Bearer {bearer(secret, 'status')}":
                return WSUpgradeResponseWithListener(
                    WSUpgradeResponse.create_error_response(403, b"no"), None
                )
            requests += "busy" in modes
            session = {
                "id": "abc", "client": "test", "transport": "relay", "connected": True, "handles": 0,
                "requests": requests, "since": 0.0, "tenant": "default",
                "principal": "ann",
            }  # fmt: skip
            status = {
                "epoch": 1, "pid": os.getpid(), "uptime": 1.0, "sessions": [session], "config": config,
                "revoked": revoked, "operations": {"Read": {"count": 1}},
                "tenants": {
                    "default": {"sessions": 1, "slow": [{"path": "theirs"}]},
                    "other": {"sessions": 1, "slow": []},
                },
                "tenants_file": {"error": "line 5: what is this?"} if "broken" in modes else None,
            }  # fmt: skip
            body = json.dumps(status).encode()
            return WSUpgradeResponseWithListener(WSUpgradeResponse.create_ok_response(body), None)
        verifier = TicketVerifier(secret, config["audience"])
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response(SUBPROTOCOL), _Echo(verifier, control)
        )

    server = await picows.ws_create_server(route, "127.0.0.1", 0, max_frame_size=8 << 20)
    port = server.sockets[0].getsockname()[1]
    if "mumbles" in modes:
        print("hello?", flush=True)
    elif "mute" not in modes:
        print(json.dumps({"port": port, "pid": os.getpid(), "epoch": 1}), flush=True)
    if "stubborn" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await asyncio.Event().wait()
    stopped = asyncio.Event()
    control.start(stopped.set)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    control.close()


if __name__ == "__main__":
    asyncio.run(main())
