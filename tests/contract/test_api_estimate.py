"""Estimates of jobs: counted, measured on earlier jobs, or null with a reason."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.api.work import Texts, work_of
from tests.contract.estimates import BODY, estimate, finish_job
from tests.contract.gateway import TRAIN, Gateway, add_dataset
from tests.contract.recorded_jobs import ROWS, TOKENS, record
from tlm_core.jobs.plan import Node, plan_of

T = "default"
pytestmark = pytest.mark.usefixtures("stocked")


def test_first_estimate_uses_built_in_rates(api: TestClient) -> None:
    result = estimate(api)
    assert {s["basis"] for s in result["stages"]} == {"built-in"}
    assert result["seconds"] > 0 and result["flops"] > 1e12
    assert result["gpu_hours"] is None and "no job that trains an encoder" in result["reasons"]["gpu_hours"]
    assert result["passages_at_most"] == 3, "The corpus has three passages."
    assert result["passages"] <= 3 and "built-in" in result["reasons"]["passages"]
    assert api.get("/v1/jobs").json()["data"] == []


def test_unmeasured_time_is_a_range_with_one_caveat(api: TestClient, gateway: Gateway) -> None:
    result = estimate(api)
    assert (result["seconds_at_least"], result["seconds_at_most"]) == pytest.approx(
        (result["seconds"] / 2, result["seconds"] * 8)
    )
    assert "not measured here" in result["reasons"]["seconds"]
    assert not [stage for stage in result["stages"] if "not measured" in stage["reason"]]
    finish_job(api, gateway, 7.0)
    result = estimate(api, seeds=[1])
    assert result["seconds_at_least"] == result["seconds"] == result["seconds_at_most"]
    assert "seconds" not in result["reasons"]


def test_stage_of_no_importance_makes_no_range(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 70.0, corpus=None, overrides={"selection.selector": "none"})
    result = estimate(api, seeds=[1])
    prepare = next(stage for stage in result["stages"] if stage["stage"] == "prepare")
    assert prepare["seconds_at_least"] < prepare["seconds_at_most"] < 1
    assert result["seconds_at_least"] == result["seconds_at_most"] == result["seconds"] > 100
    assert "seconds" not in result["reasons"]


def test_job_stores_the_estimate_of_its_nodes(api: TestClient, gateway: Gateway) -> None:
    expected = {stage["stage"]: stage["seconds"] for stage in estimate(api, seeds=[0, 1])["stages"]}
    job = gateway.parts.jobs.get(T, api.post("/v1/jobs", json=BODY | {"seeds": [0, 1]}).json()["id"])
    seconds = job.resolved.node_seconds
    assert seconds["joint.s0"] + seconds["joint.s1"] == pytest.approx(expected["joint"], rel=0.01)
    assert seconds["prepare"] == pytest.approx(expected["prepare"], rel=0.01)
    unknown = {"model.init": "hub:some/encoder", "tokenizer.source": "hub:some/encoder"}
    job = gateway.parts.jobs.get(T, api.post("/v1/jobs", json=BODY | {"overrides": unknown}).json()["id"])
    assert job.resolved.node_seconds == {}


def test_nodes_count_as_with_one_worker_until_several_are_measured(api: TestClient, gateway: Gateway) -> None:
    def stored(**over: Any) -> dict[str, float]:
        job = gateway.parts.jobs.get(T, api.post("/v1/jobs", json=BODY | over).json()["id"])
        return job.resolved.node_seconds

    assert stored(workers=4) == stored() and stored()["joint.s0"] > 0
    assert estimate(api, workers=4)["seconds"] is None, "The estimate itself stays unknown."


def test_job_starts_workers_for_the_linear_model_and_for_training(api: TestClient) -> None:
    starts = [
        next(stage["seconds"] for stage in estimate(api, **over)["stages"] if stage["stage"] == "start")
        for over in ({}, {"corpus": None})
    ]
    assert starts[0] == 2 * starts[1] > 0, "without a selection, both run in one submission"


def test_instant_job_is_estimated_without_an_encoder(api: TestClient) -> None:
    result = estimate(api, corpus=None, scale="instant")
    assert [s["stage"] for s in result["stages"]] == [
        "validate", "start", "baseline", "refit_linear", "evaluate_linear", "export_linear",
    ]  # fmt: skip
    assert {s["basis"] for s in result["stages"]} == {"built-in"} and result["seconds"] > 0
    assert result["flops"] is None and result["memory_bytes"] is None
    assert result["reasons"]["flops"] == result["reasons"]["memory_bytes"] == "the job trains no encoder"
    assert (result["gpu_hours"], result["reasons"]["gpu_hours"]) == (0.0, "the job trains no encoder")


def test_unknown_figures_are_null_with_a_reason(api: TestClient) -> None:
    over = {"model.init": "hub:some/encoder", "tokenizer.source": "hub:some/encoder"}
    result = estimate(api, overrides=over)
    assert result["flops"] is None and "published encoder" in result["reasons"]["flops"]
    assert result["seconds"] is None and result["memory_bytes"] is None and result["disk_bytes"] is None
    joint = next(s for s in result["stages"] if s["stage"] == "joint")
    assert (joint["seconds"], joint["basis"]) == (None, "unknown")


def test_finished_stages_are_free_and_others_measured(api: TestClient, gateway: Gateway) -> None:
    job = finish_job(api, gateway, 7.0)
    same = {s["stage"]: s for s in estimate(api)["stages"]}
    assert {s["basis"] for s in same.values()} == {"cached"}
    other = {s["stage"]: s for s in estimate(api, seeds=[1])["stages"]}
    assert [other[s]["basis"] for s in ("validate", "select", "prepare")] == ["cached"] * 3
    assert (other["joint"]["basis"], other["start"]["seconds"]) == ("measured", 10.0)
    assert job in other["joint"]["reason"]
    assert other["export"]["seconds"] == 7.0
    result = estimate(api, seeds=[1])
    assert (result["gpu_hours"], result["passages"]) == (0.0, 50)


def test_reading_options_make_different_data(api: TestClient, gateway: Gateway) -> None:
    job = finish_job(api, gateway, 7.0)
    add_dataset(gateway, "twin", {"train": TRAIN})
    assert job in estimate(api, dataset="twin")["reasons"]["passages"], "Only the name differs."
    add_dataset(gateway, "cut", {"train": TRAIN}, split_seed=3)
    assert job not in estimate(api, dataset="cut")["reasons"]["passages"], "Another split may select other passages."


def test_measured_texts_count_for_the_same_tokenizer_and_windows_alone(api: TestClient, gateway: Gateway) -> None:
    changes: tuple[dict[str, int], ...] = ({}, {"tokenizer.vocab_size": 20_000}, {"model.max_length": 64})
    same, *others = [estimate(api, overrides=change)["memory_bytes"] for change in changes]
    finish_job(api, gateway, 7.0)
    after, *unchanged = [estimate(api, overrides=change)["memory_bytes"] for change in changes]
    assert after != same, "The job has counted its vocabulary."
    assert unchanged == others


def test_job_without_passages_does_not_measure_their_length(api: TestClient, gateway: Gateway) -> None:
    before = {stage["stage"]: stage["seconds"] for stage in estimate(api)["stages"]}
    api.post("/v1/jobs", json={"dataset": "toy"})
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    record(gateway, job, lambda _: 7.0, passages=0)
    after = {stage["stage"]: stage["seconds"] for stage in estimate(api)["stages"]}
    assert after["prepare"] > before["prepare"] / 2 and after["self_train"] > before["self_train"] / 2


def test_gpu_hours_are_null_without_a_time(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0, gpu_seconds=5.0)
    assert estimate(api, seeds=[1])["gpu_hours"] > 0
    result = estimate(api, seeds=[1], workers=4)
    assert (result["gpu_hours"], result["reasons"]["gpu_hours"]) == (None, "the training time is unknown")


def test_every_finetuning_rate_counts(api: TestClient) -> None:
    single, double = estimate(api), estimate(api, overrides={"finetune.rates": [1e-3, 1e-4]})
    before, after = ({s["stage"]: s for s in result["stages"]} for result in (single, double))
    assert after["finetune"]["flops"] == pytest.approx(2 * before["finetune"]["flops"])
    assert after["joint"] == before["joint"] and after["choose"]["seconds"] < 1
    assert double["disk_bytes"] > single["disk_bytes"]


def test_automatic_length_follows_the_texts(api: TestClient, gateway: Gateway) -> None:
    texts = (" ".join(f"w{number % 9}" for number in range(120 + text)) for text in range(40))
    add_dataset(gateway, "long", {"train": "text,label\n" + "".join(f"{t},l{n % 2}\n" for n, t in enumerate(texts))})
    lengths = {
        wanted: estimate(api, dataset="long", overrides={"model.max_length": wanted})["memory_bytes"]
        for wanted in ("auto", 128, 256)
    }
    assert lengths["auto"] < lengths[256], "with auto, a step has fewer rows"
    assert lengths["auto"] > lengths[128], "the attention is over longer rows"
    assert estimate(api, overrides={"model.max_length": 128})["memory_bytes"] == estimate(api)["memory_bytes"]


def test_budget_in_seconds_is_the_estimate(api: TestClient) -> None:
    single, double = (estimate(api, seeds=seeds, overrides={"joint.budget.seconds": 36_000}) for seeds in ([0], [0, 1]))
    alone, both = ({s["stage"]: s for s in result["stages"]}["joint"] for result in (single, double))
    assert (alone["seconds"], alone["seconds_at_most"], alone["basis"]) == (36_000.0, None, "counted")
    assert (both["seconds"], both["basis"]) == (36_000.0, "counted")
    assert (both["seconds_at_least"], both["seconds_at_most"]) == (36_000.0, 72_000.0)
    assert double["reasons"]["seconds"] == "the seeds train side by side only if the workers have room"


def test_gpu_hours_count_the_budget_of_each_seed(api: TestClient, gateway: Gateway) -> None:
    finish_job(api, gateway, 7.0, gpu_seconds=5.0)
    single, double = (estimate(api, seeds=seeds, overrides={"joint.budget.seconds": 36_000}) for seeds in ([3], [3, 4]))
    assert double["gpu_hours"] - single["gpu_hours"] == pytest.approx(10, abs=0.1)


def test_expected_times_of_a_budget_add_up_to_the_estimate(api: TestClient, gateway: Gateway) -> None:
    body = {**BODY, "seeds": [0, 1, 2], "overrides": {"joint.budget.seconds": 30}}
    job = gateway.parts.jobs.get("default", api.post("/v1/jobs", json=body).json()["id"])
    times = [seconds for node, seconds in job.resolved.node_seconds.items() if node.startswith("joint")]
    assert times == [10, 10, 10]


def test_estimates_stay_within_a_quarter_of_ten_recorded_jobs(api: TestClient, gateway: Gateway) -> None:
    """The recorded times are proportional to the work, with 15 % noise."""
    random_source, errors = random.Random(0), []
    texts = Texts(ROWS, TOKENS["train"] / ROWS["train"], 2, 900, passages=50, passage_tokens=180.0)
    for number in range(11):
        over = {"seeds": [number], "overrides": {"joint.budget.tokens": 200_000 * (1 + number % 4),
                                           "finetune.epochs": 5 + number % 3}}  # fmt: skip
        estimated = estimate(api, **over)["seconds"]
        assert api.post("/v1/jobs", json=BODY | over).status_code == 202
        job = gateway.parts.jobs.claim("a", 60)
        assert job is not None
        work = {node.stage.name: work_of(node, texts) for node in plan_of(job).nodes}
        flops = {stage: stage_work.flops for stage, stage_work in work.items() if stage_work and stage_work.flops}
        elapsed: list[float] = []

        def seconds(node: Node, flops: dict[str, float] = flops, elapsed: list[float] = elapsed) -> float:
            noise = random_source.uniform(0.85, 1.15)
            stage = node.stage.name
            elapsed.append(noise * (flops[stage] * 4e-12 if stage in flops else 5.0))
            return elapsed[-1]

        record(gateway, job, seconds, flops)
        if number and abs(estimated / (sum(elapsed) + 10.0) - 1) > 0.25:
            errors.append((estimated, sum(elapsed) + 10.0))
    assert errors == []


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "learning_curve", "options": {"sizes": [0.5, 1], "models": ["bilstm", "encoder", "tlm"]}},
        {"kind": "prune", "options": {"levels": [0.3]}},
        {"kind": "share_tickets", "options": {"others": ["twin"], "level": 0.3}},
    ],
    ids=lambda body: str(body["kind"]),
)
def test_every_kind_is_estimated(api: TestClient, gateway: Gateway, body: dict[str, Any]) -> None:
    add_dataset(gateway, "twin", {"train": TRAIN.replace("film", "book")})
    result = estimate(api, **body)
    stages = {stage["stage"]: stage for stage in result["stages"]}
    assert result["flops"] is None or result["flops"] > 1e9
    assert result["seconds"] > 0 and result["seconds_at_least"] < result["seconds"] < result["seconds_at_most"]
    assert result["memory_bytes"] > 0 and result["disk_bytes"] > 0
    assert stages["validate"]["seconds"] > 0 and stages["prepare"]["seconds"] > 0
    assert {stage["basis"] for stage in stages.values()} == {"built-in"}
    assert all(stage["reason"] for stage in stages.values())


def test_dry_run_creates_no_job(api: TestClient) -> None:
    answer = api.post("/v1/jobs?dry_run=true", json=BODY, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert (result["corpus_version"], result["stages"][0]["name"]) == ("v1", "validate")
    assert result["estimate"]["flops"] == estimate(api)["flops"]
    assert api.get("/v1/jobs").json()["data"] == []
    assert api.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "k"}).status_code == 202


@pytest.mark.parametrize("path", ["/v1/jobs?dry_run=true", "/v1/jobs/estimate"])
def test_dry_run_and_estimate_validate_the_request(api: TestClient, path: str) -> None:
    assert api.post(path, json={**BODY, "dataset": "nope"}).status_code == 404
    assert api.post(path, json={**BODY, "overrides": {"joint.rho3": 1}}).status_code == 422


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_setting_of_the_gpus_needs_no_finished_job(gateway: Gateway, gpus: float) -> None:
    settings = gateway.parts.settings.model_copy(update={"worker_gpus": gpus})
    known = dataclasses.replace(gateway, parts=dataclasses.replace(gateway.parts, settings=settings))
    with known.test_client() as api:
        result = estimate(api)
    assert result["gpu_hours"] is not None and (result["gpu_hours"] > 0) == (gpus > 0)
    assert "as the operator of this service has set" in result["reasons"]["gpu_hours"]
    assert "TLM_" not in str(result)
