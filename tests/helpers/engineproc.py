"""A real engine process, and tickets for it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from jupyter_wsfuse.protocol.tickets import TicketIssuer, bearer

AUDIENCE = "engine-under-test"


class EngineProcess:
    """``python -m jupyter_wsfuse.engine.main`` serving *root* as tenant "default"."""

    def __init__(self, root: Path, state_dir: Path, *, secret: bytes | None = None, **options: Any) -> None:
        self.root = root
        self.state_dir = state_dir
        self.secret = secret or secrets.token_bytes(32)
        self.options = options
        self.log = ""
        self.events: list[dict[str, Any]] = []
        self.port = self.epoch = 0
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start, or start again after the end, with the same configuration and state."""
        tenants = self.options.get("tenants") or {"default": {"root": str(self.root)}}
        if "tenants_file" in self.options:
            tenants = {}
        config = {
            "secret": self.secret.hex(), "audience": AUDIENCE, "state_dir": str(self.state_dir),
            **self.options, "tenants": tenants,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyter_wsfuse.engine.main"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(config).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self._ended()
            raise RuntimeError(self.log)
        said = json.loads(line)
        assert said["pid"] == self.process.pid
        self.port, self.epoch = said["port"], said["epoch"]

    def _read_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log += line.decode("utf-8", "replace")

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    def issuer(self, audience: str = AUDIENCE, secret: bytes | None = None) -> TicketIssuer:
        return TicketIssuer(secret or self.secret, audience)

    def ticket(
        self,
        tenant: str = "default",
        principal: str = "ann",
        rights: tuple[str, ...] = ("read", "write"),
        ttl: float = 30,
        **more: Any,
    ) -> str:
        return self.issuer().issue(tenant, principal, rights, ttl, **more)

    def command(self, op: str, **arguments: Any) -> Any:
        """What the control line answers; events that come before it are kept in :attr:`events`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": 1, "op": op, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        while "event" in (said := self._said()):
            self.events.append(said)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["result"]

    def event(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The next event of that *kind*, and with what is *wanted* in it."""
        while True:
            for event in self.events:
                if event["event"] == kind and wanted.items() <= event.items():
                    self.events.remove(event)
                    return event
            self.events.append(self._said())

    def _said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def get(self, path: str = "status", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Plain HTTP; with no *headers* the right authorization."""
        if headers is None:
            headers = {"Authorization": f"Bearer {bearer(self.secret, 'status')}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()

    def status(self) -> dict[str, Any]:
        code, body = self.get()
        assert code == 200
        result: dict[str, Any] = json.loads(body)
        return result

    def kill(self) -> None:
        """kill -9, as a crash would be."""
        os.kill(self.process.pid, signal.SIGKILL)
        self._ended()

    def stop(self, *, by_signal: bool = False) -> int:
        """End it properly; returns the exit code."""
        if self.process.poll() is None:
            if by_signal:
                self.process.terminate()
            assert self.process.stdin is not None
            if not by_signal:
                self.process.stdin.close()
        return self._ended()

    def _ended(self) -> int:
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()  # one that hangs would go on for ever
            raise
        self._reader.join(timeout=30)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code
