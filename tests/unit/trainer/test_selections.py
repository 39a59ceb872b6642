"""Requests of the coordinator to the retriever, and their results."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.common.retriever_client import RetrieverClient, SelectionRun
from services.trainer.selections import Selections
from tests.factories import make_resolved, make_spec
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import StaleAttempt
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.recipe import resolve

TASK = ManifestRef(folder="default/task", digest="2" * 64)


def make_job(**over: Any) -> JobRecord:
    return JobRecord(
        id="job_1", tenant="default", state=State.RUNNING, spec=make_spec(), resolved=make_resolved(**over),
        created_at=0, updated_at=0, attempt=2,
    )  # fmt: skip


def request(
    run: dict[str, Any], check_owner: Callable[[], None] = lambda: None, **over: Any
) -> tuple[SelectionRun, list[Any]]:
    """Return the state for the response `run`, and the bodies of all PUT requests."""
    put: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            put.append(json.loads(request.content))
            return httpx.Response(202)
        return httpx.Response(200, json=run)

    job = make_job(**over)
    client = RetrieverClient(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://retriever"))
    state = Selections(client).request(job, plan_of(job).node("select"), "art_1", task=TASK, check_owner=check_owner)
    return state, put


def test_progress_of_a_selection_is_returned() -> None:
    state, put = request({"state": "running", "done": 4096, "total": 9000, "unit": "passages", "rate": 12.5})
    assert (state.done, state.total, state.unit, state.rate, state.ref) == (4096, 9000, "passages", 12.5, None)
    assert put == []


def test_unknown_selection_is_requested_with_corpus_and_version() -> None:
    _, [body] = request({"state": "unknown"})
    assert (body["corpus"], body["version"], body["params"]["selector"]) == ("docs", "v1", "bm25")


def test_selection_of_a_job_that_another_coordinator_holds_is_not_requested() -> None:
    def check_owner() -> None:
        raise StaleAttempt("Another coordinator holds job job_1.")

    assert request({"state": "running"}, check_owner)[1] == []
    with pytest.raises(StaleAttempt):
        request({"state": "unknown"}, check_owner)


def test_given_selection_is_requested_without_a_corpus() -> None:
    recipe = resolve("fast", "tiny", {"selection.selector": "given"})
    _, [body] = request({"state": "unknown"}, recipe=recipe, corpus_name=None, corpus_version=None)
    assert (body["corpus"], body["version"], body["params"]["selector"]) == (None, None, "given")
    assert body["task"] == TASK.model_dump()


def test_stop_names_the_folders_of_every_attempt() -> None:
    requests: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append((request.method, request.url.params["prefix"]))
        return httpx.Response(200, json={"stopped": False})

    client = RetrieverClient(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://retriever"))
    assert not Selections(client).stop(make_job(), "art_1")
    [(method, prefix)], [_, [body]] = requests, request({"state": "unknown"})
    assert method == "DELETE" and body["prefix"] == f"{prefix}2"
