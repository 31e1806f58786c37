"""Definitions of tenants: what is accepted, and what is said about the rest, and where."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.engine.definitions import (
    MAX_FILE,
    from_table,
    from_yaml,
    read_limits,
    read_text,
)
from jupyter_wsfuse.engine.permissions import DELETE, WRITE
from jupyter_wsfuse.engine.tenants import AuditOptions, ConfigurationError, Definition, Limits, Tenant

WHOLE = """
defaults:
  limits: {read: 100, bytes_out: 50 MiB/s, max_wait: 10s}
  rules: ["deny all .ssh/"]
  group_rules: {students: ["deny delete *"]}
  quota: 1 TiB
  audit: {record: all, retention: 90 days}
tenants:
  physics:
    root: /srv//physics/
    users: [ann, "007"]
    groups: [physicists]
    read_only: true
    raw_owner: true
    follow_roots: [/data/shared]
    create: yes
    rules:
      - deny write,delete /raw/**
      - allow write /raw/new/
    group_rules:
      students: ["deny write /exams/"]
      guests: ["deny write *"]
    hide: true
    limits: {read: null, write: 20.5, sessions: 10, refuse: true}
    session_limits: {in_flight: 64, handles: 1000, bytes_in: 1000000}
    quota: 500 GB
    weight: 2
    audit: {record: off, on_failure: refuse, segment_bytes: 1 MiB, segment_age: 1h, max_bytes: 0}
  plain:
    root: /srv/plain
    users: ["*"]
"""


def only(text: str) -> Tenant:
    (definition,) = from_yaml(text.encode(), "f.yaml")
    return definition.tenant


def test_everything_that_can_be_said() -> None:
    physics, plain = from_yaml(WHOLE.encode(), "f.yaml")
    tenant = physics.tenant
    assert physics.users == {"ann", "007"}
    assert physics.groups == {"physicists"}
    assert (tenant.name, tenant.root, tenant.follow_roots) == ("physics", b"/srv/physics", (b"/data/shared",))
    assert tenant.read_only
    assert tenant.raw_owner
    assert tenant.create
    assert tenant.own == 1
    assert tenant.hide
    assert [(rule.allow, rule.rights, rule.pattern, rule.source) for rule in tenant.rules[1:]] == [
        (False, WRITE | DELETE, "/raw/**", "tenant physics, rule 1"),
        (True, WRITE, "/raw/new/", "tenant physics, rule 2"),
    ]
    assert tenant.rules[0].source == "defaults, rule 1"
    assert [rule.source for rule in tenant.group_rules["students"]] == [
        "defaults, group students, rule 1",
        "tenant physics, group students, rule 1",
    ]
    assert len(tenant.group_rules["guests"]) == 1
    assert tenant.limits == Limits(
        read=None, write=20.5, bytes_out=50 << 20, sessions=10, max_wait=10, refuse=True
    )
    assert tenant.session_limits == Limits(in_flight=64, handles=1000, bytes_in=1_000_000)
    assert tenant.quota == 500 * 10**9
    assert tenant.weight == 2
    assert tenant.audit == AuditOptions(
        record="off",
        on_failure="refuse",
        segment_bytes=1 << 20,
        segment_age=3600,
        retention=90 * 86400,
        max_bytes=0,
    )
    assert plain == Definition(
        Tenant(
            "plain",
            b"/srv/plain",
            rules=tenant.rules[:1],
            group_rules={"students": tenant.group_rules["students"][:1]},
            limits=Limits(read=100, bytes_out=50 << 20, max_wait=10),
            quota=1 << 40,
            audit=AuditOptions(record="all", retention=90 * 86400),
        ),
        frozenset({"*"}),
        frozenset(),
    )


def test_the_file_in_the_manual_is_accepted() -> None:
    manual = Path(__file__).parents[2] / "docs" / "tenants.md"
    (text,) = re.findall(r"```yaml\n(.*?)```", manual.read_text(), re.DOTALL)
    physics, home = from_yaml(text.encode(), "tenants.md")
    assert physics.groups == {"physicists"}
    assert home.template


def test_plain_data_says_the_same() -> None:
    text = WHOLE.replace("defaults:", "unused:")
    table = yaml.safe_load(text)["tenants"]
    without = from_yaml(text.partition("tenants:")[1].encode() + text.partition("tenants:")[2].encode(), "f")
    assert from_table(table) == without


def test_what_a_tenant_takes_back() -> None:
    tenant = only("defaults: {quota: 1G}\ntenants: {t: {root: /s, users: [a], quota: null}}")
    assert tenant.quota is None


def test_templates_make_their_roots_unless_told_otherwise() -> None:
    assert only("tenants: {t: {root: '/s/{user}', users: ['*']}}").create
    assert not only("tenants: {t: {root: '/s/{user}', users: ['*'], create: false}}").create
    assert only("tenants: {t: {root: '/s/x-{user}/a/b', users: ['*']}}").own == 3


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("", "f.yaml:1: the file is empty.*"),
        ("# nothing", "f.yaml:1: the file is empty.*"),
        ("- a", "f.yaml:1: must be a table of names and values, not a list"),
        ("tenants: [", "f.yaml:1: this is no YAML: .*"),
        ("tenants:\n  a: b: c", "f.yaml:2: this is no YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "f.yaml:2: this is no YAML: expected a single document.*"),
        ("x: \x00", "f.yaml:1: this is no YAML: .*"),
        ("[" * 5000, "f.yaml:1: this is no YAML: nested too deep"),
        ("defaults: {}", "f.yaml:1: tenants: is missing.*"),
        ("tenants: {}", "f.yaml:1: tenants: must be a table with at least one tenant, not a table"),
        ("tenants:", "f.yaml:1: tenants: must be a table with at least one tenant, not nothing"),
        ("tenant: {}", "f.yaml:1: tenant: is no key that is known here; is tenants meant.*"),
        ("defaults:\n root: /x\ntenants:\n T", "f.yaml:2: defaults.root: is no key that is known here.*"),
        (
            "defaults:\n quota: x\ntenants:\n T",
            "f.yaml:2: defaults.quota: must be a number of bytes.*, not 'x'",
        ),
        ("tenants:\n T\n T", "f.yaml:3: tenants.t: is given twice, first in line 2"),
        ("tenants:\n 5: {root: /}", "f.yaml:2: tenants: names must be texts, not 5 .put it in quotes."),
        ("tenants:\n [a]: {root: /}", "f.yaml:2: tenants: names must be texts, not a list or a table.*"),
        ("tenants:\n a/b: {root: /}", "f.yaml:2: tenants.a/b: a tenant's name must be .* without '/'"),
        (
            "tenants:\n '': {root: /}",
            "f.yaml:2: tenants.: a tenant's name must be a text that is not empty.*",
        ),
        ("tenants:\n t: /srv", "f.yaml:2: tenants.t: must be a table of names and values, not '/srv'"),
        ("tenants:\n t:\n  users: [a]", "f.yaml:2: tenants.t: needs a root, the absolute path of a folder"),
        ("tenants:\n t:\n  root: /s", "f.yaml:2: tenants.t: needs users or groups, or nobody can use it.*"),
        ("O root: srv", "f.yaml:4: tenants.t.root: is given twice.*"),
        ("O quotas: 1", "f.yaml:4: tenants.t.quotas: is no key that is known here; is quota meant.*"),
        ("O colour: 1", "f.yaml:4: tenants.t.colour: is no key that is known here; known are root, users.*"),
        ("O read_only: 1", "f.yaml:4: tenants.t.read_only: must be true or false, not 1"),
        ("O users: ann", "f.yaml:4: tenants.t.users: must be a list of names of users, not 'ann'"),
        ("O users:\n   - ann\n   - 7", r"f.yaml:6: tenants.t.users\[2\]: .*put it in quotes., not 7"),
        ("O users: [no]", r"f.yaml:4: tenants.t.users\[1\]: .*put it in quotes., not False"),
        ("O users: ['']", r"f.yaml:4: tenants.t.users\[1\]: must be the name of a user that is not empty.*"),
        ("O users: [a, b, a]", "f.yaml:4: tenants.t.users: names the user a twice"),
        ("O groups: [g]\n  rules: deny", "f.yaml:5: tenants.t.rules: must be a list of rules, .*"),
        (
            "O groups: [g]\n  rules:\n  - deny write x\n  - deny everything x",
            r"f.yaml:7: tenants.t.rules\[2\]: 'everything' is no right.*",
        ),
        (
            "O groups: [g]\n  group_rules:\n   g: [no]",
            r"f.yaml:6: tenants.t.group_rules.g\[1\]: must be a rule.*",
        ),
        (
            "O groups: [g]\n  group_rules: [a]",
            "f.yaml:5: tenants.t.group_rules: must be a table.*, not a list",
        ),
        ("O follow_roots: /a", "f.yaml:4: tenants.t.follow_roots: must be a list of folders, not '/a'"),
        ("O follow_roots: [a]", r"f.yaml:4: tenants.t.follow_roots\[1\]: must be the absolute path.*"),
        (
            "O follow_roots: ['/{user}']",
            r"f.yaml:4: tenants.t.follow_roots\[1\]: can have {user} in it only.*",
        ),
        ("O quota: 0", "f.yaml:4: tenants.t.quota: must be at least 1 bytes, not 0"),
        (
            "O quota: much",
            "f.yaml:4: tenants.t.quota: must be a number of bytes, or a text like .*not 'much'",
        ),
        ("O weight: 0", "f.yaml:4: tenants.t.weight: must be a number greater than 0, not 0"),
        ("O weight: .inf", "f.yaml:4: tenants.t.weight: must be a number greater than 0, not inf"),
        ("O limits:\n   red: 1", "f.yaml:5: tenants.t.limits.red: is no key .* is read meant.*"),
        ("O limits: {read: -1}", "f.yaml:4: tenants.t.limits.read: must be a number greater than 0, not -1"),
        ("O limits: {read: 5/s}", "f.yaml:4: tenants.t.limits.read: must be a number.*, not '5/s'"),
        ("O limits: {bytes_in: 0}", "f.yaml:4: tenants.t.limits.bytes_in: must be at least 1 bytes, not 0"),
        (
            "O limits: {handles: 1.5}",
            "f.yaml:4: tenants.t.limits.handles: must be a whole number .*, not 1.5",
        ),
        ("O limits: {max_wait: null}", "f.yaml:4: tenants.t.limits.max_wait: must be .*, not nothing"),
        ("O session_limits: 5", "f.yaml:4: tenants.t.session_limits: must be a table.*, not 5"),
        ("O audit: all", "f.yaml:4: tenants.t.audit: must be a table of names and values, not 'all'"),
        ("O audit: {record: none}", "f.yaml:4: tenants.t.audit.record: must be one of all, .*, not 'none'"),
        ("O audit: {on_failure: no}", "f.yaml:4: tenants.t.audit.on_failure: must be one of .*, not False"),
        ("O audit: {segment_bytes: 9}", "f.yaml:4: tenants.t.audit.segment_bytes: must be at least 1024 .*"),
        ("O audit: {segment_age: 0}", "f.yaml:4: tenants.t.audit.segment_age: must be at least 1 seconds.*"),
        (
            "O audit: {retention: 5 eons}",
            "f.yaml:4: tenants.t.audit.retention: must be a number of seconds.*",
        ),
        ("O quota: !!python/object:os.system {}", "f.yaml:4: tenants.t.quota: must be .*, not a table"),
        ("O quota: !!python/name:os.system", "f.yaml:4: tenants.t.quota: cannot be read: could not .*"),
        ("O quota: 2024-13-13", "f.yaml:4: tenants.t.quota: cannot be read: month must be in 1..12"),
        ("O <<: {quota: 1}", "f.yaml:4: tenants.t: cannot be read: .*merge.*"),
        ("O users: &a [*a]", "f.yaml:4: .*: is nested too deep, or too large"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(lines: str, complaint: str) -> None:
    """In the lines, T is a good tenant, and O one that is about to get an option in line 4."""
    if lines.startswith("O") and "groups:" not in lines and "users:" not in lines:
        lines += "\n  groups: [g]"
    text = lines.replace(" T", " t: {root: /srv, users: [ann]}").replace(
        "O ", "tenants:\n t:\n  root: /srv\n  ", 1
    )
    with pytest.raises(ConfigurationError) as caught:
        from_yaml(text.encode(), "f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert re.fullmatch(complaint, message), message


def test_references_cannot_make_a_file_grow_without_end() -> None:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &x{n} [" + ", ".join([f"*x{n - 1}"] * 10) + "]" for n in range(1, 7)]
    with pytest.raises(ConfigurationError, match="too deep, or too large"):
        from_yaml("\n".join(lines).encode(), "f.yaml")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ([], "tenants: must be a table with at least one tenant, not a list"),
        ({}, "at least one tenant"),
        (None, "at least one tenant, not nothing"),
        ({"": {"root": "/"}}, "not empty"),
        ({5: {"root": "/"}}, "tenants.5: must be a text"),
        ({"x": "/"}, "tenants.x: must be a table"),
        ({"x": {}}, "tenants.x: needs a root"),
        (
            {"x": {"root": "relative"}},
            "tenants.x.root: must be the absolute path of a folder, not 'relative'",
        ),
        ({"x": {"root": "/\0"}}, "tenants.x.root: must be the absolute path"),
        ({"x": {"root": "/a/../b"}}, "tenants.x.root: must be the path of a folder without '..' in it"),
        ({"x": {"root": "/\ud800"}}, "tenants.x.root: must be the path of a folder in characters that exist"),
        ({"x": {"root": "/", "read_only": 1}}, "tenants.x.read_only: must be true or false"),
        ({"x": {"root": "/", "follow_roots": "/a"}}, "tenants.x.follow_roots: must be a list"),
        (
            {"x": {"root": "/", "follow_roots": ["a"]}},
            r"tenants.x.follow_roots\[1\]: must be the absolute path",
        ),
        ({"x": {"root": "/", "colour": 1, "b": 2}}, "tenants.x.colour: is no key that is known here"),
        ({"x": {"root": "/", "limits": {1: 2}}}, "tenants.x.limits.1: must be a text"),
        (
            {"x": {"root": ["x" * 100] * 3}},
            "tenants.x.root: must be the absolute path of a folder, not a list",
        ),
        ({"x": {"root": "x" * 100}}, r"not 'x{59}\.\.\."),
    ],
)
def test_what_is_wrong_in_plain_data_is_named(config: object, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        from_table(config)


def test_plain_data_that_is_nested_for_ever() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigurationError, match="nested too deep"):
        from_table({"x": {"root": endless}})


def test_limits_alone() -> None:
    assert read_limits({"read": 5, "handles": 3.0, "bytes_in": 1000.0}) == Limits(
        read=5.0, handles=3, bytes_in=1000.0
    )
    with pytest.raises(ConfigurationError, match=r"token\.reed: is no key"):
        read_limits({"reed": 5}, "token")


# --- files


def test_a_file_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("x")
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match=r"t.yaml: everyone may write to it.*chmod o-w"):
        read_text(path)
    path.chmod(0o664)
    assert read_text(path) == b"x"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="fifo: is not a regular file"):
        read_text(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match=r"is not a regular file|cannot be read"):
        read_text(tmp_path)
    with pytest.raises(ConfigurationError, match="gone: cannot be read: No such file"):
        read_text(tmp_path / "gone")
    (tmp_path / "large").write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(ConfigurationError, match="large: is larger than"):
        read_text(tmp_path / "large")


@given(st.binary(max_size=200) | st.text(alphabet="atenusr: {}[]-&*!'\"\n#,/<", max_size=200).map(str.encode))
def test_any_text_is_a_definition_or_a_complaint(text: bytes) -> None:
    try:
        from_yaml(text, "f.yaml")
    except ConfigurationError as exc:
        if not str(exc).startswith("f.yaml:"):
            raise


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["root"]), inner, max_size=3)
    ),
)


@given(
    _JSON, st.sampled_from(["root", "users", "rules", "group_rules", "limits", "audit", "quota", "weight"])
)
def test_any_value_is_accepted_or_complained_about(value: object, key: str) -> None:
    try:
        from_table({"x": {"root": "/srv", key: value}})
    except ConfigurationError as exc:
        if not str(exc).startswith("tenants."):
            raise
