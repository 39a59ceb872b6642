"""The client: errors keep their class and faults, retries do no harm, pages are walked, uploads are whole."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.unit.client.gateway import URL, client_of, dataset_view, job_view, load_view, problem
from tlm_client.client import AsyncTLMClient, TLMClient
from tlm_core import errors as e
from tlm_core.jobs.spec import JobSpec

FAULT = {"code": "null_text", "message": "row 7 has no text", "split": "train", "row": 7, "column": "text"}


def test_faults_in_data_arrive_with_row_and_column(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("text,label\n,a\n", encoding="utf-8")
    answer = problem(422, "invalid_dataset", "the data set has a fault", errors=[FAULT])
    with client_of(lambda _: answer) as client, pytest.raises(e.InvalidDataset) as caught:
        client.add_dataset("toy", {"train": file})
    (fault,) = caught.value.faults
    assert (fault.split, fault.row, fault.column) == ("train", 7, "text")


@pytest.mark.parametrize("code", sorted(e.error_classes()))
def test_every_error_of_the_tree_arrives_as_itself(code: str) -> None:
    more = {"errors": [FAULT]} if code == "invalid_dataset" else {"facts": {"state": "queued"}}
    answer = problem(400, code, "change this", **more)
    with client_of(lambda _: answer, tries=1) as client, pytest.raises(e.TLMError) as caught:
        client.info()
    assert type(caught.value) is e.error_classes()[code]
    assert caught.value.message == "change this"


@pytest.mark.parametrize(
    ("status", "kind"), [(413, e.InvalidRequest), (401, e.Unauthorized), (404, e.NotFound), (502, e.Unavailable)]
)
def test_an_answer_that_is_no_problem_of_ours_is_judged_by_its_status(status: int, kind: type[e.TLMError]) -> None:
    answer = httpx.Response(status, text="<html>proxy</html>")
    with client_of(lambda _: answer, tries=1) as client, pytest.raises(e.TLMError) as caught:
        client.info()
    assert type(caught.value) is kind


def test_something_else_than_json_is_said_to_be_another_server() -> None:
    with (
        client_of(lambda _: httpx.Response(200, text="<html>")) as client,
        pytest.raises(e.TLMError, match="check the URL"),
    ):
        client.info()


def test_a_submission_whose_answer_was_lost_is_repeated_under_the_same_key() -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadTimeout("the answer was lost")
        if len(keys) == 2:
            return problem(503, "store_unavailable", "Redis is away", retryable=True)
        return httpx.Response(202, json=job_view())

    with client_of(handler) as client:
        assert client.submit(JobSpec(dataset="toy", corpus="docs")).id == "job_1"
        client.submit(JobSpec(dataset="toy", corpus="docs"))
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] != keys[0], "another submission is another job"


def test_what_could_do_harm_twice_is_sent_once() -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        raise httpx.ReadTimeout("lost")

    with client_of(handler) as client, pytest.raises(e.Unavailable, match=f"{URL} does not answer"):
        client.delete_dataset("ds_1")
    assert calls == ["/v1/datasets/ds_1"]


def test_lists_are_walked_page_by_page() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        ids = ["job_3", "job_2"] if "after" not in request.url.params else ["job_1"]
        return httpx.Response(200, json={"data": [job_view(id=i) for i in ids], "has_more": len(ids) == 2})

    with client_of(handler) as client:
        assert [job.id for job in client.jobs("queued")] == ["job_3", "job_2", "job_1"]
    assert asked == [{"limit": "100", "state": "queued"}, {"limit": "100", "state": "queued", "after": "job_2"}]


def test_an_upload_carries_every_file_under_its_field(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nx,y\n")
    sent = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent["body"] = request.read()
        sent["token"] = request.headers["Authorization"]
        return httpx.Response(201, json=dataset_view(report={"notes": []}))

    with client_of(handler) as client:
        dataset = client.add_dataset("toy", {"train": tmp_path / "a.csv"}, {"label_column": "label"})
    assert dataset.report == {"notes": []}
    assert b'name="train"; filename="a.csv"' in sent["body"] and b"text,label\nx,y\n" in sent["body"]
    assert b'{"label_column": "label"}' in sent["body"]
    assert sent["token"] == "Bearer secret"


def test_waiting_for_a_corpus_ends_when_it_is_ready_or_raises_why_it_failed() -> None:
    states = ["queued", "indexing", "ready"]

    def handler(_: httpx.Request) -> httpx.Response:
        error = e.IndexUnavailable("the index is away").as_dict() if states[0] == "failed" else None
        load = load_view(state=states.pop(0), done=1, total=2, version="v1", error=error)
        return httpx.Response(200, json=load)

    seen: list[str] = []
    with client_of(handler) as client:
        client.wait_corpus("docs", "load_1", lambda load: seen.append(load.state))
        assert seen == ["queued", "indexing", "ready"]
        states[:] = ["failed"]
        with pytest.raises(e.IndexUnavailable, match="the index is away"):
            client.wait_corpus("docs", "load_1")


def test_predictions_come_in_the_order_of_the_texts() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["texts"]
        rows = [{"label": t, "probability": 0.9, "probabilities": {t: 0.9, "other": 0.1}} for t in texts]
        return httpx.Response(200, json={"data": rows})

    with client_of(handler) as client:
        assert [p.label for p in client.predict("job_1", ["b", "a"])] == ["b", "a"]


def test_an_answer_of_another_release_is_told_as_such() -> None:
    with (
        client_of(lambda _: httpx.Response(200, json={"id": 5})) as client,
        pytest.raises(e.TLMError, match="same release"),
    ):
        client.job("job_1")


def test_passages_that_the_index_left_out_are_told_with_the_reason() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path == b"/v1/corpora/my%20docs/versions/v1/refused"
        entry = {"id": "p9", "text": "t", "source": "s", "reason": "id is too long"}
        return httpx.Response(200, json={"data": [entry]})

    with client_of(handler) as client:
        assert [entry.reason for entry in client.refused_passages("my docs", "v1")] == ["id is too long"]


def test_without_a_token_none_is_sent_so_that_the_gateway_says_what_is_missing() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert "Authorization" not in request.headers
        return problem(401, "unauthorized", "send the API token")

    with TLMClient(URL, "", transport=httpx.MockTransport(handler)) as client, pytest.raises(e.Unauthorized):
        client.info()


@pytest.mark.parametrize(
    ("url", "token", "says"),
    [
        ("http://host:80z", "t", "Invalid port"),
        ("http://host:99999", "t", "no URL of a gateway"),
        ("http://a..b", "t", "no URL of a gateway"),
        ("gateway.example", "t", "such as http://"),
        (URL, "t…", "not ASCII"),
        (URL, "t\n", "line break"),
    ],
)
@pytest.mark.parametrize("kind", [TLMClient, AsyncTLMClient])
def test_a_url_or_token_that_nothing_can_be_sent_with_is_refused(
    kind: type[TLMClient | AsyncTLMClient], url: str, token: str, says: str
) -> None:
    with pytest.raises(e.InvalidRequest, match=says):
        kind(url, token)
