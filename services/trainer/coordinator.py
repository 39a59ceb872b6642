"""The coordinator: drives claimed jobs to their end.

Level-triggered: each round looks at what is true (the record, the published artifacts, what the retriever and the
cluster say) and takes the next step. It keeps nothing that it could not find out again, so it may be killed at any
line and another one goes on; a step is safe to take twice.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from services.common.artifacts_of import artifact_id, published, take_back
from services.common.jobstore import JobStore
from services.common.logs import facts
from services.trainer.cluster import Cluster, Status
from services.trainer.selections import Selections
from services.trainer.settings import TrainerSettings
from services.trainer.submissions import AttemptEnded, Submissions, Watch, report_waiting
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import (
    CorruptArtifact,
    IllegalTransition,
    NotFound,
    RuntimeExceeded,
    StaleAttempt,
    TLMError,
    TrainingFailed,
    Unavailable,
    UnreadableRecord,
)
from tlm_core.jobs.plan import DROPPED, Node, Place, Plan, plan_of
from tlm_core.jobs.spec import JobRecord, Progress
from tlm_core.jobs.states import State

log = logging.getLogger(__name__)

# Runs a stage of the coordinator's own: (job, node, artifact id, input artifacts by name) → what was written.
LocalStage = Callable[[JobRecord, Node, str, Mapping[str, ManifestRef]], ManifestRef]


@dataclass
class _Held:
    """What this coordinator knows of a job it drives; all of it can be found out again."""

    tenant: str
    id: str
    local: dict[str, Future[ManifestRef]] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    waiting: str | None = None
    stop_since: float | None = None
    watch: Watch = field(default_factory=Watch)

    def begin_no_more(self) -> None:
        """Take back the job's own stages that still wait for a thread."""
        for future in self.local.values():
            future.cancel()


class Coordinator:
    """Claims jobs and reconciles them, until told to stop."""

    def __init__(
        self,
        store: JobStore,
        artifacts: ArtifactStore,
        selections: Selections,
        cluster: Cluster,
        settings: TrainerSettings,
        *,
        owner: str,
        local: LocalStage,
        executor: Executor,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._selections = selections
        self._cluster = cluster
        self._submissions = Submissions(store, cluster, settings)
        self._settings = settings
        self._owner = owner
        self._local = local
        self._executor = executor
        self._held: dict[str, _Held] = {}
        # When the round under way began, by the store's clock; and when the last one did before which workers may have
        # been unable to tell anything: the store took nothing, or this machine slept.
        self._now = self._deaf_until = -math.inf

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set. A store that is away or full ends no job; it is asked again in the next round."""
        while not stop.is_set():
            try:
                self.round()
            except Unavailable as error:
                log.warning("waiting: %s", error)
                self._now = -math.inf
            self._beat()
            stop.wait(self._settings.poll_seconds)

    def _beat(self) -> None:
        """Say that rounds go on; that it cannot be said ends no job."""
        try:
            self._settings.heartbeat.parent.mkdir(parents=True, exist_ok=True)
            self._settings.heartbeat.touch()
        except OSError as error:
            log.warning("the sign of life cannot be written: %s", error)

    def round(self) -> None:
        """One look at every job held, and a claim if there is room for another; to end a job there always is."""
        before, self._now = self._now, self._store.now()
        if self._now - before > self._settings.stall_seconds / 2:
            self._deaf_until = self._now
        for held in list(self._held.values()):
            self._step(held)
        while True:
            full = len(self._held) >= self._settings.concurrency
            try:
                job = self._store.claim(self._owner, self._settings.lease_seconds, stopping=full)
            except UnreadableRecord as error:  # its lease lapses, and a coordinator that can read it takes it
                log.error("a job is left to a coordinator of another release: %s", error)
                return
            if job is None:
                return
            log.info("claimed job %s, attempt %d", job.id, job.attempt)
            self._step(self._held.setdefault(job.id, _Held(job.tenant, job.id)))

    def _step(self, held: _Held) -> None:
        """A look at a job, and its next step. Raises what keeps every job from going on: Unavailable, of the store."""
        try:
            job = self._store.get(held.tenant, held.id)
            if job.owner != self._owner or not self._store.renew(job, self._owner, self._settings.lease_seconds):
                self._let_go(held)
                return
            with facts(job_id=job.id, attempt=job.attempt):
                self._look_after(job, held)
        except Unavailable:
            raise
        except IllegalTransition as error:
            log.info("job %s was paused or cancelled meanwhile, and is looked at again: %s", held.id, error)
        except TLMError as error:
            # Another coordinator has taken it over, it is over and deleted, or another release has written to it: what
            # there is left to do for it is another's.
            log.warning("job %s is let go: %s", held.id, error)
            self._let_go(held)

    def _let_go(self, held: _Held) -> None:
        held.begin_no_more()
        self._held.pop(held.id, None)

    def _look_after(self, job: JobRecord, held: _Held) -> None:
        """One step of a job, and what becomes of it when the step cannot be taken."""
        try:
            self._reconcile(job, held)
            held.waiting = None
        except (IllegalTransition, StaleAttempt):
            raise  # its state is not what it was: no fault of the job
        except Unavailable as error:
            self._wait(job, held, error)
        except AttemptEnded as ended:
            self._end_attempt(job, held, ended.error)
        except TLMError as error:
            self._end_attempt(job, held, error)
        except Exception as error:
            # A fault of our own in one job must not end the coordinator and with it every other job.
            log.exception("job %s cannot be driven on", job.id)
            self._end_attempt(job, held, TrainingFailed(f"internal fault: {type(error).__name__}: {error}"))

    def _reconcile(self, job: JobRecord, held: _Held) -> None:
        match job.state:
            case State.RUNNING:
                self._drive(job, held)
            case State.PAUSING:
                self._pause(job, held)
            case State.CANCELLING:
                self._cancel(job, held)
            case _:
                self._let_go(held)

    # --- running ------------------------------------------------------------------------------------------------

    def _drive(self, job: JobRecord, held: _Held) -> None:
        self._check_runtime(job)
        plan = plan_of(job)
        done = self._trusted(job, held, plan)
        if len(done) == len(plan.nodes):  # the last one does not need all the others
            self._finish(job, held, plan, done)
            return
        groups: set[str] = set()
        for node in plan.ready(done):
            match node.place:
                case Place.COORDINATOR:
                    self._run_here(job, held, node, done)
                case Place.RETRIEVER:
                    self._select(job, node, artifact_id(job, node, done), done)
                case Place.WORKERS:
                    groups.add(node.group)
        for group in sorted(groups):
            if plan.startable(group, done):
                self._submissions.look_after(job, held.watch, group, now=self._now, deaf_until=self._deaf_until)

    def _check_runtime(self, job: JobRecord) -> None:
        """End a job that has run longer than its submitter allows, with what runs of it."""
        limit = job.spec.max_runtime_seconds
        ran = job.ran_seconds + max(0.0, self._now - (job.running_since or self._now))
        if limit is None or ran < limit:
            return
        for submission in job.submissions.values():
            if self._cluster.status(submission) in (Status.WAITING, Status.ALIVE):
                self._cluster.stop(submission)
        raise RuntimeExceeded(
            f"the job has run {ran:.0f} s, longer than its max_runtime_seconds of {limit:g}; clone it with a higher "
            "limit, and it goes on from its last checkpoint"
        )

    def _trusted(self, job: JobRecord, held: _Held, plan: Plan) -> dict[str, ManifestRef]:
        """The published artifacts, each looked at once: one whose files are gone is taken back and made again."""
        done = published(self._store, job, plan)
        for name, ref in done.items():
            if name in held.verified:
                continue
            try:
                self._artifacts.look_at(ref)
            except (NotFound, CorruptArtifact) as error:
                take_back(self._store, job, plan.node(name), done, error)
                return self._trusted(job, held, plan)
            held.verified.add(name)
        return done

    def _run_here(self, job: JobRecord, held: _Held, node: Node, done: dict[str, ManifestRef]) -> None:
        artifact = artifact_id(job, node, done)
        future = held.local.get(artifact)
        if future is None:
            self._progress(job, node)
            inputs = {name: done[source] for name, source in node.inputs.items()}
            held.local[artifact] = self._executor.submit(self._local, job, node, artifact, inputs)
        elif future.done():
            del held.local[artifact]
            try:
                made = future.result()
            except (NotFound, CorruptArtifact) as error:
                raise self._cause(job, node, done, error) from error
            self._publish(job, node, artifact, made)

    def _select(self, job: JobRecord, node: Node, artifact: str, done: dict[str, ManifestRef]) -> None:
        task = done[node.inputs["task"]]
        if DROPPED in self._artifacts.manifest(task).meta:
            self._publish(job, node, artifact, task)
            return
        selection = self._selections.ask(job, node, artifact, task=task)
        if selection.ref is not None:
            self._publish(job, node, artifact, selection.ref)
        elif selection.error is not None:
            self._selections.stop(job, artifact)  # so that another attempt is not told of this one's failure
            raise self._cause(job, node, done, selection.error)
        else:
            self._progress(
                job, node, step=selection.done, total=selection.total, unit=selection.unit, rate=selection.rate
            )

    def _cause(self, job: JobRecord, node: Node, done: dict[str, ManifestRef], error: TLMError) -> Exception:
        """What ends the attempt: a stage's error, unless that came of inputs whose files are lost or damaged. These are
        taken back, so that the next attempt makes them again."""
        cause: Exception = error
        for source in set(node.inputs.values()) if isinstance(error, NotFound | CorruptArtifact) else ():
            try:
                self._artifacts.verify(done[source])
            except (NotFound, CorruptArtifact) as damage:
                cause = AttemptEnded(take_back(self._store, job, plan_of(job).node(source), done, damage))
        return cause

    def _finish(self, job: JobRecord, held: _Held, plan: Plan, done: dict[str, ManifestRef]) -> None:
        artifacts = {
            node.name: {"artifact": artifact_id(job, node, done), "ref": done[node.name].model_dump()}
            for node in plan.nodes
        }
        summary = self._artifacts.manifest(done[plan.report]).meta
        self._store.finish(job, self._owner, {"artifacts": artifacts, "summary": summary})
        self._let_go(held)
        log.info("job %s succeeded", job.id)

    # --- ending -------------------------------------------------------------------------------------------------

    def _pause(self, job: JobRecord, held: _Held) -> None:
        """The workers learn of it by their next report, leave a checkpoint and end."""
        if self._quiet(job, held, grace=self._settings.pause_seconds):
            self._store.confirm_paused(job, self._owner)
            self._let_go(held)

    def _cancel(self, job: JobRecord, held: _Held) -> None:
        if self._quiet(job, held, grace=0.0):
            self._store.confirm_cancelled(job, self._owner)
            self._let_go(held)

    def _quiet(self, job: JobRecord, held: _Held, *, grace: float) -> bool:
        """Whether nothing of the attempt runs any more; after `grace` seconds what runs is stopped."""
        held.stop_since = held.stop_since if held.stop_since is not None else self._now
        statuses = {submission: self._cluster.status(submission) for submission in job.submissions.values()}
        alive = [submission for submission, status in statuses.items() if status is Status.ALIVE]
        # What waits for room is not waited for: should it start all the same, it finds its attempt over and ends.
        waiting = [submission for submission, status in statuses.items() if status is Status.WAITING]
        for submission in waiting + (alive if self._now - held.stop_since >= grace else []):
            self._cluster.stop(submission)
        held.begin_no_more()
        return self._selected_out(job) and not alive and all(future.done() for future in held.local.values())

    def _selected_out(self, job: JobRecord) -> bool:
        """Stop the selections that the job waits for. Answers whether none of them runs any more."""
        plan = plan_of(job)
        done = published(self._store, job, plan)
        asked = [artifact_id(job, node, done) for node in plan.ready(done) if node.place is Place.RETRIEVER]
        running = [artifact for artifact in asked if not self._selections.stop(job, artifact)]
        return not running

    def _end_attempt(self, job: JobRecord, held: _Held, error: TLMError) -> None:
        """Try again later, or give up: an error that would come back, or too many of them."""
        try:
            self._selected_out(job)
        except Exception as fault:  # the attempt ends all the same
            log.warning("a selection of job %s may go on: %s", job.id, fault)
        if job.state is State.CANCELLING:
            self._store.confirm_cancelled(job, self._owner)
        elif job.state is State.PAUSING and error.retryable:
            self._store.confirm_paused(job, self._owner)
        elif error.retryable and job.failures + 1 < job.spec.max_attempts and job.state is State.RUNNING:
            self._store.requeue(job, self._owner, error, delay_seconds=min(60.0, 4.0**job.failures))
            log.warning("job %s, attempt %d ended: %s; it will be tried again", job.id, job.attempt, error)
        else:
            self._store.fail(job, self._owner, error)
            log.warning("job %s failed: %s", job.id, error)
        self._let_go(held)

    def _wait(self, job: JobRecord, held: _Held, error: Unavailable) -> None:
        """A component is away: the job waits for it and uses up no attempt. Said once per reason."""
        if held.waiting != error.code:
            held.waiting = error.code
            log.warning("job %s waits: %s", job.id, error)
            report_waiting(self._store, job, error)

    # --- small steps --------------------------------------------------------------------------------------------

    def _publish(self, job: JobRecord, node: Node, artifact: str, ref: ManifestRef) -> None:
        self._store.publish(
            job.tenant, job.id, job.attempt, artifact=artifact, ref=ref, node=node.name, stage=node.stage
        )

    def _progress(
        self,
        job: JobRecord,
        node: Node,
        *,
        step: int = 0,
        total: int = 0,
        unit: str = "rows",
        rate: float | None = None,
    ) -> None:
        plan = plan_of(job)
        progress = Progress(
            stage=node.stage,
            node=node.name,
            step=step,
            total=total,
            unit=unit,
            rate=rate,
            eta_seconds=(total - step) / rate if rate else None,
            nodes_done=plan.nodes.index(node),
            nodes_total=len(plan.nodes),
        )
        if job.progress != progress:
            self._store.report(job.tenant, job.id, job.attempt, progress=progress)
