"""Watching jobs over HTTP: series, log lines, comparison, and provenance."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from tests.contract.dashboard_pages import signed_in
from tests.contract.gateway import AUTH, TRAIN, Gateway, add_dataset
from tests.contract.job_results import make_selection, publish
from tests.contract.recorded_jobs import record
from tests.factories import make_resolved, make_spec
from tlm_core.errors import WorkerLost
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.recipe import resolve

T = "default"


def running(gateway: Gateway, set_: dict[str, Any] | None = None, **spec: Any) -> JobRecord:
    resolved = make_resolved(recipe=resolve("fast", "tiny", set_ or {}))
    gateway.parts.jobs.submit(T, make_spec(**spec), resolved)
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    return job


def report_points(gateway: Gateway, job: JobRecord, steps: range, node: str = "joint.s0") -> None:
    points = [{"node": node, "stage": "joint", "step": n, "mlm": 10.0 - n / 100, "task": None} for n in steps]
    gateway.parts.jobs.report(T, job.id, job.attempt, metrics=points)


def test_series_are_columns_without_missing_values(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    report_points(gateway, job, range(1, 501))
    report_points(gateway, job, range(1, 4), node="finetune.s0")
    first = api.get(f"/v1/jobs/{job.id}/metrics?limit=1").json()["data"][0]
    assert datetime.fromisoformat(first["at"]).tzinfo and (first["node"], first["step"]) == ("joint.s0", 1)
    series = api.get(f"/v1/jobs/{job.id}/metrics/series?points=50").json()["data"]
    assert [(s["node"], s["name"], s["total"]) for s in series] == [("joint.s0", "mlm", 500), ("finetune.s0", "mlm", 3)]
    assert (series[0]["steps"][0], series[0]["steps"][-1], len(series[0]["steps"]) <= 50) == (1, 500, True)
    assert len(series[0]["values"]) == len(series[0]["at"]) == len(series[0]["steps"])
    finetuning = api.get(f"/v1/jobs/{job.id}/metrics/series?node=finetune.s0&name=mlm").json()["data"]
    assert [s["node"] for s in finetuning] == ["finetune.s0"]
    assert api.get(f"/v1/jobs/{job.id}/metrics/series?points=3").status_code == 422


def test_resumed_attempt_replaces_lost_points(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    report_points(gateway, job, range(1, 31))
    gateway.parts.jobs.requeue(job, "a", WorkerLost("gone"), 0)
    again = gateway.parts.jobs.claim("a", 60)
    assert again is not None
    report_points(gateway, again, range(21, 41))
    (series,) = api.get(f"/v1/jobs/{job.id}/metrics/series").json()["data"]
    assert series["steps"] == list(range(1, 41))


def test_log_tail_returns_the_last_lines(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    gateway.parts.jobs.report(T, job.id, 1, logs=[f"line {n}" for n in range(50)])
    page = api.get(f"/v1/jobs/{job.id}/logs?tail=3").json()
    assert [entry["line"] for entry in page["data"]] == ["line 47", "line 48", "line 49"]
    assert all(datetime.fromisoformat(entry["at"]).tzinfo for entry in page["data"])
    assert api.get(f"/v1/jobs/{job.id}/logs?tail=3&after={page['data'][-1]['id']}").json()["data"] == []
    first = api.get(f"/v1/jobs/{job.id}/logs?limit=1").json()["data"][0]["id"]
    assert api.get(f"/v1/jobs/{job.id}/logs?tail=3&after={first}").json() == page
    two = api.get(f"/v1/jobs/{job.id}/logs?tail=3&after={page['data'][0]['id']}").json()["data"]
    assert two == page["data"][1:], "Only two lines follow."


@pytest.mark.parametrize("after", ["9" * 20, "5-" + "9" * 20, "\u0665"])
def test_invalid_line_id_is_refused(api: TestClient, gateway: Gateway, after: str) -> None:
    job = running(gateway)
    for path in ("logs", "metrics"):
        answer = api.get(f"/v1/jobs/{job.id}/{path}", params={"after": after})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/after"), answer.text
    assert api.get(f"/v1/jobs/{job.id}/logs", params={"after": "9" * 19}).json()["data"] == []


def frames(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    frame: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            frame[name] = value
        elif "event" in frame:
            yield frame
            frame = {}
        else:
            frame = {}


def read(
    url: str, job: str, *, count: int | None = None, last: str | None = None, query: str = ""
) -> list[dict[str, str]]:
    headers = {**AUTH, "Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
    received = []
    with httpx.stream("GET", f"{url}/v1/jobs/{job}/logs{query}", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        for frame in frames(answer.iter_lines()):
            received.append(frame)
            if count is not None and len(received) == count:
                break
    return received


def test_followed_log_is_complete_after_interruptions(gateway: Gateway) -> None:
    job, store = running(gateway), gateway.parts.jobs
    store.report(T, job.id, 1, logs=[f"line {n}" for n in range(5)])
    with gateway.served() as url:
        first = read(url, job.id, count=3)
        writer = threading.Thread(
            target=lambda: (
                [store.report(T, job.id, 1, logs=[f"line {n}"]) for n in range(5, 20)],
                store.finish(job, "a", {}),
            )
        )
        writer.start()
        rest = read(url, job.id, last=first[-1]["id"])
        writer.join()
        tail = read(url, job.id, query="?tail=2")
        after = read(url, job.id, query=f"?tail=2&after={first[0]['id']}")
        again = read(url, job.id, query="?tail=2", last=first[-1]["id"])
        refused = httpx.get(
            f"{url}/v1/jobs/{job.id}/logs", headers={**AUTH, "Accept": "text/event-stream", "Last-Event-ID": "x"}
        )
    lines = [json.loads(frame["data"])["line"] for frame in first + rest if frame["event"] == "line"]
    assert lines == [f"line {n}" for n in range(20)]
    assert (rest[-1]["event"], json.loads(rest[-1]["data"])) == ("end", {"state": "succeeded"})
    assert [json.loads(f["data"]).get("line") for f in tail] == ["line 18", "line 19", None]
    assert (after, again) == (tail, rest), "A resumed stream is complete."
    assert refused.status_code == 422


def test_comparison_lists_differences(api: TestClient, gateway: Gateway) -> None:
    first = running(gateway, {"joint.rho2": 5})
    report_points(gateway, first, range(1, 300))
    record(gateway, first, lambda _: 1.0, {"joint": 2e12})
    second = running(gateway, {"joint.rho2": 7}, seeds=(3,))
    response = api.get(f"/v1/jobs/compare?ids={first.id}&ids={second.id}&points=20")
    assert response.status_code == 200, response.text
    body = response.json()
    assert [job["id"] for job in body["jobs"]] == [first.id, second.id]
    assert {d["key"]: d["values"] for d in body["differences"]} == {"seeds": [[0], [3]], "joint.rho2": [5, 7]}
    assert body["outcomes"][0]["mean"]["test"]["macro_f1"] == 0.5
    assert body["outcomes"][0]["cost"]["total"]["flops"] == 2e12
    assert body["outcomes"][1]["mean"] is None and "has not finished stage 'evaluate'" in body["outcomes"][1]["reason"]
    (curve,) = body["curves"][0]["series"]
    assert (curve["name"], curve["total"], len(curve["steps"]) <= 20) == ("mlm", 299, True)
    assert api.get(f"/v1/jobs/compare?ids={first.id},{second.id}").json()["differences"] == body["differences"]


@pytest.mark.usefixtures("stocked")
def test_comparison_lists_options_of_the_kind(api: TestClient, gateway: Gateway) -> None:
    for name in ("second", "third"):
        add_dataset(gateway, name, {"train": TRAIN.replace("film", name)})

    def differences(kind: str, *options: dict[str, Any]) -> dict[str, list[Any]]:
        alone = {"dataset": "toy", "overrides": {"selection.selector": "none"}, "kind": kind}
        answers = [api.post("/v1/jobs", json=alone | ({"options": choice} if choice else {})) for choice in options]
        assert [answer.status_code for answer in answers] == [202, 202], [answer.text for answer in answers]
        ids = ",".join(answer.json()["id"] for answer in answers)
        return {d["key"]: d["values"] for d in api.get(f"/v1/jobs/compare?ids={ids}").json()["differences"]}

    assert differences("prune", {"levels": [0.15]}, {"levels": [0.3]}) == {"options.levels": [[0.15], [0.3]]}
    curves = [{"models": ["bilstm"], "sizes": sizes, "lstm": {"layers": sizes[0]}} for sizes in ([2, 8], [4, 8])]
    assert differences("learning_curve", *curves) == {
        "options.sizes": [[2, 8], [4, 8]], "options.lstm.layers": [2, 4],
    }  # fmt: skip
    assert differences("prune", {"tickets": ["winning", "random", "losing"]}, {}) == {}, "These are the defaults."
    shared = differences("share_tickets", {"others": ["second"]}, {"others": ["third"], "tickets": {"toy": 0.3}})
    assert shared.pop("options.tickets.toy") == [None, 0.3]
    ((key, (second_id, third_id)),) = shared.items()
    assert key == "options.others"
    names = [others[0]["dataset"] for others in (second_id, third_id)]
    assert [name.split(" (")[0] for name in names] == ["second@v1", "third@v1"]
    assert [len(name.split(" (")[1]) for name in names] == [9, 9], "8 digits of the digest and a parenthesis"


@pytest.mark.usefixtures("stocked")
def test_comparison_lists_reading_options(api: TestClient, gateway: Gateway) -> None:
    alone = {"overrides": {"selection.selector": "none"}}
    toy = add_dataset(gateway, "toy", {"train": TRAIN}, split_seed=3)
    ids = [api.post("/v1/jobs", json=alone | {"dataset": name}).json()["id"] for name in ("toy@v1", toy)]
    (difference,) = api.get(f"/v1/jobs/compare?ids={','.join(ids)}").json()["differences"]
    assert difference == {"key": "dataset_options.split_seed", "values": [None, 3]}


@pytest.mark.parametrize("query", ["", "?ids=job_a", "?ids=job_a&ids=job_a", "?ids=" + ",".join(map(str, range(11)))])
def test_comparison_needs_two_to_ten_jobs(api: TestClient, query: str) -> None:
    assert api.get(f"/v1/jobs/compare{query}").status_code == 422


def test_comparison_of_an_unknown_job_is_not_found(api: TestClient) -> None:
    assert api.get("/v1/jobs/compare?ids=job_a,job_b").status_code == 404


@pytest.fixture
def explained(gateway: Gateway) -> str:
    return explained_job(gateway, ["neg", "pos"], pa.array([0, 1, 1], pa.int32()))


def explained_job(gateway: Gateway, names: list[str], labels: Any, **columns: list[str]) -> str:
    """Return the id of a job with a task of three train rows and a selection. columns: further columns of the rows."""
    job = running(gateway)
    task = gateway.root / "files" / "task"
    task.mkdir(parents=True)
    (task / "task.json").write_text(json.dumps({"labels": names}))
    rows = {"row": [1, 2, 3], "text": ["first row", "second row", "<b>third"], "label": labels, **columns}
    pq.write_table(pa.table(rows), task / "train.parquet")
    publish(gateway.parts.jobs, gateway.parts.artifacts, job, "validate", task)
    chosen = gateway.root / "files" / "selection"
    chosen.mkdir()
    make_selection(chosen)
    publish(gateway.parts.jobs, gateway.parts.artifacts, job, "select", chosen)
    return job.id


def test_passages_have_their_provenance(api: TestClient, explained: str) -> None:
    page = api.get(f"/v1/jobs/{explained}/selection?limit=2").json()
    assert (page["total"], page["has_more"]) == (30, True)
    assert [(a["train_row"], a["text"], a["label"]) for a in page["data"][1]["provenance"]] == [
        (1, "first row", "neg"), (2, "second row", "pos"),
    ]  # fmt: skip
    assert page["data"][0]["provenance"][0]["text"] == "<b>third"


def test_provenance_has_both_texts_of_a_pair(api: TestClient, gateway: Gateway) -> None:
    pairs = ["no passage", "second pair", "third pair"]
    job = explained_job(gateway, ["neg", "pos"], pa.array([0, 1, 1], pa.int32()), text_pair=pairs)
    page = api.get(f"/v1/jobs/{job}/selection?limit=2").json()
    assert [row["text_pair"] for row in page["data"][1]["provenance"]] == ["no passage", "second pair"]
    shown = signed_in(gateway).get(f"/ui/jobs/{job}/selection").text
    assert "first row ║ no passage</p>" in shown and "</span> second row ║ second pair</li>" in shown


@pytest.mark.parametrize(("largest", "shown"), [(5.0, "5"), (100000009.474, "100000009")])
def test_selection_of_a_regression_task_shows_the_targets_of_the_rows(
    api: TestClient, gateway: Gateway, largest: float, shown: str
) -> None:
    job = explained_job(gateway, ["similarity"], pa.array([0.0, 3.8, largest], pa.float64()))
    response = api.get(f"/v1/jobs/{job}/selection?limit=2")
    assert response.status_code == 200, response.text
    assert [row["label"] for passage in response.json()["data"] for row in passage["provenance"]] == [shown, "0", "3.8"]
    assert '<span class="tag">3.8</span> second row' in signed_in(gateway).get(f"/ui/jobs/{job}/selection").text


def test_selection_can_be_searched(api: TestClient, explained: str) -> None:
    url = f"/v1/jobs/{explained}/selection"
    first_page = api.get(url, params={"q": "PASSAGE 1", "limit": 5}).json()
    numbers = [n for n in range(30) if "1" in str(n)]
    assert first_page["total"] == len(numbers)
    rest = api.get(url, params={"q": "PASSAGE 1", "after": 5}).json()
    texts = [passage["text"] for passage in first_page["data"] + rest["data"]]
    assert texts == [f"passage {n} <b>&" for n in numbers]
    assert api.get(url, params={"q": ".*"}).json()["total"] == 0, "The query is not a pattern."
    by_row = api.get(url, params={"train_row": 3, "limit": 100}).json()
    assert {a["train_row"] for passage in by_row["data"] for a in passage["provenance"]} == {3}
    assert api.get(url, params={"train_row": 3, "q": "28"}).json()["total"] == 1
    assert api.get(url, params={"train_row": 0}).status_code == 422
