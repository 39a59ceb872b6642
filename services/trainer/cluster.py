"""A client of Ray: submissions by id, over the REST interface of Ray's Jobs API."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import httpx

from services.common.logs import redacted
from tlm_core.errors import ClusterUnavailable, WorkerLost

PROGRAM = "services.trainer.program"
DRIVER = "driver"  # a resource of Ray's worker nodes in deploy/
# Kills the actor of a lost submission, which would wait forever for its start.
_RELEASE = (
    "import ray, sys; ray.init(); ray.kill(ray.get_actor(sys.argv[1], namespace='SUPERVISOR_ACTOR_RAY_NAMESPACE'))"
)
# Limits of the output in the details of an error.
_LINES, _CHARS = 15, 4000


class Status(StrEnum):
    """The status of a submission in Ray. Whether a stage is done depends on the artifacts alone."""

    UNKNOWN = "unknown"
    WAITING = "waiting"  # The submission waits for room on the cluster.
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


_STATUS = {
    "PENDING": Status.WAITING,
    "RUNNING": Status.RUNNING,
    "SUCCEEDED": Status.ENDED,
    "STOPPED": Status.FAILED,
    "FAILED": Status.FAILED,
}


@dataclass(frozen=True)
class Submitted:
    """A submission of this service that the cluster knows. ended_at: Unix seconds of the cluster's clock, or None."""

    id: str
    status: Status
    tenant: str
    job: str
    attempt: int
    ended_at: float | None = None


class RayCluster:
    """Ray's job server. Every call may raise ClusterUnavailable. http: a client with the address, token and timeout."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submit(self, submission: str, command: Sequence[str], *, cpus: float = 0.0) -> None:
        """Start `command` on a machine with `cpus` free CPUs. Has no effect if the id `submission` exists.

        A command with 0 CPUs is a driver. A driver runs on a machine with the resource `driver`, if there is one. Else
        it runs on Ray's head, where many drivers can exhaust the memory, and a restart of the head ends all drivers.
        """
        if self.status(submission) is not Status.UNKNOWN:
            return
        body: dict[str, object] = {"submission_id": submission, "entrypoint": shlex.join(command)}
        if cpus:
            body["entrypoint_num_cpus"] = cpus
        elif self._offered(DRIVER):
            body["entrypoint_resources"] = {DRIVER: 1}
        response = self._request("POST", "/api/jobs/", json=body)
        # For a known id, Ray returns 400 or 500. Another coordinator may have submitted it in the meantime.
        if response.is_error and self.status(submission) is Status.UNKNOWN:
            raise ClusterUnavailable(f"Ray rejected the submission: {_last_line(response)}. See Ray's log.")

    def answers(self) -> bool:
        """Return whether the job server can be reached."""
        try:
            self._json("GET", "/api/version")
        except ClusterUnavailable:
            return False
        return True

    def status(self, submission: str) -> Status:
        record = self._record(submission)
        if record is None:
            return Status.UNKNOWN
        status = _STATUS.get(record.get("status"))
        if status is None:
            raise ClusterUnavailable(
                f"Ray returned the unknown status '{record.get('status')}'. Install the same release of Ray for the "
                "trainer and on all machines of Ray."
            )
        return status

    def is_lost(self, submission: str) -> bool:
        """Return whether a submission waits forever, because Ray's head has restarted since it accepted the submission.

        Only the head that accepts a submission starts it. A new head shows the submission as waiting.
        """
        record = self._record(submission)
        if record is None:
            return False
        heads = [node["start_time_ms"] for node in self._nodes() if node["is_head_node"]]
        return bool(record["status"] == "PENDING" and heads and record["start_time"] < max(heads))

    def release(self, submission: str) -> None:
        """Start a Ray job that kills the actor of a lost submission, to free its CPUs. Then the submission fails.

        A lost submission without CPUs cannot be stopped. It fails when Ray's time limit for starts ends.
        """
        name = f"{submission}.release"
        if self.status(name) is Status.UNKNOWN:
            command = ["python", "-c", _RELEASE, f"_ray_internal_job_actor_{submission}"]
            self._request("POST", "/api/jobs/", json={"submission_id": name, "entrypoint": shlex.join(command)})

    def submissions(self) -> list[Submitted]:
        """Return the submissions of this service that the cluster knows."""
        known = []
        for entry in self._json("GET", "/api/jobs/"):
            try:
                command = shlex.split(str(entry["entrypoint"]))
                options = dict(pairwise(command))
                identity = options["--tenant"], options["--job"], int(options["--attempt"])
                ended_at = entry["end_time"] / 1000 if entry.get("end_time") else None
                submitted = Submitted(entry["submission_id"], _STATUS[entry["status"]], *identity, ended_at)
            except (KeyError, ValueError):
                continue  # The entry belongs to another program.
            if PROGRAM in command and submitted.id:  # Ray also lists drivers, which have no submission id.
                known.append(submitted)
        return known

    def gpus(self) -> float:
        """Return how many GPUs the machines of the cluster offer."""
        return self._offered("GPU")

    def _offered(self, resource: str) -> float:
        return sum(node["resources_total"].get(resource, 0.0) for node in self._nodes())

    def _nodes(self) -> list[Any]:
        """Return Ray's records of the machines that are alive. Ray calls a machine a node."""
        body = self._json("GET", "/api/v0/nodes?limit=10000&detail=1")
        return [node for node in body["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def delete(self, submission: str) -> None:
        """Delete Ray's records of an ended submission and of the Ray job of `release`. Ignores unknown records."""
        for name in (f"{submission}.release", submission):
            self._json("DELETE", f"/api/jobs/{name}", required=False)

    def stop(self, submission: str) -> None:
        """Stop the submission. Has no effect on an unknown or ended submission."""
        self._json("POST", f"/api/jobs/{submission}/stop", required=False)

    def ending(self, submission: str) -> WorkerLost:
        """Return the error that states how a submission without a result ended.

        The details of the error are the message of Ray and the last output of the submission, without secrets.
        """
        record = self._record(submission)
        if record is None:
            return WorkerLost("Worker was lost: Ray has no record of its submission.")
        message = record.get("message") or ""
        try:
            logs = self._json("GET", f"/api/jobs/{submission}/logs").get("logs") or ""
        except ClusterUnavailable as error:
            # The logs lie on the machine of the submission, which may be lost.
            logs = f"Cannot read the output of the submission: {error}"
        # The message repeats the output after its first line.
        details = "\n".join([*message.splitlines()[:1], *logs.splitlines()[-_LINES:]])
        return WorkerLost(_summary(record.get("driver_exit_code")), details=redacted(details)[-_CHARS:])

    def _request(self, method: str, path: str, json: dict[str, object] | None = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=json)
        except httpx.HTTPError as error:
            reason = f"Ray's job server does not answer: {error or type(error).__name__}."
            raise ClusterUnavailable(f"{reason} Check that Ray's head runs at TLM_TRAINER_RAY_URL.") from error
        if response.status_code in (401, 403):
            raise ClusterUnavailable("Ray rejects the token. Set the same RAY_AUTH_TOKEN for Ray and the trainer.")
        return response

    def _record(self, submission: str) -> Any:
        """Return Ray's record of a submission, or None for an unknown submission."""
        return self._json("GET", f"/api/jobs/{submission}", required=False)

    def _json(self, method: str, path: str, *, required: bool = True) -> Any:
        """Return the decoded JSON of the response, or None for an unknown submission (404) if `required` is False."""
        response = self._request(method, path)
        if response.status_code == 404 and not required:
            return None
        if response.is_error:
            raise ClusterUnavailable(
                f"Ray's job server returned {response.status_code}: {_last_line(response)}. See its log."
            )
        try:
            return response.json()
        except ValueError as error:
            raise ClusterUnavailable("Ray's response is not JSON. Check TLM_TRAINER_RAY_URL.") from error


def connect_cluster(url: str) -> RayCluster:
    """Return the job server at `url`. The token comes from RAY_AUTH_TOKEN, the variable that Ray itself reads."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return RayCluster(httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False))


def _summary(exit_code: object) -> str:
    """Return a sentence about how a worker ended. exit_code: -N and 128 + N mean signal N; None if unknown."""
    if not isinstance(exit_code, int):
        return "Worker was lost, often with its machine."
    number = -exit_code if exit_code < 0 else exit_code - 128
    if number == signal.SIGKILL:
        return "Worker was killed (SIGKILL, often out of memory)."
    if number in set(signal.Signals):
        return f"Worker was killed ({signal.Signals(number).name})."
    if exit_code:
        return f"Worker ended with exit code {exit_code}."
    return "Worker ended without a result. If the code of the service changed since its start, restart the service."


def _last_line(response: httpx.Response) -> str:
    return (response.text.strip().splitlines() or ["no reason given"])[-1][:300]
