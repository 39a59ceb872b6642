"""Responses of the retriever become values or errors of the project."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.common.problem import problem_of
from services.common.retriever_client import RetrieverClient, SelectionRequest
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import EmptySelection, IndexMismatch, IndexUnavailable, NotFound

REF = ManifestRef(folder="default/x", digest="1" * 64)


def client(respond: Callable[[httpx.Request], httpx.Response]) -> RetrieverClient:
    return RetrieverClient(httpx.Client(transport=httpx.MockTransport(respond), base_url="http://retriever"))


def always(status: int, **kwargs: Any) -> RetrieverClient:
    return client(lambda _: httpx.Response(status, **kwargs))


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def hung(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("", request=request)


@pytest.mark.parametrize("failure", [refused, hung])
def test_retriever_without_response_is_unavailable(
    failure: Callable[[httpx.Request], httpx.Response],
) -> None:
    with pytest.raises(IndexUnavailable):
        client(failure).search("default", "docs", "v1", "q", 3)


@pytest.mark.parametrize("error", [EmptySelection("no hit"), IndexMismatch("not ours"), NotFound("no version")])
def test_problem_raises_its_error(error: Any) -> None:
    with pytest.raises(type(error), match=error.message):
        always(500, json=problem_of(error).model_dump()).search("default", "docs", "v1", "q", 3)


@pytest.mark.parametrize(
    "answer", [{"status_code": 502, "text": "<html>"}, {"status_code": 200, "text": "<html>"},
               {"status_code": 500, "json": ["no", "problem"]}, {"status_code": 200, "json": {"hits": 3}},
               {"status_code": 401, "json": {"code": "unauthorized", "detail": "no"}}],
)  # fmt: skip
def test_invalid_response_and_wrong_token_make_it_unavailable(answer: dict[str, Any]) -> None:
    status = answer.pop("status_code")
    with pytest.raises(IndexUnavailable):
        always(status, **answer).search("default", "docs", "v1", "q", 3)


def test_corpus_without_an_index_has_the_state_unknown() -> None:
    unknown = always(404, json=problem_of(NotFound("x")).model_dump())
    assert unknown.corpus("default", "docs", "v1").state == "unknown"


def test_failed_load_has_its_error() -> None:
    load = always(200, json={"state": "failed", "error": IndexMismatch("not ours").as_dict()}).corpus("d", "n", "v")
    assert isinstance(load.failure, IndexMismatch)


def test_selection_is_requested_and_read_by_artifact_id() -> None:
    seen: list[tuple[str, str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path, json.loads(request.content or b"null")))
        return httpx.Response(200, json={"state": "ready", "done": 2, "total": 2, "ref": REF.model_dump()})

    api = client(answer)
    request = SelectionRequest(tenant="default", corpus="docs", version="v1", task=REF, params={"top_k": 5}, prefix="p")
    api.put_selection("art_1", request)
    run = api.get_selection("art_1")
    assert (run.state, run.ref, run.failure) == ("ready", REF, None)
    assert [(m, p) for m, p, _ in seen] == [("PUT", "/v1/selections/art_1"), ("GET", "/v1/selections/art_1")]
    assert seen[0][2]["task"]["digest"] == REF.digest
