"""The engine's process: ``python -m jupyter_wsfuse.engine.main``.

Reads its configuration (:class:`.config.Config`) as one line of JSON on standard input, says ``{"port",
"pid", "epoch"}`` as one line of JSON on standard output, and goes on to take commands and tell events on the same two
(:mod:`.control`). It logs to standard error, and lives until standard input ends, because then whoever started it is
gone, or until SIGTERM. Either way it finishes what it is doing first.

Exit codes: 0 after a stop, 2 for a configuration that is not usable, 75 if it has to be started anew to reach a
folder that came later, 1 for anything else.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import sys
from typing import Any, Final

import uvloop

from ..errors import WsFuseError
from .auditstore import AuditStore
from .config import Config, read_config
from .control import Control, Handler
from .hardening import Confinement, confine, harden
from .replay import StateDir
from .server import EngineServer
from .sessions import Sessions
from .tenants import ConfigurationError, Tenants
from .tenantsfile import TenantsFile

_LOG = logging.getLogger(__name__)
#: Bytes of the longest line of configuration.
MAX_CONFIG: Final = 1 << 20
RENEW: Final = os.EX_TEMPFAIL
#: Seconds of life before which it is not worth a try to start anew.
YOUNG: Final = 5.0
#: Seconds after which a thread that wants to run Python takes the interpreter from one that does. Workers
#: need it only for microseconds between system calls.
SWITCH_INTERVAL: Final = 0.0005


def log_to_stderr(level: str) -> None:
    """One line a record, time first."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("picows").setLevel("CRITICAL")  # .server says what there is to say, once


def bind(config: Config, tenants: Tenants) -> Confinement:
    """Confine the process to the folders that *config* names."""
    own = [folder for folder in (config.state_dir, config.audit_dir) if folder]
    # The folder, because editors put a new file in the place of the old one; and where a link there leads to.
    readable = {
        os.path.dirname(path) for path in (config.tenants_file, os.path.realpath(config.tenants_file))
    }
    return confine(
        tenants.folders(),
        readable=[os.fsencode(path) for path in readable if config.tenants_file],
        own=[os.fsencode(path) for path in own],
        enabled=config.landlock,
    )


async def serve(
    config: Config,
    tenants: Tenants,
    file: TenantsFile | None,
    audits: AuditStore | None,
    confinement: Confinement,
    rest: bytes,
) -> int:
    """Serve until told to stop; returns the exit code. *rest*: what was read of standard input behind the
    configuration."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    code, born = 0, loop.time()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def trouble(tenant: str, state: dict[str, Any]) -> None:
        event = {"event": "audit", "tenant": tenant, "state": state["state"], "error": state["error"]}
        loop.call_soon_threadsafe(control.emit, event)

    def redefined(found: Tenants | ConfigurationError) -> None:
        if isinstance(found, ConfigurationError):
            _LOG.error("the former definition of tenants stays in force: %s", found)
        else:
            _LOG.info("the definition of tenants has changed")
            sessions.redefine(found)

    def renew() -> bool:
        nonlocal code
        if loop.time() - born < YOUNG:
            return False
        _LOG.warning("a workspace was made anew: the engine has to be started again to reach it")
        code = RENEW
        stop.set()
        return True

    if audits is not None:
        audits.on_state = trouble
    sessions = Sessions(
        config, tenants, StateDir(config.state_dir),
        epoch=secrets.randbits(52) | 1,
        audits=audits, emit=lambda event: control.emit(event), reach=confinement.check, renew=renew,
    )  # fmt: skip
    server = EngineServer(sessions, confinement=confinement, tenants_file=file)

    def assign(principal: str, groups: list[str], tenant: str) -> str:
        return sessions.tenants.assign(principal, groups, tenant).name

    handlers: dict[str, Handler] = {
        "revoke": sessions.revoke,
        "assign": assign,
        "status": server.status,
        "panel": sessions.panel.look,
        "reset": sessions.panel.reset,
    }
    control = Control(loop, handlers)
    port = await server.listen()
    announce = {"port": port, "pid": os.getpid(), "epoch": sessions.epoch}
    os.write(1, json.dumps(announce).encode() + b"\n")
    control.start(stop.set, rest)
    if file is not None:
        file.watch(redefined)
    gc.collect()
    gc.freeze()
    await stop.wait()
    _LOG.info("stopping")
    if file is not None:
        file.close()
    await server.stop()
    control.close()
    return code


def read_line() -> tuple[bytes, bytes]:
    """The first line of standard input, and what came behind it with the same reads."""
    data = bytearray()
    while b"\n" not in data and len(data) <= MAX_CONFIG:
        more = os.read(0, 1 << 16)
        if not more:
            break
        data += more
    line, _, rest = bytes(data).partition(b"\n")
    return line, rest


def main() -> int:
    """Run the engine; returns the exit code."""
    harden()
    log_to_stderr("INFO")
    line, rest = read_line()
    try:
        config, tenants = read_config(line)
        logging.getLogger().setLevel(config.log_level)
        file = TenantsFile(config.tenants_file) if config.tenants_file else None
        if file is not None:
            tenants = file.load()
    except ConfigurationError as exc:
        _LOG.error("%s", exc)
        return 2
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        # Before the process binds itself: the key lies with others that are none of its business.
        audits = AuditStore(config.audit_dir, config.audit_key_file) if config.audit_dir else None
        confinement = bind(config, tenants)
        return uvloop.run(serve(config, tenants, file, audits, confinement, rest))
    except (WsFuseError, OSError) as exc:
        _LOG.error("%s", exc)
        return 1


if __name__ == "__main__":
    sys.exit(main())
