"""A fake cluster, a fake retriever, and small stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from services.common.jobstore import JobStore
from services.common.retriever_client import SelectionRun
from services.trainer.assignment import Assignment
from services.trainer.cluster import RayCluster, Status, Submitted
from services.trainer.selections import Selections
from services.trainer.worker import GroupRunner
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import ClusterUnavailable, WorkerLost
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.stage import Stage, StageContext, StageFunction, StageParams, StopRequested


class FakeCluster(RayCluster):
    """Records submissions. A test sets their status."""

    def __init__(self) -> None:
        self.commands: dict[str, Sequence[str]] = {}
        self.needs: dict[str, float] = {}
        self.stopped: list[str] = []
        self.statuses: dict[str, Status] = {}
        self.ended_at: dict[str, float] = {}
        self.away = False
        self.offered_gpus = 0.0
        self.refusing = False
        self.lost: set[str] = set()  # Waiting submissions that never start.
        self.released: list[str] = []

    def _check(self) -> None:
        if self.away:
            raise ClusterUnavailable("away")

    def submit(self, submission: str, command: Sequence[str], *, cpus: float = 0.0) -> None:
        self._check()
        if self.refusing:
            raise ClusterUnavailable("not ready to take jobs")
        if submission not in self.commands:
            self.commands[submission] = command
            self.needs[submission] = cpus
            self.statuses[submission] = Status.RUNNING

    def answers(self) -> bool:
        return not self.away

    def submissions(self) -> list[Submitted]:
        self._check()
        assigned = {submission: self.assignment(submission) for submission in self.commands}
        return [
            Submitted(name, self.statuses[name], a.tenant, a.job, a.attempt, self.ended_at.get(name))
            for name, a in assigned.items()
        ]

    def gpus(self) -> float:
        self._check()
        return self.offered_gpus

    def delete(self, submission: str) -> None:
        self._check()
        assert self.statuses[submission] in (Status.ENDED, Status.FAILED), "Ray deletes ended submissions only"
        del self.commands[submission]

    def status(self, submission: str) -> Status:
        self._check()
        return self.statuses.get(submission, Status.UNKNOWN)

    def is_lost(self, submission: str) -> bool:
        self._check()
        return submission in self.lost

    def release(self, submission: str) -> None:
        self._check()
        self.released.append(submission)

    def stop(self, submission: str) -> None:
        self._check()
        self.stopped.append(submission)
        if self.statuses.get(submission) is not Status.WAITING:  # as in Ray, which stops it at its start
            self.statuses[submission] = Status.FAILED

    def ending(self, submission: str) -> WorkerLost:
        self._check()
        return WorkerLost("Worker was killed (SIGKILL, often out of memory).", details=f"{submission} ended")

    def assignment(self, submission: str) -> Assignment:
        return Assignment.read(list(self.commands[submission])[3:])


def folder_artifact(artifacts: ArtifactStore, scratch: Path, folder: str, artifact: str, stage: str) -> ManifestRef:
    """Write an artifact with one file that names its stage."""
    work = scratch / f"made-{folder.replace('/', '-')}"
    work.mkdir(parents=True)
    (work / "made.json").write_text(json.dumps({"artifact": artifact, "stage": stage}))
    return artifacts.write(folder, work, artifact=artifact, stage=stage)


class FakeSelections(Selections):
    """Returns the states that a test sets. By default, a selection is ready at the second request."""

    def __init__(self, artifacts: ArtifactStore, scratch: Path) -> None:
        self._artifacts = artifacts
        self._scratch = scratch
        self.requests = 0
        self.stopped: list[str] = []
        self.running = False  # whether a stopped selection still runs
        self.answer: Callable[[JobRecord], SelectionRun | None] = lambda _: None

    def request(
        self,
        job: JobRecord,
        node: Node,
        artifact: str,
        *,
        task: ManifestRef,  # noqa: ARG002
        check_owner: Callable[[], None],  # noqa: ARG002
    ) -> SelectionRun:
        self.requests += 1
        if (answer := self.answer(job)) is not None:
            return answer
        if self.requests == 1:
            return SelectionRun(state="running", done=1, total=2)
        folder = f"{job.tenant}/artifacts/{artifact}/{job.id}-{self.requests}"
        return SelectionRun(
            state="ready", ref=folder_artifact(self._artifacts, self._scratch, folder, artifact, node.stage.name)
        )

    def stop(self, job: JobRecord, artifact: str) -> bool:  # noqa: ARG002
        self.stopped.append(artifact)
        return not self.running


def plain_stage(ctx: StageContext[StageParams]) -> Mapping[str, Any]:
    """Write the names of the inputs and the parameters."""
    (ctx.out / "seen.json").write_text(
        json.dumps({"inputs": sorted(ctx.inputs), "params": ctx.params.model_dump(mode="json")}, sort_keys=True)
    )
    return {"inputs": len(ctx.inputs)}


def _write_step(step: int, folder: Path) -> None:
    (folder / "step").write_text(str(step))


def counting_stage(steps: int, on_step: Callable[[int], None] = lambda _: None) -> Callable[..., Mapping[str, Any]]:
    """Return a stage that counts to `steps`, saves a checkpoint at each step, and continues from the last one."""

    def stage(ctx: StageContext[StageParams]) -> Mapping[str, Any]:
        checkpoint = ctx.checkpoints.latest()
        start = int((checkpoint / "step").read_text()) if checkpoint else 0
        ctx.report.event("stage.started_at", step=start)
        for step in range(start + 1, steps + 1):
            on_step(step)
            ctx.checkpoints.save(partial(_write_step, step), step=step, metrics={})
            ctx.report.metrics(step=step, loss=1 / step)
            if not ctx.report.progress(step=step, total=steps, rate=None, unit="steps", eta_seconds=None):
                raise StopRequested("stop requested")
        (ctx.out / "counted").write_text(str(steps))
        return {"steps": steps}

    return stage


def all_stages(**over: Any) -> Callable[[Stage], StageFunction]:
    """Load `plain_stage` for every stage but those in `over`."""
    return lambda stage: over.get(stage.name, plain_stage)


def run_group(
    store: JobStore,
    artifacts: ArtifactStore,
    scratch: Path,
    assignment: Assignment,
    load: Callable[[Stage], StageFunction],
) -> None:
    GroupRunner(store, artifacts, scratch, load).run(assignment)
