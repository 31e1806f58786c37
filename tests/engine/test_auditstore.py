"""One folder and one key for all tenants, and what happens without them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.audit import TenantAudit
from jupyter_wsfuse.engine.auditstore import AuditStore, UnavailableAudit
from jupyter_wsfuse.engine.hooks import NullAudit
from jupyter_wsfuse.engine.tenants import AuditOptions
from jupyter_wsfuse.protocol import messages as m


def test_each_tenant_has_a_log_of_its_own(tmp_path: Path) -> None:
    store = AuditStore(str(tmp_path / "audit"), str(tmp_path / "key"))
    logs = [store.open(name, AuditOptions(record="all")) for name in ("one", "two/ann")]
    for log in logs:
        assert isinstance(log, TenantAudit)
        log.event("reload")
        log.close()
    folders = {path.parent.parent.name for path in (tmp_path / "audit").rglob("*.jsonl")}
    assert folders == {"one", "two%2Fann"}


@pytest.mark.parametrize("policy", ["refuse", "continue"])
def test_without_a_key_the_policy_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    (tmp_path / "key").write_text("nothing of the kind")
    (tmp_path / "key").chmod(0o600)
    with caplog.at_level(logging.ERROR):
        store = AuditStore(str(tmp_path / "audit"), str(tmp_path / "key"))
    assert "not the private key" in caplog.text
    told: list[tuple[str, dict[str, Any]]] = []
    store.on_state = lambda tenant, state: told.append((tenant, state))
    audit = store.open("one", AuditOptions(on_failure=policy))
    assert isinstance(audit, UnavailableAudit)
    assert audit.refusing is (policy == "refuse")
    assert not audit.wants(m.Unlink, False, False)
    assert not audit.barrier()
    [(tenant, state)] = told
    assert (tenant, state["state"], state["refusing"]) == ("one", "failing", policy == "refuse")
    assert "not the private key" in state["error"]
    audit.reconfigure(AuditOptions(on_failure="continue"))
    assert not audit.refusing


def test_where_nothing_is_recorded_no_key_is_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "audit").touch()
    store = AuditStore(str(tmp_path / "audit"), str(tmp_path / "key"))
    assert type(store.open("one", AuditOptions(record="off"))) is NullAudit
