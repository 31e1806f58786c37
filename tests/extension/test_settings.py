"""The options of the extension: what they become, and what is said about nonsense."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from jupyter_wsfuse.engine.config import Config as EngineConfig
from jupyter_wsfuse.engine.config import read_config
from jupyter_wsfuse.engine.definitions import read_limits as engine_limits
from jupyter_wsfuse.engine.permissions import parse_rule
from jupyter_wsfuse.engine.tenants import AuditOptions, Limits, Tenant, Tenants
from jupyter_wsfuse.extension import settings as module
from jupyter_wsfuse.extension.settings import (
    LIMITS,
    OF_TENANT,
    Settings,
    WsFuse,
    default_audit_dir,
    read_limits,
)

SECRETS = {"secret": "00" * 16, "audience": "a", "state_dir": "/state"}


def served(**options: Any) -> Tenant:
    """The tenant that the engine makes of *options*, through the line that it is given."""
    config = WsFuse(config=Config(WsFuse=options)).settings("/srv").engine_config()
    _, tenants = read_config(json.dumps({**config, **SECRETS}).encode())
    return tenants.assign("", [])


def test_the_engine_understands_the_defaults() -> None:
    assert served() == Tenant("default", b"/srv", raw_owner=True)
    assert Settings(root_dir="/srv").audit == AuditOptions().record


def test_the_engine_understands_everything() -> None:
    tenant = served(
        read_only=True,
        raw_owner=False,
        follow_roots=["/data"],
        rules=["deny write,delete /raw/**", "allow ALL *.csv"],
        hide_denied=True,
        limits={"read": 100, "bytes_in": "10 MiB/s", "sessions": 5, "refuse": True, "write": None},
        session_limits={"in_flight": 10, "max_wait": "5s", "bytes_out": 1000},
        quota="10 GiB",
        audit="all",
        audit_on_failure="refuse",
        audit_segment_bytes="1 MiB",
        audit_segment_age="1h",
        audit_retention="90 days",
        audit_max_bytes=0,
    )
    assert tenant == Tenant(
        "default",
        b"/srv",
        read_only=True,
        follow_roots=(b"/data",),
        rules=(
            parse_rule("deny write,delete /raw/**", "tenant default, rule 1"),
            parse_rule("allow all *.csv", "tenant default, rule 2"),
        ),
        hide=True,
        limits=Limits(read=100, bytes_in=10 << 20, sessions=5, refuse=True),
        session_limits=Limits(in_flight=10, max_wait=5, bytes_out=1000),
        quota=10 << 30,
        audit=AuditOptions("all", "refuse", 1 << 20, 3600, 90 * 86400, 0),
    )


def test_what_is_not_of_a_tenant(tmp_path: Path) -> None:
    options = {
        "audit_dir": str(tmp_path / "log/"),
        "slow_operation": 0.5,
        "landlock": False,
        "max_sessions": 7,
    }
    settings = WsFuse(config=Config(WsFuse={**options, "token_max_lifetime": "8h"})).settings("/srv")
    config, _ = read_config(json.dumps({**settings.engine_config(), **SECRETS}).encode())
    assert config.audit_dir == str(tmp_path / "log")
    assert config.audit_key_file == str(tmp_path / "log.key")
    assert (config.slow_operation, config.landlock, config.max_sessions) == (0.5, False, 7)
    assert settings.token_max_lifetime == 8 * 3600


def test_every_key_is_one_of_the_engines() -> None:
    known = set(EngineConfig.__struct_fields__)
    assert set(WsFuse().settings("/srv").engine_config()) <= known
    assert set(WsFuse(tenants_file="/t").settings("/srv").engine_config()) <= known


def test_the_limits_are_the_engines() -> None:
    assert list(LIMITS) == [field.name for field in dataclasses.fields(Limits)]
    everything = dict.fromkeys(LIMITS, 1) | {"refuse": True}
    assert engine_limits(read_limits(everything, "x")) == engine_limits(everything)


def test_a_file_of_tenants(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: {team: {root: /team, users: [ann]}}")
    settings = WsFuse(tenants_file=str(path)).settings("/srv")
    config = settings.engine_config()
    assert "tenants" not in config
    read, _ = read_config(json.dumps({**config, **SECRETS}).encode())
    assert Tenants.from_file(read.tenants_file).assign("ann", []).root == b"/team"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("root_dir", "/x"),
        ("read_only", True),
        ("raw_owner", False),
        ("follow_roots", ["/x"]),
        ("rules", ["deny all x"]),
        ("hide_denied", True),
        ("limits", {"read": 1}),
        ("session_limits", {"read": 1}),
        ("quota", 1),
        ("audit", "all"),
        ("audit_on_failure", "refuse"),
        ("audit_segment_bytes", 9999),
        ("audit_segment_age", 60),
        ("audit_retention", 60),
        ("audit_max_bytes", 0),
    ],
)
def test_nothing_is_ignored_beside_a_file_of_tenants(name: str, value: object) -> None:
    """A rule that has no effect would be a hole."""
    options = WsFuse(config=Config(WsFuse={name: value, "tenants_file": "/etc/tenants.yaml"}))
    with pytest.raises(
        TraitError, match=rf"WsFuse\.{name} is without effect .* say it in /etc/tenants\.yaml"
    ):
        options.settings("/srv")


def test_that_list_is_complete() -> None:
    tenant = WsFuse().settings("/srv").engine_config()["tenants"]["default"]
    assert len(OF_TENANT) == len(tenant) - 1 - 1 + len(tenant["audit"])  # but users; audit is one for each
    assert set(OF_TENANT) <= {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"rules": ["x"]},
            "WsFuse.rules: 'x' is no rule; it must be allow or deny, rights and a pattern, as 'deny",
        ),
        ({"rules": ["deny write a\nb"]}, "is no rule"),
        ({"rules": ["deny write"]}, "'deny write' is no rule"),
        ({"rules": ["deny w *"]}, "'w' in 'deny w [*]' is no right; there are all, delete, execute"),
        ({"rules": ["deny read,, *"]}, "'' in 'deny read,, [*]' is no right"),
        ({"limits": {"red": 1}}, "WsFuse.limits: 'red' is no limit; there are metadata, read"),
        (
            {"limits": {"read": 0}},
            r"WsFuse.limits\['read'\] must be a number of operations a second.*, not 0",
        ),
        ({"limits": {"read": float("inf")}}, r"WsFuse.limits\['read'\] must be"),
        (
            {"limits": {"bytes_in": "fast"}},
            r"WsFuse.limits\['bytes_in'\] must be a number of bytes.*, not 'fast'",
        ),
        ({"limits": {"bytes_in": 0}}, r"WsFuse.limits\['bytes_in'\] must be greater than 0"),
        ({"limits": {"handles": 1.5}}, r"WsFuse.limits\['handles'\] must be a whole number"),
        ({"limits": {"refuse": 1}}, r"WsFuse.limits\['refuse'\] must be True or False, not 1"),
        ({"limits": {"max_wait": None}}, r"WsFuse.limits\['max_wait'\] must be a number of seconds"),
        ({"session_limits": {"sessions": 1}}, "put 'sessions' into WsFuse.limits"),
        (
            {"quota": "much"},
            "WsFuse.quota must be a number of bytes, or a text like 500 MB or 10 GiB, not 'much'",
        ),
        ({"quota": 0}, "WsFuse.quota must be at least 1 bytes, not 0"),
        ({"quota": -1}, "WsFuse.quota must be a number of bytes"),
        ({"audit_segment_bytes": 5}, "WsFuse.audit_segment_bytes must be at least 1024 bytes, not 5"),
        ({"audit_segment_age": 0}, "WsFuse.audit_segment_age must be at least 1 seconds"),
        ({"audit_retention": "ages"}, "WsFuse.audit_retention must be a number of seconds, or a text like"),
        ({"token_max_lifetime": 0.0}, "WsFuse.token_max_lifetime must be at least 1 seconds"),
        ({"audit": "never"}, "audit"),
        ({"audit_dir": "a\0b"}, "WsFuse.audit_dir: .* is no path"),
        ({"slow_operation": -1.0}, "slow_operation"),
    ],
)
def test_nonsense_is_explained(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TraitError, match=complaint):
        WsFuse(config=Config(WsFuse=options))


@pytest.mark.parametrize("word", ["read", "write", "execute", "delete", "search", "all", "READ,Write"])
@pytest.mark.parametrize("pattern", ["*.csv", "/a b/**", "a\\ ", "\x0bx"])
def test_rules_are_those_of_the_engine(word: str, pattern: str) -> None:
    text = f"deny {word} {pattern}"
    assert WsFuse(rules=[text]).rules == [text]
    assert served(rules=[text]).rules == (parse_rule(text, "tenant default, rule 1"),)
    assert set(module._WORDS) == {"read", "write", "execute", "delete", "search", "all"}


def test_paths(tmp_path: Path) -> None:
    settings = WsFuse(audit_dir="~/log", tenants_file="t.yaml").settings("/srv")
    assert settings.audit_dir == os.path.expanduser("~/log")
    assert settings.tenants_file == os.path.abspath("t.yaml")
    assert WsFuse().settings("/srv").audit_dir == default_audit_dir()


def test_the_log_is_in_the_users_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", "/data/jupyter")
    settings = WsFuse().settings("/srv")
    assert settings.audit_dir == "/data/jupyter/wsfuse/audit"
    assert settings.audit_key_file == "/data/jupyter/wsfuse/audit.key"


def test_settings_cannot_be_changed() -> None:
    settings = WsFuse(limits={"read": 1}).settings("/srv")
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.quota = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.limits["read"] = 2  # type: ignore[index]
