"""Services return errors as RFC 9457 problems and reject bodies that they cannot handle."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field

from services.common.bodies import MAX_DEPTH, MAX_JSON_BYTES, UnsupportedJSON, check_json, depth_of
from services.common.problem import MEDIA_TYPE, install_problem_handlers, problem_of, status_of
from tlm_core.errors import (
    Fault,
    IndexUnavailable,
    InvalidDataset,
    NonFiniteLoss,
    NotFound,
    StaleAttempt,
    StoreFull,
    TLMError,
    error_classes,
    error_from_problem,
)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seeds: tuple[int, ...] = Field((), max_length=3)
    name: str = Field("x", min_length=1)
    overrides: dict[str, Any] = {}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install_problem_handlers(app)

    @app.post("/echo")
    def echo(body: Body) -> Body:
        return body

    @app.get("/raise/{code}")
    def fail(code: str) -> None:
        if code == "bug":
            raise RuntimeError("secret internals")
        if code == "invalid_dataset":
            raise InvalidDataset("two faults", [Fault("null_text", "no text", "train", 3, "text"), Fault("x", "y")])
        raise error_classes()[code]("what to change", key="k")

    return TestClient(app, raise_server_exceptions=False)


def test_error_class_has_its_own_status_or_that_of_its_base() -> None:
    expected = {InvalidDataset: 422, StaleAttempt: 409, IndexUnavailable: 503, StoreFull: 507, NonFiniteLoss: 500}
    assert {cls: status_of(cls) for cls in expected} == expected


@pytest.mark.parametrize("code", sorted(error_classes()))
def test_error_survives_the_conversion_to_a_problem(client: TestClient, code: str) -> None:
    answer = client.get(f"/raise/{code}")
    problem = answer.json()
    cls = error_classes()[code]
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.status_code == problem["status"] == status_of(cls)
    assert (problem["type"], problem["code"]) == (f"/docs/errors#{code}", code)
    assert problem["retryable"] is cls.retryable
    assert ("retry-after" in answer.headers) is (answer.status_code == 503)
    back = error_from_problem(problem)
    assert type(back) is cls
    assert problem_of(back).model_dump(exclude_none=True) == problem


def test_data_errors_keep_row_and_column(client: TestClient) -> None:
    first, second = client.get("/raise/invalid_dataset").json()["errors"]
    assert (first["row"], first["column"], first["split"]) == (3, "text", "train")
    assert second["row"] is None


def test_unexpected_error_reveals_no_internals(client: TestClient) -> None:
    answer = client.get("/raise/bug")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["code"] == "error"


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        ({"seeds": 5}, "/seeds", "must be a list"),
        ({"seeds": [1, 2, 3, 4]}, "/seeds", "must have at most 3 items"),
        ({"name": ""}, "/name", "must have at least 1 character"),
        ({"seeds": ["a"]}, "/seeds/0", "must be a valid integer"),
        ({"name": ["x"]}, "/name", "must be a valid string"),
        ({"overrides": [1]}, "/overrides", "must be an object"),
        ({"unknown": "x"}, "/unknown", "is not a known field"),
        (None, "", "is required"),
        ([], "", "must be an object"),
    ],
)
def test_invalid_field_has_a_pointer_and_a_message(client: TestClient, body: Any, pointer: str, says: str) -> None:
    answer = client.post("/echo", json=body) if body is not None else client.post("/echo")
    assert answer.status_code == 422
    fault = answer.json()["errors"][0]
    assert fault["pointer"] == pointer
    assert says in fault["message"]
    assert says in answer.json()["detail"]


def test_answer_lists_the_first_hundred_invalid_fields(client: TestClient) -> None:
    problem = client.post("/echo", json={f"key{number}": 1 for number in range(150)}).json()
    assert len(problem["errors"]) == 100
    assert problem["detail"].endswith("; and 145 more")


def test_message_about_a_number_has_no_words_about_parsing(client: TestClient) -> None:
    answer = client.post("/echo", json={"seeds": ["a"]})
    assert [entry["message"] for entry in answer.json()["errors"]] == ["must be a valid integer"]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, "has the Content-Type 'application/x-www-form-"),
        ({"Content-Type": "text/json"}, "has the Content-Type 'text/json'"),
        ({}, "has no Content-Type"),
    ],
)
def test_body_of_another_content_type_names_the_expected_type(
    client: TestClient, headers: dict[str, str], says: str
) -> None:
    answer = client.post("/echo", content=b'{"name": "x"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert says in answer.json()["detail"] and "'Content-Type: application/json'" in answer.json()["detail"]
    accepted = client.post(
        "/echo", content=b'{"name": "x"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert accepted.status_code == 200


def post(client: TestClient, body: bytes) -> Any:
    return client.post("/echo", content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"overrides":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
        (b'{"overrides":{"a":' + b"[" * 65 + b"]" * 65 + b"}}", "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b'{"overrides":{"a":NaN}}', "NaN"),
        (b'{"overrides":{"a":1e999}}', "too large"),
        (b'{"overrides":{"a":' + b"9" * 5000 + b"}}", "too long"),
        (b'{"name":"\\ud800"}', "surrogate"),
        (b'{"name":"\xff"}', "UTF-8"),
        (b'{"name":', "not valid JSON"),
    ],
)
def test_unsupported_json_is_rejected_with_a_message(client: TestClient, body: bytes, says: str) -> None:
    answer = post(client, body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert says in answer.json()["detail"]


def test_json_at_the_depth_limit_is_accepted() -> None:
    brackets_in_text = {"text": "[{" * 1000 + '\\"', "list": [1, 2.5, "ü\U0001f600"]}
    check_json(json.dumps(brackets_in_text).encode())
    check_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(UnsupportedJSON):
        check_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_depth_is_not_searched_beyond_the_limit() -> None:
    assert depth_of(b"[" * 200_000) == MAX_DEPTH + 1


@pytest.mark.parametrize(("size", "in_loop"), [(1_000, True), (100_000, False)])
def test_long_json_is_checked_outside_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, size: int, in_loop: bool
) -> None:
    in_loops: list[bool] = []
    monkeypatch.setattr("services.common.bodies.check_json", lambda _: in_loops.append(has_event_loop()))
    assert post(client, b'{"name":"' + b"x" * size + b'"}').status_code == 200
    assert in_loops == [in_loop]


def has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def test_depth_takes_linear_time_on_unclosed_texts() -> None:
    started = time.perf_counter()
    assert depth_of(b"[" * 65 + b'"' + b'\\"' * 400_000) == 65
    assert time.perf_counter() - started < 1


def test_body_that_is_too_large_is_rejected(client: TestClient) -> None:
    answer = post(client, b'{"name":"' + b"x" * MAX_JSON_BYTES + b'"}')
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_body_of_a_disconnected_client_reaches_no_route(client: TestClient) -> None:
    parts = iter([{"type": "http.request", "body": b'{"a"', "more_body": True}, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": "/body", "headers": [(b"content-type", b"application/json")]}

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    asyncio.run(client.app(scope, receive, send))


def test_unknown_paths_and_methods_return_problems(client: TestClient) -> None:
    for answer, status in ((client.get("/nothing"), 404), (client.put("/echo"), 405)):
        assert answer.status_code == answer.json()["status"] == status
        assert answer.headers["content-type"] == MEDIA_TYPE


def test_unknown_code_becomes_a_plain_error() -> None:
    error = error_from_problem({"code": "new_one", "detail": "later"})
    assert (type(error), error.message) == (TLMError, "later")
    assert isinstance(error_from_problem(problem_of(NotFound("x")).model_dump()), NotFound)
    assert isinstance(error_from_problem(problem_of(IndexUnavailable("x")).model_dump()), IndexUnavailable)
