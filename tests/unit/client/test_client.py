"""Requests of the client: errors, retries, pages, uploads, parsing."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client.gateway import (
    URL,
    Handler,
    client_of,
    dataset_view,
    end,
    event_stream,
    job_summary,
    job_view,
    load_view,
    problem,
)
from tlm_client import http
from tlm_client.async_client import AsyncTLMClient
from tlm_client.client import TLMClient
from tlm_core import errors as e
from tlm_core.jobs.spec import JobSpec
from tools.generate_client import CLIENT, GENERATED, generate

FAULT = {"code": "null_text", "message": "row 7 has no text", "split": "train", "row": 7, "column": "text"}


@pytest.mark.parametrize(("source", "target"), GENERATED.items())
def test_synchronous_client_is_generated_from_the_asyncio_client(source: str, target: str) -> None:
    assert (CLIENT / target).read_text(encoding="utf-8") == generate(source), "run `make client`"


def test_dataset_error_arrives_with_row_and_column(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("text,label\n,a\n", encoding="utf-8")
    answer = problem(422, "invalid_dataset", "the dataset has a fault", errors=[FAULT])
    with client_of(lambda _: answer) as client, pytest.raises(e.InvalidDataset) as caught:
        client.add_dataset("toy", {"train": file})
    (fault,) = caught.value.faults
    assert (fault.split, fault.row, fault.column) == ("train", 7, "text")


@pytest.mark.parametrize("code", sorted(e.error_classes()))
def test_error_of_the_gateway_keeps_its_class(code: str) -> None:
    fields = {"errors": [FAULT]} if code == "invalid_dataset" else {"facts": {"state": "queued"}}
    answer = problem(400, code, "change this", **fields)
    with client_of(lambda _: answer, tries=1) as client, pytest.raises(e.TLMError) as caught:
        client.info()
    assert type(caught.value) is e.error_classes()[code]
    assert caught.value.message == "change this"


@pytest.mark.parametrize(
    ("status", "kind", "remedy"),
    [
        (413, e.InvalidRequest, "too large for this server. Send less"),
        (401, e.Unauthorized, "Check the URL"),
        (404, e.NotFound, "Check the URL"),
        (408, e.Unavailable, "took too long. Try again"),
        (429, e.Unavailable, "too many requests. Try again later"),
        (502, e.Unavailable, "Check the URL"),
    ],
)
def test_response_without_problem_body_is_classified_by_status(
    status: int, kind: type[e.TLMError], remedy: str
) -> None:
    answer = httpx.Response(status, text="<html>proxy</html>")
    with client_of(lambda _: answer, tries=1) as client, pytest.raises(e.TLMError, match=remedy) as caught:
        client.info()
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(200, text="<html>"), "Check the URL"),
        (httpx.Response(200, json={"id": 5}), "same release"),
    ],
)
def test_unreadable_answer_raises_an_error_with_advice(answer: httpx.Response, message: str) -> None:
    with client_of(lambda _: answer) as client, pytest.raises(e.TLMError, match=message):
        client.job("job_1")


@pytest.mark.parametrize("status", [200, 202, 207])
def test_deletion_that_the_gateway_did_not_answer_is_an_error(status: int) -> None:
    answer = httpx.Response(status, text="<html>Sign in</html>")
    with (
        client_of(lambda _: answer) as client,
        pytest.raises(e.TLMError, match=f"answered {status} to DELETE"),
    ):
        client.delete_job("job_1")


def test_unknown_fields_of_an_answer_are_ignored() -> None:
    view = job_view(new=1)
    view["spec"]["new"] = view["resolved_recipe"]["joint"]["new"] = 1
    with client_of(lambda _: httpx.Response(200, json=view)) as client:
        assert client.job("job_1").spec.dataset == "toy"


def test_submission_is_retried_with_the_same_idempotency_key() -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadTimeout("the answer was lost")
        if len(keys) == 2:
            return problem(503, "store_unavailable", "Redis is down", retryable=True)
        return httpx.Response(202, json=job_view())

    with client_of(handler) as client:
        assert client.submit(JobSpec(dataset="toy", corpus="docs")).id == "job_1"
        client.submit(JobSpec(dataset="toy", corpus="docs"))
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] != keys[0]


@pytest.mark.parametrize(("header", "delay"), [("7", 7.0), ("3600", 30.0)])
def test_retry_waits_as_retry_after_says_but_not_for_minutes(header: str, delay: float) -> None:
    answers = [problem(503, "unavailable", "busy"), httpx.Response(200, json={"data": [], "has_more": False})]
    answers[0].headers["Retry-After"] = header
    delays: list[float] = []
    with client_of(lambda _: answers.pop(0), sleep=delays.append) as client:
        assert client.webhooks() == []
    assert delays == [delay]


@pytest.mark.parametrize("key", ["a b\n", ""])
def test_invalid_idempotency_key_is_not_replaced_or_blamed_on_the_gateway(key: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Idempotency-Key"] == key
        raise httpx.LocalProtocolError(f"Illegal header value {key!r}")

    with client_of(handler) as client, pytest.raises(e.InvalidRequest, match="Cannot send the request: Illegal header"):
        client.submit(JobSpec(dataset="toy", corpus="docs"), key=key)


@pytest.mark.parametrize("code", ["not_found", "conflict", "not_ready"])
def test_error_that_does_not_pass_within_seconds_is_not_retried(code: str) -> None:
    requests = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return problem(404, code, "no")

    with client_of(handler) as client, pytest.raises(e.TLMError, match="no"):
        client.job("job_1")
    assert len(requests) == 1


def test_request_that_is_not_idempotent_is_sent_once() -> None:
    paths = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        raise httpx.ReadTimeout("lost")

    with client_of(handler) as client, pytest.raises(e.Unavailable, match=f"{URL} does not answer"):
        client.delete_dataset("ds_1")
    assert paths == ["/v1/datasets/ds_1"]


def test_list_requests_page_after_page() -> None:
    queries = []

    def handler(request: httpx.Request) -> httpx.Response:
        queries.append(dict(request.url.params))
        ids = ["job_3", "job_2"] if "after" not in request.url.params else ["job_1"]
        return httpx.Response(200, json={"data": [job_summary(id=i) for i in ids], "has_more": len(ids) == 2})

    with client_of(handler) as client:
        assert [job.id for job in client.jobs("queued")] == ["job_3", "job_2", "job_1"]
    assert queries == [{"limit": "100", "state": "queued"}, {"limit": "100", "state": "queued", "after": "job_2"}]


def test_upload_sends_each_file_under_its_split(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nx,y\n")
    requests = []

    def handler(request: httpx.Request) -> httpx.Response:
        request.read()
        requests.append(request)
        return httpx.Response(201, json=dataset_view(report={"notes": []}))

    with client_of(handler) as client:
        dataset = client.add_dataset("toy", {"train": tmp_path / "a.csv"}, {"label_column": "label"})
    assert dataset.report == {"notes": []}
    body = requests[0].content
    assert b'name="train"; filename="a.csv"' in body and b"text,label\nx,y\n" in body
    assert b'{"label_column": "label"}' in body
    assert requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(("size", "change"), [(1_000, "shorter"), (300_000, "longer")])
def test_file_that_changes_during_the_upload_is_an_error(tmp_path: Path, size: int, change: str) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(b"x" * 200_000)

    class Changing(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            assert int(request.headers["Content-Length"]) > 200_000
            file.write_bytes(b"x" * size)
            return httpx.Response(201, json=dataset_view(digest=request.read().decode()))

    client, message = TLMClient(URL, "secret", transport=Changing()), rf"train\.csv became {change}.* again"
    with client, pytest.raises(e.InvalidRequest, match=message):
        client.add_dataset("toy", {"train": file})


@pytest.mark.parametrize("create", [os.mkfifo, os.mkdir])
def test_pipe_or_folder_is_refused_before_the_upload(tmp_path: Path, create: Callable[[Path], None]) -> None:
    class Unread(httpx.BaseTransport):
        def handle_request(self, _: httpx.Request) -> httpx.Response:
            return httpx.Response(201, json=dataset_view())

    create(tmp_path / "train.csv")
    client = TLMClient(URL, "secret", transport=Unread())
    with client, pytest.raises(e.InvalidRequest, match=r"train\.csv is a folder, a pipe or a device. Name a file"):
        client.add_dataset("toy", {"train": tmp_path / "train.csv"})


def test_missing_file_is_refused_before_the_upload(tmp_path: Path) -> None:
    with (
        client_of(lambda _: problem(500, "internal", "")) as client,
        pytest.raises(e.InvalidRequest, match="not exist"),
    ):
        client.add_dataset("toy", {"train": tmp_path / "train.csv"})


def test_corpus_may_have_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(200)]
    for file in files:
        file.write_text(f"text {file.stem}")

    def handler(request: httpx.Request) -> httpx.Response:
        assert all(f"text {file.stem}".encode() in request.read() for file in files)
        return httpx.Response(202, json=load_view())

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client_of(handler) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, before[1]))
        try:
            client.add_corpus("docs", files)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_waiting_for_a_corpus_ends_when_ready_or_failed() -> None:
    states = ["queued", "indexing", "ready"]

    def handler(_: httpx.Request) -> httpx.Response:
        error = e.IndexUnavailable("the index is down").as_dict() if states[0] == "failed" else None
        return httpx.Response(200, json=load_view(state=states.pop(0), done=1, total=2, version="v1", error=error))

    seen: list[str] = []
    with client_of(handler) as client:
        client.wait_corpus("docs", "load_1", lambda load: seen.append(load.state))
        assert seen == ["queued", "indexing", "ready"]
        states[:] = ["failed"]
        with pytest.raises(e.IndexUnavailable, match="the index is down"):
            client.wait_corpus("docs", "load_1")


class Restarting:
    """A gateway that does not answer during the 60 s after `path` was requested."""

    def __init__(self, path: str, answers: Handler) -> None:
        self.now, self.start = 0.0, 1e9
        self.path, self.answers = path, answers

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.start = min(self.start, self.now) if request.url.path.endswith(self.path) else self.start
        if self.now < self.start + 60 and self.start < 1e9:
            raise httpx.ConnectError("refused")
        return self.answers(request)

    def client(self) -> TLMClient:
        return client_of(self, sleep=self.sleep, clock=lambda: self.now)


def test_long_operations_survive_the_restart_of_the_gateway() -> None:
    def answers(request: httpx.Request) -> httpx.Response:
        match request.url.path.split("/")[-1]:
            case "load_1":
                return httpx.Response(200, json=load_view(state="ready"))
            case "events":
                return event_stream(end())
            case "info":
                limits = {"max_upload_bytes": 1, "max_json_bytes": 10_000, "max_predict_texts": 1}
                return httpx.Response(200, json={"version": "1", "scales": [], "recipes": [], **limits})
            case "predict":
                model = {"name": "linear", "final": True}
                return httpx.Response(200, json={"data": [{"label": "a", "probability": 0.5}], "model": model})
        return httpx.Response(200, json=job_view(state="succeeded"))

    with Restarting("/load_1", answers).client() as client:
        assert client.wait_corpus("docs", "load_1").state == "ready"
    with Restarting("/predict", answers).client() as client:
        assert [prediction.label for prediction in client.predict_many("job_1", ["x", "y"])] == ["a", "a"]
    with Restarting("/job_1", answers).client() as client:
        assert client.wait("job_1").state == "succeeded"


def test_outage_longer_than_the_patience_ends_an_operation() -> None:
    gateway = Restarting("/load_1", lambda _: httpx.Response(200, json=load_view(state="ready")))
    with gateway.client() as client, pytest.raises(e.Unavailable, match="does not answer"):
        client.wait_corpus("docs", "load_1", patience=20.0)
    assert 20 <= gateway.now < 60


def test_predictions_keep_the_order_of_the_texts() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body.get("min_confidence") in (None, 0.8)
        rows = [{"label": t, "probability": 0.9, "probabilities": {t: 0.9, "other": 0.1}} for t in body["texts"]]
        return httpx.Response(200, json={"data": rows, "model": {"name": "linear", "final": False, "note": "Not yet."}})

    with client_of(handler) as client:
        answer = client.predict("job_1", ["b", "a"])
        assert [p.label for p in answer.data] == ["b", "a"]
        assert (answer.model.name, answer.model.final) == ("linear", False)
        client.predict("job_1", ["b"], min_confidence=0.8)


def test_error_of_the_texts_is_not_a_wrong_number_of_pairs() -> None:
    def undecodable() -> Iterator[str]:
        yield "a"
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with pytest.raises(UnicodeDecodeError):
        list(http.batches(undecodable(), ["b", "c"], 10, 10_000))
    for texts, pairs in ((["a"], ["b", "c"]), (["a", "b"], ["c"])):
        with pytest.raises(e.InvalidRequest, match="not as many pairs as texts"):
            list(http.batches(texts, pairs, 10, 10_000))


@pytest.mark.parametrize(
    ("texts", "pairs"), [(["a", None], None), (["a", None], ["b", "c"]), (["a", "b"], ["c", None])]
)
def test_missing_value_among_the_texts_is_an_error_of_the_gateway(texts: Any, pairs: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/info":
            limits = {"max_upload_bytes": 1, "max_json_bytes": 10_000, "max_predict_texts": 9}
            return httpx.Response(200, json={"version": "1", "scales": [], "recipes": [], **limits})
        assert json.loads(request.content) == {"texts": texts} | ({"pairs": pairs} if pairs else {})
        return problem(422, "invalid_request", "/texts/1: Write a text.")

    with client_of(handler) as client, pytest.raises(e.InvalidRequest, match="/texts/1"):
        list(client.predict_many("job_1", texts, pairs))


def test_names_in_paths_are_percent_encoded() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path == b"/v1/corpora/my%20docs/versions/v1/refused"
        entry = {"id": "p9", "text": "t", "source": "s", "reason": "id is too long"}
        return httpx.Response(200, json={"data": [entry]})

    with client_of(handler) as client:
        assert [entry.reason for entry in client.refused_passages("my docs", "v1")] == ["id is too long"]


@pytest.mark.parametrize("part", ["", ".", ".."])
def test_name_that_would_change_the_path_is_refused(part: str) -> None:
    with client_of(lambda request: httpx.Response(500, text=str(request.url))) as client:
        with pytest.raises(e.InvalidRequest, match="Invalid name or id"):
            client.delete_corpus("precious", part)
        with pytest.raises(e.InvalidRequest, match="Invalid name or id"):
            client.delete_dataset(part)


def test_redirection_is_an_error_that_names_its_target() -> None:
    answer = httpx.Response(307, headers={"Location": "https://login.example/"})
    with client_of(lambda _: answer) as client:
        for call in (client.delete_job, client.report, lambda job: list(client.events(job))):
            with pytest.raises(e.InvalidRequest, match=r"answered 307 .* to https://login\.example/\. Check the URL"):
                call("job_1")


def test_empty_answer_is_no_result() -> None:
    with (
        client_of(lambda _: httpx.Response(200)) as client,
        pytest.raises(e.TLMError, match="did not answer with JSON"),
    ):
        client.report("job_1")


def test_empty_token_sends_no_authorization_header() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert "Authorization" not in request.headers
        return problem(401, "unauthorized", "send the API token")

    with TLMClient(URL, "", transport=httpx.MockTransport(handler)) as client, pytest.raises(e.Unauthorized):
        client.info()


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("http://host:80z", "t", "Invalid port"),
        ("http://host:99999", "t", "Invalid gateway URL"),
        ("http://host:0", "t", "Invalid gateway URL"),
        ("http://a..b", "t", "Invalid gateway URL"),
        ("gateway.example", "t", "such as http://"),
        (URL, "t…", "non-ASCII"),
        (URL, "t\n", "line break"),
    ],
)
@pytest.mark.parametrize("kind", [TLMClient, AsyncTLMClient])
def test_invalid_url_or_token_is_rejected(
    kind: type[TLMClient | AsyncTLMClient], url: str, token: str, message: str
) -> None:
    with pytest.raises(e.InvalidRequest, match=message):
        kind(url, token)
