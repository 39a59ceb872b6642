"""How many workers an attempt starts through Ray Train, and what their failures mean for the job."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks import accelerators
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from services.common.jobstore import JobStore
from services.trainer import compute, ranks
from services.trainer.assignment import Assignment
from services.trainer.oom import report_oom
from services.trainer.process_group import join
from services.trainer.settings import TrainerSettings
from tlm_core.errors import NonFiniteLoss, StaleAttempt, StoreUnavailable, TLMError, WorkerLost
from tlm_core.jobs.spec import Beat
from tlm_core.jobs.states import State


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    """The fields with which each process sets up its log, by service. The log of the test stays as it is."""
    fields: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(ranks, "set_up_logging", lambda service, values: fields.update({service: values}))
    return fields


@pytest.mark.parametrize(
    ("free", "gpus", "workers"),
    [
        ([{"CPU": 4.0}, {"CPU": 4.0}], 0.0, 4),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 0.0, 2),  # each node has room for one
        ([{"CPU": 64.0}], 0.0, 8),
        ([{}, {"CPU": 1.0}], 0.0, 2),  # the least number waits for its room
        ([{"CPU": 64.0, "GPU": 3.0}, {"CPU": 64.0}], 1.0, 3),
    ],
)
def test_attempt_starts_with_the_workers_that_find_room(
    free: list[dict[str, float]], gpus: float, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "available_resources_per_node", lambda: dict(enumerate(free)))
    assert ranks._number_of_workers(Assignment("t", "job_1", 1, "main", 2, 8, 2.0, gpus)) == workers


def test_only_the_coordinator_repeats_attempts(tmp_path: Path) -> None:
    trainer = ranks._trainer(Assignment("t", "job_1", 1, "main", 2, 2, 2.0, 0.0), 2, tmp_path)
    failures = trainer.run_config.failure_config
    assert failures is not None
    assert (failures.max_failures, failures.controller_failure_limit, failures.max_preemption_failures) == (0, 0, 0)
    assert trainer.run_config.storage_path == str(tmp_path), "Ray writes into the attempt's folder, which is deleted."


def test_each_rank_sees_only_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = list[object]()
    monkeypatch.setattr(accelerators, "_share_cuda_visible_devices", shared.append)
    trainer = ranks._trainer(Assignment("t", "job_1", 1, "main", 2, 2, 2.0, 1.0), 2, tmp_path)
    assert trainer.scaling_config.use_gpu
    ray_setup = accelerators.AcceleratorSetupCallback(trainer.backend_config, trainer.scaling_config)
    ray_setup.before_init_train_context([])
    assert not shared


DEAD = WorkerHealthCheckFailedError("dead", failure=ActorDiedError())


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ControllerError(WorkerGroupStartupTimeoutError(2)), "worker_lost"),
        (WorkerGroupError("", {0: DEAD, 1: WorkerLost("Worker lost its connection to the others.")}), "worker_lost"),
        (WorkerGroupError("", {1: WorkerHealthCheckFailedError("", failure=OutOfMemoryError(""))}), "worker_failed"),
        (WorkerGroupError("", {0: NonFiniteLoss("nan")}), None),  # rank 0 has reported it
    ],
)
def test_only_failures_that_no_worker_could_report_are_reported(failure: TrainingFailedError, code: str | None) -> None:
    error = ranks._unreported(failure)
    assert (error.code if error else None) == code


class FakeWorkerGroup(list[int]):
    """Two ranks of Ray Train. joined: what each rank calls to join the others. errors: by rank."""

    joined: ClassVar[list[tuple[object, ...]]] = []
    errors: ClassVar[dict[int, Exception]] = {}

    def get_workers(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(metadata=SimpleNamespace(node_id=f"node {rank}")) for rank in self]

    def get_latest_poll_status(self) -> SimpleNamespace:
        return SimpleNamespace(errors=self.errors)

    def execute(self, *_: object) -> list[int]:
        return [3, 4]

    def execute_async(self, *_: object, **__: object) -> list[object]:
        return []

    def execute_single(self, *_: object) -> tuple[str, int]:
        return "127.0.0.1", 1

    def execute_single_async(self, rank: int, function: object, *_: object, **options: object) -> None:
        self.joined.append((rank, function, options))


TWO = Assignment("t", "job_1", 1, "main", 2, 2, 1.0, 0.0)


class FakeStore(JobStore):
    """Raises the given errors at its first reports. phases: of the beats that were reported."""

    def __init__(self, *errors: TLMError) -> None:
        self.errors = list(errors)
        self.phases: list[str] = []

    def report(self, *_: Any, beat: tuple[str, Beat] | None = None, **__: Any) -> State:
        if self.errors:
            raise self.errors.pop(0)
        assert beat is not None and beat[0] == TWO.group
        self.phases.append(beat[1].phase)
        return State.RUNNING


@pytest.mark.parametrize(
    ("cpus", "start_seconds"),
    [
        (2.0, 30 * 24 * 3600.0),  # The least number of workers may wait for its room.
        (8.0, 120.0),
    ],
)
def test_ray_train_gets_the_limits_of_an_attempt(
    cpus: float, start_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> NoReturn:
        raise RuntimeError("stopped")

    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("STORAGE", "SCRATCH"):
        monkeypatch.setenv(f"TLM_TRAINER_{name}", str(tmp_path))
    monkeypatch.setattr(ranks.ray, "init", lambda: None)
    monkeypatch.setattr(compute, "drain_on_sigterm", lambda _: None)
    monkeypatch.setattr(TrainerSettings, "job_store", lambda _: FakeStore())
    monkeypatch.setattr(ranks, "available_resources_per_node", lambda: {"node": {"CPU": cpus}})
    monkeypatch.setattr(ranks, "_lacks_room", lambda: False)
    monkeypatch.setattr(ranks, "_trainer", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        ranks.run_workers(Assignment("t", "job_1", 1, "main", 2, 8, 1.0, 0.0))
    passed_on = constants.get_env_vars_to_propagate()
    assert float(passed_on[constants.WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR]) == 120.0
    assert float(passed_on[constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR]) == start_seconds
    assert passed_on[constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "0"
    of_driver = {RAY_CHDIR_TO_TRIAL_DIR, constants.METRICS_ENABLED_ENV_VAR}
    assert ranks._ENVIRONMENT.keys() - of_driver <= passed_on.keys(), "Ray Train passes the other names on."


@pytest.mark.parametrize(
    ("errors", "killed", "code"),
    [
        ({1: DEAD}, True, "worker_failed"),
        ({0: WorkerLost("Worker lost its connection to the others.")}, True, "worker_failed"),
        ({1: DEAD}, False, None),
        ({0: NonFiniteLoss("nan")}, True, None),
        ({}, True, None),
    ],
)
def test_worker_that_the_kernel_killed_is_reported_before_the_group_ends(
    errors: dict[int, Exception], killed: bool, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, counts, store = list[dict[str, object]](), list[object](), FakeStore()
    monkeypatch.setattr(ranks.ray, "get", lambda *_, **__: None)
    monkeypatch.setattr(ranks, "more_oom_kills", lambda before: counts.append(before) or killed)
    monkeypatch.setattr(TrainerSettings, "job_store", lambda _: store)
    monkeypatch.setattr(FakeWorkerGroup, "errors", errors)
    monkeypatch.setattr(FakeWorkerGroup, "joined", [])
    for name in ("STORAGE", "SCRATCH"):
        monkeypatch.setenv(f"TLM_TRAINER_{name}", "/unused")
    group, backend = FakeWorkerGroup([0, 1]), ranks._Backend()
    backend.on_start(group, ranks._ProcessGroup(TWO))
    monkeypatch.setattr(store, "report", lambda *_, events: reported.extend(data for _, data in events))
    backend.on_shutdown(group, ranks._ProcessGroup(TWO))
    assert [data["code"] for data in reported] == ([code] if code else [])
    assert all(before == {"node 0": 3, "node 1": 4} for before in counts)


def test_killed_workers_are_reported_after_an_outage_of_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outages, reported = [StoreUnavailable("away"), StoreUnavailable("away")], list[object]()

    class BrieflyAway(JobStore):
        def __init__(self) -> None: ...

        def report(self, *_: Any, events: Any = (), **__: Any) -> State:
            if outages:
                raise outages.pop()
            reported.extend(data["code"] for _, data in events)
            return State.RUNNING

    def fail() -> NoReturn:
        raise ControllerError(WorkerGroupStartupTimeoutError(2))

    for name, value in (("STORAGE", "/unused"), ("SCRATCH", str(tmp_path))):
        monkeypatch.setenv(f"TLM_TRAINER_{name}", value)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "")  # restores it after the test
    monkeypatch.setattr(ranks, "_ENVIRONMENT", {})
    monkeypatch.setattr(TrainerSettings, "job_store", lambda _: BrieflyAway())
    monkeypatch.setattr(ranks.ray, "init", lambda: None)
    monkeypatch.setattr(compute, "drain_on_sigterm", lambda _: None)
    monkeypatch.setattr(ranks, "_number_of_workers", lambda _: 2)
    monkeypatch.setattr(ranks, "_lacks_room", lambda: False)
    monkeypatch.setattr(ranks, "_trainer", lambda *_: SimpleNamespace(fit=fail))
    with pytest.raises(ControllerError):
        ranks.run_workers(TWO)
    outages.append(StoreUnavailable("away"))
    report_oom(TWO)
    assert reported == ["worker_lost", "worker_failed"]


def test_unreadable_counters_do_not_hide_the_error_of_the_workers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_: object) -> bool:
        raise RuntimeError("Ray is away")

    monkeypatch.setattr(ranks.ray, "get", lambda *_, **__: None)
    monkeypatch.setattr(ranks, "more_oom_kills", failing)
    monkeypatch.setattr(FakeWorkerGroup, "errors", {1: DEAD})
    backend = ranks._Backend()
    backend.kills = {}
    backend.on_shutdown(FakeWorkerGroup([0, 1]), ranks._ProcessGroup(TWO))
    assert "Cannot report whether the kernel killed a worker: Ray is away" in caplog.text


def test_joining_has_a_limit_and_its_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, store = list[float](), FakeStore(StoreUnavailable("away"))
    monkeypatch.setattr(ranks.ray, "get", lambda _, timeout: limits.append(timeout))
    monkeypatch.setattr(TrainerSettings, "job_store", lambda _: store)
    for name in ("STORAGE", "SCRATCH"):
        monkeypatch.setenv(f"TLM_TRAINER_{name}", "/unused")
    group = FakeWorkerGroup([0, 1])
    ranks._Backend().on_start(group, ranks._ProcessGroup(TWO))
    options = {"backend": "gloo", "timeout": timedelta(minutes=15)}
    assert group.joined == [(rank, join, options) for rank in (0, 1)]
    assert (limits, store.phases) == ([900.0], ["starting"])


class CountedWaits(threading.Event):
    """Is set after `waits` waits, without waiting."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits = waits

    def wait(self, _: float | None = None) -> bool:
        self.waits -= 1
        return self.waits <= 0


def test_each_process_of_an_attempt_logs_with_its_ids(
    logs: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> NoReturn:
        raise RuntimeError("stopped")

    monkeypatch.setattr(ranks.ray, "init", stop)
    monkeypatch.setattr(compute, "drain_on_sigterm", stop)
    monkeypatch.setattr(FakeWorkerGroup, "get_workers", stop)
    for begin in (
        lambda: ranks.run_workers(TWO),
        lambda: ranks._watch_sigterm(TWO),
        lambda: ranks._Backend().on_start(FakeWorkerGroup([0, 1]), ranks._ProcessGroup(TWO)),
    ):
        with pytest.raises(RuntimeError, match="stopped"):
            begin()
    ids = {"job_id": "job_1", "attempt": 1, "request_id": ""}
    assert logs == {"driver": ids, "worker": ids, "controller": ids}


def test_submission_reports_that_it_waits_until_its_workers_end() -> None:
    store = FakeStore(StoreUnavailable("away"))
    ranks.report_waiting(TWO, store, CountedWaits(3), lambda: True)
    assert store.phases == ["waiting"] * 2


def test_submission_whose_workers_have_room_reports_no_wait() -> None:
    store, answers = FakeStore(), iter([True, RuntimeError("the head restarts"), True, False, False])

    def lacks_room() -> bool:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    ranks.report_waiting(TWO, store, CountedWaits(5), lacks_room)
    assert store.phases == ["waiting"] * 2


@pytest.mark.parametrize(
    ("groups", "lacks"),
    [
        ({}, False),
        ({"e55c02000000": "PENDING", "3fed01000000": "CREATED"}, False),
        ({"e55c02000000": "CREATED", "3fed01000000": "PENDING"}, True),
    ],
)
def test_only_the_own_placement_group_shows_a_wait_for_room(
    groups: dict[str, str], lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_job_id=lambda: "01000000")
    monkeypatch.setattr(ranks.ray, "get_runtime_context", lambda: context)
    table = {name: {"state": state} for name, state in groups.items()}
    monkeypatch.setattr(ranks, "placement_group_table", lambda: table)
    assert ranks._lacks_room() is lacks


def test_submission_of_an_ended_attempt_reports_no_more() -> None:
    store, ended = FakeStore(StaleAttempt("ended")), CountedWaits(3)
    ranks.report_waiting(TWO, store, ended, lambda: True)
    assert (store.phases, ended.waits) == ([], 3)
