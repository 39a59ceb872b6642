"""A cluster of real processes behind the interface of Ray's job server, which the real coordinator calls."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.process import BaseProcess
from typing import Protocol


class HasPid(Protocol):
    @property
    def pid(self) -> int | None: ...


def send(process: HasPid, number: signal.Signals) -> bool:
    """Send the signal `number` to the process group of `process`. Return whether it exists."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, number)
        return True
    return False


@dataclass
class Submission:
    """A program that was started. lost: simulates a lost node, so that the server reports FAILED even if it runs."""

    entrypoint: str
    process: BaseProcess
    lost: bool = False

    @property
    def status(self) -> str:
        if self.lost:
            return "FAILED"
        return {None: "RUNNING", 0: "SUCCEEDED"}.get(self.process.exitcode, "FAILED")

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.entrypoint)[3:]


class JobServer:
    """Serves Ray's Jobs API on a port. start: starts a worker with the arguments of a submission."""

    def __init__(self, start: Callable[[list[str]], BaseProcess]) -> None:
        self.submissions: dict[str, Submission] = {}
        self._start, self._lock = start, threading.Lock()
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def running(self) -> list[Submission]:
        return [run for run in list(self.submissions.values()) if run.status == "RUNNING"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for run in self.submissions.values():
            send(run.process, signal.SIGKILL)

    def answer(self, method: str, path: str, body: dict[str, str]) -> object:
        """Return the body of the response to a request, or None for 404."""
        if path == "/api/version":
            return {}
        if path.startswith("/api/v0/nodes"):
            return {"data": {"result": {"result": [{"state": "ALIVE", "resources_total": {"CPU": 8.0}}]}}}
        name, _, verb = path.removeprefix("/api/jobs/").partition("/")
        with self._lock:
            if not name:
                return self._submit(body) if method == "POST" else [self._view(known) for known in self.submissions]
            if (run := self.submissions.get(name)) is None:
                return None
            if verb == "stop" and run.status == "RUNNING":
                send(run.process, signal.SIGKILL)
            if method == "DELETE" and run.status != "RUNNING" and not run.process.is_alive():
                del self.submissions[name]
                return {}
        return {"logs": ""} if verb == "logs" else self._view(name)

    def _submit(self, body: dict[str, str]) -> dict[str, object]:
        name, entrypoint = body["submission_id"], body["entrypoint"]
        if name not in self.submissions:
            self.submissions[name] = Submission(entrypoint, self._start(shlex.split(entrypoint)[3:]))
        return self._view(name)

    def _view(self, name: str) -> dict[str, object]:
        run = self.submissions[name]
        code = run.process.exitcode
        return {"submission_id": name, "entrypoint": run.entrypoint, "status": run.status, "driver_exit_code": code}


class _Handler(BaseHTTPRequestHandler):
    cluster: JobServer

    def _handle(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        answer = self.cluster.answer(self.command, self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _handle

    def log_message(self, *_: object) -> None: ...
