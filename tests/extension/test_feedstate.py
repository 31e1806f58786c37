"""What the panel shows, of what engine and mounts say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.extension.feedmounts import Place, Snapshot, Viewer, address
from jupyter_wsfuse.extension.feedstate import Rates, build, changed_folders, counters
from jupyter_wsfuse.extension.mergepatch import diff, without_null
from tests.helpers.feed import merge

names = st.sampled_from(["a", "b", "c", "", "state"]) | st.text(max_size=3)
plain = st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=3)
values = st.recursive(
    plain | st.lists(plain | st.none(), max_size=3),
    lambda inner: st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
states = st.dictionaries(names, values, max_size=5)


@given(states, states)
def test_a_patch_makes_the_new_state_of_the_old_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = diff(old, new)
    patched = merge(old, json.loads(json.dumps(patch)))
    assert json.dumps(patched, sort_keys=True) == json.dumps(new, sort_keys=True)  # 1, 1.0 and true differ


@given(states)
def test_what_is_the_same_needs_no_patch(state: dict[str, Any]) -> None:
    assert diff(state, json.loads(json.dumps(state))) == {}


@given(st.recursive(st.none() | plain, lambda inner: st.dictionaries(names, inner, max_size=3)))
def test_nothing_null_is_left_in_objects(value: Any) -> None:
    def nulls(value: Any) -> bool:
        return isinstance(value, dict) and any(inner is None or nulls(inner) for inner in value.values())

    assert not nulls(without_null(value))


def test_a_patch_says_only_what_is_another() -> None:
    old = {"mounts": {"x": {"state": "connected", "held": 0}, "y": {"state": "parked"}}, "engine": {"pid": 1}}
    new = {"mounts": {"x": {"state": "reconnecting", "held": 0}}, "engine": {"pid": 1}}
    assert diff(old, new) == {"mounts": {"x": {"state": "reconnecting"}, "y": None}}


# --- rates and places ------------------------------------------------------------------------------------------


def test_a_rate_is_what_came_in_a_second() -> None:
    rates = Rates()
    rates.update({("mount", "x"): 100}, 10.0)
    assert rates.now == {("mount", "x"): 0.0}
    rates.update({("mount", "x"): 300}, 12.0)
    assert rates.now == {("mount", "x"): 100}
    rates.update({("mount", "x"): 303}, 12.1)  # too soon to tell
    assert rates.now == {("mount", "x"): 100}
    rates.update({("mount", "x"): 4}, 14.0)  # it began again at zero
    assert rates.now == {("mount", "x"): 2.0}
    rates.update({}, 15.0)
    assert rates.now == {}


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://127.0.0.1:8888/", True),
        ("http://localhost:8888", True),
        ("http://[::1]:8888/", True),
        ("http://127.0.0.1:8889/", False),
        ("http://127.0.0.1:8888/user/ann/", False),
        ("https://hub.example.org:8888/", False),
        ("http://[::", False),
        ("", False),
    ],
)
def test_a_server_knows_its_own_url(url: str, same: bool) -> None:
    place = Place("/home/ann", frozenset({address("http://127.0.0.1:8888/")}))
    assert place.serves(url) is same


def test_folders_are_named_as_the_file_browser_does() -> None:
    place = Place("/home/ann")
    assert place.folder("/home/ann") == ""
    assert place.folder("/home/ann/a/b") == "a/b"
    assert place.folder("/home/anna") is None
    assert Place("/").folder("/a") == "a"


# --- mounts ----------------------------------------------------------------------------------------------------

URL = "http://127.0.0.1:8888/"
PLACE = Place("/home/ann", frozenset({address(URL)}))
SESSION = {
    "client": "vm:/mnt/x", "tenant": "default", "principal": "", "address": "10.0.0.7", "transport": "relay",
    "connected": True, "read_only": False, "since": 1.0, "requests": 7, "handles": 1, "grace": 60.0,
    "throttled": None, "limits": {}, "unwatched": "",
}  # fmt: skip


def mount(is_: str = "mounted", /, **connection: Any) -> dict[str, Any]:
    told = {
        "state": "connected",
        "session": "5e55",
        "told": True,
        "deadline": 60.0,
        "since": 100.0,
        **connection,
    }
    figures = {"operations": 9, "hits": 3, "misses": 1, "unsynced": 0, "rescue": {}}
    return {
        "id": "abc", "mountpoint": "/home/ann/ws", "url": URL, "state": is_, "since": 5.0, "read_only": False,
        "daemon": {"connection": told, "figures": figures} if is_ == "mounted" else {},
    }  # fmt: skip


def rows(
    mounts: list[dict[str, Any]],
    sessions: dict[str, Any] | None = None,
    *,
    viewer: Viewer | None = None,
    time: float = 110.0,
    before: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    panel = {"sessions": sessions or {}, "tenants": {}}
    snapshot = Snapshot(time, {"state": "running", "pid": 1, "restarts": 0}, panel, mounts, **more)
    return build(snapshot, {"mounts"}, viewer or Viewer(None), PLACE, before or {})["mounts"]


def test_a_mount_of_this_machine_is_shown_once_with_what_both_know_of_it() -> None:
    (row,) = rows([mount(rtt_ms=1.5)], {"5e55": SESSION}).values()
    assert (row["local"], row["managed"], row["folder"], row["client"]) == (True, True, "ws", "vm:/mnt/x")
    assert (row["hit_rate"], row["operations"], row["rtt_ms"], row["state"]) == (0.75, 9, 1.5, "connected")


def test_a_mount_elsewhere_is_shown_by_its_session() -> None:
    lost = {**SESSION, "connected": False}
    parked = {**lost, "report": {"state": "parked", "host": "laptop", "path": "/mnt/y"}}
    found = rows(
        [], {"5e55": SESSION, "5e56": lost, "5e57": parked, "5e58": {**SESSION, "unwatched": "no inotify"}}
    )
    assert (found["5e57"]["state"], found["5e57"]["host"], found["5e57"]["path"]) == (
        "parked",
        "laptop",
        "/mnt/y",
    )
    assert found["5e58"]["state"] == "degraded"
    assert "no inotify" in found["5e58"]["reason"]
    assert (found["5e55"]["local"], found["5e55"]["host"], found["5e55"]["path"]) == (False, "vm", "/mnt/x")
    assert found["5e55"]["state"] == "connected"
    assert found["5e56"]["state"] == "disconnected"
    assert "60 s" in found["5e56"]["reason"]


def test_mounts_elsewhere_stay_while_the_engine_is_restarted() -> None:
    panel = {"sessions": {"5e55": SESSION}, "tenants": {}, "old": True}
    snapshot = Snapshot(1.0, {"state": "starting"}, panel)
    (row,) = build(snapshot, {"mounts"}, Viewer(None), PLACE, {})["mounts"].values()
    assert row["state"] == "reconnecting"
    assert "engine" in row["reason"]


def test_another_servers_mount_is_not_shown() -> None:
    other = {**mount(), "url": "http://127.0.0.1:9999/"}
    assert rows([other]) == {}
    assert rows([other], {"5e55": SESSION}).keys() == {"abc"}  # reached by another URL, and served by us
    assert rows([other], owners={"abc": ""}).keys() == {"abc"}  # it was ours before it lost its connection


@pytest.mark.parametrize(
    ("given", "state", "word"),
    [
        (mount("connecting"), "mounting", ""),
        (mount("unmounting"), "unmounting", ""),
        ({**mount("restarting"), "last_death": "signal 9"}, "reconnecting", "signal 9"),
        (mount("dead"), "failed", "umount"),
        (mount("unsupervised"), "degraded", "looks after"),
        (mount("not answering"), "degraded", "log"),
        (mount(state="reconnecting", last_error="no route", since=105.0), "reconnecting", "no route"),
        (mount(state="reconnecting", last_error="no route", since=10.0), "disconnected", "no route"),
        (mount(state="failed", last_error="token revoked"), "failed", "token revoked"),
        (mount(state="parked"), "parked", ""),
        (mount(told=False, untold_because="no inotify"), "degraded", "no inotify"),
        ({**mount(told=False), "cache": False}, "connected", ""),
        (mount(state="closed"), "degraded", "log"),
    ],
)
def test_states_and_their_reasons(given: dict[str, Any], state: str, word: str) -> None:
    (row,) = rows([given]).values()
    assert row["state"] == state
    assert word in row["reason"] if word else row["reason"] == ""


def test_how_long_a_mount_has_waited_of_how_long_it_may() -> None:
    (row,) = rows([mount(state="reconnecting", since=105.0)]).values()
    assert (row["waited_s"], row["deadline_s"]) == (5, 60.0)


def test_everybody_is_shown_what_is_his() -> None:
    ben = {**SESSION, "principal": "ben"}
    sessions = {"5e55": {**SESSION, "principal": "ann"}, "5e56": ben}
    assert rows([mount()], sessions, viewer=Viewer("ann")).keys() == {"abc"}
    assert rows([mount()], sessions, viewer=Viewer("ben")).keys() == {"5e56"}
    assert rows([mount()], {}, viewer=Viewer("ben"), owners={"abc": "ann"}) == {}
    assert rows([mount()], {}, viewer=Viewer("ann"), owners={"abc": "ann"}).keys() == {"abc"}
    assert rows([mount()], {}, viewer=Viewer("ben")) == {}  # nobody knows whose it is


def test_a_round_trip_that_is_about_the_same_is_no_news() -> None:
    before = {"mounts": rows([mount(rtt_ms=20.0)])}
    (row,) = rows([mount(rtt_ms=22.0)], before=before).values()
    assert row["rtt_ms"] == 20.0
    (row,) = rows([mount(rtt_ms=40.0)], before=before).values()
    assert row["rtt_ms"] == 40.0


def test_time_alone_is_no_news() -> None:
    engine = {"state": "running", "pid": 7, "restarts": 0, "error": None, "uptime_s": 3.0}
    first = build(Snapshot(1.0, engine), {"mounts"}, Viewer(None), PLACE, {})
    again = build(Snapshot(2.0, {**engine, "uptime_s": 4.0}), {"mounts"}, Viewer(None), PLACE, first)
    assert diff(first, again) == {}
    renewed = build(
        Snapshot(3.0, {**engine, "pid": 8, "uptime_s": 0.1}), {"mounts"}, Viewer(None), PLACE, first
    )
    assert diff(first, renewed) == {"engine": {"pid": 8, "uptime_s": 0.1}}


# --- figures ---------------------------------------------------------------------------------------------------

_ROW = {
    "count": 4, "errors": 1, "total_us": 8.0, "mean_us": 2.0, "min_us": 1.0, "max_us": 5.0, "p50_us": 2.0,
    "p95_us": 5.0, "p99_us": 5.0, "disk_us": 1.0, "limit_us": 0.0, "bytes": 10,
}  # fmt: skip
_LIMITED = {"limit": 100.0, "waiting": 1, "allowed": 5, "delayed": 2, "refused": 1, "waited": 1.5}


def _panel() -> dict[str, Any]:
    slow = {"time": 1.0, "operation": "Read", "path": "secret", "total_us": 2e6}
    tenant = {
        "root": "/home/ann", "hide": False, "operations": {"Read": _ROW},
        "slow": [slow, {**slow, "total_us": 3e6}],
        "limits": {"read": _LIMITED, "handles": {"limit": None, "used": 3, "refused": 0}},
        "quota": {"limit": 1000, "used": 10, "refused": 0}, "sessions": {"limit": None, "used": 1},
        "audit": {"state": "failing", "error": "disk full", "entries": 12, "stream": 0, "lost": 0},
    }  # fmt: skip
    throttled = {
        **SESSION,
        "throttled": {"counter": "read", "until_s": 2.0},
        "operations": {"Read": [4, 1, 8000, 0, 0, 10]},
    }
    limited = {**SESSION, "limits": {"write": {**_LIMITED, "limit": 5.0}}}
    return {"sessions": {"5e55": throttled, "5e56": limited}, "tenants": {"default": tenant}, "count": 2}


def _build(views: set[str], viewer: Viewer | None = None, **more: Any) -> dict[str, Any]:
    snapshot = Snapshot(1.0, {"state": "running"}, _panel(), **more)
    return build(snapshot, views, viewer or Viewer(None), PLACE, {})


def test_profiles_of_server_and_mounts() -> None:
    found = _build({"profile"}, rates={("tenant", "default"): 12, ("mount", "5e55"): 3})["profile"]
    assert found["server"]["rate"] == 12
    assert found["server"]["operations"]["Read"]["p95_us"] == 5.0
    assert [row["duration_us"] for row in found["server"]["slow"]] == [3e6, 2e6]
    assert found["5e55"]["rate"] == 3
    assert found["5e55"]["operations"]["Read"] == {"count": 4, "errors": 1, "mean_us": 2.0, "bytes": 10}


def test_a_mounts_own_figures_come_first() -> None:
    here = mount()
    operation = {
        "count": 2, "errors": 0, "seconds": 1.0, "mean": 0.5, "min": 0.1, "max": 0.9, "p50": 0.5, "p95": 0.9,
        "p99": 0.9, "bytes": 3, "cache_hits": 1, "asked": 1, "waited": 0.4,
    }  # fmt: skip
    slow = [{"time": 1.0, "operation": "read", "path": "x", "seconds": 1.25, "failed": False}]
    here["daemon"]["figures"]["profile"] = {"operations": {"read": operation}, "slow": slow}
    found = _build({"profile"}, mounts=[here])["profile"]["abc"]
    assert found["operations"]["read"]["p50_us"] == 500_000
    assert found["operations"]["read"]["hit_rate"] == 0.5
    assert found["slow"] == [{"time": 1.0, "operation": "read", "path": "x", "duration_us": 1_250_000}]


def test_other_peoples_paths_are_not_shown() -> None:
    found = _build({"profile"}, Viewer(""))["profile"]
    assert found["server"]["slow"] == []
    assert _build({"profile", "limits"}, Viewer("eve"))["profile"] == {}
    assert _build({"profile", "limits"}, Viewer("eve"))["limits"] == {}


def test_limits_and_who_is_held_back() -> None:
    found = _build({"limits"}, rates={("limit", "", "default", "read"): 90, ("limit", "5e56", "write"): 4})[
        "limits"
    ]
    counters = found["default"]["counters"]
    assert counters["read"] == {
        "used": 90, "limit": 100.0, "unit": "operations/s", "delayed": 2, "refused": 1, "waited_s": 1.5
    }  # fmt: skip
    assert "limit" not in counters["handles"]
    assert counters["quota"]["used"] == 10
    assert (counters["each mount: write"]["used"], counters["each mount: write"]["limit"]) == (4, 5.0)
    assert found["default"]["throttled"] == {"vm:/mnt/x": {"counter": "read", "until_s": 2.0}}


def test_the_audit_says_what_is_wrong_with_it() -> None:
    assert _build({"audit"})["audit"] == {"entries": 12, "failed": "disk full", "streams": 1}
    assert "audit" not in _build({"audit"}, Viewer(None, audit=False))


def test_what_is_counted_is_named_by_mount_tenant_and_limit() -> None:
    found = counters(_panel(), [mount()])
    assert found["mount", "abc"] == 9
    assert found["tenant", "default"] == 4
    assert found["limit", "", "default", "read"] == 7
    assert found["limit", "5e56", "write"] == 7


# --- changes ---------------------------------------------------------------------------------------------------


def _folders(
    changed: Any, viewer: Viewer | None = None, *, root: str = "/home/ann", hide: bool = False
) -> Any:
    panel = _panel()
    panel["tenants"]["default"].update(root=root, hide=hide)
    panel["changed"] = {"default": changed}
    return changed_folders(panel, viewer or Viewer(None), PLACE)


def test_changed_folders_are_those_of_the_file_browser() -> None:
    assert _folders(["", "a/b"]) == ["", "a/b"]
    assert _folders(["ann/x", "ben"], root="/home") == ["x"]
    assert _folders([""], root="/home/ann/data") == ["data"]
    assert _folders([""], root="/srv") == []
    assert _folders(None) is None
    assert _folders(["../../etc"]) == []


def test_changes_are_told_to_whom_they_concern() -> None:
    assert _folders(["a"], Viewer("")) == ["a"]
    assert _folders(["a"], Viewer("eve")) == []
    assert _folders(["a"], Viewer(""), hide=True) == []  # there may be names that he must not see
