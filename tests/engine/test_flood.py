"""What a tenant that asks for little waits for, in a real engine, while another one asks for much: not for seconds,
which are the machine's, but for how many of the other's requests (``benchmarks/fairness.py`` has the seconds)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jupyter_wsfuse.auditlog import Filter, query
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Ref
from tests.engine.conftest import Join, Start
from tests.helpers.rawclient import RawClient

#: Of each kind; no more than a session's window, so that all of them are under way at once.
LOOKS, WRITES = 512, 256
LOOKING = 3  # sessions


async def test_who_asks_for_little_is_served_before_the_rest_of_a_flood(
    start: Start, join: Join, tmp_path: Path
) -> None:
    """The engine is stopped while everything is sent, the flood first: what it finds when it goes on is the same on
    any machine. Its audit says in which order requests were answered (the writes to a file in a row as one)."""
    tenants = {}
    for name in ("noisy", "quiet"):
        (tmp_path / name).mkdir()
        tenants[name] = {"root": str(tmp_path / name), "audit": {"record": "all"}}
    audit = tmp_path / "audit"
    engine = start(tenants=tenants, audit_dir=str(audit), audit_key_file=str(tmp_path / "keys/audit"))

    async def enter(tenant: str) -> tuple[RawClient, int]:
        client = await join(engine, engine.ticket(tenant))
        name = client.session.session.encode()
        made = await client.call(m.Create, Ref(b""), name, 0o600, os.O_RDWR)
        await client.call(m.Write, made.handle, 0, payload=b"x" * 4096)
        return client, made.handle

    lookers = [await enter("noisy") for _ in range(LOOKING)]
    writer, file = await enter("noisy")
    quiet, mine = await enter("quiet")
    asked: list[tuple[RawClient, int]] = []
    os.kill(engine.process.pid, signal.SIGSTOP)
    try:
        for number in range(WRITES):
            request = m.Write(writer.session.next_seq(), file, number * 4096)
            asked.append((writer, writer.submit(request, b"x" * 4096)))
        writer.flush()
        for client, _ in lookers:
            for _ in range(LOOKS):
                asked.append((client, client.submit(m.GetAttr(client.session.next_seq(), Ref(b"")))))
            client.flush()
        little = [
            quiet.send(m.GetAttr, Ref(b"")),
            quiet.send(m.Read, mine, 0, 4096),
            quiet.send(m.Write, mine, 0, payload=b"y" * 100),
        ]
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)
    for client, seq in [*((quiet, seq) for seq in little), *asked]:
        await client.answer(seq)
    assert engine.stop() == 0

    order = sorted(
        (entry["time"], tenant, entry["operation"])
        for tenant in tenants
        for entry in query(audit, Filter(tenant=tenant))
    )
    served = [operation for _, tenant, operation in order if tenant == "quiet"]
    assert {"GetAttr", "Read", "Write"} <= set(served)
    looks = [tenant for _, tenant, operation in order if operation in ("GetAttr", "Read", "Write")]
    assert looks.count("noisy") >= LOOKING * LOOKS
    # A slice of the loop: not even as much as one session of the flood has asked for.
    last = len(looks) - looks[::-1].index("quiet")
    assert looks[:last].count("noisy") < LOOKS
