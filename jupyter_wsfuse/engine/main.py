"""The engine's process: ``python -m jupyter_wsfuse.engine.main``.

Reads its configuration (:class:`.config.Config`) as one line of JSON on standard input, says ``{"port",
"pid", "epoch"}`` as one line of JSON on standard output, logs to standard error, and lives until standard
input ends, because then whoever started it is gone, or until SIGTERM. Either way it finishes what it is doing
first.

Exit codes: 0 after a stop, 2 for a configuration that is not usable, 1 for anything else.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import resource
import secrets
import signal
import sys
from typing import Final

import uvloop

from ..errors import WsFuseError
from ..memory import keep_freed_memory
from .config import Config, read_config
from .replay import StateDir
from .server import EngineServer
from .sessions import Sessions
from .tenants import ConfigurationError, Tenants

_LOG = logging.getLogger(__name__)
_PR_SET_NO_NEW_PRIVS: Final = 38
#: Bytes of the longest line of configuration.
MAX_CONFIG: Final = 1 << 20
#: Seconds after which a thread that wants to run Python takes the interpreter from one that does. Workers
#: need it only for microseconds between system calls.
SWITCH_INTERVAL: Final = 0.0005


def harden() -> None:
    """Settle what the process inherited: descriptors, umask, limits, and no way to gain privileges."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:  # the one that listed them
                pass
    os.umask(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    keep_freed_memory()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def log_to_stderr(level: str) -> None:
    """One line a record, time first."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("picows").setLevel("CRITICAL")  # .server says what there is to say, once


async def serve(config: Config, tenants: Tenants) -> None:
    """Serve until told to stop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def parent() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    state = StateDir(config.state_dir)
    sessions = Sessions(config, tenants, state, epoch=secrets.randbits(52) | 1)
    server = EngineServer(sessions)
    port = await server.listen()
    loop.add_reader(0, parent)
    announce = {"port": port, "pid": os.getpid(), "epoch": sessions.epoch}
    os.write(1, json.dumps(announce).encode() + b"\n")
    os.dup2(2, 1)  # nobody reads standard output from now on
    gc.collect()
    gc.freeze()
    await stop.wait()
    _LOG.info("stopping")
    await server.stop()


def read_line() -> bytes:
    """Standard input up to the end of the first line. What comes behind it in the same write is dropped."""
    data = bytearray()
    while b"\n" not in data and len(data) <= MAX_CONFIG:
        more = os.read(0, 1 << 16)
        if not more:
            break
        data += more
    return bytes(data.partition(b"\n")[0])


def main() -> int:
    """Run the engine; returns the exit code."""
    harden()
    try:
        config, tenants = read_config(read_line())
    except ConfigurationError as exc:
        print(f"wsfuse engine: {exc}", file=sys.stderr)
        return 2
    log_to_stderr(config.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        uvloop.run(serve(config, tenants))
    except (WsFuseError, OSError) as exc:
        _LOG.error("%s", exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
