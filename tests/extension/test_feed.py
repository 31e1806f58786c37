"""The feed of a real server: what a page is told of real mounts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import live
from tests.helpers.feed import Page, page

pytestmark = [pytest.mark.jupyter, pytest.mark.mount]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Live]:
    home = tmp_path_factory.mktemp("feed")
    with live.start_server(home / "workspace", home / "home") as running:
        yield running


@pytest.fixture(scope="module")
def mounted(server: live.Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Mount]:
    with live.mount(server, tmp_path_factory.mktemp("mounts") / "m") as found:
        yield found


def test_both_sides_agree_on_a_version(server: live.Live) -> None:
    with page(server) as opened:
        assert opened.hello["feed"] == 1
        assert opened.hello["may"] == {"act": True, "audit": True}
        assert opened.hello["fuse"] == {"available": True, "reason": "", "advice": ""}
        assert opened.hello["root"] == str(server.root)
    with page(server, versions=(7, 1)) as opened:
        assert opened.hello["feed"] == 1
    with page(server, versions=(2,)) as opened:
        opened.until(lambda page: page.code, "the connection is closed")
        assert opened.code == 4406
        assert opened.messages[-1]["type"] == "mismatch"
        assert opened.messages[-1]["feed"] == [1]


@pytest.mark.parametrize(
    "said",
    ["", "[]", "{}", '{"type": 1}', '{"type": "watch", "views": 3}', '{"type": "hello"}', "[" * 40_000],
)
def test_what_is_not_of_the_feed_closes_it(server: live.Live, said: str) -> None:
    with page(server) as opened:
        if said == '{"type": "hello"}':
            opened.say('{"type": "from a newer page"}')
            opened.say(said)  # both are ignored: the greeting is over
            opened.watch("mounts")
            opened.until(lambda page: page.state, "the state is told")
        elif said in ('{"type": 1}',):
            opened.say(said)
            opened.watch("mounts")
            opened.until(lambda page: page.state, "the state is told")
        else:
            opened.say(said)
            opened.until(lambda page: page.code, "the connection is closed")
            assert opened.code == 1008


def test_a_mount_comes_and_goes(server: live.Live, tmp_path: Path) -> None:
    with page(server, "mounts") as opened:
        with live.mount(server, tmp_path / "m") as mounted:
            row = opened.until(
                lambda page: (row := page.mount_at(mounted.path)) and row["state"] == "connected" and row,
                "the mount is shown",
            )
            assert row["local"]
            assert row["managed"]
            assert row["transport"] == "direct"
            assert row["unsynced"] == 0
        opened.until(lambda page: not page.mount_at(mounted.path), "it is not shown any more")


def test_each_view_shows_what_happens(server: live.Live, mounted: live.Mount) -> None:
    with page(server, "mounts", "profile", "limits", "audit") as opened:
        row = opened.until(lambda page: page.mount_at(mounted.path), "the mount is shown")
        (mounted.path / "seen").mkdir()
        (mounted.path / "seen" / "file").write_text("text")
        opened.until(
            lambda page: page.mount_at(mounted.path)["operations"] > row["operations"],
            "operations are counted",
        )
        for scope in ("server", row["id"]):
            name = "MkDir" if scope == "server" else "mkdir"
            opened.until(
                lambda page, scope=scope, name=name: name in page.state["profile"][scope]["operations"],
                f"the profile of {scope} shows it",
            )
        opened.until(
            lambda page: [
                entry
                for message in page.of("audit")
                for entry in message["entries"]
                if entry["operation"] == "MkDir" and entry["path"] == "seen"
            ],
            "the audit shows it",
        )
        opened.until(
            lambda page: (
                {"", "seen"} <= {path for message in page.of("changed") for path in message["paths"]}
            ),
            "the file browser is told where",
        )
        with open(mounted.path / "seen" / "file"):
            opened.until(
                lambda page: page.state["limits"]["default"]["counters"]["handles"]["used"] > 0,
                "an open file counts",
            )


def test_changes_behind_a_mount_are_told(server: live.Live, mounted: live.Mount) -> None:
    list(mounted.path.iterdir())  # the mount knows the folder, so it is watched
    with page(server, "mounts") as opened:
        opened.until(lambda page: page.state, "the state is told")
        (server.root / "behind").write_text("x")
        opened.until(
            lambda page: any("" in message["paths"] for message in page.of("changed")), "the change is told"
        )


def test_a_hidden_page_is_told_nothing(server: live.Live, mounted: live.Mount) -> None:
    with page(server, "mounts") as hidden, page(server, "mounts") as shown:
        for opened in (hidden, shown):
            opened.until(lambda page: page.mount_at(mounted.path), "the mount is shown")
        hidden.watch()
        before = len(hidden.messages)
        was = shown.mount_at(mounted.path)["operations"]
        for number in range(5):
            (mounted.path / f"hidden{number}").write_text("x")
        shown.until(
            lambda page: page.mount_at(mounted.path)["operations"] > was + 5, "the other page is told"
        )
        assert [message for message in hidden.messages[before:] if message["type"] != "state"] == []
        hidden.watch("mounts")
        hidden.until(
            lambda page: (
                page.mount_at(mounted.path)["operations"] >= shown.mount_at(mounted.path)["operations"]
            ),
            "it is told what it missed",
        )


def test_nothing_is_said_while_nothing_changes(server: live.Live, mounted: live.Mount) -> None:
    with page(server, "mounts") as quiet:
        quiet.until(lambda page: page.mount_at(mounted.path), "the mount is shown")
        before = quiet.messages[-1]
        with page(server, "mounts", "profile") as other:
            # The collector looks for both: when this one has seen rates come to rest, the other had nothing to hear.
            other.until(
                lambda page: all(
                    row["rate"] == 0 for row in page.state.get("profile", {"": {"rate": 1}}).values()
                ),
                "all is quiet",
            )
        after = quiet.messages[quiet.messages.index(before) + 1 :]
        assert all(message["type"] == "delta" and message["patch"] for message in after)
        assert len(after) <= 2  # what was under way when it came to rest


def test_the_whole_state_is_sent_again_on_demand(server: live.Live, mounted: live.Mount) -> None:
    with page(server, "mounts") as opened:
        opened.until(lambda page: page.mount_at(mounted.path), "the mount is shown")
        seq = opened.seq
        opened.say({"type": "resync"})
        opened.until(lambda page: len(page.of("state")) == 2, "the state is sent again")
        assert opened.of("state")[-1]["seq"] > seq
        assert opened.mount_at(mounted.path)


def test_the_tail_of_the_audit_log_follows_its_filter(server: live.Live, mounted: live.Mount) -> None:
    (mounted.path / "old.csv").write_text("x")
    with page(server, "audit") as opened:  # it is written down in a moment
        opened.until(lambda page: "old.csv" in _paths(page), "the record has it")
    with page(server) as opened:
        opened.watch("audit", path="*.csv", operation="Create")
        first = opened.until(lambda page: page.of("audit"), "the latest entries are told")[0]
        assert first["reset"]
        assert [entry["path"] for entry in first["entries"]] == ["old.csv"]
        (mounted.path / "new.txt").write_text("x")
        (mounted.path / "new.csv").write_text("x")
        message = opened.until(lambda page: page.of("audit")[1:], "a new one follows")[0]
        assert [entry["path"] for entry in message["entries"]] == ["new.csv"]
        assert "reset" not in message
        opened.watch("audit", path="*.txt")
        again = opened.until(lambda page: page.of("audit")[2:], "another filter begins anew")[0]
        assert again["reset"]
        assert {entry["path"] for entry in again["entries"]} == {"new.txt"}


def _paths(page: Page) -> list[str]:
    return [entry.get("path") for message in page.of("audit") for entry in message["entries"]]


def test_an_engine_that_dies_is_told_and_its_recovery(tmp_path: Path) -> None:
    with live.start_server(tmp_path / "workspace", tmp_path / "home") as server:
        with live.mount(server, tmp_path / "m") as mounted, page(server, "mounts") as opened:
            opened.until(
                lambda page: (page.mount_at(mounted.path) or {}).get("state") == "connected", "it is mounted"
            )
            pid = server.kill_engine()
            mounted.expect_log(".")
            opened.until(
                lambda page: (
                    page.state["engine"]["restarts"] == 1
                    and page.state["engine"]["state"] == "running"
                    and page.state["engine"]["pid"] != pid
                ),
                "another engine runs",
            )
            opened.until(
                lambda page: page.mount_at(mounted.path)["state"] == "connected", "the mount is back"
            )


def test_an_engine_that_hangs_is_told_and_holds_nothing_up(tmp_path: Path) -> None:
    with live.start_server(tmp_path / "workspace", tmp_path / "home") as server:
        run = tmp_path / "run"
        run.mkdir(mode=0o700)
        elsewhere = {**server.env, "WSFUSE_RUNTIME_DIR": str(run)}
        with (
            live.mount(server, tmp_path / "here", "--deadline", "2") as here,
            live.mount(server, tmp_path / "there", "--deadline", "2", env=elsewhere) as there,
            page(server, "mounts") as opened,
        ):
            for mounted in (here, there):
                mounted.expect_log(".")
                opened.until(lambda page, mounted=mounted: page.mount_at(mounted.path), "both are shown")
            server.expect_log("did not answer", "engine")
            pid = server.engine_pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                row = opened.until(
                    lambda page: (
                        (row := page.mount_at(there.path)) and row["state"] == "reconnecting" and row
                    ),
                    "the one elsewhere is shown as what is known of it",
                )
                assert "engine" in row["reason"]
                row = opened.until(
                    lambda page: (row := page.mount_at(here.path)) and row["state"] == "reconnecting" and row,
                    "the one here says itself that it waits",
                )
                assert row["deadline_s"] == 2
                assert row["reason"]
                row = opened.until(
                    lambda page: (row := page.mount_at(here.path)) and row["state"] == "disconnected" and row,
                    "it has waited for too long",
                )
                assert row["waited_s"] >= 2
            finally:
                os.kill(pid, signal.SIGCONT)
            for mounted in (here, there):
                opened.until(
                    lambda page, mounted=mounted: (
                        (page.mount_at(mounted.path) or {}).get("state") == "connected"
                    ),
                    "they are back",
                )


def test_a_mount_elsewhere_reports_its_figures(server: live.Live, tmp_path: Path) -> None:
    run = tmp_path / "run"  # where the server's steward does not look
    run.mkdir(mode=0o700)
    env = {**server.env, "WSFUSE_RUNTIME_DIR": str(run)}
    with (
        live.mount(server, tmp_path / "m", "--transport", "relay", env=env) as mounted,
        page(server) as opened,
    ):
        opened.watch("mounts")
        row = opened.until(
            lambda page: (row := page.mount_at(mounted.path)) and "rtt_ms" in row and row, "it reports"
        )
        assert (row["local"], row["managed"], row["transport"]) == (False, False, "relay")
        assert row["rtt_ms"] > 0
        before = row["operations"]
        (mounted.path / "reported").mkdir()
        opened.until(
            lambda page: page.mount_at(mounted.path)["operations"] > before, "its operations are counted"
        )
        assert (row["unsynced"], row["rescue"]) == (0, {})


def test_a_mount_elsewhere_that_is_gone_is_shown_as_such(server: live.Live, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    with live.mount(server, tmp_path / "m", env={**server.env, "WSFUSE_RUNTIME_DIR": str(run)}) as mounted:
        with page(server, "mounts") as opened:
            opened.until(lambda page: page.mount_at(mounted.path), "it is shown")
            for pid in (mounted.supervisor_pid, *mounted.pids()):  # as if its machine had lost power
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            row = opened.until(
                lambda page: (row := page.mount_at(mounted.path)) and row["state"] == "disconnected" and row,
                "it is shown as disconnected",
            )
            assert "60 s" in row["reason"]
            assert (row["path"], row["managed"]) == (str(mounted.path), False)
            mounted.destroy()


def test_a_page_that_does_not_read_holds_up_nobody(server: live.Live, mounted: live.Mount) -> None:
    with page(server, "mounts") as watching, page(server, "mounts", "profile", "audit") as deaf:
        for opened in (watching, deaf):
            opened.until(lambda page: page.mount_at(mounted.path), "the mount is shown")
        deaf.deafen()
        start = watching.mount_at(mounted.path)["operations"]
        for number in range(200):
            (mounted.path / f"deaf{number % 20}").write_text("x")
        watching.until(
            lambda page: page.mount_at(mounted.path)["operations"] > start + 200, "the other page is told"
        )
        with page(server, "mounts") as fresh:
            fresh.until(lambda page: page.mount_at(mounted.path), "another one is served")
