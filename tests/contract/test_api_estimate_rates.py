"""Rates of estimates: which finished jobs and measurements count for which stage."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.api.measurements import Finished, Measurements
from services.common.progress import progress_of
from services.common.situation import Situation
from services.trainer import compute
from services.trainer.assignment import Assignment
from tests.contract.estimates import BODY, estimate, finish_job, training
from tests.contract.gateway import Gateway, add_dataset, add_version
from tests.contract.recorded_jobs import SEARCHED, record
from tlm_core.corpus.states import CorpusState
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import Beat, JobRecord, Progress
from tlm_core.training.speed import flop_of

T = "default"
pytestmark = pytest.mark.usefixtures("stocked")


def test_rate_of_another_number_of_seeds_gives_a_range(api: TestClient, gateway: Gateway) -> None:
    """Three seeds share the cores. A single one is as fast as all three together, or only as one of them."""
    job = finish_job(api, gateway, 70.0, seeds=[0, 1, 2])
    three, single = estimate(api, seeds=[3, 4, 5]), estimate(api, seeds=[3])
    measured, scaled = training(three), training(single)
    assert scaled["basis"] == "measured" and scaled["reason"] == f"measured by {job} with 3 seeds"
    assert measured["seconds_at_least"] is measured["seconds_at_most"] is None
    assert scaled["seconds"] == pytest.approx(measured["seconds"] / 3), "The seeds together had this throughput."
    assert (scaled["seconds_at_least"], scaled["seconds_at_most"]) == pytest.approx(
        (scaled["seconds"], measured["seconds"])
    )
    assert "another number of seeds" in single["reasons"]["seconds"]
    more = training(estimate(api, seeds=[0, 1, 2, 3, 4, 5], overrides={"joint.batch_rows": 24}))
    assert more["seconds_at_least"] == pytest.approx(more["seconds"] / 2) and more["seconds_at_most"] == more["seconds"]


@pytest.mark.parametrize(("one_by_one", "rounds"), [(False, 1), (True, 3)])
def test_estimate_counts_how_many_seeds_ran_at_once(
    api: TestClient, gateway: Gateway, one_by_one: bool, rounds: int
) -> None:
    finish_job(api, gateway, 70.0, gpu_seconds=5.0, one_by_one=one_by_one, seeds=[0, 1, 2])
    result = estimate(api, seeds=[3, 4, 5])
    refit = next(stage for stage in result["stages"] if stage["stage"] == "refit")
    assert (refit["basis"], refit["seconds"]) == ("measured", pytest.approx(70 * rounds))
    assert result["seconds_at_least"] == result["seconds"] == result["seconds_at_most"]
    trained = [stage["seconds"] for stage in result["stages"] if stage["stage"] in ("joint", "finetune", "refit")]
    assert result["gpu_hours"] == pytest.approx(sum(trained) * 3 / rounds / 3600), "Each seed uses a GPU."
    alone = training(estimate(api, seeds=[3]))
    assert alone["seconds_at_most"] == pytest.approx(training(result)["seconds"] / rounds)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_cached_seeds_do_not_shorten_the_time_of_the_others(
    api: TestClient, gateway: Gateway, one_by_one: bool
) -> None:
    """Each seed reserves a fixed share of the CPUs, so a seed alone is about as fast as beside cached seeds."""
    finish_job(api, gateway, 70.0, one_by_one=one_by_one, seeds=[0, 1, 2])
    for seeds, left in (([0, 1, 3], 1), ([0, 3, 4], 2)):
        joint, rounds = training(estimate(api, seeds=seeds)), left if one_by_one else 1
        alone = training(estimate(api, seeds=[3, 4, 5]))["seconds"] / (3 if one_by_one else 1)
        assert joint["seconds"] == pytest.approx(alone * rounds)
        least = None if one_by_one else pytest.approx(alone * left / 3)
        assert joint["seconds_at_least"] == least, "With fewer cores than seeds, cached seeds leave cores to others."
        job = gateway.parts.jobs.get(T, api.post("/v1/jobs", json=BODY | {"seeds": seeds}).json()["id"])
        times = (seconds for node, seconds in job.resolved.node_seconds.items() if node.startswith("joint"))
        assert sum(times) == pytest.approx(joint["seconds"], rel=0.01)


def test_rate_of_an_earlier_release_counts_for_seeds_side_by_side(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 70.0, gpu_seconds=5.0, seeds=[0, 1, 2])
    now, jobs = estimate(api, seeds=[3, 4, 5]), gateway.parts.jobs
    new = [name for name in jobs.rates(T) if name.startswith("at_once/")]
    assert new and gateway.client.hdel(f"tlm:{{{T}}}:stage-rates", *new) == len(new)
    assert estimate(api, seeds=[3, 4, 5]) == now and now["gpu_hours"] > 0


def test_stored_rates_have_at_most_three_values(api: TestClient, gateway: Gateway) -> None:
    """Gateways of earlier releases do not accept a fourth value. This release ignores one."""
    finish_job(api, gateway, 70.0, gpu_seconds=5.0, one_by_one=True, seeds=[0, 1, 2])
    now, stored = estimate(api, seeds=[3, 4, 5]), gateway.parts.jobs.rates(T)
    assert stored and all(2 <= len(value.split()) <= 3 for value in stored.values())
    gateway.parts.jobs.save_rates(T, {name: f"{value} 9.0" for name, value in stored.items()})
    assert estimate(api, seeds=[3, 4, 5]) == now


@pytest.mark.parametrize("one_by_one", [False, True])
def test_remaining_time_does_not_jump_when_seeds_report_their_first_steps(
    api: TestClient, gateway: Gateway, one_by_one: bool
) -> None:
    finish_job(api, gateway, 70.0, gpu_seconds=5.0, one_by_one=one_by_one, seeds=[0, 1, 2])
    job = gateway.parts.jobs.get(T, api.post("/v1/jobs", json=BODY | {"seeds": [3, 4, 5]}).json()["id"])
    plan = plan_of(job)
    node = plan.node("refit.s3")
    done: dict[str, Any] = dict.fromkeys(before.name for before in plan.behind(node.name))
    job = job.model_copy(update={"beats": {f"seed.s{seed}": Beat() for seed in ([3] if one_by_one else [3, 4, 5])}})
    first, later = (
        progress_of(Situation(job, plan, done), node, step=step, total=100, eta_seconds=70 - 0.7 * step).eta_seconds
        for step in (1, 10)
    )
    assert first is not None and later is not None and first - later == pytest.approx(70 * 0.09, abs=1)


def test_measured_rates_outlive_their_job(api: TestClient, gateway: Gateway) -> None:
    job = finish_job(api, gateway, 7.0)
    before = estimate(api, seeds=[1])
    assert api.delete(f"/v1/jobs/{job}").status_code == 204
    gateway.parts.__dict__.pop("estimator")  # as after a restart
    joint = next(stage for stage in estimate(api, seeds=[1])["stages"] if stage["stage"] == "joint")
    assert joint["basis"] == "measured" and job in joint["reason"]
    assert before["seconds_at_most"] == before["seconds"]


def test_job_whose_stages_are_all_cached_measures_nothing(api: TestClient, gateway: Gateway) -> None:
    measuring, cached = finish_job(api, gateway, 7.0), finish_job(api, gateway, 7.0)
    assert cached != measuring and measuring in training(estimate(api, seeds=[1]))["reason"]


def test_job_without_passages_does_not_measure_their_preparation(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0, corpus=None, overrides={"selection.selector": "none"})
    basis = {stage["stage"]: stage["basis"] for stage in estimate(api, seeds=[1])["stages"]}
    assert (basis["prepare"], basis["start"]) == ("built-in", "measured")


def test_estimates_at_the_same_time_share_their_measurements(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_job(api, gateway, 7.0)
    measurements = Measurements(gateway.parts.catalog, gateway.parts.jobs, gateway.parts.artifacts)
    measure = measurements._measure

    def measure_beside_another_tenant(job: JobRecord) -> Finished | None:
        assert measurements.finished("other") == []
        return measure(job)

    monkeypatch.setattr(measurements, "_measure", measure_beside_another_tenant)
    assert measurements.finished("default") == measurements.finished("default") != []


def test_running_job_does_not_change_the_estimate_of_another(api: TestClient, gateway: Gateway) -> None:
    before = {stage["stage"]: stage for stage in estimate(api, seeds=[1])["stages"]}
    assert api.post("/v1/jobs", json=BODY).status_code == 202
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    node = next(node for node in plan_of(job).nodes if node.stage.name == "joint")
    rate = before["joint"]["tokens"] / before["joint"]["seconds"] / 4
    progress = Progress(stage="joint", node=node.name, step=10, total=100, rate=rate, unit="tokens")
    gateway.parts.jobs.report(T, job.id, job.attempt, progress=progress)
    after = {stage["stage"]: stage for stage in estimate(api, seeds=[1])["stages"]}
    assert after == before
    assert after["select"]["basis"] == "built-in"


def test_least_time_after_shared_cores_uses_the_measured_device(api: TestClient, gateway: Gateway) -> None:
    """Threads that wait for each other use their cores, so the time with a core exceeds that on a quiet machine."""
    over: dict[str, Any] = {"overrides": {"precision": "bf16"}}
    finish_job(api, gateway, 70.0, had_core=0.2, **over)
    joint = training(estimate(api, seeds=[1], **over))
    gateway.parts.jobs.save_rates(T, {flop_of("bf16"): f"{joint['seconds'] / joint['flops'] / 10} job_1"})
    least = training(estimate(api, seeds=[1], **over))["seconds_at_least"]
    assert (joint["seconds_at_least"], least) == pytest.approx((joint["seconds"] / 5, joint["seconds"] / 10))


def test_rate_of_a_finished_job_counts_for_similar_steps_alone(api: TestClient, gateway: Gateway) -> None:
    """A step on short texts or of a smaller model has less work, but it needs more seconds for each unit of work."""
    texts = (" ".join(f"w{number % 9}" for number in range(120 + text)) for text in range(40))
    add_dataset(gateway, "long", {"train": "text,label\n" + "".join(f"{t},l{n % 2}\n" for n, t in enumerate(texts))})
    finish_job(api, gateway, 700.0)
    for over, basis in (
        ({}, "measured"),
        ({"overrides": {"finetune.epochs": 9}}, "measured"),
        ({"dataset": "long"}, "built-in"),
        ({"scale": "quick"}, "built-in"),
        ({"scale": "small"}, "built-in"),
    ):
        stages = {stage["stage"]: stage for stage in estimate(api, seeds=[1], **over)["stages"]}
        assert (stages["finetune"]["basis"], stages["export"]["basis"]) == (basis, "measured"), over


@pytest.mark.parametrize(("had_core", "gpu_seconds", "workers", "least"), [
    (0.2, 0.0, 1, 0.2), (0.9, 0.0, 1, 1.0), (0.2, 5.0, 1, 1.0), (0.2, 0.0, 2, 1.0),
])  # fmt: skip
def test_time_measured_on_shared_cores_is_the_upper_end_of_a_range(
    api: TestClient, gateway: Gateway, had_core: float, gpu_seconds: float, workers: int, least: float
) -> None:
    job = finish_job(api, gateway, 70.0, gpu_seconds=gpu_seconds, had_core=had_core, workers=workers)
    result = estimate(api, seeds=[1], workers=workers)
    joint, shared = training(result), " while other programs used the cores" if least < 1 else ""
    assert joint["reason"] == f"measured by {job}{shared}" and joint["seconds"] > 0
    assert (joint["seconds_at_least"] or joint["seconds"]) == pytest.approx(least * joint["seconds"])
    assert (joint["seconds_at_most"] or joint["seconds"]) == joint["seconds"]
    assert result["reasons"].get("seconds", "").startswith(f"measured{shared}; " if shared else "")
    assert ("seconds" in result["reasons"]) == (least < 1) == (result["seconds_at_least"] < result["seconds"])


def test_rate_at_another_precision_is_not_used(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0, overrides={"precision": "fp32"})
    for precision, basis in (("fp32", "measured"), ("bf16", "built-in")):
        stages = estimate(api, seeds=[1], overrides={"precision": precision})["stages"]
        assert [stage["basis"] for stage in stages if stage["stage"] == "joint"] == [basis]


def test_built_in_rate_of_fp32_is_slower_than_that_of_bf16(api: TestClient) -> None:
    """Processors without bf16 train in fp32. On two such cores, a FLOP took eight times as long."""
    fp32, bf16 = (training(estimate(api, overrides={"precision": name})) for name in ("fp32", "bf16"))
    assert fp32["basis"] == "built-in" and fp32["seconds"] == pytest.approx(8 * bf16["seconds"])


def test_worker_measures_each_device_and_precision_once_a_day(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = {"overrides": {"precision": "bf16"}, "seeds": [1]}
    speeds = iter((3.5e-12, 7e-12, 1.05e-11))
    monkeypatch.setattr(compute, "seconds_per_flop", lambda _precision, **_: next(speeds))
    built_in = training(estimate(api, **over))
    devices = [("an old CPU", 1), ("an old CPU", 1), ("a new CPU, 2 CPUs", 2), ("an old CPU", 1), ("an old CPU", 3)]
    for number, (device, factor) in enumerate(devices):
        if number == 4:
            monkeypatch.setattr(gateway.parts.jobs, "now", lambda: time.time() + 86_401)
        job = api.post("/v1/jobs", json=BODY | over).json()["id"]
        compute.measure_once(gateway.parts.jobs, Assignment(T, job, 1, "main", 1, 1, 1.0, 0.0), device)
        result = estimate(api, **over)
        stage = training(result)
        assert (stage["basis"], stage["seconds"]) == ("device", pytest.approx(factor * built_in["seconds"]))
        assert result["reasons"]["seconds"].startswith("from a short measurement here; ")
        ends = stage["seconds_at_least"], stage["seconds_at_most"]
        assert ends == pytest.approx((stage["seconds"] / 4, 3 * stage["seconds"]))
    assert training(estimate(api, overrides={"precision": "fp32"}, seeds=[1]))["basis"] == "built-in"


def test_instant_job_measures_the_start_of_workers(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0, corpus=None, scale="instant")
    stages = {stage["stage"]: stage for stage in estimate(api, seeds=[1])["stages"]}
    assert (stages["start"]["basis"], stages["joint"]["basis"]) == ("measured", "built-in")


def test_rate_of_a_job_counts_on_its_device_alone(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0, device="an old CPU")
    for device, basis in (("an old CPU", "measured"), ("a new CPU", "built-in")):
        gateway.parts.jobs.save_rates(T, {"device": device})
        result = estimate(api, seeds=[1])
        assert training(result)["basis"] == basis
        assert next(stage["basis"] for stage in result["stages"] if stage["stage"] == "export") == "measured"


def test_damaged_record_of_a_finished_job_blocks_no_estimate(api: TestClient, gateway: Gateway) -> None:
    job = finish_job(api, gateway, 7.0)
    gateway.client.hset(f"tlm:{{{T}}}:job:{job}", "resolved", '{"of_tomorrow": 1}')
    assert training(estimate(api, seeds=[9]))["basis"] == "built-in"
    assert api.post("/v1/jobs", json=BODY).status_code == 202


def test_resumed_stage_counts_all_its_seconds(api: TestClient, gateway: Gateway) -> None:
    """The events contain only the last start, but the FLOPs count the whole stage."""
    finish_job(api, gateway, 10.0, counted=1_000.0)
    joint = next(s for s in estimate(api, seeds=[1])["stages"] if s["stage"] == "joint")
    assert joint["seconds"] == pytest.approx(joint["flops"] * 1_000 / 1e9), "The recorded stage had 1e9 FLOPs."


def test_rate_of_several_workers_must_be_measured(api: TestClient, gateway: Gateway) -> None:
    assert estimate(api, workers=4)["seconds"] is None, "The built-in rates apply to one worker."
    finish_job(api, gateway, 7.0)
    four = estimate(api, seeds=[1], workers=4)
    joint = next(s for s in four["stages"] if s["stage"] == "joint")
    assert (joint["seconds"], joint["basis"], four["seconds"]) == (None, "unknown", None)
    assert "no job with 4 workers has run this stage" in joint["reason"]
    assert joint["flops"] == next(s["flops"] for s in estimate(api, seeds=[1])["stages"] if s["stage"] == "joint")
    finish_job(api, gateway, 7.0, workers=4, seeds=[2])
    assert estimate(api, seeds=[1], workers=4)["seconds"] > 0


def test_selection_time_grows_with_the_corpus(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0)
    add_version(gateway, "docs", "v2", CorpusState.READY, count=4 * SEARCHED)
    select = next(s for s in estimate(api)["stages"] if s["stage"] == "select")
    assert (select["basis"], select["seconds"]) == ("measured", pytest.approx(28.0))


def test_finished_curve_measures_its_stages(api: TestClient, gateway: Gateway) -> None:
    body = {"kind": "learning_curve", "options": {"sizes": [0.5, 1], "models": ["bilstm", "encoder", "tlm"]}}
    assert "bilstm" in {stage["stage"] for stage in estimate(api, **body)["stages"] if stage["basis"] == "built-in"}
    assert api.post("/v1/jobs", json=BODY | body).status_code == 202
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    record(gateway, job, lambda _: 5.0)
    stages = {stage["stage"]: stage for stage in estimate(api, **body | {"seeds": [1]})["stages"]}
    assert stages["bilstm"]["basis"] == "measured" and 5 < stages["bilstm"]["seconds"] < 30
    assert all(stage["seconds"] is not None for stage in stages.values())
