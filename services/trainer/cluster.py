"""The edge to Ray: submissions by id, over the REST form of Ray's Jobs API."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol

import httpx

from tlm_core.errors import ClusterUnavailable


class Status(StrEnum):
    """What the cluster says of a submission. It is an observation; the artifacts decide whether a stage is done."""

    UNKNOWN = "unknown"
    WAITING = "waiting"  # for room on the cluster; nothing of it runs yet
    ALIVE = "alive"
    ENDED = "ended"
    FAILED = "failed"


class Cluster(Protocol):
    """Runs commands under ids. Every call may raise ClusterUnavailable."""

    def submit(self, submission: str, command: Sequence[str], *, cpus: float = 0.0, gpus: float = 0.0) -> None:
        """Start `command` under the id where that much is free; if the id is known already, leave it as it is."""
        ...

    def status(self, submission: str) -> Status: ...

    def stop(self, submission: str) -> None:
        """Ask the submission to end; unknown and ended ones are no error."""
        ...

    def message(self, submission: str) -> str:
        """Why the submission ended, as the cluster tells it, and the last lines it printed, if they can be read."""
        ...


_STATUS = {
    "PENDING": Status.WAITING,
    "RUNNING": Status.ALIVE,
    "SUCCEEDED": Status.ENDED,
    "STOPPED": Status.FAILED,
    "FAILED": Status.FAILED,
}


class RayCluster:
    """Ray's job server. http: a client with its address, its token and a timeout."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submit(self, submission: str, command: Sequence[str], *, cpus: float = 0.0, gpus: float = 0.0) -> None:
        if self.status(submission) is not Status.UNKNOWN:
            return
        body: dict[str, Any] = {"submission_id": submission, "entrypoint": shlex.join(command)}
        body |= {"entrypoint_num_cpus": cpus} if cpus else {}
        body |= {"entrypoint_num_gpus": gpus} if gpus else {}
        answer = self._call("POST", "/api/jobs/", json=body)
        # Ray answers 400 or 500 for an id that is taken; another coordinator may have been first.
        if answer.is_error and self.status(submission) is Status.UNKNOWN:
            raise ClusterUnavailable(f"Ray did not take the submission: {_last_line(answer)}")

    def status(self, submission: str) -> Status:
        answer = self._call("GET", f"/api/jobs/{submission}")
        if answer.status_code == 404:
            return Status.UNKNOWN
        status = _STATUS.get(str(self._body(answer).get("status")))
        if status is None:
            raise ClusterUnavailable("Ray's answer is not understood; run the same release of Ray everywhere")
        return status

    def stop(self, submission: str) -> None:
        answer = self._call("POST", f"/api/jobs/{submission}/stop")
        if answer.status_code != 404:
            self._body(answer)

    def message(self, submission: str) -> str:
        answer = self._call("GET", f"/api/jobs/{submission}")
        if answer.status_code == 404:
            return "the cluster does not know the submission"
        why = self._body(answer).get("message") or ""
        try:
            logs = self._body(self._call("GET", f"/api/jobs/{submission}/logs")).get("logs") or ""
        except ClusterUnavailable as error:
            # They lie on the machine where it ran, which may be just what was lost: no reason to wait for it.
            logs = f"what it printed cannot be read: {error}"
        return "\n".join([why, *logs.splitlines()[-15:]]).strip()

    def _call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise ClusterUnavailable(f"Ray's job server does not answer: {error or type(error).__name__}") from error
        if answer.status_code in (401, 403):
            raise ClusterUnavailable("Ray refuses the token; set the same RAY_AUTH_TOKEN for the head and the trainer")
        return answer

    @staticmethod
    def _body(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise ClusterUnavailable(f"Ray's job server answered {answer.status_code}: {_last_line(answer)}")
        try:
            body: dict[str, Any] = answer.json()
        except ValueError as error:
            raise ClusterUnavailable("Ray's answer is not understood; is another server at its address?") from error
        return body


def connect_cluster(url: str, *, timeout: float = 10.0) -> RayCluster:
    """The job server at `url`; the token is read from RAY_AUTH_TOKEN, where Ray itself looks for it."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return RayCluster(httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False))


def _last_line(answer: httpx.Response) -> str:
    return (answer.text.strip().splitlines() or ["no reason given"])[-1][:300]
