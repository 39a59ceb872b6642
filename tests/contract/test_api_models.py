"""Models of finished jobs, their aliases, and predictions of whole files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from tests.contract.dashboard_pages import signed_in
from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import TOKEN, Gateway
from tests.factories import make_resolved, make_spec
from tlm_client.cli import app
from tlm_client.client import TLMClient
from tlm_client.console import Session
from tlm_core.errors import InvalidRequest
from tlm_core.kinds.share_tickets import ShareTicketsOptions


@pytest.fixture
def job(filled: tuple[Gateway, Contents]) -> str:
    return filled[1].jobs["succeeded"]


@pytest.fixture
def api(filled: tuple[Gateway, Contents]) -> Iterator[TestClient]:
    with filled[0].test_client() as client:
        yield client
        for model in client.get("/v1/models").json()["data"]:
            for alias in model["aliases"]:
                client.delete(f"/v1/models/{alias}")


@pytest.fixture
def transport(api: TestClient) -> httpx.MockTransport:
    def send(request: httpx.Request) -> httpx.Response:
        answer = api.request(request.method, request.url.path, params=dict(request.url.params), content=request.read(),
                             headers={"Content-Type": "application/json"})  # fmt: skip
        return httpx.Response(answer.status_code, content=answer.content, request=request)

    return httpx.MockTransport(send)


@pytest.fixture
def tlm(transport: httpx.MockTransport) -> TLMClient:
    return TLMClient("http://gateway", TOKEN, transport=transport)


def test_alias_addresses_a_model_until_it_is_moved(api: TestClient, job: str) -> None:
    listed = api.get("/v1/models").json()["data"]
    model = next(entry for entry in listed if entry["job"] == job)
    assert (model["aliases"], model["metric"]) == ([], "macro_f1") and 0 < model["score"] <= 1
    other = next(entry["job"] for entry in listed if entry["job"] != job)
    for target in (other, job):
        assert api.put("/v1/models/mail@production", json={"job": target}).json()["aliases"] == ["mail@production"]
        assert api.get("/v1/models/mail@production").json()["job"] == target
    unknown = api.get("/v1/models/mail@prodution")
    assert "Unknown model 'mail@prodution'. Did you mean 'mail@production'?" in unknown.text
    by_alias, by_id = (
        api.post(f"/v1/models/{name}/predict", json={"texts": ["invoice charge"]}).json()
        for name in ("mail@production", job)
    )
    assert by_alias == by_id
    assert api.delete("/v1/models/mail@production").status_code == 204
    assert api.get("/v1/models/mail@production").status_code == 404
    assert api.delete("/v1/models/mail@production").status_code == 404


def test_jobs_without_a_model_fill_no_page_of_the_list(gateway: Gateway) -> None:
    store, models = gateway.parts.jobs, gateway.parts.models

    def finished(**over: Any) -> str:
        store.submit("default", make_spec(**over), make_resolved())
        job = store.claim("a", 60)
        assert job is not None
        store.finish(job, "a", {})
        return job.id

    shared = {"kind": "share_tickets", "options": ShareTicketsOptions(others=("b",))}
    oldest, _, newest, *_ = (finished(**over) for over in ({}, shared, {}, shared, shared, shared))
    first, second = models.list("default", None, 1), models.list("default", newest, 1)
    assert ([model.job for model in first.data], first.has_more) == ([newest], True)
    assert ([model.job for model in second.data], second.has_more) == ([oldest], False)
    assert "No models yet" not in signed_in(gateway).get("/ui/models").text


def test_job_with_an_alias_is_not_deleted(api: TestClient, filled: tuple[Gateway, Contents], job: str) -> None:
    gateway, contents = filled
    api.put("/v1/models/mail@production", json={"job": job})
    browser = signed_in(gateway)
    assert "mail@production" in browser.get(f"/ui/jobs/{job}/model").text
    for client, method, path in (
        (api, "DELETE", f"/v1/jobs/{job}"),
        (api, "DELETE", f"/v1/datasets/{contents.dataset}?with_jobs=true"),
        (browser, "POST", f"/ui/jobs/{job}/do/delete"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == 409 and "mail@production" in answer.text, path


def test_alias_needs_a_name_with_at_and_a_finished_model(
    api: TestClient, filled: tuple[Gateway, Contents], job: str
) -> None:
    answer = api.put("/v1/models/production", json={"job": job})
    assert (answer.status_code, "must be NAME@NAME, such as" in answer.json()["detail"]) == (422, True)
    assert api.put("/v1/models/mail@production", json={"job": "job_unknown"}).status_code == 404
    queued = api.put("/v1/models/mail@production", json={"job": filled[1].jobs["queued"]})
    assert (queued.status_code, queued.json()["code"]) == (409, "not_ready")


def test_many_texts_are_sent_within_the_limits(tlm: TLMClient, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"invoice {n}" for n in range(600)] + ["parcel " * 60_000] * 3
    sent: list[int] = []
    predict = tlm.predict
    monkeypatch.setattr(tlm, "predict", lambda *a, **k: sent.append(len(a[1])) or predict(*a, **k))  # type: ignore[func-returns-value]
    assert len(list(tlm.predict_many(job, iter(texts)))) == len(texts)
    assert sent[:2] == [256, 256] and sum(sent) == len(texts) and len(sent) > 3, "The bytes are limited too."
    with pytest.raises(InvalidRequest, match="one second text in 'pairs' for each text"):
        list(tlm.predict_many(job, ["a", "b"], ["c"]))


def test_blank_text_is_refused_with_its_index(api: TestClient, transport: httpx.MockTransport, job: str) -> None:
    for texts, place in (([""], "/texts/0"), (["parcel", " \n"], "/texts/1")):
        answer = api.post(f"/v1/models/{job}/predict", json={"texts": texts})
        assert (answer.status_code, answer.json()["detail"]) == (422, f"{place}: must be a text that is not blank")
    session = Session(url="http://gateway", token=TOKEN, transport=transport)
    result = CliRunner().invoke(app, ["predict", job, "parcel", ""], obj=session)
    assert (result.exit_code, result.stderr) == (5, "error: TEXT (number 2): must be a text that is not blank\n")


def test_command_classifies_the_rows_of_a_file(
    tlm: TLMClient, transport: httpx.MockTransport, job: str, tmp_path: Path
) -> None:
    session = Session(url="http://gateway", token=TOKEN, transport=transport)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), obj=session)
        return result.output if result.exit_code == 0 else f"exit {result.exit_code}: {result.output}"

    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,body\n1,"invoice, charge"\n2,parcel\n', encoding="utf-8")
    assert "mail@production is the model of" in run("alias", "mail@production", job)
    assert "mail@production" in run("models")
    files = ("--file", str(source), "--out", str(target))
    assert "has no column 'text'. Name one with --text-column. Columns: id, body" in run(
        "predict", "mail@production", *files
    )
    assert "2 rows" in run("predict", "mail@production", *files, "--text-column", "body")
    with open(target, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    expected = tlm.predict(job, ["invoice, charge", "parcel"]).data
    assert [row["prediction"] for row in rows] == [prediction.label for prediction in expected]
    assert [float(row["probability"]) for row in rows] == [prediction.probability for prediction in expected]
    assert [row["id"] for row in rows] == ["1", "2"]
    again = ("predict", job, *files, "--force", "--text-column", "body")
    assert "100% 2 rows" in run(*again), "The last progress line has all rows."
    source.write_text("id,body\n1,a,b\n", encoding="utf-8")
    assert "Row 1 of in.csv has 3 fields" in run(*again)
    assert run("predict", job, "a text", *files).startswith("exit 2")
