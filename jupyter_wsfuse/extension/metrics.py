"""What Prometheus is told on the server's own ``/metrics``: the engine's status as of its last probe.

The engine counts; here its numbers get names. An engine that was started again counts from zero, which
Prometheus takes for what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Key of an operation's counters, name of the metric, factor, help.
_OPERATION: Final = (
    ("count", "wsfuse_operations", 1, "File operations executed."),
    ("errors", "wsfuse_operation_errors", 1, "File operations that ended with an error."),
    ("total_us", "wsfuse_operation_seconds", 1e-6, "Time from arrival to reply."),
    ("disk_us", "wsfuse_operation_disk_seconds", 1e-6, "Of that, time in the operation itself."),
    ("limit_us", "wsfuse_operation_limit_seconds", 1e-6, "Of that, time held back by a rate limit."),
    ("bytes", "wsfuse_operation_bytes", 1, "File data read and written."),
)
_LIMIT: Final = (
    ("allowed", "wsfuse_limit_allowed", "Requests that a limit let through at once."),
    ("delayed", "wsfuse_limit_delayed", "Requests that a limit held back."),
    ("refused", "wsfuse_limit_refused", "Requests that a limit refused."),
    ("waited", "wsfuse_limit_waited_seconds", "Time for which requests were held back."),
)


class Source(Protocol):
    """What is read: an :class:`~.supervisor.EngineSupervisor`."""

    restarts: int

    @property
    def state(self) -> str: ...

    @property
    def status(self) -> Mapping[str, Any]: ...


class EngineCollector(Collector):
    """Register it with a registry for as long as *source* is in use."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterator[Metric]:
        """None: what there is depends on the engine, and two servers of one process may both have one."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        source = self._source
        up = 1 if source.state == "running" else 0
        yield GaugeMetricFamily("wsfuse_engine_up", "Whether the file engine runs.", value=up)
        yield CounterMetricFamily("wsfuse_engine_restarts", "Starts after a failure.", value=source.restarts)
        status = source.status
        yield from self._sessions(status.get("sessions", []))
        tenants = {str(name): of for name, of in status.get("tenants", {}).items()}
        yield from self._operations(tenants)
        yield from self._limits(tenants)
        yield from self._rest(tenants)

    @staticmethod
    def _sessions(sessions: list[Mapping[str, Any]]) -> Iterator[Metric]:
        mounts = GaugeMetricFamily(
            "wsfuse_sessions", "Mounts that are served.", labels=["tenant", "transport"]
        )
        handles = GaugeMetricFamily("wsfuse_handles", "Files that mounts have open.", labels=["tenant"])
        counts: dict[tuple[str, str], int] = {}
        opened: dict[str, int] = {}
        for session in sessions:
            tenant, transport = str(session.get("tenant", "")), str(session.get("transport", ""))
            counts[tenant, transport] = counts.get((tenant, transport), 0) + 1
            opened[tenant] = opened.get(tenant, 0) + int(session.get("handles", 0))
        for labels, count in counts.items():
            mounts.add_metric(labels, count)
        for tenant, count in opened.items():
            handles.add_metric([tenant], count)
        yield mounts
        yield handles

    @staticmethod
    def _operations(tenants: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        for key, name, factor, text in _OPERATION:
            metric = CounterMetricFamily(name, text, labels=["tenant", "operation"])
            for tenant, of in tenants.items():
                for operation, counters in of.get("operations", {}).items():
                    metric.add_metric([tenant, operation], counters.get(key, 0) * factor)
            yield metric

    @staticmethod
    def _limits(tenants: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        for key, name, text in _LIMIT:
            metric = CounterMetricFamily(name, text, labels=["tenant", "class", "of"])
            for tenant, told in tenants.items():
                limits = told.get("limits", {})
                for of, table in (("tenant", limits), ("mounts", limits.get("below", {}))):
                    for kind, counters in table.items():
                        if isinstance(counters, Mapping) and key in counters:
                            metric.add_metric([tenant, kind, of], counters[key])
            yield metric

    @staticmethod
    def _rest(tenants: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        denials = CounterMetricFamily("wsfuse_denials", "Operations denied by a rule.", labels=["tenant"])
        quota = GaugeMetricFamily("wsfuse_quota_bytes", "What a workspace may hold.", labels=["tenant"])
        used = GaugeMetricFamily("wsfuse_used_bytes", "What it holds, if it has a quota.", labels=["tenant"])
        lag = GaugeMetricFamily(
            "wsfuse_audit_lag_seconds", "Age of the oldest entry not on disk.", labels=["tenant"]
        )
        lost = CounterMetricFamily(
            "wsfuse_audit_lost", "Entries that could not be written.", labels=["tenant"]
        )
        failing = GaugeMetricFamily(
            "wsfuse_audit_failing", "Whether the log cannot be written.", labels=["tenant"]
        )
        for tenant, of in tenants.items():
            denials.add_metric([tenant], of.get("denials", 0))
            room = of.get("quota")
            if room:
                quota.add_metric([tenant], room["limit"])
                used.add_metric([tenant], room["used"])
            audit = of.get("audit")
            if audit:
                lag.add_metric([tenant], audit.get("lag", 0))
                lost.add_metric([tenant], audit.get("lost", 0))
                failing.add_metric([tenant], 1 if audit.get("error") else 0)
        yield from (denials, quota, used, lag, lost, failing)
