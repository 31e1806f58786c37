"""The configuration: what is accepted, and what is said about the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jupyter_wsfuse.engine.config import read_config
from jupyter_wsfuse.engine.tenants import ConfigurationError, Tenants
from jupyter_wsfuse.errors import RefusedError

GOOD: dict[str, Any] = {
    "secret": "00" * 16,
    "audience": "here",
    "state_dir": "/var/state",
    "tenants": {"default": {"root": "/srv"}},
}


def test_a_tenant_with_defaults_and_one_with_everything() -> None:
    tenants = Tenants.from_config(
        {
            "default": {"root": "/srv/données"},
            "team": {"root": "/t", "read_only": True, "raw_owner": True, "follow_roots": ["/a", "/b"]},
        }
    )
    plain, team = tenants
    assert (plain.root, plain.read_only, plain.raw_owner, plain.follow_roots) == (
        "/srv/données".encode(),
        False,
        False,
        (),
    )
    assert tenants.get("team") is team
    assert team.follow_roots == (b"/a", b"/b")
    assert team.read_only
    assert team.raw_owner


def test_an_unknown_tenant_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        Tenants.from_config({"default": {"root": "/"}}).get("other")
    assert caught.value.code == "workspace"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ([], "at least one tenant"),
        ({}, "at least one tenant"),
        ({"": {"root": "/"}}, "not empty"),
        ({"x": "/"}, "tenants.x must be a table"),
        ({"x": {}}, "tenants.x.root must be the absolute path"),
        ({"x": {"root": "relative"}}, "tenants.x.root must be the absolute path"),
        ({"x": {"root": "/\0"}}, "tenants.x.root must be the absolute path"),
        ({"x": {"root": "/", "read_only": 1}}, "tenants.x.read_only must be true or false"),
        ({"x": {"root": "/", "raw_owner": "yes"}}, "tenants.x.raw_owner must be true or false"),
        ({"x": {"root": "/", "follow_roots": "/a"}}, "tenants.x.follow_roots must be a list"),
        ({"x": {"root": "/", "follow_roots": ["a"]}}, "tenants.x.follow_roots must be the absolute path"),
        ({"x": {"root": "/", "colour": 1, "b": 2}}, "keys that are not known: b, colour"),
    ],
)
def test_what_is_wrong_is_named(config: object, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Tenants.from_config(config)


def test_a_whole_configuration() -> None:
    config, tenants = read_config(json.dumps({**GOOD, "grace": 5}).encode())
    assert config.key == bytes(16)
    assert config.grace == 5
    assert [tenant.name for tenant in tenants] == ["default"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"secret": "00" * 15}, "secret must be at least 16 bytes"),
        ({"secret": "no hex, no hex, no hex, no hex, no hex"}, "secret must be at least 16 bytes"),
        ({"audience": ""}, "audience"),
        ({"state_dir": "here"}, "state_dir must be an absolute path"),
        ({"grace": 0}, "grace must be a positive number"),
        ({"window": -1}, "window must be a positive number"),
        ({"workers": 1}, "workers must be from 2 to 256"),
        ({"window_bytes": 1}, "window_bytes must be at least"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"grace": "long"}, "configuration: .*grace"),
        ({"surprise": 1}, "configuration: .*surprise"),
        ({"tenants": {}}, "at least one tenant"),
    ],
)
def test_a_configuration_that_is_not_usable(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        read_config(json.dumps({**GOOD, **change}).encode())
    assert "no hex, no hex" not in str(caught.value)


def test_no_json_at_all() -> None:
    with pytest.raises(ConfigurationError, match="configuration:"):
        read_config(b"secret: 12\n")
