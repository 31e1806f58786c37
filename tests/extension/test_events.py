"""What is told through Jupyter's events: the engine's news and tokens, by schemas that hold."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from jupyter_events import EventLogger

from jupyter_wsfuse.extension.base import EVENTS
from jupyter_wsfuse.extension.events import SCHEMAS, Events, schema_id

from .conftest import Start

LOG = logging.getLogger("test.events")
WHO = {
    "tenant": "t", "principal": "ann", "session": "0123456789abcdef", "client": "c", "address": "::1", "token": "",
}  # fmt: skip
NAMES = ("audit", "denials", "mount", "token")


class Heard:
    """A logger of events, and what was emitted."""

    def __init__(self) -> None:
        self.logger = EventLogger()
        self.events: list[tuple[str, dict[str, Any]]] = []

    def listen(self) -> None:
        for name in NAMES:
            self.logger.add_listener(schema_id=schema_id(name), listener=self._note)

    async def _note(self, logger: EventLogger, schema_id: str, data: dict[str, Any]) -> None:
        plain = {key: value for key, value in data.items() if not key.startswith("__")}
        self.events.append((schema_id, plain))

    async def all(self) -> list[tuple[str, dict[str, Any]]]:
        await self.logger.gather_listeners()
        return self.events


@pytest.fixture
def heard() -> Heard:
    return Heard()


def make(heard: Heard, *, paths: bool = True) -> Events:
    events = Events(heard.logger, LOG, paths=paths)
    heard.listen()
    return events


def test_every_schema_is_registered(heard: Heard) -> None:
    make(heard)
    assert sorted(path.stem for path in SCHEMAS.iterdir()) == list(NAMES)
    for name in NAMES:
        assert schema_id(name) in heard.logger.schemas


async def test_the_engines_news(heard: Heard) -> None:
    events = make(heard)
    for state in ("begun", "resumed", "ended"):
        events.of_engine({"event": "session", "state": state, **WHO, "more": "is not passed on"})
    denial = {"count": 3, "rule": "tenant t, rule 1", "path": "a/\udcff"}
    events.of_engine({"event": "denials", **WHO, **denial})
    events.of_engine({"event": "audit", "tenant": "t", "state": "failing", "error": "no space"})
    events.of_engine({"event": "audit", "tenant": "t", "state": "ok", "error": None})
    found = await heard.all()
    assert found == [
        *((schema_id("mount"), {"state": state, **WHO}) for state in ("begun", "resumed", "ended")),
        (schema_id("denials"), {**WHO, **denial}),
        (schema_id("audit"), {"tenant": "t", "state": "failing", "error": "no space"}),
        (schema_id("audit"), {"tenant": "t", "state": "ok"}),
    ]


async def test_paths_are_left_out_where_they_are_somebody_elses(heard: Heard) -> None:
    events = make(heard, paths=False)
    events.of_engine({"event": "denials", **WHO, "count": 1, "rule": "r", "path": "secret"})
    ((_, told),) = await heard.all()
    assert "path" not in told


async def test_tokens(heard: Heard) -> None:
    events = make(heard)
    events.token("created", "id", "ann", "t", None)
    assert await heard.all() == [
        (
            schema_id("token"),
            {"action": "created", "token": "id", "principal": "ann", "tenant": "t", "address": ""},
        )
    ]


async def test_what_does_not_fit_a_schema_harms_nobody(
    heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    events = make(heard)
    events.of_engine({"event": "session", "state": "exploded", **WHO})
    events.of_engine({"event": "dropped", "count": 7})
    with caplog.at_level(logging.DEBUG):
        events.of_engine({"event": "weather"})
        events.of_engine({})
    assert await heard.all() == []
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("an event mount could not be emitted: ")
    assert "7 events" in messages[1]
    assert messages[2].endswith("not known: weather")


@pytest.mark.jupyter
async def test_what_the_engine_says_reaches_jupyters_listeners(start: Start) -> None:
    server = await start()
    arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def listen(logger: EventLogger, schema_id: str, data: dict[str, Any]) -> None:
        arrived.put_nowait(data)

    assert server.app.event_logger is not None
    server.app.event_logger.add_listener(schema_id=schema_id("denials"), listener=listen)
    channel = await server.channel()
    event = {"event": "denials", **WHO, "count": 1, "rule": "r", "path": "p"}
    await channel.write_message(b"event " + json.dumps(event).encode(), binary=True)
    assert (await arrived.get())["path"] == "p"
    assert isinstance(server.app.web_app.settings[EVENTS], Events)
