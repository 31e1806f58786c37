"""Who belongs to which tenant, and the engine's configuration as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.engine.config import read_config
from jupyter_wsfuse.engine.tenants import ConfigurationError, Tenants, safe_component
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


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    assert caught.value.code == "workspace"
    return str(caught.value)


def test_an_unknown_tenant_is_refused() -> None:
    tenants = Tenants.from_config({"default": {"root": "/"}})
    refused(lambda: tenants.get("other"))
    refused(lambda: tenants.get("default/"))
    refused(lambda: tenants.get("default/ann"))
    refused(lambda: tenants.get(""))


def test_a_tenant_without_users_in_plain_data_is_everyones() -> None:
    tenants = Tenants.from_config({"one": {"root": "/1"}, "two": {"root": "/2"}})
    assert tenants.assign("ann", []).name == "one"
    assert tenants.assign("", []).name == "one"
    assert tenants.assign("", [], "two").name == "two"


SEVERAL: dict[str, Any] = {
    "physics": {"root": "/srv/physics", "users": ["ann"], "groups": ["physicists"]},
    "teaching": {"root": "/srv/teaching", "users": ["bob", "ann"], "groups": ["students", "physicists"]},
    "home": {"root": "/srv/home/{user}/work", "groups": ["staff"], "follow_roots": ["/data/{user}", "/pub"]},
    "public": {"root": "/srv/public", "users": ["*"], "groups": ["students"]},
}


@pytest.mark.parametrize(
    ("principal", "groups", "wanted", "name"),
    [
        ("ann", [], "", "physics"),
        ("ann", [], "teaching", "teaching"),
        ("bob", [], "", "teaching"),
        ("bob", ["physicists"], "", "physics"),
        ("cat", ["students"], "", "teaching"),
        ("cat", ["students"], "public", "public"),
        ("cat", ["staff"], "", "home/cat"),
        ("cat", ["staff"], "home", "home/cat"),
        ("cat", ["staff"], "home/cat", "home/cat"),
        ("dan", [], "", "public"),
        ("", [], "", "public"),
        ("*", [], "", "public"),
    ],
)
def test_whose_tenant_is_which(principal: str, groups: list[str], wanted: str, name: str) -> None:
    tenants = Tenants.from_config(SEVERAL)
    tenant = tenants.assign(principal, groups, wanted)
    assert tenant.name == name
    assert tenants.get(name) == tenant


@pytest.mark.parametrize(
    ("principal", "groups", "wanted"),
    [
        ("bob", [], "physics"),
        ("cat", ["physic"], "physics"),
        ("cat", [], "home"),
        ("cat", ["staff"], "home/ann"),
        ("cat", ["staff"], "home/"),
        ("", ["staff"], "home"),
        ("../ann", ["staff"], "home"),
        ("../ann", ["staff"], "home/../ann"),
        (".", ["staff"], ""),
        ("dan", [], "nothing"),
        ("dan", [], "public/dan"),
        ("dan", [], "/"),
        ("dan", [], "*"),
    ],
)
def test_nobody_gets_a_tenant_of_others(principal: str, groups: list[str], wanted: str) -> None:
    refused(lambda: Tenants.from_config(SEVERAL).assign(principal, groups, wanted))


def test_a_refusal_does_not_tell_what_exists() -> None:
    tenants = Tenants.from_config(SEVERAL)
    one, other = (
        refused(lambda name=name: tenants.assign("dan", [], name)) for name in ("physics", "physicz")
    )
    assert one.replace("physics", "physicz") == other


def test_somebody_without_any_tenant() -> None:
    tenants = Tenants.from_config({"team": {"root": "/srv", "users": ["ann"]}})
    for principal in ("", "bob", "*"):
        assert "belongs to no tenant" in refused(lambda principal=principal: tenants.assign(principal, ["x"]))


def test_a_tenant_for_each_user() -> None:
    tenants = Tenants.from_config(SEVERAL)
    tenant = tenants.assign("zoë", ["staff"])
    assert tenant.root == "/srv/home/zoë/work".encode()
    assert tenant.follow_roots == ("/data/zoë".encode(), b"/pub")
    assert tenant.create  # of templates, unless it says otherwise
    assert tenant.own == 2
    assert [tenant.name for tenant in tenants] == ["physics", "teaching", "public"]
    assert len(tenants) == 4


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".ssh",
        "a/b",
        "/",
        "a/../b",
        "a\0b",
        "a\nb",
        "\u202eann",
        "\ud800",
        "x" * 256,
        "é" * 128,
    ],
)
def test_names_that_are_no_component(name: str) -> None:
    assert not safe_component(name)
    tenants = Tenants.from_config({"home": {"root": "/home/{user}"}})
    refused(lambda: tenants.assign(name, []))
    refused(lambda: tenants.get(f"home/{name}"))


@given(st.text())
def test_a_users_root_is_one_component_below(name: str) -> None:
    tenants = Tenants.from_config({"home": {"root": "/home/{user}"}})
    try:
        root = tenants.assign(name, []).root
    except RefusedError:
        return
    assert root.startswith(b"/home/")
    assert root.split(b"/")[2:] == [name.encode()]
    assert name not in (".", "..", "")


def test_what_the_engine_must_be_able_to_reach() -> None:
    tenants = Tenants.from_config(
        {
            **SEVERAL,
            "made": {"root": "/srv/made/x", "create": True},
            "deep": {"root": "/d/a{user}/b/c"},
            "top": {"root": "/"},
        }
    )
    assert sorted(tenants.folders()) == sorted(
        [
            b"/srv/physics",
            b"/srv/teaching",
            b"/srv/home",
            b"/data",
            b"/pub",
            b"/srv/public",
            b"/srv/made",
            b"/d",
            b"/",
        ]
    )


def test_a_definition_is_equal_if_it_says_the_same_in_the_same_order() -> None:
    one = Tenants.from_config(SEVERAL)
    assert one == Tenants.from_config(SEVERAL)
    assert hash(one) == hash(Tenants.from_config(SEVERAL))
    assert one != Tenants.from_config(dict(reversed(SEVERAL.items())))
    assert one != Tenants.from_config({**SEVERAL, "physics": {"root": "/srv/physics"}})
    assert one != SEVERAL


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: {team: {root: /srv, users: [ann]}}")
    assert Tenants.from_file(path).assign("ann", []).root == b"/srv"
    with pytest.raises(ConfigurationError, match=r"gone\.yaml: cannot be read: No such file"):
        Tenants.from_file(tmp_path / "gone.yaml")


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
        ({"tenants": {}}, "either tenants or tenants_file must be given"),
        ({"tenants": {"x": {}}}, "tenants.x: needs a root"),
    ],
)
def test_a_configuration_that_is_not_usable(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        read_config(json.dumps({**GOOD, **change}).encode())
    assert "no hex, no hex" not in str(caught.value)


def test_no_json_at_all() -> None:
    with pytest.raises(ConfigurationError, match="configuration:"):
        read_config(b"secret: 12\n")
