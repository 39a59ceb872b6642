"""A coordinator's surroundings, small enough to drive by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common.jobstore import JobStore
from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.settings import TrainerSettings
from tests.factories import make_resolved, make_spec
from tests.trainer_fakes import FakeCluster, FakeSelections, all_stages, folder_artifact, run_group
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord

T = "default"


class AtOnce(Executor):
    """Runs what it is given before it answers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except TLMError as error:
            future.set_exception(error)
        return future


class AheadStore(JobStore):
    """A job store whose time is ahead of that of the records in it."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class Busy(Executor):
    """Begins nothing that it is given."""

    def __init__(self) -> None:
        self.given: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        self.given.append(Future())
        return self.given[-1]


@dataclass
class World:
    """A store, a storage, a cluster, and coordinators on them."""

    store: AheadStore
    folder: Path
    cluster: FakeCluster = field(default_factory=FakeCluster)
    executor: Executor = field(default_factory=AtOnce)
    validate_error: TLMError | None = None

    def __post_init__(self) -> None:
        self.artifacts = ArtifactStore(str(self.folder / "storage"), self.folder / "cache", is_new=self.store.is_empty)
        with self.artifacts.errors("keeping the data set", writes=True):
            pass
        self.selections = FakeSelections(self.artifacts, self.folder)
        self.validated = 0

    def local(self, job: JobRecord, node: Node, artifact: str, inputs: Mapping[str, ManifestRef]) -> ManifestRef:  # noqa: ARG002
        if self.validate_error:
            raise self.validate_error
        self.validated += 1
        folder = f"{T}/artifacts/{artifact}/{job.id}-{self.validated}"
        return folder_artifact(self.artifacts, self.folder, folder, artifact, node.stage.name)

    def coordinator(self, owner: str = "a", **settings: Any) -> Coordinator:
        values = {"storage": str(self.folder / "storage"), "scratch": self.folder / "scratch", "lease_seconds": 0.2}
        return Coordinator(
            self.store, self.artifacts, self.selections, self.cluster, TrainerSettings(**(values | settings)),
            owner=owner, local=self.local, executor=self.executor,
        )  # fmt: skip

    def rounds_until(self, coordinator: Coordinator, ahead: float) -> None:
        """The rounds of a coordinator that never stands still, until the store's time is so far ahead."""
        coordinator.round()
        while self.store.ahead < ahead:
            self.store.ahead = min(ahead, self.store.ahead + 100)
            coordinator.round()

    def submit(self, **over: Any) -> str:
        return self.store.submit(T, make_spec(**over), make_resolved())[0].id

    def job(self, job_id: str) -> JobRecord:
        return self.store.get(T, job_id)

    def until_submitted(self, coordinator: Coordinator, job_id: str) -> str:
        for _ in range(10):
            coordinator.round()
            if submission := self.job(job_id).submissions.get("main"):
                return submission
        raise AssertionError(f"nothing was submitted for {self.job(job_id)}")

    def work(self, submission: str, **stages: Any) -> None:
        """What the cluster would do: run the workers, then tell how it ended."""
        try:
            run_group(
                self.store, self.artifacts, self.folder / "scratch", self.cluster.assignment(submission),
                all_stages(**stages),
            )  # fmt: skip
            self.cluster.statuses[submission] = Status.ENDED
        except (TLMError, RuntimeError):
            self.cluster.statuses[submission] = Status.FAILED

    def events(self, job_id: str) -> list[str]:
        return [event.type for event in self.store.events(T, job_id)]
