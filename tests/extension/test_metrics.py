"""What Prometheus is told: the engine's numbers under names that stay."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from jupyter_wsfuse.extension.metrics import EngineCollector

from .conftest import Start

OPERATION = {"count": 4, "errors": 1, "total_us": 2e6, "disk_us": 1e6, "limit_us": 5e5, "bytes": 4096}
COUNTERS = {"allowed": 9, "delayed": 2, "refused": 1, "waited": 0.5}
STATUS: dict[str, Any] = {
    "sessions": [
        {"tenant": "t", "transport": "direct", "handles": 2},
        {"tenant": "t", "transport": "direct", "handles": 3},
        {"tenant": "t", "transport": "relay", "handles": 0},
    ],
    "tenants": {
        "t": {
            "operations": {"Read": OPERATION},
            "limits": {
                "read": {"limit": 5.0, "waiting": 0, **COUNTERS},
                "handles": {"limit": 9, "used": 5, "refused": 3},
                "below": {"write": COUNTERS},
                "max_wait": 30.0,
                "refuse": False,
            },
            "denials": 7,
            "quota": {"limit": 1000, "used": 10},
            "audit": {"lag": 0.25, "lost": 2, "error": "no space"},
        },
        "empty": {"audit": {"lag": 0, "lost": 0, "error": ""}, "quota": None},
    },
}


class Source:
    restarts = 3
    state = "running"
    status: dict[str, Any] = STATUS


def exposed(source: Any) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(EngineCollector(source))
    lines = generate_latest(registry).decode().splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_names_and_numbers() -> None:
    found = exposed(Source())
    assert {key: value for key, value in found.items() if 'tenant="empty"' not in key} == {
        "wsfuse_engine_up": 1,
        "wsfuse_engine_restarts_total": 3,
        'wsfuse_sessions{tenant="t",transport="direct"}': 2,
        'wsfuse_sessions{tenant="t",transport="relay"}': 1,
        'wsfuse_handles{tenant="t"}': 5,
        'wsfuse_operations_total{operation="Read",tenant="t"}': 4,
        'wsfuse_operation_errors_total{operation="Read",tenant="t"}': 1,
        'wsfuse_operation_seconds_total{operation="Read",tenant="t"}': 2,
        'wsfuse_operation_disk_seconds_total{operation="Read",tenant="t"}': 1,
        'wsfuse_operation_limit_seconds_total{operation="Read",tenant="t"}': 0.5,
        'wsfuse_operation_bytes_total{operation="Read",tenant="t"}': 4096,
        'wsfuse_limit_allowed_total{class="read",of="tenant",tenant="t"}': 9,
        'wsfuse_limit_allowed_total{class="write",of="mounts",tenant="t"}': 9,
        'wsfuse_limit_delayed_total{class="read",of="tenant",tenant="t"}': 2,
        'wsfuse_limit_delayed_total{class="write",of="mounts",tenant="t"}': 2,
        'wsfuse_limit_refused_total{class="read",of="tenant",tenant="t"}': 1,
        'wsfuse_limit_refused_total{class="handles",of="tenant",tenant="t"}': 3,
        'wsfuse_limit_refused_total{class="write",of="mounts",tenant="t"}': 1,
        'wsfuse_limit_waited_seconds_total{class="read",of="tenant",tenant="t"}': 0.5,
        'wsfuse_limit_waited_seconds_total{class="write",of="mounts",tenant="t"}': 0.5,
        'wsfuse_denials_total{tenant="t"}': 7,
        'wsfuse_quota_bytes{tenant="t"}': 1000,
        'wsfuse_used_bytes{tenant="t"}': 10,
        'wsfuse_audit_lag_seconds{tenant="t"}': 0.25,
        'wsfuse_audit_lost_total{tenant="t"}': 2,
        'wsfuse_audit_failing{tenant="t"}': 1,
    }
    assert found['wsfuse_audit_failing{tenant="empty"}'] == 0
    assert 'wsfuse_quota_bytes{tenant="empty"}' not in found


def test_an_engine_that_does_not_run() -> None:
    class Stopped(Source):
        state = "failed"
        status: dict[str, Any] = {}

    assert exposed(Stopped()) == {"wsfuse_engine_up": 0, "wsfuse_engine_restarts_total": 3}


@pytest.mark.jupyter
async def test_they_are_on_jupyters_own_page(start: Start) -> None:
    server = await start("real")
    await server.ticket()
    await server.extension.supervisor.look()
    page = (await server.fetch("metrics")).body.decode()
    assert "wsfuse_engine_up 1.0" in page
    assert "wsfuse_operations_total" in page
    refused = await server.fetch("metrics", token="")
    assert refused.code in (302, 403)
    await server.extension.stop_extension()
    assert b"wsfuse_engine_up" not in generate_latest(REGISTRY)
