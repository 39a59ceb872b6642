"""The stages that run in threads of the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future
from contextvars import copy_context
from dataclasses import dataclass, field

from tlm_core.artifacts import ManifestRef
from tlm_core.errors import Outage
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord

# Runs a stage: (job, node, artifact id, input artifacts by name) → reference of its output.
LocalStage = Callable[[JobRecord, Node, str, Mapping[str, ManifestRef]], ManifestRef]


class LocalThreads:
    """The threads for the stages of all jobs. run: runs one stage. new_threads: a function that returns an Executor."""

    def __init__(self, run: LocalStage, new_threads: Callable[[], Executor]) -> None:
        self._run = run
        self._new_threads = new_threads
        self._threads = new_threads()

    def submit(
        self, job: JobRecord, node: Node, artifact: str, inputs: Mapping[str, ManifestRef]
    ) -> Future[ManifestRef]:
        """Start a stage in a thread, and return the future of its output. The thread has the caller's `log_context`."""
        return self._threads.submit(copy_context().run, self._run, job, node, artifact, inputs)

    def replace(self) -> None:
        """Start new threads, because a hanging thread cannot be stopped. Cancel the stages that wait for a thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = self._new_threads()


@dataclass
class LocalStages:
    """The stages of a job in threads of this process. runs: artifact id → future of the stage's output."""

    threads: LocalThreads
    runs: dict[str, Future[ManifestRef]] = field(default_factory=dict)
    # Artifact ids of the stages whose last run failed with an Outage.
    retrying: set[str] = field(default_factory=set)
    # Artifact id → when a check first saw the stage run, in seconds of the monotonic clock.
    running_since: dict[str, float] = field(default_factory=dict)

    @property
    def have_ended(self) -> bool:
        return all(run.done() for run in self.runs.values())

    def start(self, job: JobRecord, node: Node, artifact: str, inputs: Mapping[str, ManifestRef]) -> None:
        self.runs[artifact] = self.threads.submit(job, node, artifact, inputs)

    def output(self, artifact: str) -> ManifestRef | None:
        """Return the output of a started stage, or None until the stage has ended. Raises the error of a failed stage.

        Forgets a failed or cancelled stage, so that the stage can start again.
        """
        run = self.runs[artifact]
        if run.cancelled():  # The stage waited for a thread when the threads were replaced.
            self.forget(artifact)
        elif run.done():
            self.retrying.discard(artifact)
            try:
                return run.result()
            except Exception as error:
                self.forget(artifact)
                if isinstance(error, Outage):
                    self.retrying.add(artifact)
                raise
        return None

    def forget(self, artifact: str) -> None:
        del self.runs[artifact]

    def forget_ended(self, awaited: Collection[str]) -> list[ManifestRef]:
        """Forget ended stages whose artifact ids are not in `awaited`. Return the outputs of those that succeeded."""
        self.retrying.intersection_update(awaited)
        ended = {artifact: run for artifact, run in self.runs.items() if artifact not in awaited and run.done()}
        for artifact in ended:
            self.forget(artifact)
        return [run.result() for run in ended.values() if not run.cancelled() and not run.exception()]

    def cancel_waiting(self) -> None:
        """Cancel the stages that still wait for a thread."""
        for run in self.runs.values():
            run.cancel()

    def give_up_hung(self, limit: float) -> bool:
        """Give up stages that have run for more than `limit` seconds, and replace the threads.

        Return whether any stage was given up. Call this method often, because the seconds of a stage count from the
        first call that sees the stage run.
        """
        now, running = time.monotonic(), [artifact for artifact, run in self.runs.items() if run.running()]
        self.running_since = {artifact: self.running_since.get(artifact, now) for artifact in running}
        hung = [artifact for artifact, since in self.running_since.items() if now - since > limit]
        if hung:
            self.threads.replace()
        for artifact in hung:
            self.forget(artifact)
        return bool(hung)
