"""Tickets of a sharing job that name the `prune` job with the super ticket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.contract.gateway import TRAIN, Gateway, add_dataset
from tests.contract.job_results import publish
from tlm_core.compression.masks import Mask
from tlm_core.jobs.plan import plan_of
from tlm_core.kinds.share_tickets import ShareTicketsOptions

T = "default"
ALONE = {"joint.enabled": False, "selection.selector": "none"}
MASK = json.loads(json.dumps(Mask.full(3, 3).as_dict())) | {"blocks": [1, 0, 1]}


def submitted(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post("/v1/jobs", json={"dataset": "toy", "seeds": [0], "overrides": ALONE, **body})
    return {**answer.json(), "status_code": answer.status_code}


def shared(api: TestClient, ticket: str, **changes: Any) -> dict[str, Any]:
    options = {"others": ["more"], "tickets": {"toy": ticket}}
    return submitted(api, kind="share_tickets", options=options, overrides=ALONE | changes)


@pytest.fixture
def api(gateway: Gateway, api: TestClient) -> TestClient:
    for name in ("toy", "more"):
        add_dataset(gateway, name, {"train": TRAIN + f"about {name},pos\n"})
    return api


def pruning_job(gateway: Gateway, api: TestClient, dataset: str = "toy") -> str:
    """Return a running `prune` job that has published its report."""
    job_id = submitted(api, kind="prune", dataset=dataset, options={"levels": [0.1]})["id"]
    job = gateway.parts.jobs.claim("maker", 60)
    assert job is not None and job.id == job_id
    for node in plan_of(job).nodes:
        folder = gateway.root / "files" / node.name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"node": node.name, "super_ticket": {"mask": MASK}}))
        publish(gateway.parts.jobs, gateway.parts.artifacts, job, node.name, folder)
    return job_id


def test_ticket_of_a_prune_job_is_pinned(gateway: Gateway, api: TestClient) -> None:
    pruning = pruning_job(gateway, api)
    job = shared(api, pruning)
    assert job["status_code"] == 202, job
    record = gateway.parts.jobs.get(T, job["id"])
    assert record.spec.options == ShareTicketsOptions(others=("more",), tickets={"toy": pruning})
    assert plan_of(record).node("tickets.s0").params.tickets == (Mask.from_dict(MASK), 0.15)


def test_invalid_ticket_is_refused_at_submission(gateway: Gateway, api: TestClient) -> None:
    train = submitted(api)["id"]
    gateway.parts.jobs.claim("maker", 60)
    waiting = submitted(api, kind="prune", options={"levels": [0.1]})["id"]
    for ticket, status, complaint in (
        (train, 422, "has kind 'train'"), ("job_none", 404, "job_none"), (waiting, 409, "has not finished"),
        ("best", 422, "Invalid ticket of 'toy': 'best'"),
    ):  # fmt: skip
        answer = shared(api, ticket)
        assert answer["status_code"] == status, answer
        assert complaint in json.dumps(answer)


def test_ticket_of_several_rates_must_be_a_mask(api: TestClient) -> None:
    rates = {"overrides": ALONE | {"finetune.rates": [1e-3, 1e-4]}}
    pruning = submitted(api, kind="prune", options={"levels": [0.1]}, **rates)["id"]
    answer = shared(api, pruning)
    assert (answer["status_code"], "tried several finetuning rates or class weights" in answer["detail"]) == (
        422,
        True,
    ), answer


def test_ticket_of_another_dataset_is_refused(gateway: Gateway, api: TestClient) -> None:
    answer = shared(api, pruning_job(gateway, api, "more"))
    assert answer["status_code"] == 422 and "other data (more)" in answer["detail"], answer


def test_ticket_of_other_reading_options_is_refused(gateway: Gateway, api: TestClient) -> None:
    pruning = pruning_job(gateway, api)
    add_dataset(gateway, "toy", {"train": TRAIN + "about toy,pos\n"}, split_seed=3)
    answer = shared(api, pruning)
    assert answer["status_code"] == 422 and "or read it with other options" in answer["detail"], answer


def test_ticket_of_other_settings_is_refused_with_the_differences(gateway: Gateway, api: TestClient) -> None:
    pruning = pruning_job(gateway, api)
    other = {"finetune.optimizer.lr": 0.002, "finetune.epochs": 3, "model.max_length": 64}
    answer = shared(api, pruning, **other)
    assert answer["status_code"] == 422, answer
    for part in ("finetune.optimizer.lr (0.001 in that job, 0.002 in this one)", "finetune.epochs", "model.max_length"):
        assert part in answer["detail"], answer
    same = {"finetune.reset_head": True, "tokenizer.vocab_size": 900}
    assert shared(api, pruning, **same)["status_code"] == 202, "The head is always reset."


@pytest.mark.parametrize("others", [["more", "toy@v1"], ["more", "more"], ["ID"]])
def test_repeated_dataset_is_refused(gateway: Gateway, api: TestClient, others: list[str]) -> None:
    own = gateway.parts.catalog.dataset(T, "toy").id
    named = [own if name == "ID" else name for name in others]
    answer = submitted(api, kind="share_tickets", options={"others": named})
    assert answer["status_code"] == 422 and "are the same dataset (ds_" in answer["detail"], answer
