"""The coordinator and the runner of the workers, on a real job store and a fake cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import pytest
import redis

from services.common.jobstore import JobStore
from services.common.retriever_client import SelectionRun
from services.common.situation import Situation
from services.trainer.cluster import Status
from services.trainer.worker import GroupRunner
from tests.contract.coordinator_harness import CoordinatorHarness, T
from tests.factories import make_resolved, make_spec
from tests.trainer_fakes import all_stages, counting_stage, plain_stage, run_group
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import (
    ClusterUnavailable,
    EmptySelection,
    IndexUnavailable,
    InvalidDataset,
    NonFiniteLoss,
    TLMError,
)
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.params import SHRUNK
from tlm_core.training.recipe import resolve
from tlm_core.training.speed import HAD_CORE
from tlm_core.training.stage import Stage, StageContext, StageFunction, StageParams

SELECTOR = "selection.selector"


def test_job_runs_all_its_stages_and_succeeds(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(seeds=(0, 1))
    job = harness.until_ended(coordinator, job_id)
    assert job.state is State.SUCCEEDED
    assert job.result is not None
    plan = plan_of(job)
    assert set(job.result.artifacts) == {n.name for n in plan.nodes}
    assert [n.name for n in plan.nodes] == [
        "validate", "baseline", "select", "self_train", "prepare", "joint.s0", "finetune.s0", "refit.s0", "joint.s1",
        "finetune.s1", "refit.s1", "refit_linear", "evaluate", "export",
    ]  # fmt: skip
    for ref in Situation.read(harness.store, job).done.values():
        harness.artifacts.verify(ref)


def test_second_job_reuses_every_artifact_of_the_first(harness: CoordinatorHarness) -> None:
    coordinator, first = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, first))
    coordinator.round()
    second = harness.submit()
    coordinator.round()
    assert harness.job(second).state is State.SUCCEEDED
    assert harness.job(second).submissions == {}
    assert harness.validated == 1


def test_artifact_of_a_shrunk_batch_is_excluded_from_the_cache(harness: CoordinatorHarness) -> None:
    def shrunk(ctx: StageContext) -> Mapping[str, Any]:
        return {**plain_stage(ctx), SHRUNK: 4}

    coordinator, first = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, first), joint=shrunk)
    coordinator.round()
    again = harness.until_submitted(coordinator, second := harness.submit())
    assert harness.events(second).count("artifact.published") == 0, "validate, baseline and select are cached"
    harness.work(again)
    coordinator.round()
    own, others = harness.job(first).result, harness.job(second).result
    assert own is not None and others is not None
    assert own.artifacts["joint.s0"].artifact != others.artifacts["joint.s0"].artifact
    assert own.artifacts["prepare"] == others.artifacts["prepare"]
    for ref in Situation.read(harness.store, harness.job(first)).done.values():
        harness.artifacts.verify(ref)
    third = harness.submit()
    coordinator.round()
    coordinator.round()
    assert harness.job(third).state is State.SUCCEEDED, "the second artifact is cached"


def test_stage_with_a_shrunk_batch_deletes_its_checkpoints(harness: CoordinatorHarness) -> None:
    counting = counting_stage(5)

    def shrunk(ctx: StageContext) -> Mapping[str, Any]:
        return {**counting(ctx), SHRUNK: 4}

    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, job_id), joint=shrunk, finetune=counting)
    coordinator.round()
    job = harness.job(job_id)
    assert job.state is State.SUCCEEDED and job.excluded_from_cache == ("joint.s0",)
    artifacts = {path.parent.parent.parent.name for path in (harness.folder / "storage").rglob("checkpoints/**/step")}
    assert job.result is not None
    assert artifacts == {job.result.artifacts["finetune.s0"].artifact}, "the other stage keeps its checkpoints"


def test_artifact_without_its_files_is_computed_again(harness: CoordinatorHarness) -> None:
    coordinator, first = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, first))
    coordinator.round()
    refs = Situation.read(harness.store, harness.job(first)).done
    harness.artifacts.delete(refs["joint.s0"].folder)
    second = harness.submit()
    harness.work(harness.until_submitted(coordinator, second))
    coordinator.round()
    assert harness.job(second).state is State.SUCCEEDED
    for ref in Situation.read(harness.store, harness.job(second)).done.values():
        harness.artifacts.verify(ref)


@pytest.mark.parametrize("error", [EmptySelection("no passage"), NonFiniteLoss("nan at step 3")])
def test_permanent_error_fails_the_job_at_once(harness: CoordinatorHarness, error: TLMError) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def broken(_: Any) -> dict[str, Any]:
        raise error

    harness.work(harness.until_submitted(coordinator, job_id), joint=broken)
    coordinator.round()
    job = harness.job(job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == (error.code, error.message)


def test_data_errors_fail_the_job_and_are_all_recorded(harness: CoordinatorHarness) -> None:
    harness.validate_error = InvalidDataset("Two data errors.", faults=[])
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(3):
        coordinator.round()
    assert harness.job(job_id).error == harness.validate_error.as_dict()


def test_job_fails_after_its_last_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=2)

    def fail(_: StageContext) -> NoReturn:
        raise RuntimeError("a bug")

    for _ in range(2):
        harness.work(harness.until_submitted(coordinator, job_id), joint=fail)
        coordinator.round()
        harness.store.expire_deadlines()
    job = harness.job(job_id)
    assert (job.state, job.attempt, job.failures) == (State.FAILED, 2, 2)
    assert job.error is not None and job.error["code"] == "worker_failed"


def test_job_waits_for_a_component_without_using_an_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def away(_: JobRecord) -> SelectionRun:
        raise IndexUnavailable("OpenSearch is away")

    harness.selections.answer = away
    for _ in range(4):
        coordinator.round()
    assert harness.job(job_id).state is State.RUNNING
    assert harness.events(job_id).count("job.waiting") == 1
    harness.selections.answer = lambda _: None
    harness.cluster.away = True
    for _ in range(6):
        coordinator.round()
    assert harness.job(job_id).submissions == {}
    harness.cluster.away = False
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.away = True
    for _ in range(3):
        coordinator.round()
    harness.cluster.away = False
    harness.work(submission)
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).attempt) == (State.SUCCEEDED, 1)


def test_rejected_submission_is_retried_in_the_same_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.cluster.refusing = True
    for _ in range(6):
        coordinator.round()
    assert harness.events(job_id).count("job.waiting") == 1
    harness.cluster.refusing = False
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).attempt) == (State.SUCCEEDED, 1)


def test_job_shows_why_it_waits_until_ray_accepts_its_submission(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    fitting = harness.until_submitted(coordinator, job_id, "baseline")
    coordinator.round()
    harness.work(fitting)
    harness.cluster.refusing = True
    for _ in range(4):
        coordinator.round()
        waiting = harness.job(job_id).waiting
        assert waiting is not None and waiting["message"] == "not ready to take jobs"
    assert harness.events(job_id).count("workers.submitted") == 1
    harness.cluster.refusing = False
    harness.until_submitted(coordinator, job_id)
    assert harness.job(job_id).waiting is None
    assert harness.events(job_id).count("workers.submitted") == 2


@pytest.mark.parametrize("accepted", [False, True])
def test_submission_that_ray_does_not_answer_runs_once_in_its_attempt(
    harness: CoordinatorHarness, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id, sent = harness.coordinator(), harness.submit(), list[str]()
    submit = harness.cluster.submit

    def time_out(submission: str, command: Sequence[str], *, cpus: float = 0.0) -> None:
        sent.append(submission)
        if accepted:
            submit(submission, command, cpus=cpus)
        harness.cluster.away = True
        raise ClusterUnavailable("timed out")

    monkeypatch.setattr(harness.cluster, "submit", time_out)
    while not sent:
        coordinator.round()
    for _ in range(3):
        coordinator.round()
    monkeypatch.setattr(harness.cluster, "submit", submit)
    harness.cluster.away = False
    job = harness.until_ended(coordinator, job_id)
    assert (job.state, job.attempt, job.interruptions) == (State.SUCCEEDED, 1, 0)
    assert sent[0] in harness.cluster.commands and not harness.cluster.stopped


def test_linear_model_is_fitted_during_the_selection(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    fitting = harness.until_submitted(coordinator, job_id, "baseline")
    harness.work(fitting)
    coordinator.round()
    assert Situation.read(harness.store, harness.job(job_id)).done.keys() == {"validate", "baseline"}
    harness.selections.answer = lambda _: None
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert harness.job(job_id).state is State.SUCCEEDED
    assert len(harness.cluster.commands) == 2


def test_training_takes_no_room_before_the_linear_model_is_fitted(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    fitting = harness.until_submitted(coordinator, job_id, "baseline")
    harness.cluster.statuses[fitting] = Status.WAITING  # the cluster has room for one submission
    harness.rounds_until(coordinator, 29)
    assert Situation.read(harness.store, harness.job(job_id)).done.keys() == {"validate", "select"}
    assert list(harness.cluster.commands) == [fitting]
    assert "job.waiting" not in harness.events(job_id)
    harness.work(fitting)
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.events(job_id).count("job.waiting")) == (State.SUCCEEDED, 0)


def test_job_without_a_selection_needs_one_submission(harness: CoordinatorHarness) -> None:
    coordinator = harness.coordinator()
    alone = make_resolved(corpus_name=None, corpus_version=None, recipe=resolve("fast", "tiny", {SELECTOR: "none"}))
    job_id = harness.store.submit(T, make_spec(corpus=None), alone)[0].id
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, len(harness.cluster.commands)) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize(
    ("workers", "gpus", "cpus"),
    [({}, 0.0, 3.0), ({"workers": 2}, 0.0, 0.0), ({"max_workers": 2}, 0.0, 0.0), ({}, 1.0, 0.0)],
)
def test_only_a_single_worker_without_a_gpu_requests_cpus_for_its_submission(
    harness: CoordinatorHarness, workers: dict[str, int], gpus: float, cpus: float
) -> None:
    coordinator = harness.coordinator(worker_cpus=3.0, worker_gpus=gpus)
    submission = harness.until_submitted(coordinator, harness.submit(**workers))
    assert harness.cluster.needs[submission] == cpus, "Ray Train requests the resources of the others"


@pytest.mark.parametrize(
    ("settings", "seeds", "cpus"),
    [
        ({"job_cpus": 2.0}, (0,), {"main": 2.0}),
        ({"job_cpus": 2.0}, (0, 1, 2), {"main": 2.0, "seed.s0": 0.666, "seed.s1": 0.666, "seed.s2": 0.666}),
        ({"worker_cpus": 4.0}, (0, 1), {"main": 4.0, "seed.s0": 2.0, "seed.s1": 2.0}),
        ({"worker_cpus": 4.0, "worker_gpus": 1.0}, (0, 1), {"main": 4.0, "seed.s0": 4.0, "seed.s1": 4.0}),
    ],
)
def test_seeds_train_side_by_side_and_share_the_cpus(
    harness: CoordinatorHarness, settings: dict[str, float], seeds: tuple[int, ...], cpus: dict[str, float]
) -> None:
    coordinator, job_id = harness.coordinator(**settings), harness.submit(seeds=seeds)
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    submissions = harness.job(job_id).submissions
    assert {group: harness.cluster.assignment(submissions[group]).cpus for group in cpus} == cpus


def test_speed_of_a_job_is_the_sum_over_its_seeds(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(seeds=(0, 1, 2))
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    for seed, rate in enumerate((500.0, 300.0, 200.0)):
        harness.beat(job_id, f"seed.s{seed}", rate=rate)
    coordinator.round()
    assert coordinator._held[job_id].rate == 1000.0
    harness.work(harness.job(job_id).submissions["seed.s1"])
    coordinator.round()
    assert coordinator._held[job_id].rate == 700.0, "The last beat of a group that has ended does not count."


def test_cluster_with_gpus_is_refused_until_workers_request_them(harness: CoordinatorHarness) -> None:
    harness.cluster.offered_gpus = 4.0
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(3):
        coordinator.round()
    waiting = [event.data for event in harness.store.events(T, job_id) if event.type == "job.waiting"]
    assert "4 GPUs, but TLM_TRAINER_WORKER_GPUS is 0" in waiting[0]["message"]
    assert (harness.cluster.commands, harness.job(job_id).submissions) == ({}, {})
    coordinator.settings.worker_gpus = 1.0
    harness.until_submitted(coordinator, job_id)


def test_linear_model_has_one_worker_without_a_gpu(harness: CoordinatorHarness) -> None:
    coordinator = harness.coordinator(job_cpus=4.0, worker_gpus=1.0)
    job_id = harness.submit(workers=2, max_workers=8)
    main = harness.cluster.assignment(harness.until_submitted(coordinator, job_id))
    baseline = harness.cluster.assignment(harness.job(job_id).submissions["baseline"])
    assert (baseline.workers, baseline.max_workers, baseline.cpus, baseline.gpus) == (1, 1, 4.0, 0.0)
    assert (main.workers, main.max_workers, main.cpus, main.gpus) == (2, 8, 0.5, 1.0)


def test_situation_needs_one_round_trip_for_each_level_of_the_plan(
    harness: CoordinatorHarness, redis_client: redis.Redis
) -> None:
    levels: list[int] = []

    class CountingStore(JobStore):
        def artifacts(self, tenant: str, artifacts: Sequence[str]) -> list[ManifestRef | None]:
            levels.append(len(artifacts))
            return super().artifacts(tenant, artifacts)

    coordinator, job_id = harness.coordinator(), harness.submit(seeds=(0, 1))
    harness.until_ended(coordinator, job_id)
    situation = Situation.read(CountingStore(redis_client), harness.job(job_id))
    assert situation.done.keys() == {node.name for node in situation.plan.nodes}
    # validate, baseline and select, self_train, prepare and refit_linear, joint, finetune, refit, evaluate, export
    assert levels == [1, 2, 1, 2, 2, 2, 2, 1, 1]


def test_artifact_of_training_states_how_long_it_had_a_core(harness: CoordinatorHarness) -> None:
    """Estimates use this share to notice that other programs used the cores."""
    assignment = harness.cluster.assignment(harness.until_submitted(harness.coordinator(), job_id := harness.submit()))

    def waits(ctx: StageContext[StageParams]) -> Mapping[str, object]:
        time.sleep(0.2)
        return plain_stage(ctx)

    run_group(harness.store, harness.artifacts, harness.folder / "scratch", assignment, all_stages(joint=waits))
    done = Situation.read(harness.store, harness.job(job_id)).done
    joint, prepare = (harness.artifacts.manifest(done[name]).meta for name in ("joint.s0", "prepare"))
    assert 0 < joint[HAD_CORE] < 0.5 and HAD_CORE not in prepare


def test_rank_1_computes_only_parallel_stages(harness: CoordinatorHarness) -> None:
    assignment = harness.cluster.assignment(harness.until_submitted(harness.coordinator(), harness.submit()))
    computed: set[tuple[str, int]] = set()
    barrier, sent = threading.Barrier(2), list[Any]()

    def broadcast(value: Any, *, rank: int) -> Any:
        if rank == 0:
            sent.append(value)
        barrier.wait(10)
        value = sent[-1]
        barrier.wait(10)
        return value

    def load(stage: Stage) -> StageFunction:
        def compute(ctx: StageContext[StageParams]) -> Mapping[str, object]:
            computed.add((stage.name, ctx.rank))
            return plain_stage(ctx)

        return compute

    def run(rank: int) -> None:
        scratch, own = harness.folder / "scratch", partial(broadcast, rank=rank)
        GroupRunner(harness.store, harness.artifacts, scratch, load, rank, 2, own).run(assignment)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (0, 1)))
    stages = {stage for stage, rank in computed if rank == 0}
    assert {stage for stage, rank in computed if rank == 1} == {"joint", "finetune", "refit", "evaluate"} < stages
