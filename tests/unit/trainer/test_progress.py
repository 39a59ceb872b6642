"""The progress of a whole job, weighted by the estimate of each stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.progress import progress_of
from services.common.situation import Situation
from tests.factories import make_resolved, make_spec
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import Beat, JobRecord
from tlm_core.jobs.states import State

REF = ManifestRef(folder="default/x", digest="1" * 64)
SECONDS = {"validate": 1.0, "baseline": 4.0, "select": 3.0, "self_train": 2.0, "prepare": 10.0, "joint.s0": 100.0,
           "finetune.s0": 50.0, "evaluate": 10.0, "export": 20.0}  # fmt: skip


def situation(
    done: tuple[str, ...], seconds: dict[str, float], seeds: tuple[int, ...] = (0,), waiting: tuple[int, ...] = ()
) -> Situation:
    """Return the situation of a job. waiting: the seeds that wait for room in Ray."""
    beats = {f"seed.s{seed}": Beat(phase="waiting" if seed in waiting else "working") for seed in seeds}
    job = JobRecord(
        id="job_1", tenant="default", state=State.RUNNING, spec=make_spec(seeds=seeds),
        resolved=make_resolved(node_seconds=seconds), created_at=0, updated_at=0, beats=beats,
    )  # fmt: skip
    return Situation(job, plan_of(job), dict.fromkeys(done, REF))


BEFORE = ("validate", "baseline", "select", "self_train", "prepare")


def test_share_and_time_left_are_weighted_by_the_estimate() -> None:
    state = situation(BEFORE, SECONDS)
    progress = progress_of(state, state.plan.node("joint.s0"), step=10, total=100, eta_seconds=90.0)
    assert progress.share == pytest.approx(30 / 200) and progress.eta_seconds == 90 + 80
    assert (progress.stage_eta_seconds, progress.nodes_done, progress.nodes_total) == (90.0, 5, 11)


def test_measured_speed_of_training_corrects_the_time_left() -> None:
    state = situation(BEFORE, SECONDS)
    progress = progress_of(state, state.plan.node("joint.s0"), step=50, total=100, eta_seconds=500.0)
    assert progress.eta_seconds == 500 + 10 * 50 + 30, "training is ten times slower, the other stages are not"
    assert progress.share == pytest.approx((20 + 500) / (20 + 1000 + 500 + 30))


def test_next_stage_starts_with_the_measured_speed() -> None:
    state = situation(BEFORE, SECONDS)
    last = progress_of(state, state.plan.node("joint.s0"), step=98, total=100, eta_seconds=20.0)
    job = state.job.model_copy(update={"progress": last})
    after = replace(situation((*BEFORE, "joint.s0"), SECONDS), job=job)
    shares = [last.share]
    for name in ("finetune.s0", "evaluate"):  # neither has measured anything
        progress = progress_of(after, state.plan.node(name))
        assert progress.slowdown == last.slowdown == pytest.approx(10)
        shares.append(progress.share)
    assert shares == pytest.approx([1000 / 1550, 1020 / 1550, 1520 / 1550])


def test_stage_without_measurement_uses_its_estimate() -> None:
    state = situation(BEFORE[:2], SECONDS)
    assert progress_of(state, state.plan.node("select")).eta_seconds == 195
    assert progress_of(state, state.plan.node("select"), step=1, total=3).eta_seconds == 194


def test_elapsed_time_counts_for_a_stage_without_steps() -> None:
    state = situation(BEFORE[:1], SECONDS)
    shares = [progress_of(state, state.plan.node("baseline"), elapsed=seconds).share for seconds in (0, 1, 2, 60)]
    assert shares == pytest.approx([1 / 200, 2 / 200, 3 / 200, (1 + 0.95 * 4) / 200])
    trains = situation(BEFORE, SECONDS)
    first, later = (progress_of(trains, trains.plan.node("joint.s0"), elapsed=seconds).share for seconds in (0, 60))
    assert first == later, "Training reports its first step soon."


def test_progress_without_estimate_counts_nodes() -> None:
    state = situation(BEFORE, {})
    progress = progress_of(state, state.plan.node("joint.s0"), step=1, total=2, eta_seconds=60.0)
    assert (progress.share, progress.eta_seconds, progress.stage_eta_seconds) == (5.5 / 11, None, 60.0)


def test_seeds_side_by_side_are_equally_far() -> None:
    seconds = SECONDS | {"joint.s1": 100.0, "finetune.s1": 50.0}
    state = situation(BEFORE, seconds, seeds=(0, 1))
    progress = progress_of(state, state.plan.node("joint.s0"), step=50, total=100, eta_seconds=100.0)
    assert progress.eta_seconds == 100 + 2 * 50 + 30, "each seed takes twice as long as alone"
    assert progress.share == pytest.approx((20 + 100) / 350)
    last = situation((*BEFORE, "joint.s0", "finetune.s0"), seconds, seeds=(0, 1))
    progress = progress_of(last, last.plan.node("joint.s1"), step=50, total=100, eta_seconds=100.0)
    assert progress.eta_seconds == 50 + 50 + 30


def test_seeds_side_by_side_report_the_same_progress() -> None:
    seconds = SECONDS | {"joint.s1": 100.0, "finetune.s1": 50.0}
    both = []
    for seed, other in ((0, 1), (1, 0)):  # each seed knows only its own joint stage, until it reads the situation again
        state = situation((*BEFORE, f"joint.s{seed}"), seconds, seeds=(0, 1))
        both.append(progress_of(state, state.plan.node(f"finetune.s{seed}"), step=1, total=2, eta_seconds=50.0))
        assert both[-1].share == pytest.approx(270 / 350), f"joint.s{other} has ended too"
    assert both[0].nodes_done == both[1].nodes_done == 7


def test_time_left_counts_seeds_that_wait_for_the_only_gpu() -> None:
    seconds = SECONDS | {"joint.s1": 100.0, "finetune.s1": 50.0}
    state = situation(BEFORE, seconds, seeds=(0, 1), waiting=(1,))
    first, later = (
        progress_of(state, state.plan.node("joint.s0"), step=step, total=100, eta_seconds=100.0 - step)
        for step in (1, 50)
    )
    assert first.eta_seconds == 99 + 50 + 150 + 30 and later.eta_seconds == 50 + 50 + 150 + 30
    assert later.slowdown == 1 and later.share == pytest.approx((20 + 50) / 350)
    last = situation((*BEFORE, "joint.s0", "finetune.s0", "refit.s0"), seconds, seeds=(0, 1))
    assert progress_of(last, last.plan.node("joint.s1"), step=50, total=100, eta_seconds=50.0).eta_seconds == 130


def test_cached_seed_does_not_share_the_measured_time() -> None:
    seconds = SECONDS | {"joint.s1": 100.0, "finetune.s1": 50.0}
    state = situation((*BEFORE, "joint.s0", "finetune.s0", "refit.s0"), seconds, seeds=(0, 1))
    progress = progress_of(state, state.plan.node("joint.s1"), step=50, total=100, eta_seconds=500.0)
    assert progress.eta_seconds == 500 + 10 * 50 + 30 and progress.slowdown == 10


def test_first_steps_do_not_change_the_estimate() -> None:
    state = situation(BEFORE, SECONDS)
    progress = progress_of(state, state.plan.node("joint.s0"), step=1, total=100, eta_seconds=900.0)
    assert progress.eta_seconds == 99 + 80 and progress.stage_eta_seconds == 900.0


def test_workers_that_start_count_as_work() -> None:
    seconds = SECONDS | {"start.baseline": 9.0, "start.main": 9.0}
    waiting, running = situation(BEFORE[:1], seconds), situation(BEFORE[:3], seconds)
    assert progress_of(waiting, waiting.plan.node("select")).eta_seconds == 3 + 196 + 2 * 9
    first = progress_of(running, running.plan.node("self_train"))
    assert (first.eta_seconds, first.share) == (192, pytest.approx(26 / 218))


def test_measured_speed_of_a_stage_with_steps_replaces_its_estimate() -> None:
    state = situation(BEFORE[:1], SECONDS)
    progress = progress_of(state, state.plan.node("baseline"), step=10, total=40, eta_seconds=300.0)
    assert progress.eta_seconds == 300 + 195
    assert progress.share == pytest.approx((1 + 100) / (1 + 400 + 195))
