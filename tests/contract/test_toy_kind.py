"""A new kind of job is one file and one entry in the registry: it then runs through every interface."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from tests.contract.coordinator_harness import real_work
from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.gateway import TOKEN, Gateway, T
from tests.contract.toy_kind import ToyOptions
from tlm_client.cli import app
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.kinds import KINDS, MODULES

OVERRIDES = {"selection.selector": "none"}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, stocked: None) -> None:  # noqa: ARG001
    monkeypatch.setitem(MODULES, "toy", "tests.contract.toy_kind")


def run(gateway: Gateway, job_id: str) -> JobRecord:
    """Let a coordinator and its workers run the job to its end."""
    work = real_work(gateway)
    for _ in range(6):
        work()
    return gateway.parts.jobs.get(T, job_id)


def test_rest_runs_the_job_and_serves_its_report(gateway: Gateway, api: TestClient) -> None:
    body = {"kind": "toy", "dataset": "toy", "overrides": OVERRIDES, "options": {"characters": 2}}
    job = api.post("/v1/jobs", json=body).json()
    assert job["spec"]["options"] == {"characters": 2}
    assert [stage["name"] for stage in job["stages"]] == ["validate", "prefix"]
    assert run(gateway, job["id"]).state is State.SUCCEEDED
    report = api.get(f"/v1/jobs/{job['id']}/report").json()
    assert report["mean"]["test"] == {"prefix_accuracy": 1.0}, "'go' and 'ba' tell the labels apart"
    other = api.post("/v1/jobs", json={**body, "options": {}}).json()["id"]
    comparison = api.get("/v1/jobs/compare", params={"ids": [job["id"], other]}).json()
    assert comparison["differences"] == [{"key": "options.characters", "values": [2, 1]}]
    assert comparison["outcomes"][0]["mean"] == report["mean"]


def test_rest_rejects_invalid_options_and_unknown_kinds(api: TestClient) -> None:
    body: dict[str, Any] = {"kind": "toy", "dataset": "toy", "overrides": OVERRIDES, "options": {"characters": 0}}
    answer = api.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/options/characters")
    unknown = api.post("/v1/jobs", json={**body, "kind": "none"}).json()
    assert "Valid kinds: train, learning_curve, prune, share_tickets, toy." in unknown["detail"]


def test_openapi_describes_the_options_of_every_kind(api: TestClient) -> None:
    spec = api.get("/openapi.json").json()["components"]["schemas"]["JobSpec"]["properties"]
    assert spec["kind"]["enum"] == list(KINDS)
    titles = {schema.get("title") for schema in spec["options"]["anyOf"]}
    assert titles == {kind.options.__name__ for kind in KINDS.values()}


def test_command_line_submits_it_and_prints_its_report(gateway: Gateway) -> None:
    with gateway.served() as url:
        cli = functools.partial(CliRunner().invoke, app, env={"TLM_URL": url, "TLM_TOKEN": TOKEN})
        submitted = cli(["submit", "--kind", "toy", "--dataset", "toy", "--options", '{"characters": 2}', "--json"])
        assert submitted.exit_code == 0, submitted.output
        job = run(gateway, json.loads(submitted.stdout)["id"])
        assert job.spec.options == ToyOptions(characters=2)
        shown = cli(["show", job.id])
        assert shown.exit_code == 0 and "label 100.0% of the test texts correctly" in shown.output, shown.output


def test_dashboard_form_offers_its_options_and_shows_its_report(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    fields = {given.get("name"): given.get("value") for tag, given in Tags(browser.get("/ui/submit").text).tags}
    assert fields["toy.characters"] == "1"
    answer = browser.post("/ui/submit", data={"dataset": "toy", "kind": "toy", "toy.characters": "2"})
    assert answer.status_code == 303, answer.text
    job = run(gateway, answer.headers["location"].rsplit("/", 1)[1])
    assert job.spec.options == ToyOptions(characters=2)
    page = browser.get(f"/ui/jobs/{job.id}/results").text
    assert "label 100.0% of the test texts correctly" in page and "prefix accuracy" in page
